"""Anthropic Messages: `POST v1/messages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from parallax.agents.gateway.dialects import Asked, Counted, Refusal, a_count, part, usage_of
from parallax.models import Json

KINDS: Final = {
    "auth": "authentication_error", "path": "not_found_error", "size": "request_too_large",
    "limited": "rate_limit_error", "unreachable": "api_error",
}  # fmt: skip


class Messages:
    """`message_start` counts the input, `message_delta` the output; a whole message has both."""

    def asked(self, path: str, body: Mapping[str, Any]) -> Asked | None:
        """`max_tokens` is required there, so it is a true bound."""
        del path
        model = body.get("model")
        return Asked(model=model, max_output=a_count(body.get("max_tokens"))) if isinstance(model, str) else None

    def counted(self, event: Mapping[str, Any]) -> Counted | None:
        """Input, cache reads and cache writes are told apart already."""
        started = event.get("type") == "message_start"
        usage = part(event.get("message") if started else event, "usage")
        if not usage:
            return None
        fresh, read, written = (
            usage.get(name) or 0 for name in ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        )
        if not all(type(count) is int for count in (fresh, read, written)):
            raise ValueError("no count of tokens")
        told = usage_of(
            whole_input=fresh + read + written, output=usage.get("output_tokens"), cached=read, written=written
        )
        return Counted(usage=told, final=not started)

    def error(self, refusal: Refusal) -> Json:
        """`{"type": "error", "error": {...}}`."""
        kind = KINDS.get(refusal.kind, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}}
