"""The client for registered agents, against real servers that behave well and badly."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from agent_helpers import play, task
from aiohttp import web

from parallax.agents.clients import http
from parallax.agents.clients.http import HttpClient
from parallax.errors import (
    AgentCrashed,
    AgentError,
    AgentUnavailable,
    EmptyTurn,
    LoginNeeded,
    ProtocolViolation,
    ProviderLimited,
)
from parallax.models import Progress, TaskResult
from parallax.ports import AgentSession
from tests.conftest import on_loopback

GOOD = {"taskId": "e1/s1/1", "result": {"ok": True}, "confidence": 0.7, "reasoning": "I looked."}


class Remote:
    """An agent that does what the description says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.health = 200
        self.gone = asyncio.Event()

    async def answer_health(self, request: web.Request) -> web.Response:
        headers = {"Location": "/execute"} if self.health == 302 else {}
        return web.Response(status=self.health, headers=headers)

    async def execute(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        how, _, rest = body["description"].partition(" ")
        match how:
            case "json":
                return web.Response(text=rest or json.dumps(GOOD), content_type="application/json")
            case "status":
                status, *headers = rest.split()
                named = dict(header.split("=") for header in headers)
                return web.Response(status=int(status), text="said so", headers=named)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        if how == "half":
            response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        try:
            await self._stream(response, how)
        except (ConnectionResetError, asyncio.CancelledError):
            self.gone.set()
            raise
        if how == "half":
            assert request.transport is not None
            request.transport.abort()
        return response

    async def _stream(self, response: web.StreamResponse, how: str) -> None:
        match how:
            case "stream":
                for piece in ("one ", "two "):
                    await response.write(json.dumps({"output": piece}).encode() + b"\n")
                    await asyncio.sleep(0.01)
                await response.write(json.dumps(GOOD).encode() + b"\n")
            case "half":
                await response.write(b'{"taskId": "e1')
            case "stops":
                await response.write(b'{"output": "so far"}\n')
            case "endless":
                while True:
                    await response.write(b"x" * 65_536)
            case "chatter":
                while True:
                    await response.write(b'{"output": "and so on"}\n' * 1000)
            case "hang":
                await response.write(b'{"output": "begun"}\n')
                await asyncio.Event().wait()


@asynccontextmanager
async def served(remote: Remote) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/agent/health", remote.answer_health)
    app.router.add_post("/agent/execute", remote.execute)
    async with on_loopback(app, handler_cancellation=True) as url:
        yield f"{url}/agent"


@pytest.fixture
async def remote() -> Remote:
    return Remote()


@pytest.fixture
async def client(remote: Remote, session: AgentSession) -> AsyncIterator[HttpClient]:
    async with served(remote) as endpoint:
        client = HttpClient(endpoint=f"{endpoint}/", session=replace(session, type="critic"), private=True, start_s=2.0)
        await client.open()
        yield client
        await client.close()
        assert not client.alive


async def test_a_turn_is_one_request_with_the_task_and_its_limit_in_milliseconds(
    client: HttpClient, remote: Remote
) -> None:
    shown, result = await play(client, task("json", timeout_s=90.0, schema={"type": "object"}))
    assert shown == []
    assert remote.asked == [
        {
            "taskId": "e1/s1/1",
            "description": "json",
            "data": {
                "execution": "e1", "step": "s1", "role": "engineer", "attempt": 1, "schema": {"type": "object"},
            },
            "timeout": 90_000,
        }
    ]  # fmt: skip
    assert (result.value, result.reported, result.message) == ({"ok": True}, 0.7, "I looked.")
    assert (result.task_id, result.attempt, result.agent_id, result.stop) == ("e1/s1/1", 1, "e1.engineer.1", "end_turn")
    assert result.usage.turns == 1
    _, again = await play(client, task("json"))
    assert again.value == result.value


async def test_a_stream_shows_what_it_does_before_its_answer(client: HttpClient) -> None:
    shown, result = await play(client, task("stream"))
    assert [item.text for item in shown] == ["one ", "two "]
    assert all(isinstance(item, Progress) and item.kind == "output" for item in shown)
    assert result.value == {"ok": True}


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ('json {"taskId": "other", "result": 1}', ProtocolViolation, "answers for the task 'other'"),
        ('json {"result": 1}', ProtocolViolation, "answers for the task 'None'"),
        ('json {"taskId": "e1/s1/1", "result": 1, "confidence": 7}', ProtocolViolation, "confidence 7; it must be"),
        ('json {"taskId": "e1/s1/1", "result": 1, "confidence": NaN}', ProtocolViolation, "is not JSON"),
        ('json {"taskId": "e1/s1/1", "result": 1, "confidence": true}', ProtocolViolation, "confidence True"),
        ('json {"taskId": "e1/s1/1", "result": 1, "confidence": 1e999}', ProtocolViolation, "not JSON|confidence inf"),
        ('json {"taskId": "e1/s1/1"}', EmptyTurn, "without a result or a word"),
        ("json [1]", ProtocolViolation, "no JSON object"),
        ("json \0\xff{", ProtocolViolation, "is not JSON"),
        ("half", AgentCrashed, "broke off in mid-turn"),
        ("stops", AgentCrashed, "ended its answer without a result"),
        ("status 302 Location=/agent/health", ProtocolViolation, "a redirect, and none is followed"),
        ("status 401", LoginNeeded, "answers 401: said so"),
        ("status 404", AgentUnavailable, "answers 404"),
        ("status 500", AgentCrashed, "answers 500"),
        ("status 429 Retry-After=30", ProviderLimited, "answers 429"),
        ("status 503", ProviderLimited, "answers 503"),
    ],
)
async def test_what_goes_wrong_is_one_of_our_errors(
    client: HttpClient, how: str, error: type[AgentError], words: str
) -> None:
    with pytest.raises(error, match=words):
        await play(client, task(how))
    _, result = await play(client, task("json"))  # and the next turn is another one
    assert result.stop == "end_turn"


async def test_a_limit_says_until_when(client: HttpClient) -> None:
    with pytest.raises(ProviderLimited) as limited:
        await play(client, task("status 429 Retry-After=30"))
    assert limited.value.resets_at == pytest.approx(time.time() + 30, abs=10)


@pytest.mark.parametrize("after", ["9" * 400, "9" * 5000, "-5", "soon", "\xb2"])
async def test_a_limit_without_a_believable_end_is_still_a_limit(client: HttpClient, after: str) -> None:
    async with asyncio.timeout(10):
        with pytest.raises(ProviderLimited) as limited:
            await play(client, task(f"status 429 Retry-After={after}"))
    assert limited.value.resets_at is None


@pytest.mark.parametrize("how", ["endless", "chatter"])
async def test_a_stream_without_end_is_cut(
    client: HttpClient, remote: Remote, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "BODY_LIMIT", 1 << 20)
    monkeypatch.setattr(http, "STREAM_LIMIT", 1 << 20)
    with pytest.raises(ProtocolViolation, match="sends without end"):
        await play(client, task(how))
    async with asyncio.timeout(10):
        await remote.gone.wait()


async def test_an_answer_that_is_too_large_is_refused(client: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_LIMIT", 1000)
    with pytest.raises(ProtocolViolation, match="sent an answer of more than"):
        await play(client, task("json " + json.dumps(GOOD | {"reasoning": "x" * 5000})))


async def test_cancel_breaks_the_request_off(client: HttpClient, remote: Remote) -> None:
    items: list[Any] = []
    async for item in client.turn(task("hang")):
        items.append(item)
        if isinstance(item, Progress):
            assert client.vitals().output_s < 5
            await client.cancel()
    assert isinstance(items[-1], TaskResult)
    assert items[-1].stop == "cancelled"
    async with asyncio.timeout(10):
        await remote.gone.wait()
    assert client.alive


async def test_cancel_before_the_request_has_begun_ends_the_turn(client: HttpClient) -> None:
    turn = asyncio.create_task(play(client, task("hang")))
    cancel = asyncio.create_task(client.cancel())  # runs after the turn's first step, before the request's
    async with asyncio.timeout(10):
        _, result = await turn
    await cancel
    assert result.stop == "cancelled"


async def test_a_slow_reader_loses_nothing_of_a_long_stream(
    client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "WAITING", 1)
    items: list[Any] = []
    async for item in client.turn(task("stream")):
        await asyncio.sleep(0.05)
        items.append(item)
    assert [item.text for item in items[:-1]] == ["one ", "two "]
    assert items[-1].value == {"ok": True}


async def test_a_reader_that_goes_away_breaks_the_request_off(client: HttpClient, remote: Remote) -> None:
    turn = client.turn(task("hang"))
    await anext(turn)
    await turn.aclose()
    async with asyncio.timeout(10):
        await remote.gone.wait()
    assert client.claim() is None


@pytest.mark.parametrize(("status", "words"), [(503, "/health answers 503"), (302, "/health answers 302")])
async def test_one_that_is_not_well_is_not_used(remote: Remote, session: AgentSession, status: int, words: str) -> None:
    remote.health = status
    async with served(remote) as endpoint:
        with pytest.raises(AgentUnavailable, match=words):
            await HttpClient(endpoint=endpoint, session=session, private=True).open()
    with pytest.raises(AgentUnavailable, match="cannot be reached"):
        await HttpClient(endpoint=endpoint, session=session, private=True).open()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_private_address_is_connected_to_only_where_an_operator_named_it(
    remote: Remote, session: AgentSession, name: str
) -> None:
    async with served(remote) as endpoint:
        client = HttpClient(endpoint=endpoint.replace("127.0.0.1", name), session=session, private=False)
        with pytest.raises(AgentUnavailable, match="cannot be reached"):
            await client.open()
    assert remote.asked == []
