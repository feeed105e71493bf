"""Starts real agents against the scripted model, for the conformance tests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from parallax.agents.clients.factory import make_client
from parallax.agents.clis import catalogue
from parallax.agents.gateway.service import Gateway
from parallax.agents.runtimes.local import LocalRuntime
from parallax.ports import AgentClient, AgentSession
from tests.modelserver.model_server import ModelServer

KEYS = {"anthropic": "sk-real-anthropic-0123456789", "openai": "sk-real-openai-0123456789"}


@dataclass
class Bench:
    """Starts real agents against the scripted model."""

    model: ModelServer
    gateway: Gateway
    runtime: LocalRuntime
    place: Path
    clis: dict[str, Path]
    clients: list[AgentClient]

    async def start(
        self, type_: str, how: str, preset: str = "permissive", cli_session: str | None = None, door: bool = True
    ) -> AgentClient:
        """An open client; `how` is acp or headless."""
        adapters = {"claude-agent-acp", "codex-acp"} if how == "acp" else set()
        programs = {name: str(path) for name, path in self.clis.items() if name in {"claude", "codex"} | adapters}
        found = catalogue.find(type_, programs.get)
        assert found.client == how
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
        client = make_client(found, runtime=self.runtime, session=session)
        self.clients.append(client)
        await client.open()
        return client

    @property
    def agent_id(self) -> str:
        """The agent started last."""
        return f"e1.engineer.{len(self.clients)}"
