"""The client for a CLI that was found. The protocol package is imported only when an agent needs it."""

from __future__ import annotations

from parallax.agents.clients.common import GRACE_S
from parallax.agents.clients.headless import HeadlessClient
from parallax.agents.clis.catalogue import Found
from parallax.ports import AgentClient, AgentRuntime, AgentSession


def make_client(found: Found, *, runtime: AgentRuntime, session: AgentSession, grace_s: float = GRACE_S) -> AgentClient:
    """A client that is not open yet."""
    if found.client == "headless":
        return HeadlessClient(runtime=runtime, cli=found.cli, session=session, program=found.program, grace_s=grace_s)
    from parallax.agents.clients.acp import AcpClient

    return AcpClient(runtime=runtime, cli=found.cli, session=session, program=found.program, grace_s=grace_s)
