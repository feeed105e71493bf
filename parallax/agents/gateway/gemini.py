"""Gemini: `POST v1beta/models/<model>:generateContent` and `:streamGenerateContent`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

from parallax.agents.gateway.dialects import Asked, Counted, Refusal, a_count, part, usage_of
from parallax.models import Json

STATUSES: Final = {
    "auth": "UNAUTHENTICATED", "path": "NOT_FOUND", "budget": "FAILED_PRECONDITION", "limited": "RESOURCE_EXHAUSTED",
    "unreachable": "UNAVAILABLE",
}  # fmt: skip


class GenerateContent:
    """The model is in the path. Every chunk of a stream counts what came so far."""

    def asked(self, path: str, body: Mapping[str, Any]) -> Asked | None:
        """`maxOutputTokens` holds for each candidate."""
        model = unquote(path.rpartition("/")[2].partition(":")[0])
        config = part(body, "generationConfig")
        most, answers = a_count(config.get("maxOutputTokens")), a_count(config.get("candidateCount")) or 1
        return Asked(model=model, max_output=most and most * answers) if model else None

    def counted(self, event: Mapping[str, Any]) -> Counted | None:
        """Thoughts are output, what a tool of the provider's brought in is input."""
        usage = part(event, "usageMetadata")
        if not usage:
            return None
        prompt, tools, said, thought = (
            usage.get(name) or 0
            for name in ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
        )
        if not all(type(count) is int for count in (prompt, tools, said, thought)):
            raise ValueError("no count of tokens")
        cached = usage.get("cachedContentTokenCount")
        told = usage_of(whole_input=prompt + tools, output=said + thought, cached=cached)
        candidates = event.get("candidates")
        done = isinstance(candidates, list) and any(part({"c": c}, "c").get("finishReason") for c in candidates)
        return Counted(usage=told, final=done)

    def error(self, refusal: Refusal) -> Json:
        """Google's own shape."""
        status = STATUSES.get(refusal.kind, "INVALID_ARGUMENT")
        return {"error": {"code": refusal.status, "message": refusal.message, "status": status}}
