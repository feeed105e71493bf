"""Event streams: every event once, in order, for readers that are fast, slow, late, and those that come again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from parallax.client import Client
from parallax.redaction import Secret
from tests.server.conftest import Server

Seen = list[tuple[int, str]]


async def read(api: httpx.AsyncClient, execution_id: str, *, after: int | None = None, stop: int | None = None,
               pause_s: float = 0.0, query: str = "") -> Seen:  # fmt: skip
    """Read a stream to its end, or until `stop` events were seen; checks that id and body agree."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    seen: Seen = []
    async with api.stream("GET", f"/api/executions/{execution_id}/events{query}", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                body = json.loads(fields["data"])
                assert (str(body["seq"]), body["type"]) == (fields["id"], fields["event"])
                seen.append((body["seq"], body["type"]))
                await asyncio.sleep(pause_s)
            fields = {}
            if stop is not None and len(seen) == stop:
                break
    return seen


async def begin(api: httpx.AsyncClient, server: Server, **more: Any) -> str:
    answer = await api.post("/api/executions", json=server.body(**more))
    return str(answer.json()["id"])


def whole(seen: Seen) -> bool:
    """Whether it is every event from the first to the last, each once."""
    return [seq for seq, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1][1] == "execution.succeeded"


@pytest.fixture(scope="module")
def finished(server: Server) -> tuple[str, Seen]:
    """A finished execution with its events, read live."""

    async def run() -> tuple[str, Seen]:
        async with server.client() as api:
            execution_id = await begin(api, server)
            async with asyncio.timeout(30):
                return execution_id, await read(api, execution_id)

    return asyncio.run(run())


def test_ids_count_from_one_without_a_gap_and_the_stream_ends_by_itself(finished: tuple[str, Seen]) -> None:
    _, seen = finished
    assert whole(seen)
    assert seen[0][1] == "execution.queued"


async def test_a_finished_execution_is_replayed(api: httpx.AsyncClient, finished: tuple[str, Seen]) -> None:
    execution_id, seen = finished
    assert await read(api, execution_id) == seen


async def test_last_event_id_goes_on_exactly_there(api: httpx.AsyncClient, finished: tuple[str, Seen]) -> None:
    execution_id, seen = finished
    for after in (1, len(seen) // 2, len(seen) - 1):
        assert await read(api, execution_id, after=after) == seen[after:]
        assert await read(api, execution_id, query=f"?after={after}") == seen[after:]
    assert await read(api, execution_id, after=len(seen)) == []
    assert await read(api, execution_id, after=10**9) == []


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 30, "1 2"])
async def test_a_last_event_id_that_is_none_is_refused(
    api: httpx.AsyncClient, finished: tuple[str, Seen], given: str
) -> None:
    answer = await api.get(f"/api/executions/{finished[0]}/events", headers={"Last-Event-ID": given})
    assert answer.status_code == 422
    assert "Last-Event-ID" in answer.json()["detail"]


async def test_a_reader_that_comes_again_and_again_misses_nothing(api: httpx.AsyncClient, server: Server) -> None:
    execution_id = await begin(api, server)
    seen: Seen = []
    async with asyncio.timeout(30):
        while not seen or seen[-1][1] != "execution.succeeded":
            seen += await read(api, execution_id, after=len(seen), stop=3)
    assert whole(seen)


async def test_ten_readers_fast_and_slow_see_the_same(server: Server) -> None:
    async with server.client() as api, asyncio.timeout(60):
        execution_id = await begin(api, server)
        clients = [server.client() for _ in range(10)]
        try:
            streams = await asyncio.gather(
                *(read(client, execution_id, pause_s=0.02 * (n % 3)) for n, client in enumerate(clients))
            )
        finally:
            for client in clients:
                await client.aclose()
    assert whole(streams[0])
    assert all(stream == streams[0] for stream in streams)


async def test_without_following_a_stream_ends_at_the_newest_event(api: httpx.AsyncClient, server: Server) -> None:
    execution_id = await begin(api, server, pattern="fix", input={"goal": "forever"})
    async with asyncio.timeout(20):
        while ("agent.busy") not in [type_ for _, type_ in await read(api, execution_id, query="?follow=false")]:
            await asyncio.sleep(0.05)
    await api.post(f"/api/executions/{execution_id}/cancel")
    seen = await read(api, execution_id)
    assert seen[-1][1] == "execution.cancelled"
    assert await read(api, execution_id, query="?follow=false") == seen


async def test_our_own_client_reads_a_stream(server: Server, finished: tuple[str, Seen]) -> None:
    execution_id, seen = finished
    async with Client(server.url, Secret(server.key)) as client:
        assert [(event.seq, event.type) async for event in client.events(execution_id)] == seen
        assert [event.seq async for event in client.events(execution_id, after=len(seen) - 2)] == [
            len(seen) - 1,
            len(seen),
        ]
