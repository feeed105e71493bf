"""Starts real agents against the scripted model, for the conformance tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from parallax.agents.clients.factory import make_client
from parallax.agents.clis.catalogue import Catalogue, Found
from parallax.agents.gateway.service import Gateway
from parallax.agents.runtimes.local import LocalRuntime
from parallax.ports import AgentClient, AgentSession, ToolAnswer, ToolSpec
from tests.conformance.install import ADAPTERS
from tests.modelserver.model_server import ModelServer

KEYS = {
    "anthropic": "sk-real-anthropic-0123456789",
    "openai": "sk-real-openai-0123456789",
    "gemini": "AIza-real-gemini-0123456789",
}


class Notes:
    """Team tools with one that every model can call, and a record of who did."""

    specs = (ToolSpec(name="post_note", description="Tell the team.", schema={"type": "object", "properties": {}}),)

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def call(self, agent_id: str, tool: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        """Noted."""
        self.calls.append((agent_id, tool))
        return ToolAnswer(text="noted")


@dataclass
class Bench:
    """Starts real agents against the scripted model."""

    model: ModelServer
    gateway: Gateway
    runtime: LocalRuntime
    place: Path
    clis: Callable[[str], Path]
    clients: list[AgentClient] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)

    def find(self, type_: str, how: str) -> Found:
        """The CLI; `how` is acp or headless, which for those with an adapter is a matter of what is installed."""
        names = {type_, ADAPTERS.get(type_, type_)} if how == "acp" else {type_}
        found = Catalogue(which={name: str(self.clis(name)) for name in names}.get).find(type_)
        assert isinstance(found, Found)
        assert found.client == how
        return found

    async def start(
        self, type_: str, how: str, preset: str = "permissive", cli_session: str | None = None, door: bool = True
    ) -> AgentClient:
        """An open client, in the one home and tree of the test."""
        agent_id = f"e1.engineer.{len(self.clients) + 1}"
        session = AgentSession(
            agent_id=agent_id,
            execution="e1",
            role="engineer",
            type=type_,
            home=self.place / "home",
            tree=self.place / "tree",
            preset=preset,
            cli_session=cli_session,
        )
        if door:
            session = replace(session, door=await self.gateway.open_session(session))
        client = make_client(self.find(type_, how), runtime=self.runtime, session=session)
        self.clients.append(client)
        await client.open()
        return client

    @property
    def agent_id(self) -> str:
        """The agent started last."""
        return f"e1.engineer.{len(self.clients)}"
