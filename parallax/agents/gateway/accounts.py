"""Which account a call goes to, how fast, and until when an account is closed. One state per account for all agents.

A call waits its turn at its account's token bucket. What a provider says of its limits (429, 529, reset headers)
closes the account for everybody until then; calls go to another account of the same provider meanwhile.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from parallax.agents.gateway.providers import Account

LIMITED: Final = frozenset({429, 529})
BACKOFF_S: Final = (5.0, 60.0)  # a limit without a time: doubling from the first to the second
LONGEST_S: Final = 8 * 86_400.0  # a weekly window; what claims to last longer is not believed
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


@dataclass(slots=True)
class Bucket:
    """A token bucket that is filled `per_minute`, and never holds more. Whoever takes gets a time to wait, in order."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _level: float = field(init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._level = float(self.per_minute)
        self._at = self.clock()

    def take(self, amount: float) -> float:
        """Seconds to wait before what was taken may be used."""
        now = self.clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        self._level -= min(amount, self.per_minute)  # one call over the whole minute waits for a full bucket, not ever
        return max(0.0, -self._level * 60 / self.per_minute)


@dataclass(slots=True)
class AccountState:
    """An account and what is known of its limits. `until` is a unix time; 0 when it is open."""

    provider: str
    account: Account
    buckets: tuple[Bucket | None, Bucket | None] = (None, None)
    until: float = 0.0
    backoffs: int = 0
    in_flight: int = 0
    tokens: int = 0

    @property
    def name(self) -> str:
        """`anthropic/default`."""
        return f"{self.provider}/{self.account.name}"

    def pace(self, tokens: int) -> float:
        """Take a request and so many tokens; seconds to wait for them."""
        requests, minute = self.buckets
        return max(requests.take(1) if requests else 0.0, minute.take(tokens) if minute else 0.0)

    def note(self, status: int, headers: Mapping[str, str], body: bytes, now: float) -> float | None:
        """Learn from an answer. Returns the unix time until which the account is closed, None while it is open."""
        if status in LIMITED:
            until = reset_of(headers, body, now)
            if until is None:
                self.backoffs += 1
                until = now + min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** (self.backoffs - 1))
            self.until = max(self.until, min(until, now + LONGEST_S))
            return self.until
        if status < 400:
            self.backoffs, self.until = 0, 0.0
            if (spent := _used_up(headers, now)) is not None:
                self.until = min(spent, now + LONGEST_S)
        return self.until or None


class Accounts:
    """All accounts of this server. `rule`: `order` takes the first open one, `spread` the one with the least to do.

    An agent stays with its account while that is open: the provider's cache of its conversation is there.
    """

    def __init__(self, accounts: Mapping[str, Sequence[Account]], rule: str = "order") -> None:
        self._rule = rule
        self._states = {
            provider: [AccountState(provider, account, _buckets(account)) for account in given]
            for provider, given in accounts.items()
        }
        self._kept: dict[tuple[str, str], AccountState] = {}

    def has_key(self, provider: str) -> bool | None:
        """Whether keys are added for the provider; None: it is not configured at all."""
        states = self._states.get(provider)
        return any(state.account.key is not None for state in states) if states else None

    def choose(self, provider: str, agent_id: str, tried: Sequence[AccountState] = ()) -> AccountState | None:
        """The account for a call; a closed one when all are, None when all were tried."""
        keyed = self.has_key(provider)
        left = [s for s in self._states[provider] if s not in tried and (s.account.key is not None) == keyed]
        if not left:
            return None
        now = time.time()
        kept = self._kept.get((agent_id, provider))
        if kept is not None and kept in left and kept.until <= now:
            return kept
        opened = [state for state in left if state.until <= now]
        if not opened:
            return min(left, key=lambda state: state.until)
        chosen = opened[0] if self._rule == "order" else min(opened, key=lambda s: (s.in_flight, s.tokens))
        self._kept[agent_id, provider] = chosen
        return chosen

    def forget(self, agent_id: str) -> None:
        """The agent has gone."""
        for key in [key for key in self._kept if key[0] == agent_id]:
            del self._kept[key]

    def limited_until(self, provider: str) -> float | None:
        """The unix time at which the first account of a provider opens again; None while one is open."""
        until = min((state.until for state in self._states.get(provider, ())), default=0.0)
        return until if until > time.time() else None


def reset_of(headers: Mapping[str, str], body: bytes, now: float) -> float | None:
    """When a limit ends, as a unix time: from the headers, else from the body; None where neither says."""
    unified = headers.get("anthropic-ratelimit-unified-reset", "")
    if unified.isdigit():
        return float(unified)
    after = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", after):
        return now + float(after)
    if after:
        try:
            return parsedate_to_datetime(after).timestamp()
        except ValueError:
            pass
    return _reset_in(body, now) or _used_up(headers, now)


def _reset_in(body: bytes, now: float) -> float | None:
    """ChatGPT's and Google's limits say in their body when they end."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    error: Any = document.get("error") if isinstance(document, dict) else None
    if not isinstance(error, dict):
        return None
    if isinstance(at := error.get("resets_at"), int | float):
        return float(at)
    if isinstance(seconds := error.get("resets_in_seconds"), int | float):
        return now + float(seconds)
    details = error.get("details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and isinstance(delay := detail.get("retryDelay"), str):
            return None if (found := _seconds(delay)) is None else now + found
    return None


def _used_up(headers: Mapping[str, str], now: float) -> float | None:
    """A minute's allowance that this answer has used up: when it is filled again."""
    resets = []
    for kind in ("requests", "tokens", "input-tokens", "output-tokens"):
        for remaining, reset in (
            (f"anthropic-ratelimit-{kind}-remaining", f"anthropic-ratelimit-{kind}-reset"),
            (f"x-ratelimit-remaining-{kind}", f"x-ratelimit-reset-{kind}"),
        ):
            if headers.get(remaining) == "0" and (at := _time(headers.get(reset, ""), now)) is not None:
                resets.append(at)
    return max(resets, default=None)


def _time(text: str, now: float) -> float | None:
    if (seconds := _seconds(text)) is not None:
        return now + seconds
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _seconds(text: str) -> float | None:
    """`6m0s`, `1.5s`, `20ms`."""
    found = _DURATION.fullmatch(text)
    if not text or found is None:
        return None
    hours, minutes, seconds, milliseconds = (float(group or 0) for group in found.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


def _buckets(account: Account) -> tuple[Bucket | None, Bucket | None]:
    requests, tokens = account.requests_per_minute, account.tokens_per_minute
    return Bucket(requests) if requests else None, Bucket(tokens) if tokens else None
