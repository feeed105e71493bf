"""OpenAI's two dialects: Responses (`POST responses`) and Chat Completions (`POST chat/completions`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from parallax.agents.gateway.dialects import Asked, Counted, Refusal, a_count, part, usage_of
from parallax.models import Json

CODES: Final = {
    "auth": "invalid_api_key", "budget": "insufficient_quota", "limited": "rate_limit_exceeded",
}  # fmt: skip


class Responses:
    """Only the last event of a stream has counts."""

    def asked(self, path: str, body: Mapping[str, Any]) -> Asked | None:
        """`max_output_tokens` includes the reasoning."""
        del path
        model = body.get("model")
        most = a_count(body.get("max_output_tokens"))
        goes_on = bool(body.get("previous_response_id") or body.get("conversation"))
        return Asked(model=model, max_output=most, goes_on=goes_on) if isinstance(model, str) else None

    def counted(self, event: Mapping[str, Any]) -> Counted | None:
        """Of an event its `response`, of a whole answer itself."""
        usage = part(event.get("response") or event, "usage")
        if not usage:
            return None
        details = part(usage, "input_tokens_details")
        return Counted(
            usage=usage_of(
                whole_input=usage.get("input_tokens"),
                output=usage.get("output_tokens"),
                cached=details.get("cached_tokens"),
                written=details.get("cache_write_tokens"),
            ),
            final=True,
        )

    def error(self, refusal: Refusal) -> Json:
        """`{"error": {...}}`, as both dialects have it."""
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        return {"error": {"message": refusal.message, "type": kind, "param": None, "code": CODES.get(refusal.kind)}}


class ChatCompletions(Responses):
    """A stream has counts only if the CLI asked for them by `stream_options`: without, the call is estimated."""

    def asked(self, path: str, body: Mapping[str, Any]) -> Asked | None:
        """The bound has an old and a new name, and holds for each of `n` answers."""
        del path
        model = body.get("model")
        most = a_count(body.get("max_completion_tokens")) or a_count(body.get("max_tokens"))
        answers = a_count(body.get("n")) or 1
        return Asked(model=model, max_output=most and most * answers) if isinstance(model, str) else None

    def counted(self, event: Mapping[str, Any]) -> Counted | None:
        """`usage` of a chunk or of a whole answer."""
        usage = part(event, "usage")
        if not usage:
            return None
        cached = part(usage, "prompt_tokens_details").get("cached_tokens")
        told = usage_of(whole_input=usage.get("prompt_tokens"), output=usage.get("completion_tokens"), cached=cached)
        return Counted(usage=told, final=True)
