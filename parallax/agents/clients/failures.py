"""Turn what agents say about trouble into our errors. Pure; used by every client.

Each CLI words a rate limit and a missing login in its own way, and some hide them in chat text. The signs are here
once, so that a limit parks an agent and a login asks a person instead of failing a step.
"""

from __future__ import annotations

import re
from typing import Any, Final

from parallax.errors import AgentError, LoginNeeded, ProviderLimited

_LIMIT: Final = re.compile(
    r"\b429\b|rate[ _-]?limit|too many requests|usage limit|quota exceeded|exceeded your current quota"
    r"|insufficient_quota|overloaded|\b529\b",
    re.IGNORECASE,
)
_LOGIN: Final = re.compile(
    r"\b401\b|not logged in|please (run )?/?log ?in|authentication required|auth_required|invalid api key"
    r"|invalid x-api-key|AuthenticationError|incorrect api key|unauthorized|token (has )?expired|authentication_error",
    re.IGNORECASE,
)
_RESET: Final = re.compile(r"(?:\||resets?_?at\D{1,4}|reset(?:s)? (?:at )?)(\d{10})(?:\d{3})?\b", re.IGNORECASE)
# What Codex says in place of an answer and then ends its turn normally, measured with 429 and 500.
_HIDDEN: Final = re.compile(
    r"\s*(exceeded retry limit|stream disconnected|unexpected status \d{3}|we[’']re currently experiencing high demand"
    r"|you[’']ve hit your usage limit)",
    re.IGNORECASE,
)
AUTH_REQUIRED: Final = -32000  # the protocol's own code
SHOWN: Final = 400  # characters of a foreign message that people get to see


def limit_in(text: str) -> ProviderLimited | None:
    """A rate limit or a used-up window, if the text speaks of one."""
    if not _LIMIT.search(text):
        return None
    reset = _RESET.search(text)
    return ProviderLimited(f"The model's provider refuses for now: {short(text)}", float(reset[1]) if reset else None)


def login_in(text: str) -> LoginNeeded | None:
    """A missing or expired login, if the text speaks of one."""
    return LoginNeeded(f"The agent is not logged in: {short(text)}") if _LOGIN.search(text) else None


def failure(message: str, data: Any = None, code: int | None = None) -> AgentError:
    """The error for an agent's error answer. Its own kind is believed first, then its code, then its words."""
    kind = str(data.get("errorKind") or data.get("kind") or "") if isinstance(data, dict) else ""
    detail = str(data.get("details") or data.get("message") or "") if isinstance(data, dict) else ""
    text = message if not detail or detail in message else f"{message}: {detail}"
    if kind in {"rate_limit", "overloaded", "billing_error"}:
        return limit_in(text) or ProviderLimited(f"The model's provider refuses for now: {short(text)}")
    if code == AUTH_REQUIRED or kind.startswith("auth"):
        return LoginNeeded(f"The agent is not logged in: {short(text)}")
    return limit_in(text) or login_in(text) or AgentError(f"The agent ended its turn with an error: {short(text)}")


def hidden_in(message: str) -> AgentError | None:
    """The error in a last message that is the CLI's own complaint, not the model's answer."""
    return failure(message) if _HIDDEN.match(message) else None


def short(text: str) -> str:
    """One line of a foreign message, cut."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[:SHOWN] + "…"
