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
from gateway_helpers import (
    EVENTS,
    KEY,
    PATHS,
    Agent,
    Remembering,
    Upstream,
    accounts_of,
    dialect_of,
    session_of,
    started,
    upstream_on_loopback,
)

from parallax.agents.gateway.providers import Account
from parallax.agents.gateway.recording import Recorder
from parallax.agents.gateway.service import Gateway
from parallax.errors import StorageError
from parallax.events import Event
from parallax.models import Usage
from parallax.redaction import Secret


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with upstream_on_loopback() as upstream:
        yield upstream


@pytest.fixture
def meter() -> Remembering:
    return Remembering()


@pytest.fixture
async def gateway(upstream: Upstream, place: Path, meter: Remembering) -> AsyncIterator[Gateway]:
    async with started(accounts_of(upstream.url), place, meter=meter) as gateway:
        yield gateway


@pytest.fixture
async def agent(gateway: Gateway) -> AsyncIterator[Agent]:
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        yield Agent(gateway, http)


# -- the way there and back ----------------------------------------------------------------------------------------


async def test_the_key_goes_on_and_the_token_comes_off(agent: Agent, upstream: Upstream) -> None:
    await agent.open()
    body = b'{"model":  "claude-sonnet-4-5", "max_tokens":1, "odd":"\\u00e9 \xc3\xa9"}'
    headers = {"anthropic-version": "1", "Cookie": "x=y", "Connection": "close", "Authorization": "Bearer other"}
    async with agent.ask(f"{PATHS['messages']}?beta=true&x=%20", data=body, headers=headers) as reply:
        assert reply.status == 200
        assert reply.headers["X-Other"] == "kept"
        assert "Set-Cookie" not in reply.headers
    method, path, sent, got = upstream.seen[0]
    assert (method, path, got) == ("POST", "/base/v1/messages?beta=true&x=%20", body)
    assert sent["x-api-key"] == KEY
    assert sent["anthropic-version"] == "1"
    assert not {"Cookie", "Authorization"} & set(sent)
    assert agent.token not in str(upstream.seen)


@pytest.mark.parametrize("dialect", PATHS)
async def test_each_dialect_passes_with_its_key_and_is_counted(
    agent: Agent, upstream: Upstream, meter: Remembering, dialect: str
) -> None:
    await agent.open("all")
    header = {"messages": "x-api-key", "generateContent": "x-goog-api-key"}.get(dialect, "Authorization")
    mine = {"x-api-key": "", header: f"Bearer {agent.token}" if header == "Authorization" else agent.token}
    async with agent.ask(PATHS[dialect], headers=mine) as reply:
        assert reply.status == 200
    [(_, path, sent, _)] = upstream.seen
    assert path.endswith(PATHS[dialect].rpartition("/")[2])
    assert KEY in sent[header]
    assert agent.token not in str(sent)
    used = meter.last
    assert (used.input_tokens, used.output_tokens, used.cached_tokens) == (5, 2, 4)
    assert (agent.traffic.input_tokens, agent.traffic.output_tokens, agent.traffic.cached_tokens) == (5, 2, 4)
    provider = PATHS[dialect].split("/")[2]
    assert [(call.provider, call.agent_id) for call in meter.reserved] == [(provider, "a")]
    assert used.priced == ("estimated" if provider == "openai" else "table")  # no list knows Claude as OpenAI's


async def test_a_stream_is_not_held_back_and_is_counted(agent: Agent, upstream: Upstream, meter: Remembering) -> None:
    await agent.open()
    async with agent.ask(mode="stream") as reply:
        assert await reply.content.readany() == EVENTS[0]  # the second half is not sent yet
        assert (agent.traffic.in_flight, agent.traffic.last_status) == (1, 200)
        assert agent.traffic.silent_s() < 1
        assert meter.settled == []
        upstream.go.set()
        assert await reply.read() == EVENTS[1]
    await settled(meter, 1)
    await idle(agent)
    assert (agent.traffic.input_tokens, agent.traffic.output_tokens, agent.traffic.cached_tokens) == (7, 9, 3)
    assert agent.traffic.context_fill == pytest.approx(19 / 200_000)
    used = meter.last
    assert used == Usage(input_tokens=7, output_tokens=9, cached_tokens=3, cost=157, priced="table")  # 156.9 rounded up


async def idle(agent: Agent) -> None:
    async with asyncio.timeout(3):
        while agent.traffic.in_flight:
            await asyncio.sleep(0.005)


async def settled(meter: Remembering, count: int) -> None:
    async with asyncio.timeout(3):
        while len(meter.settled) < count:
            await asyncio.sleep(0.005)


async def test_the_most_is_set_aside_before_a_call(agent: Agent, meter: Remembering) -> None:
    await agent.open()
    body = {"max_tokens": 1000, "prompt": "x" * 10_000}
    async with agent.ask(body=body):
        pass
    most = meter.reserved[0].most
    assert (most.input_tokens, most.output_tokens) == (
        len(json.dumps(body)) // 2 + 20,
        1000,
    ) or most.input_tokens > 5000
    assert most.cost == pytest.approx(most.input_tokens * 3 + 1000 * 15, abs=2)
    async with agent.ask(body={"system": [{"cache_control": {"type": "ephemeral"}}]}):
        pass
    assert meter.reserved[1].most.cache_write_tokens > 0  # it may cost what writing into the cache costs


async def test_beyond_the_budget_each_dialect_is_refused_in_its_own_shape(
    agent: Agent, upstream: Upstream, meter: Remembering
) -> None:
    await agent.open("all")
    meter.empty = True
    shapes = {"messages": "anthropic", "responses": "openai", "completions": "openai", "generateContent": "gemini"}
    for dialect, shape in shapes.items():
        async with agent.ask(PATHS[dialect]) as reply:
            assert reply.status == 400
            assert reply.headers["x-should-retry"] == "false"
            body = await reply.json()
            assert dialect_of(body) == shape
            assert "the budget of $1.00 is used up" in body["error"]["message"]
    assert upstream.seen == []
    assert agent.traffic.last_error == "the budget of $1.00 is used up"


async def test_what_cannot_be_booked_is_not_sent_and_what_cannot_be_settled_is_not_lost(
    agent: Agent, upstream: Upstream, meter: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **__: Any) -> str:
        raise StorageError("the disk is full")

    await agent.open()
    monkeypatch.setattr(meter, "settle", fails)
    async with agent.ask() as reply:
        assert (reply.status, (await reply.json())["type"]) == (200, "message")  # the answer was paid for
    monkeypatch.setattr(meter, "reserve", fails)
    async with agent.ask() as reply:
        assert reply.status == 503
        assert "cannot be booked: the disk is full" in (await reply.json())["error"]["message"]
    assert len(upstream.seen) == 1


async def test_a_record_that_cannot_be_written_costs_neither_the_answer_nor_the_books(
    upstream: Upstream, meter: Remembering, tmp_path: Path
) -> None:
    (tmp_path / "records").write_text("a file where a directory should be")
    recorder = Recorder(tmp_path / "records", str, 10**6)
    async with (
        started(accounts_of(upstream.url), meter=meter, recorder=recorder) as gateway,
        aiohttp.ClientSession() as http,
    ):
        agent = await Agent(gateway, http).open()
        async with agent.ask() as reply:
            assert (reply.status, (await reply.json())["type"]) == (200, "message")
        await settled(meter, 1)
    assert meter.last.output_tokens == 2


async def test_a_login_of_the_agents_own_passes_through(upstream: Upstream, meter: Remembering) -> None:
    accounts = {"anthropic": [Account(base_url=f"{upstream.url}/base")]}
    async with started(accounts, meter=meter) as gateway, aiohttp.ClientSession() as http:
        agent = await Agent(gateway, http).open()
        assert (agent.door.providers, agent.door.logins) == (set(), {"anthropic"})
        login = {"x-api-key": "", "Authorization": "Bearer its-own-login", "x-parallax-session": agent.token}
        async with agent.ask(headers=login) as reply:
            assert reply.status == 200
        [(_, _, sent, _)] = upstream.seen
        assert sent["Authorization"] == "Bearer its-own-login"
        assert agent.token not in str(sent)
        assert meter.last.cost > 0
        async with agent.ask() as reply:  # the session's token is no login
            assert reply.status == 401
        assert len(upstream.seen) == 1


# -- sessions ------------------------------------------------------------------------------------------------------


async def test_each_session_has_a_socket_of_its_own(agent: Agent, gateway: Gateway, upstream: Upstream) -> None:
    await agent.open()
    other = await gateway.open_session(session_of("claude", "b"))
    assert agent.door.socket is not None
    assert other.socket is not None
    assert agent.door.socket.parent != other.socket.parent
    assert agent.door.socket.parent.stat().st_mode & 0o777 == 0o700
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(agent.door.socket))) as inside:
        url, body = f"http://127.0.0.1:8899{PATHS['messages']}", b'{"model":"m"}'
        async with inside.post(url, data=body, headers={"x-api-key": agent.token}) as reply:
            assert reply.status == 200
        async with inside.post(url, data=body, headers={"x-api-key": other.token.reveal()}) as reply:
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


async def test_without_a_living_token_nothing_opens(agent: Agent, gateway: Gateway, upstream: Upstream) -> None:
    await agent.open()
    for headers in ({"x-api-key": "wrong"}, {"x-api-key": KEY}, {"x-api-key": ""}):
        async with agent.ask(headers=headers) as reply:
            assert reply.status == 401
            assert (await reply.json())["error"]["type"] == "authentication_error"
    async with agent.ask(PATHS["responses"]) as reply:  # the token of another provider
        assert reply.status == 401
        assert (await reply.json())["error"]["code"] == "invalid_api_key"
    async with agent.ask("/model/other/x") as reply:
        assert reply.status == 404
    await gateway.close_session("a")
    await gateway.close_session("a")
    async with agent.ask() as reply:
        assert reply.status == 401
    assert gateway.traffic("a") is None
    assert upstream.seen == []


async def test_a_new_session_ends_the_old_ones_token(agent: Agent) -> None:
    await agent.open()
    old = agent.token
    await agent.open()
    async with agent.ask(headers={"x-api-key": old}) as reply:
        assert reply.status == 401
    async with agent.ask() as reply:
        assert reply.status == 200


async def test_types_without_a_provider_or_key_open_no_model() -> None:
    async with started({"anthropic": [Account(base_url="http://127.0.0.1:1")]}) as gateway:
        claude = await gateway.open_session(session_of("claude"))
        assert (claude.providers, claude.logins, claude.socket) == (set(), {"anthropic"}, None)
        for type_ in ("codex", "scripted"):
            door = await gateway.open_session(session_of(type_))
            assert (door.providers, door.logins) == (set(), set())


# -- what may not pass ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../x", "v1/../../x", "%2e%2e/x", "v1/%2E./messages", "./v1/messages", "v1/messages/", "v1//messages",
             "v1/models/..", "v1/models/%2e%2e", "v1/files", "v1/messages/batches", "api/oauth/usage"],
)  # fmt: skip
async def test_no_path_but_those_of_the_dialect_is_passed_on(agent: Agent, upstream: Upstream, path: str) -> None:
    await agent.open()
    for method in ("GET", "POST"):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(agent.url.rpartition(":")[2]))
        request = (
            f"{method} /model/anthropic/{path} HTTP/1.1\r\nHost: x\r\nx-api-key: {agent.token}\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n"
        )
        writer.write(request.encode())
        assert (await reader.read()).split()[1] in {b"404", b"400"}
        writer.close()
        await writer.wait_closed()
    assert upstream.seen == []


async def test_half_a_body_is_not_passed_on(agent: Agent, upstream: Upstream, meter: Remembering) -> None:
    await agent.open()
    _, writer = await asyncio.open_connection("127.0.0.1", int(agent.url.rpartition(":")[2]))
    head = f"POST {PATHS['messages']} HTTP/1.1\r\nHost: x\r\nx-api-key: {agent.token}\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b'{"model": "claude-sonnet-4-5"')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(3):
        while agent.traffic.in_flight or not agent.traffic.requests:
            await asyncio.sleep(0.01)
    assert (upstream.seen, meter.reserved) == ([], [])


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"{" * 10, {}, 400, "not a JSON object"),
        (b"[]", {}, 400, "not a JSON object"),
        (b'{"messages": []}', {}, 400, "names no model"),
        (b"not packed", {"Content-Encoding": "gzip"}, 400, "is not gzip"),
        (b'{"model": "m"}', {"Content-Encoding": "zstd"}, 415, "plain or packed with gzip"),
        (b" " * 50_000_000, {}, 413, "larger than 32 MB"),
    ],
)  # fmt: skip
async def test_a_bad_body_is_refused_before_anything_is_sent(
    agent: Agent, gateway: Gateway, upstream: Upstream, body: bytes, headers: dict[str, str], status: int, words: str
) -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    gateway.tell = tell
    await agent.open()
    async with agent.ask(data=io.BytesIO(body), headers=headers) as reply:
        assert reply.status == status
        answer = await reply.json()
        assert answer["type"] == "error"
        assert words in answer["error"]["message"]
    assert upstream.seen == []
    await asyncio.sleep(0)
    [event] = told
    assert (event.type, event.agent_id, event.execution) == ("gateway.refused", "a", "e1")
    assert event.data == {"door": "anthropic", "target": "v1/messages", "status": status, "cause": event.data["cause"]}
    assert words in event.data["cause"]


async def test_a_packed_body_passes_as_it_is(agent: Agent, upstream: Upstream, meter: Remembering) -> None:
    import gzip

    packed = gzip.compress(b'{"model": "claude-sonnet-4-5", "max_tokens": 7}')
    await agent.open()
    async with agent.ask(data=packed, headers={"Content-Encoding": "gzip"}):
        pass
    assert meter.reserved[0].most.output_tokens == 7
    assert upstream.seen[0][2]["Content-Encoding"] == "gzip"


async def test_a_refusal_that_repeats_is_one_event(agent: Agent, gateway: Gateway) -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    gateway.tell = tell
    await agent.open()
    for _ in range(20):
        async with agent.ask("/model/anthropic/v1/files") as reply:
            assert reply.status == 404
    await asyncio.sleep(0)
    assert len(told) == 1


# -- providers that misbehave --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "words", "counted"),
    [
        ({"mode": "500"}, 500, "broken", False),
        ({"mode": "redirect"}, 502, "redirect", False),
        ({"mode": "html"}, 502, "answered text/html instead of JSON", True),
        ({"mode": "html", "status": 503}, 503, "a page of HTML", False),
    ],
)
async def test_what_a_provider_should_not_answer_becomes_an_error_in_its_dialect(
    agent: Agent, meter: Remembering, body: dict[str, Any], status: int, words: str, counted: bool
) -> None:
    await agent.open()
    async with agent.ask(body=body, allow_redirects=False) as reply:
        assert reply.status == status
        assert words in await reply.text()
        assert "Location" not in reply.headers
    await settled(meter, 1)
    assert (meter.last.tokens > 0) is counted  # an error costs nothing; a page in place of an answer may have
    assert meter.settled[0][3] == (200 if body == {"mode": "html"} else 302 if words == "redirect" else status)


@pytest.mark.parametrize("size", [250_000, 300_000])
async def test_an_error_that_comes_in_pieces_passes_whole_up_to_its_bound(
    agent: Agent, meter: Remembering, size: int
) -> None:
    await agent.open()
    async with asyncio.timeout(10), agent.ask(body={"mode": "500 in pieces", "size": size}) as reply:
        assert reply.status == 500
        assert await reply.read() == b"x" * min(size, 256 * 1024)
    await settled(meter, 1)
    assert meter.last.tokens == 0


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"input_tokens": -5, "output_tokens": 1}, {"input_tokens": 5, "output_tokens": 10**9},
     {"input_tokens": "many", "output_tokens": 1}, {"input_tokens": 1e300, "output_tokens": 1}, "free", 0,
     {"input_tokens": True, "output_tokens": 1}],
)  # fmt: skip
async def test_missing_or_absurd_usage_is_estimated_and_marked_so(
    agent: Agent, meter: Remembering, usage: object
) -> None:
    await agent.open()
    async with agent.ask(body={"mode": "usage", "usage": usage}) as reply:
        assert reply.status == 200
        size = len(await reply.read())
    await settled(meter, 1)
    used, most = meter.last, meter.reserved[0].most
    assert used.priced == "estimated"
    assert used.output_tokens == min(100, -(-size // 4))
    assert 0 < used.input_tokens <= most.input_tokens
    assert 0 < used.cost <= most.cost


async def test_a_cut_stream_is_cut_for_the_agent_and_estimated(agent: Agent, meter: Remembering) -> None:
    await agent.open()
    with pytest.raises(aiohttp.ClientError):
        async with agent.ask(mode="cut stream") as reply:
            await reply.read()
    await settled(meter, 1)
    used = meter.last
    assert (used.input_tokens, used.cached_tokens, used.priced) == (7, 3, "estimated")
    assert used.output_tokens == 100  # never above what was asked for
    assert agent.traffic.last_error == "anthropic broke off its answer"


async def test_half_an_answer_does_not_look_whole(agent: Agent, meter: Remembering) -> None:
    await agent.open()
    with pytest.raises(aiohttp.ClientError):
        async with agent.ask(mode="cut") as reply:
            await reply.read()
    await settled(meter, 1)
    await idle(agent)
    assert meter.last.priced == "estimated"


async def test_an_unreachable_provider_is_an_error_in_its_dialect(meter: Remembering) -> None:
    accounts = {"anthropic": [Account(base_url="http://127.0.0.1:1", key=Secret(KEY))]}
    async with started(accounts, meter=meter) as gateway, aiohttp.ClientSession() as http:
        agent = await Agent(gateway, http).open()
        async with agent.ask() as reply:
            assert reply.status == 502
            assert json.loads(await reply.read())["type"] == "error"
        await idle(agent)
    assert meter.last.tokens == 0  # it was never sent


async def test_an_agent_that_goes_away_ends_the_request(agent: Agent, upstream: Upstream, meter: Remembering) -> None:
    await agent.open()
    reply = await agent.ask(mode="hang")
    await reply.content.readany()
    reply.close()
    await asyncio.wait_for(upstream.gone.wait(), 3)
    await settled(meter, 1)
    await idle(agent)
    assert (meter.last.input_tokens, meter.last.priced) == (7, "estimated")


async def test_an_agent_that_goes_away_is_no_fault_of_the_provider(
    agent: Agent, gateway: Gateway, upstream: Upstream, meter: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    write = web.StreamResponse.write

    async def gone(response: web.StreamResponse, data: bytes) -> None:
        if response._req is not None and response._req.path == PATHS["messages"]:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        await write(response, data)

    gateway.tell = tell
    await agent.open()
    reply = await agent.ask(mode="stream")
    monkeypatch.setattr(web.StreamResponse, "write", gone)
    upstream.go.set()
    await settled(meter, 1)
    await idle(agent)
    reply.close()
    assert (told, agent.traffic.last_error, agent.traffic.last_status) == ([], None, 200)


async def test_a_large_body_passes(agent: Agent, upstream: Upstream) -> None:
    await agent.open()
    body = b'{"model": "claude-sonnet-4-5", "x": "' + b"x" * 20_000_000 + b'"}'
    async with agent.ask(data=io.BytesIO(body)) as reply:
        assert reply.status == 200
    assert upstream.seen[0][3] == body


# -- limits and accounts -------------------------------------------------------------------------------------------


async def test_a_limit_is_told_closes_the_account_for_all_and_ends(agent: Agent, gateway: Gateway) -> None:
    heard: list[tuple[str, float | None, str]] = []

    async def limits(agent_id: str, until: float | None, cause: str) -> None:
        heard.append((agent_id, until, cause))

    gateway.limits = limits
    await agent.open()
    async with agent.ask(mode="limited") as reply:
        assert (reply.status, await reply.json()) == (429, {"error": 1})
    assert agent.traffic.limited
    assert 25 < (agent.traffic.resets_at or 0) - time.time() < 31
    assert 25 < (gateway.limited_until("claude") or 0) - time.time() < 31
    assert gateway.limited_until("codex") is None
    other = await Agent(gateway, agent.http).open(agent_id="b")
    async with other.ask() as reply:  # the provider is not asked again
        assert reply.status == 429
        assert 25 <= int(reply.headers["Retry-After"]) <= 30
        assert (await reply.json())["error"]["type"] == "rate_limit_error"
    assert (other.traffic.limited, other.traffic.last_status, other.traffic.resets_at) == (
        True, 429, agent.traffic.resets_at,
    )  # fmt: skip
    assert [(who, cause.partition(" until ")[0]) for who, _, cause in heard] == [
        ("a", "anthropic answered 429"), ("b", "anthropic/default is limited"),
    ]  # fmt: skip


async def test_work_goes_to_another_account_while_one_is_limited(upstream: Upstream, meter: Remembering) -> None:
    names = ("first", "second")
    keys = [f"sk-key-of-the-{name}-account" for name in names]
    accounts = {
        "anthropic": [
            Account(name=name, base_url=f"{upstream.url}/base", key=Secret(key))
            for name, key in zip(names, keys, strict=True)
        ]
    }
    async with started(accounts, meter=meter) as gateway, aiohttp.ClientSession() as http:
        agent = await Agent(gateway, http).open()
        async with agent.ask(mode="by key"):
            pass
        upstream.limited[keys[0]] = 1
        async with agent.ask(mode="by key") as reply:
            assert reply.status == 200  # the agent notices nothing
        async with agent.ask(mode="by key") as reply:  # and stays there
            assert reply.status == 200
    assert [seen[2]["x-api-key"] for seen in upstream.seen] == [keys[0], keys[0], keys[1], keys[1]]
    assert [(account, status) for _, _, account, status in meter.settled] == [
        ("first", 200), ("second", 200), ("second", 200),
    ]  # fmt: skip


async def test_accounts_are_spread_by_rule(upstream: Upstream) -> None:
    accounts = {
        "anthropic": [
            Account(name=f"n{number}", base_url=f"{upstream.url}/base", key=Secret(f"sk-key-number-{number}-of-three"))
            for number in range(3)
        ]
    }
    async with started(accounts, settings={"rule": "spread"}) as gateway, aiohttp.ClientSession() as http:
        for number in range(3):
            agent = await Agent(gateway, http).open(agent_id=f"a{number}")
            async with agent.ask():
                pass
    assert len({seen[2]["x-api-key"] for seen in upstream.seen}) == 3


async def test_all_agents_share_one_pace(upstream: Upstream) -> None:
    accounts = {"anthropic": [Account(base_url=f"{upstream.url}/base", key=Secret(KEY), requests_per_minute=600)]}
    async with started(accounts) as gateway, aiohttp.ClientSession() as http:
        agents = [await Agent(gateway, http).open(agent_id=f"a{number}") for number in range(4)]
        [state] = gateway._accounts._states["anthropic"]
        requests = state.buckets[0]
        assert requests is not None
        requests._level = 0  # the minute's allowance is used: ten a second come back
        began = time.monotonic()

        async def one(agent: Agent) -> None:
            async with agent.ask() as reply:
                assert reply.status == 200

        await asyncio.gather(*(one(agent) for agent in agents for _ in range(2)))
        assert time.monotonic() - began > 0.6
