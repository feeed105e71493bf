"""A session: one agent's token, its doors, what they have seen. Shared by the parts of the gateway."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from parallax.agents.gateway.dialects import Dialect, Refusal
from parallax.ports import AgentSession, ModelDoor, Traffic
from parallax.telemetry import logger

TOKEN_HEADERS: Final = ("x-parallax-session", "x-api-key", "x-goog-api-key")
TOLD_AGAIN_S: Final = 10.0  # the same refusal is one event in this time: an agent that loops floods nobody
log = logger("gateway")


@dataclass(slots=True, kw_only=True)
class Session:
    """One agent's door. `told` remembers when a refusal was told last."""

    session: AgentSession
    door: ModelDoor
    traffic: Traffic
    site: web.UnixSite | None = None
    told: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def agent_id(self) -> str:
        """Whose it is."""
        return self.session.agent_id

    def news(self, door: str, cause: str) -> bool:
        """Whether a refusal is to be told now."""
        now = time.monotonic()
        if now - self.told.get((door, cause), -TOLD_AGAIN_S) < TOLD_AGAIN_S:
            return False
        if len(self.told) > 100:
            self.told.clear()
        self.told[door, cause] = now
        return True


def token_hash(token: str) -> str:
    """What the gateway keeps of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_of(request: web.BaseRequest) -> str:
    """The session token, from whichever header this CLI puts its key into."""
    for name in TOKEN_HEADERS:
        if key := request.headers.get(name):
            return key
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def refused(refusal: Refusal, dialect: Dialect | None, *, retry_after_s: float | None = None) -> web.Response:
    """The refusal as an answer. CLIs that ask are told not to try again what cannot succeed."""
    message = Refusal(refusal.status, refusal.kind, f"Parallax gateway: {refusal.message}")
    body = dialect.error(message) if dialect else {"error": {"type": refusal.kind, "message": message.message}}
    headers = {}
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(retry_after_s)))
    if refusal.kind in {"auth", "path", "size", "request", "budget"}:
        headers["x-should-retry"] = "false"
    return web.json_response(body, status=refusal.status, headers=headers)
