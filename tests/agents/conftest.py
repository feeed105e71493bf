"""Fixtures of the agents' room: scripted agents in a private home, and a check that no test leaves a process."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from agent_helpers import marked, sandbox

from parallax.agents.clients.acp import AcpClient
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.agents.runtimes.local import LocalRuntime
from parallax.ports import AgentSession


@pytest.fixture
def owner() -> str:
    """A mark that belongs to one test."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def runtime(owner: str) -> LocalRuntime:
    return LocalRuntime(owner, wish="off")


@pytest.fixture
def shut_runtime(owner: str, tmp_path: Path) -> LocalRuntime:
    """A runtime that shuts its agents in."""
    return LocalRuntime(owner, shut=sandbox(tmp_path / "etc"), wish="require")


@pytest.fixture
def session(tmp_path: Path) -> AgentSession:
    tree, home = tmp_path / "tree", tmp_path / "home"
    tree.mkdir()
    return AgentSession(
        agent_id="e1.engineer.1", execution="e1", role="engineer", type="scripted", home=home, tree=tree
    )


Start = Callable[..., Any]


@pytest.fixture
async def start(runtime: LocalRuntime, session: AgentSession, tmp_path: Path, owner: str) -> AsyncIterator[Start]:
    """`await start(actions...)`: an open client of a scripted agent that does these actions on any prompt."""
    clients: list[AcpClient] = []

    async def begin(*actions: dict[str, Any], rules: list[Any] | None = None, grace_s: float = 2.0) -> AcpClient:
        script = tmp_path / f"script{len(clients)}.json"
        script.write_text(json.dumps({"rules": rules or [{"do": list(actions)}]}))
        client = AcpClient(
            runtime=runtime,
            cli=ScriptedCLI(script, tmp_path / "ledger"),
            session=session,
            program=sys.executable,
            grace_s=grace_s,
        )
        clients.append(client)
        await client.open()
        return client

    before = len(os.listdir("/proc/self/fd"))
    yield begin
    for client in clients:
        await client.close()
    assert marked(owner) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 2
