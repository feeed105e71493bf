"""The team tools' door, through a real client of the protocol: lists, calls, refuses, and lets go of who has gone."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from agent_helpers import play
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client

from parallax.agents.clients.acp import AcpClient
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.agents.gateway.tools import ToolsEndpoint
from parallax.agents.runtimes.local import LocalRuntime
from parallax.ports import AgentSession, ModelDoor, ToolAnswer, ToolSpec

SPECS = (
    ToolSpec(name="echo", description="Says it again.", schema={"type": "object"}, reads=True),
    ToolSpec(name="wait", description="Never answers.", schema={"type": "object"}),
)


class Tools:
    """Tools that remember who called."""

    specs = SPECS

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.waiting = asyncio.Event()
        self.let_go = asyncio.Event()

    async def call(self, agent_id: str, tool: str, arguments: Mapping[str, Any]) -> ToolAnswer:
        self.calls.append((agent_id, tool))
        if tool == "wait":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.let_go.set()
        if tool != "echo":
            return ToolAnswer(text=f"there is no tool '{tool}'", failed=True)
        return ToolAnswer(text=str(arguments["text"]), value={"said": arguments["text"]})


@pytest.fixture
async def tools() -> Tools:
    return Tools()


@pytest.fixture
async def gateway(tools: Tools) -> AsyncIterator[Gateway]:
    gateway = Gateway(GatewaySettings(accounts={}), providers_of=lambda _: ())
    gateway.tools = ToolsEndpoint(tools).handle
    await gateway.start()
    yield gateway
    await gateway.close()


def session(number: int, place: Path) -> AgentSession:
    return AgentSession(
        agent_id=f"e1.engineer.{number}", execution="e1", role="engineer", type="scripted", home=place, tree=place
    )


@asynccontextmanager
async def client(door: ModelDoor, mode: str = "auto") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {door.token.reveal()}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False) as http,
        Client(streamable_http_client(f"{door.url}/mcp", http_client=http), mode=mode) as connected,
    ):
        yield connected


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_client_of_either_generation_lists_and_calls(
    gateway: Gateway, tools: Tools, tmp_path: Path, mode: str
) -> None:
    door = await gateway.open_session(session(1, tmp_path))
    async with client(door, mode) as mcp:
        listed = (await mcp.list_tools()).tools
        assert [tool.name for tool in listed] == ["echo", "wait"]
        assert listed[0].annotations is not None
        assert listed[0].annotations.read_only_hint is True
        done = await mcp.call_tool("echo", {"text": "hello"})
        assert (done.is_error, done.content[0].text) == (False, "hello")  # type: ignore[union-attr]
        assert done.structured_content == {"said": "hello"}
        failed = await mcp.call_tool("nothing", {})
        assert failed.is_error
    assert tools.calls == [("e1.engineer.1", "echo"), ("e1.engineer.1", "nothing")]


async def test_each_token_is_its_own_agent_and_a_closed_session_opens_nothing(
    gateway: Gateway, tools: Tools, tmp_path: Path
) -> None:
    doors = [await gateway.open_session(session(number, tmp_path)) for number in (1, 2)]
    for door in doors:
        async with client(door) as mcp:
            await mcp.call_tool("echo", {"text": "x"})
    assert [agent for agent, _ in tools.calls] == ["e1.engineer.1", "e1.engineer.2"]
    await gateway.close_session("e1.engineer.1")
    async with aiohttp.ClientSession() as http:
        for token in (doors[0].token.reveal(), "plx_made-up", ""):
            asked = http.post(f"{gateway.url}/mcp", json={}, headers={"Authorization": f"Bearer {token}"})
            async with asked as answer:
                assert answer.status == 401
    assert len(tools.calls) == 2


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [("GET", b"", 405), ("DELETE", b"", 405), ("POST", b"{", 400), ("POST", b"[1]", 400), ("POST", b"x" * 2**21, 413)],
)
async def test_what_is_no_request_is_refused(
    gateway: Gateway, tools: Tools, tmp_path: Path, method: str, body: bytes, status: int
) -> None:
    door = await gateway.open_session(session(1, tmp_path))
    headers = {
        "Authorization": f"Bearer {door.token.reveal()}", "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }  # fmt: skip
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, f"{door.url}/mcp", data=io.BytesIO(body), headers=headers) as answer,
    ):
        assert answer.status == status
    assert tools.calls == []


async def test_a_caller_that_goes_takes_its_call_along(gateway: Gateway, tools: Tools, tmp_path: Path) -> None:
    door = await gateway.open_session(session(1, tmp_path))
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "wait", "arguments": {}}}
    headers = {"Authorization": f"Bearer {door.token.reveal()}", "Accept": "application/json, text/event-stream"}
    async with aiohttp.ClientSession() as http, asyncio.timeout(20):
        async with http.post(f"{door.url}/mcp", json=call, headers=headers) as answer:
            assert answer.status == 200  # at once: the answer itself may take a day
            await tools.waiting.wait()
        await http.close()
        await tools.let_go.wait()


async def test_without_tools_there_is_no_door_to_them(tmp_path: Path) -> None:
    gateway = Gateway(GatewaySettings(accounts={}), providers_of=lambda _: ())
    await gateway.start()
    try:
        door = await gateway.open_session(session(1, tmp_path))
        assert not door.has_tools
    finally:
        await gateway.close()


async def test_an_agent_of_the_protocol_gets_the_tools_and_calls_them(
    gateway: Gateway, tools: Tools, tmp_path: Path, runtime: LocalRuntime
) -> None:
    script = tmp_path / "script.json"
    calls = [{"tool": {"name": "echo", "arguments": {"text": "hello"}, "save": "said"}},
             {"tool": {"name": "nothing", "save": "refused"}}]  # fmt: skip
    script.write_text(json.dumps({"rules": [{"do": [*calls, {"answer": {"value": "{said}; {refused}"}}]}]}))
    given = session(1, tmp_path)
    given = replace(given, door=await gateway.open_session(given))
    agent = AcpClient(runtime=runtime, cli=ScriptedCLI(script), session=given, program=sys.executable)
    await agent.open()
    try:
        shown, result = await play(agent)
    finally:
        await agent.close()
    assert result.value == "hello; there is no tool 'nothing'"
    assert tools.calls == [("e1.engineer.1", "echo"), ("e1.engineer.1", "nothing")]
    ends = [item.data["status"] for item in shown if item.kind == "tool" and item.data["status"] != "in_progress"]
    assert ends == ["completed", "failed"]


async def test_a_turn_can_be_cancelled_while_a_tool_is_waited_for(
    gateway: Gateway, tools: Tools, tmp_path: Path, runtime: LocalRuntime
) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"rules": [{"do": [{"tool": {"name": "wait"}}]}]}))
    given = session(1, tmp_path)
    given = replace(given, door=await gateway.open_session(given))
    agent = AcpClient(runtime=runtime, cli=ScriptedCLI(script), session=given, program=sys.executable)
    await agent.open()
    try:
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            turn = group.create_task(play(agent))
            await tools.waiting.wait()
            await agent.cancel()
            assert (await turn)[1].stop == "cancelled"
    finally:
        await agent.close()
    async with asyncio.timeout(20):
        await tools.let_go.wait()
