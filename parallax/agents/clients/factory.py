"""The client for what was found. The protocol package is imported only when an agent needs it."""

from __future__ import annotations

from typing import Any

from parallax.agents.clients.common import GRACE_S
from parallax.agents.clients.headless import HeadlessClient
from parallax.agents.clients.http import HttpClient
from parallax.agents.clis.catalogue import Found, Registered
from parallax.ports import AgentClient, AgentRuntime, AgentSession, HeadlessCLI


def make_client(
    found: Found | Registered, *, runtime: AgentRuntime, session: AgentSession, grace_s: float = GRACE_S
) -> AgentClient:
    """A client that is not open yet."""
    if isinstance(found, Registered):
        return HttpClient(endpoint=found.endpoint, session=session, private=True)
    named: dict[str, Any] = {"runtime": runtime, "session": session, "program": found.program, "version": found.version}
    if isinstance(found.cli, HeadlessCLI):
        return HeadlessClient(cli=found.cli, grace_s=grace_s, **named)
    from parallax.agents.clients.acp import AcpClient

    return AcpClient(cli=found.cli, grace_s=grace_s, **named)
