"""The client for what was found. The protocol package is imported only when an agent needs it."""

from __future__ import annotations

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
    program, version = found.program, found.version
    if isinstance(found.cli, HeadlessCLI):
        return HeadlessClient(
            runtime=runtime, cli=found.cli, session=session, program=program, version=version, grace_s=grace_s
        )
    from parallax.agents.clients.acp import AcpClient

    return AcpClient(runtime=runtime, cli=found.cli, session=session, program=program, version=version, grace_s=grace_s)
