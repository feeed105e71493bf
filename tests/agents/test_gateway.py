"""The model gateway: the key goes on, the token comes off, bytes pass as they are, and what passes is seen."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from parallax.agents.clis.catalogue import providers
from parallax.agents.gateway.service import Account, Gateway
from parallax.ports import AgentSession, ModelDoor, Traffic
from parallax.redaction import Redactor, Secret

KEY = "sk-provider-key-0123456789"
USED = b'{"input_tokens":7,"output_tokens":1,"cache_read_input_tokens":3}'
EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":' + USED + b"}}\n\n",
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":9}}\n\ndata: {"usage": broken\n\n',
)


class Upstream:
    """A provider that remembers and answers as told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.go = asyncio.Event()
        self.gone = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen.append((request.method, request.raw_path, dict(request.headers), body))
        match request.path.rpartition("/")[2]:
            case "stream" | "hang":
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
                await response.prepare(request)
                await response.write(EVENTS[0])
                try:
                    while request.path.endswith("hang"):
                        await asyncio.sleep(0.02)
                        await response.write(b": ping\n\n")
                except ConnectionResetError:
                    self.gone.set()
                    return response
                await self.go.wait()
                await response.write(EVENTS[1])
                return response
            case "json":
                usage = {"input_tokens": 5, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 4}}
                return web.json_response({"usage": usage}, headers={"X-Other": "kept", "Set-Cookie": "a=b"})
            case "limited":
                return web.json_response({"error": 1}, status=429, headers={"retry-after": "30"})
            case "cut":
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b"half")
                assert request.transport
                request.transport.close()
                return response
            case "redirect":
                return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})
        return web.Response(body=body, content_type="application/octet-stream")


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", upstream.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield upstream
    await runner.cleanup()


@pytest.fixture
async def gateway(upstream: Upstream, place: Path) -> AsyncIterator[Gateway]:
    accounts = {
        "anthropic": Account(base_url=f"{upstream.url}/base/", key=Secret(KEY)),
        "openai": Account(base_url=f"{upstream.url}/v1", key=Secret(KEY)),
    }
    gateway = Gateway(accounts, Redactor(), providers_of=providers, sockets=place / "run")
    await gateway.start()
    yield gateway
    await gateway.close()


def session_of(type_: str, agent_id: str = "a") -> AgentSession:
    """A session of a type."""
    return AgentSession(
        agent_id=agent_id, execution="e1", role="engineer", type=type_, home=Path("/nowhere"), tree=Path("/nowhere")
    )


class Agent:
    """An HTTP client with a session's door."""

    def __init__(self, gateway: Gateway, http: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.http = http
        self.url = self.token = ""
        self.door: ModelDoor

    async def open(self, type_: str = "claude") -> Agent:
        door = await self.gateway.open_session(session_of(type_))
        self.door = door
        self.url, self.token = door.url, door.token.reveal()
        return self

    def ask(self, path: str, **kwargs: Any) -> Any:
        headers = {"x-api-key": self.token, **kwargs.pop("headers", {})}
        return self.http.request(kwargs.pop("method", "POST"), f"{self.url}{path}", headers=headers, **kwargs)

    @property
    def traffic(self) -> Traffic:
        traffic = self.gateway.traffic("a")
        assert traffic is not None
        return traffic


@pytest.fixture
async def agent(gateway: Gateway) -> AsyncIterator[Agent]:
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        yield Agent(gateway, http)


async def test_the_key_goes_on_and_the_token_comes_off(agent: Agent, upstream: Upstream) -> None:
    await agent.open()
    body = bytes(range(256)) * 100
    headers = {"anthropic-version": "1", "Cookie": "x=y", "Connection": "close", "Authorization": "Bearer other"}
    async with agent.ask("/model/anthropic/v1/echo%2Fa?beta=true&x=%20", data=body, headers=headers) as reply:
        assert await reply.read() == body
    method, path, sent, got = upstream.seen[0]
    assert (method, path, got) == ("POST", "/base/v1/echo%2Fa?beta=true&x=%20", body)
    assert sent["x-api-key"] == KEY
    assert sent["anthropic-version"] == "1"
    assert not {"Cookie", "Authorization"} & set(sent)
    assert agent.token not in str(upstream.seen)


async def test_openai_has_its_version_in_the_base_url(agent: Agent, upstream: Upstream) -> None:
    await agent.open("codex")
    bearer = {"x-api-key": "", "Authorization": f"Bearer {agent.token}"}
    async with agent.ask("/model/openai/v1/json", headers=bearer) as reply:
        assert reply.status == 200
        assert reply.headers["X-Other"] == "kept"
        assert "Set-Cookie" not in reply.headers
    assert upstream.seen[0][1] == "/v1/json"
    assert upstream.seen[0][2]["Authorization"] == f"Bearer {KEY}"
    assert (agent.traffic.input_tokens, agent.traffic.output_tokens, agent.traffic.cached_tokens) == (5, 2, 4)
    async with agent.ask("/model/openai/other", headers=bearer) as reply:
        assert reply.status == 404


async def test_a_stream_is_not_held_back_and_is_counted(agent: Agent, upstream: Upstream) -> None:
    await agent.open()
    async with agent.ask("/model/anthropic/stream") as reply:
        assert await reply.content.readany() == EVENTS[0]  # the second half is not sent yet
        assert (agent.traffic.in_flight, agent.traffic.last_status) == (1, 200)
        assert agent.traffic.silent_s() < 1
        upstream.go.set()
        assert await reply.read() == EVENTS[1]
    assert agent.traffic.in_flight == 0
    assert (agent.traffic.input_tokens, agent.traffic.output_tokens, agent.traffic.cached_tokens) == (7, 9, 3)


async def test_each_session_has_a_socket_of_its_own(agent: Agent, gateway: Gateway, upstream: Upstream) -> None:
    await agent.open()
    other = await gateway.open_session(session_of("claude", "b"))
    assert agent.door.socket is not None
    assert other.socket is not None
    assert agent.door.socket.parent != other.socket.parent
    assert agent.door.socket.parent.stat().st_mode & 0o777 == 0o700
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(agent.door.socket))) as inside:
        url = "http://127.0.0.1:8899/model/anthropic/v1/echo"
        async with inside.post(url, data=b"x", headers={"x-api-key": agent.token}) as reply:
            assert (reply.status, await reply.read()) == (200, b"x")
        async with inside.post(url, data=b"x", headers={"x-api-key": other.token.reveal()}) as reply:
            assert reply.status == 401
    await gateway.close_session("a")
    assert not agent.door.socket.parent.exists()
    assert len(upstream.seen) == 1


async def test_the_team_tools_are_asked_in_the_name_of_the_session(agent: Agent, gateway: Gateway) -> None:
    await agent.open("scripted")  # without an account: it opens the tools alone
    async with agent.ask("/mcp") as reply:
        assert reply.status == 404

    async def tools(agent_id: str, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"agent": agent_id, "body": await request.text()})

    gateway.tools = tools
    bearer = {"x-api-key": "", "Authorization": f"Bearer {agent.token}"}
    async with agent.ask("/mcp", headers=bearer, data="hello") as reply:
        assert await reply.json() == {"agent": "a", "body": "hello"}
    async with agent.ask("/mcp", headers={"x-api-key": "wrong"}) as reply:
        assert reply.status == 401


async def test_who_parks_agents_hears_of_a_limit(agent: Agent, gateway: Gateway) -> None:
    heard: list[tuple[str, float | None, str]] = []

    async def limits(agent_id: str, until: float | None, cause: str) -> None:
        heard.append((agent_id, until, cause))

    gateway.limits = limits
    await agent.open()
    async with agent.ask("/model/anthropic/limited") as reply:
        assert reply.status == 429
    [(agent_id, until, cause)] = heard
    assert (agent_id, cause) == ("a", "anthropic answered 429")
    assert 25 < (until or 0) - time.time() < 31


async def test_without_a_living_token_nothing_opens(agent: Agent, gateway: Gateway, upstream: Upstream) -> None:
    await agent.open()
    for headers in ({"x-api-key": "wrong"}, {"x-api-key": KEY}, {"x-api-key": ""}):
        async with agent.ask("/model/anthropic/v1/messages", headers=headers) as reply:
            assert reply.status == 401
            assert (await reply.json())["error"]["type"] == "authentication_error"
    async with agent.ask("/model/openai/v1/responses") as reply:  # the token of another provider
        assert reply.status == 401
        assert (await reply.json())["error"]["code"] == "invalid_api_key"
    async with agent.ask("/model/other/x") as reply:
        assert reply.status == 401
    await gateway.close_session("a")
    await gateway.close_session("a")
    async with agent.ask("/model/anthropic/v1/messages") as reply:
        assert reply.status == 401
    assert gateway.traffic("a") is None
    assert upstream.seen == []


async def test_a_new_session_ends_the_old_ones_token(agent: Agent) -> None:
    await agent.open()
    old = agent.token
    await agent.open()
    async with agent.ask("/model/anthropic/x", headers={"x-api-key": old}) as reply:
        assert reply.status == 401
    async with agent.ask("/model/anthropic/x") as reply:
        assert reply.status == 200


async def test_types_without_a_provider_or_key_open_no_model() -> None:
    gateway = Gateway({"anthropic": Account(base_url="http://127.0.0.1:1")}, providers_of=providers)
    await gateway.start()
    claude = await gateway.open_session(session_of("claude"))
    assert (claude.providers, claude.logins, claude.socket) == (set(), {"anthropic"}, None)
    for type_ in ("codex", "scripted"):
        door = await gateway.open_session(session_of(type_))
        assert (door.providers, door.logins) == (set(), set())
    await gateway.close()


@pytest.mark.parametrize("path", ["../x", "v1/../../x", "%2e%2e/x", "v1/%2E./x", "./x"])
async def test_no_path_leaves_the_base_url(agent: Agent, upstream: Upstream, path: str) -> None:
    await agent.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(agent.url.rpartition(":")[2]))
    request = (
        f"GET /model/anthropic/{path} HTTP/1.1\r\nHost: x\r\nx-api-key: {agent.token}\r\nConnection: close\r\n\r\n"
    )
    writer.write(request.encode())
    status = (await reader.read()).split()[1]
    writer.close()
    await writer.wait_closed()
    assert status in {b"404", b"400"} or all("/base/" in seen[1] and ".." not in seen[1] for seen in upstream.seen)
    assert not [seen for seen in upstream.seen if not seen[1].startswith("/base/")]


async def test_redirects_are_refused(agent: Agent) -> None:
    await agent.open()
    async with agent.ask("/model/anthropic/redirect", allow_redirects=False) as reply:
        assert reply.status == 502
        assert "redirect" in (await reply.json())["error"]["message"]


async def test_a_limit_is_seen_and_forgotten(agent: Agent) -> None:
    await agent.open()
    async with agent.ask("/model/anthropic/limited") as reply:
        assert (reply.status, await reply.json()) == (429, {"error": 1})
    assert agent.traffic.limited
    assert 25 < (agent.traffic.resets_at or 0) - time.time() < 31
    async with agent.ask("/model/anthropic/json") as reply:
        assert reply.status == 200
    assert (agent.traffic.limited, agent.traffic.resets_at) == (False, None)


async def test_an_unreachable_provider_is_an_error_in_its_dialect() -> None:
    gateway = Gateway({"anthropic": Account(base_url="http://127.0.0.1:1", key=Secret(KEY))}, providers_of=providers)
    await gateway.start()
    async with aiohttp.ClientSession() as http:
        agent = await Agent(gateway, http).open()
        async with agent.ask("/model/anthropic/v1/messages", data=b"x") as reply:
            assert reply.status == 502
            assert json.loads(await reply.read())["type"] == "error"
        assert agent.traffic.in_flight == 0
    await gateway.close()


async def test_half_an_answer_does_not_look_whole(agent: Agent) -> None:
    await agent.open()
    with pytest.raises(aiohttp.ClientError):
        async with agent.ask("/model/anthropic/cut") as reply:
            await reply.read()
    assert agent.traffic.in_flight == 0


async def test_an_agent_that_goes_away_ends_the_request(agent: Agent, upstream: Upstream) -> None:
    await agent.open()
    reply = await agent.ask("/model/anthropic/hang")
    await reply.content.readany()
    reply.close()
    await asyncio.wait_for(upstream.gone.wait(), 3)
    while agent.traffic.in_flight:
        await asyncio.sleep(0.01)


async def test_a_large_body_passes_unbuffered(agent: Agent) -> None:
    await agent.open()
    body = b"x" * 20_000_000
    async with agent.ask("/model/anthropic/echo", data=io.BytesIO(body)) as reply:
        assert await reply.read() == body
