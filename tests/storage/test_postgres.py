"""PostgreSQL: several servers on one database. Each change is kept once, whatever happens to the connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from parallax.errors import ConfigurationError, FencedError, StorageError
from parallax.events import Event, EventBus
from parallax.models import Execution, ExecutionState
from parallax.storage import postgres as module
from parallax.storage.statements import (
    Change,
    append,
    current,
    execution_row,
    guard,
    insert_row,
    set_execution,
)
from parallax.storage.store import INLINE_B, Store
from tests.postgres import Cluster, cluster
from tests.storage.test_store import entry, execution

LIVE = (ExecutionState.QUEUED, ExecutionState.RUNNING)


@pytest.fixture
async def url(postgres: Cluster) -> str:
    return await postgres.database()


async def known(store: Store, **more: Any) -> Execution:
    made = execution(**more)
    bundle = insert_row("bundles", {"hash": "h", "path": "m.prism", "bundle": "{}"}, replace_row=True)
    await store.commit(Change([bundle, insert_row("executions", execution_row(made))]))
    return made


def line(of: Execution, number: int) -> Event:
    return Event(execution=of.id, type="log.printed", data={"line": str(number)})


async def test_a_stream_in_one_server_has_what_another_commits_without_gap_or_duplicate(url: str) -> None:
    async with Store.shared_by(url, "a") as a, Store.shared_by(url, "b") as b:
        made = await known(a)
        bus = EventBus(b)
        b.on_news(bus.hear)
        seen: dict[int, list[int]] = {}

        async def follow(number: int) -> None:
            await asyncio.sleep(random.Random(number).uniform(0.0, 0.4))
            seen[number] = []
            async for event in bus.stream(made.id):
                seen[number].append(event.seq)

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(follow(number))
            for number in range(150):
                await a.commit(Change(events=[line(made, number)]))
            ended = Event(execution=made.id, type="execution.succeeded")
            await a.commit(Change([set_execution(made.id, state="succeeded")], [ended]))
        assert all(seqs == list(range(1, 152)) for seqs in seen.values())


async def test_news_that_came_while_nobody_could_listen_are_read_when_the_line_is_back(
    url: str, postgres: Cluster
) -> None:
    async with Store.shared_by(url, "a") as a, Store.shared_by(url, "b") as b:
        made = await known(a)
        bus = EventBus(b)
        b.on_news(bus.hear)
        stream = bus.stream(made.id)
        await a.commit(Change(events=[line(made, 0)]))
        assert (await anext(stream)).seq == 1
        listeners = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        await postgres.query(url, f"{listeners} AND datname = current_database()")
        await a.commit(Change(events=[line(made, 1)]))
        async with asyncio.timeout(10):
            assert (await anext(stream)).seq == 2


async def test_an_execution_is_leased_to_one_server_only_and_to_another_when_the_lease_has_run_out(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_S", 1.0)
    async with Store.shared_by(url, "a") as a, Store.shared_by(url, "b") as b:
        ids = {(await known(a)).id for _ in range(40)}
        taken = await asyncio.gather(*(store.lease(LIVE, 7) for store in (a, b) * 4))
        flat = [found.id for group in taken for found in group]
        assert (len(flat), set(flat)) == (40, ids)
        assert await a.lease(LIVE, 99) == []
        of_a = [found.id for group in taken[::2] for found in group]
        await asyncio.sleep(0.6)
        assert await a.renew(of_a) == set(of_a)
        await asyncio.sleep(0.6)
        assert {found.id for found in await b.lease(LIVE, 99)} == ids - set(of_a)
        assert await b.renew(of_a) == set()
        await a.let_go(LIVE)
        assert {found.id for found in await b.lease(LIVE, 99)} == set(of_a)


async def test_a_former_owner_writes_nothing_from_the_moment_its_execution_is_leased_to_another(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEASE_S", 0.1)
    async with Store.shared_by(url, "a") as a, Store.shared_by(url, "b") as b:
        made = await known(a, epoch=3)
        assert len(await a.lease(LIVE, 1)) == 1
        await a.commit(Change([guard(made.id, 3), append(entry(made, "mine", epoch=3))]))
        await asyncio.sleep(0.2)
        assert len(await b.lease(LIVE, 1)) == 1  # its epoch is still the old one
        for late in (
            Change([guard(made.id, 3), append(entry(made, "late", epoch=3))]),
            Change([guard(made.id, 3), set_execution(made.id, state="failed")], [line(made, 1)]),
            Change(events=[line(made, 2)]),
        ):
            with pytest.raises(FencedError, match="another owner"):
                await a.commit(late)
        await a.commit(Change([current(made.id, 3), set_execution(made.id, state="cancelling")], [line(made, 3)]))
        assert [e.step_key for e in await b.journal(made.id)] == ["mine"]
        assert [e.seq for e in await b.events(made.id, 0)] == [1]


async def test_two_servers_that_tell_of_one_execution_number_its_events_without_gap(url: str) -> None:
    async with Store.shared_by(url, "a") as a, Store.shared_by(url, "b") as b:
        made = await known(a)
        changes = [Change([current(made.id, 0)], [line(made, number)]) for number in range(60)]
        told = await asyncio.gather(*((a, b)[number % 2].commit(change) for number, change in enumerate(changes)))
        assert sorted(event.seq for events in told for event in events) == list(range(1, 61))


async def test_large_results_lie_in_the_database_for_every_server(url: str) -> None:
    async with Store.shared_by(url, "a") as a, Store.shared_by(url, "b") as b:
        made = await known(a)
        large = {"text": "x" * INLINE_B}
        blob, _ = await a.keep_if_large(large, "it")
        await a.commit(Change([set_execution(made.id, result_blob=blob)]))
        assert (await b.execution(made.id)).result == large
        assert await b.collect_blobs() == 0


async def test_text_that_postgresql_cannot_keep_is_kept_as_near_as_it_can_be(url: str) -> None:
    async with Store.shared_by(url, "a") as a:
        made = await known(a)
        await a.commit(Change([set_execution(made.id, reason="nul \x00 byte")], [line(made, 1)]))
        assert (await a.execution(made.id)).reason == "nul \ufffd byte"


# -- a connection that breaks ---------------------------------------------------------------------------------------


class Proxy:
    """Between a store and the database; cuts the line right behind a COMMIT, before its answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cuts = 0
        self.armed = False

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(self._pump(there, writer))
        try:
            while data := await reader.read(65536):
                back.write(data)
                if self.armed and b"COMMIT" in data:
                    self.armed = False
                    self.cuts += 1
                    answers.cancel()
                    await asyncio.sleep(0.2)  # the database has committed by now
                    break
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            writer.close()
            back.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.close()


async def test_a_commit_whose_answer_was_lost_is_not_made_twice(url: str, postgres: Cluster) -> None:
    proxy = Proxy(postgres.port)
    async with proxy.listening() as port, Store.shared_by(url.replace(f":{postgres.port}/", f":{port}/"), "a") as store:
        made = await known(store)
        for number in range(5):
            proxy.armed = True
            change = Change([guard(made.id, 0), append(entry(made, f"s{number}"))], [line(made, number)])
            assert [event.seq for event in await store.commit(change)] == [number + 1]
        assert proxy.cuts == 5
        assert [e.step_key for e in await store.journal(made.id)] == [f"s{number}" for number in range(5)]
        assert [e.seq for e in await store.events(made.id, 0)] == [1, 2, 3, 4, 5]


async def test_a_database_that_is_restarted_under_load_loses_and_doubles_nothing() -> None:
    with cluster(durable=True) as own:
        url = await own.database()
        async with Store.shared_by(url, "a") as store:
            executions = [await known(store) for _ in range(20)]
            told: dict[str, list[int]] = {made.id: [] for made in executions}
            stop = time.monotonic() + 6.0

            async def work(made: Execution) -> None:
                number = 0
                while time.monotonic() < stop:
                    change = Change([guard(made.id, 0), append(entry(made, f"s{number}"))], [line(made, number)])
                    told[made.id] += [event.seq for event in await store.commit(change)]
                    assert (await store.execution(made.id)).id == made.id
                    number += 1

            async with asyncio.TaskGroup() as group:
                for made in executions:
                    group.create_task(work(made))
                for _ in range(3):
                    await asyncio.sleep(1.0)
                    await own.restart(down_s=0.3)
            for made in executions:
                count = len(told[made.id])
                assert told[made.id] == list(range(1, count + 1))
                assert [e.step_key for e in await store.journal(made.id)] == [f"s{n}" for n in range(count)]
                assert [e.seq for e in await store.events(made.id, 0, limit=100_000)] == told[made.id]


async def test_a_database_that_stays_away_is_a_storage_error(
    postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOST_S", 0.5)
    proxy = Proxy(postgres.port)
    url = await postgres.database()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(proxy.listening())
        store = await stack.enter_async_context(Store.shared_by(url.replace(f":{postgres.port}/", f":{port}/"), "a"))
        made = await known(store)
        proxy._port = 1  # nobody answers there
        proxy.armed = True
        with pytest.raises(StorageError, match="does not answer; whether the last change was kept is not known"):
            await store.commit(Change(events=[line(made, 1)]))
        proxy._port = postgres.port
        assert [e.seq for e in await store.commit(Change(events=[line(made, 2)]))] == [2], "the first was kept, too"


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("mysql://u:secret@h/d", ConfigurationError, "has the scheme 'mysql'"),
        ("postgresql://u:secret@127.0.0.1:1/d", StorageError, "the database d on 127.0.0.1:1 cannot be opened"),
        ("postgresql://u:secret@[::1/d", ConfigurationError, "is not a URL"),
    ],
)
async def test_a_database_that_cannot_be_used_is_named_without_its_password(
    url: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        async with Store.shared_by(url, "a"):
            pass
    assert "secret" not in str(caught.value)


async def test_a_schema_is_made_once_by_servers_that_start_together(postgres: Cluster) -> None:
    url = await postgres.database()

    async def one(name: str) -> int:
        async with Store.shared_by(url, name) as store:
            return await store.next_epoch()

    assert sorted(await asyncio.gather(*(one(f"s{n}") for n in range(4)))) == [1, 2, 3, 4]
