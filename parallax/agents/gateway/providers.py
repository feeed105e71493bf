"""The providers: where they are, which header their key goes into, and which of their paths are passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from yarl import URL

from parallax.agents.gateway.anthropic import Messages
from parallax.agents.gateway.dialects import Dialect
from parallax.agents.gateway.gemini import GenerateContent
from parallax.agents.gateway.openai import ChatCompletions, Responses
from parallax.redaction import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One account at a provider. `base_url` for OpenAI has its /v1; without a key the CLI's own login is passed on.

    `requests_per_minute` and `tokens_per_minute` are what the account may do, where it is known beforehand.
    """

    base_url: str
    key: Secret | None = None
    name: str = "default"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path that is passed on. `metered` calls cost; the others only look."""

    methods: frozenset[str]
    path: re.Pattern[str]
    dialect: Dialect
    metered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """`prefix` is what comes before the paths in the agent's URL, and is part of the base URL upstream."""

    name: str
    routes: tuple[Route, ...]
    key_header: str
    key_format: str = "{}"
    prefix: str = ""

    def route(self, method: str, path: str) -> Route | None:
        """The route of a path below the prefix; None for one that is not passed on."""
        return next((r for r in self.routes if method in r.methods and r.path.fullmatch(path)), None)

    def key(self, key: Secret) -> tuple[str, str]:
        """The header that carries the key."""
        return self.key_header, self.key_format.format(key.reveal())


def _routes(*given: tuple[str, str, Dialect, bool]) -> tuple[Route, ...]:
    return tuple(
        Route(methods=frozenset({method}), path=re.compile(path), dialect=dialect, metered=metered)
        for method, path, dialect, metered in given
    )


_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}"  # nothing that a path could be left with
_MESSAGES, _RESPONSES, _CHAT, _GENERATE = Messages(), Responses(), ChatCompletions(), GenerateContent()

PROVIDERS: Final[Mapping[str, Provider]] = {
    "anthropic": Provider(
        name="anthropic",
        key_header="x-api-key",
        routes=_routes(
            ("POST", r"v1/messages", _MESSAGES, True),
            ("POST", r"v1/messages/count_tokens", _MESSAGES, False),
            ("GET", rf"v1/models(/{_NAME})?", _MESSAGES, False),
        ),
    ),
    "openai": Provider(
        name="openai",
        key_header="Authorization",
        key_format="Bearer {}",
        prefix="v1/",
        routes=_routes(
            ("POST", r"responses(/compact)?", _RESPONSES, True),
            ("POST", r"chat/completions", _CHAT, True),
            ("GET", rf"models(/{_NAME})?", _CHAT, False),
        ),
    ),
    "gemini": Provider(
        name="gemini",
        key_header="x-goog-api-key",
        routes=_routes(
            ("POST", rf"v1(beta|alpha)?/models/{_NAME}:(generateContent|streamGenerateContent)", _GENERATE, True),
            ("POST", rf"v1(beta|alpha)?/models/{_NAME}:countTokens", _GENERATE, False),
            ("GET", rf"v1(beta|alpha)?/models(/{_NAME})?", _GENERATE, False),
        ),
    ),
}


def target(account: Account, path: str, query: str) -> URL:
    """Below the account's base URL, with path and query as the agent wrote them."""
    return URL(f"{account.base_url.rstrip('/')}/{path}" + (f"?{query}" if query else ""), encoded=True)
