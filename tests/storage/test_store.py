"""The store keeps what it says it keeps, numbers events without gap, and refuses whoever does not own an execution."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from parallax.errors import FencedError, NotFoundError, SchemaError, StorageError
from parallax.events import Event
from parallax.models import Execution, ExecutionState, Question, Usage, new_id
from parallax.storage.statements import (
    Change,
    JournalEntry,
    append,
    execution_row,
    guard,
    insert_row,
    question_row,
    set_call,
    set_execution,
)
from parallax.storage.store import Store
from tests.postgres import Cluster


def execution(**more: object) -> Execution:
    values: dict[str, object] = {
        "id": new_id(), "pattern": "p", "version": "1", "hash": "h", "input": {"goal": "x"}, "repo": None,
        "base": None, "state": ExecutionState.QUEUED, "created_at": time.time(), "options": {},
    }  # fmt: skip
    return Execution(**(values | more))  # type: ignore[arg-type]


def entry(of: Execution, key: str, kind: str = "result", epoch: int = 0) -> JournalEntry:
    return JournalEntry(execution=of.id, step_key=key, kind=kind, attempt=1, epoch=epoch, body={"k": key})


@pytest.fixture(params=["sqlite", "postgres"])
async def store(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """The same promises in both databases."""
    if request.param == "sqlite":
        made = Store(tmp_path / "parallax.db")
    else:
        cluster: Cluster = request.getfixturevalue("postgres")
        made = Store.shared_by(await cluster.database(), "one")
    async with made as opened:
        yield opened


def commits(store: Store) -> int:
    database: Any = store._database
    return int(database._commits if store.shared else database.writer.commits)


@pytest.fixture
async def known(store: Store) -> Execution:
    made = execution()
    bundle = insert_row("bundles", {"hash": "h", "path": "m.prism", "bundle": '{"m.prism": "1"}'})
    await store.commit(Change([bundle, insert_row("executions", execution_row(made))]))
    return made


async def test_an_execution_comes_back_as_it_went_in(store: Store, known: Execution) -> None:
    assert await store.execution(known.id) == known
    assert await store.bundle("h") == ("m.prism", {"m.prism": "1"})


async def test_what_does_not_exist_is_not_found(store: Store) -> None:
    with pytest.raises(NotFoundError, match="there is no execution 'nope'"):
        await store.execution("nope")
    with pytest.raises(NotFoundError, match="there is no question 'q1'"):
        await store.question("q1")


async def test_events_are_numbered_from_one_without_gap_by_the_commit(store: Store, known: Execution) -> None:
    async def one(number: int) -> list[Event]:
        event = Event(execution=known.id, type="log.printed", data={"line": str(number)})
        return await store.commit(Change(events=[event]))

    told = await asyncio.gather(*(one(number) for number in range(200)))
    assert sorted(event.seq for events in told for event in events) == list(range(1, 201))
    assert [event.seq for event in await store.events(known.id, 150)] == list(range(151, 201))


async def test_a_refused_change_leaves_nothing_not_even_its_event_number(store: Store, known: Execution) -> None:
    event = Event(execution=known.id, type="log.printed", data={"line": "x"})
    with pytest.raises(FencedError):
        await store.commit(Change([append(entry(known, "a")), guard(known.id, 7)], [event]))
    assert await store.journal(known.id) == []
    assert [e.seq for e in await store.commit(Change(events=[event]))] == [1]


async def test_a_step_has_one_result_whoever_tries(store: Store, known: Execution) -> None:
    await store.commit(Change([append(entry(known, "a"))]))
    for kind in ("result", "join"):
        with pytest.raises(FencedError):
            await store.commit(Change([append(entry(known, "a", kind))]))
    await store.commit(Change([append(entry(known, "a", "intent")), append(entry(known, "b"))]))
    assert [e.step_key for e in await store.journal(known.id)] == ["a", "a", "b"]


async def test_a_former_owner_writes_nothing(store: Store, known: Execution) -> None:
    await store.commit(Change([guard(known.id, 0), set_execution(known.id, epoch=3)]))
    with pytest.raises(FencedError, match="another owner"):
        await store.commit(Change([guard(known.id, 0), append(entry(known, "late"))]))
    assert (await store.execution(known.id)).epoch == 3


async def test_one_failing_batch_of_a_group_commit_spares_its_neighbours(store: Store, known: Execution) -> None:
    async def good(number: int) -> None:
        await store.commit(Change([append(entry(known, f"good{number}"))]))

    async def bad() -> None:
        await store.commit(Change([append(entry(known, "x")), guard(known.id, 99)]))

    results = await asyncio.gather(*(good(n) for n in range(20)), bad(), bad(), return_exceptions=True)
    assert [type(r) for r in results if r is not None] == [FencedError, FencedError]
    assert len(await store.journal(known.id)) == 20


async def test_many_writers_share_commits(store: Store, known: Execution) -> None:
    before = commits(store)
    await asyncio.gather(*(store.commit(Change([append(entry(known, f"s{n}"))])) for n in range(500)))
    assert commits(store) - before < 250


async def test_a_cancelled_caller_waits_for_its_commit_before_it_leaves(store: Store, known: Execution) -> None:
    task = asyncio.create_task(store.commit(Change([append(entry(known, "a"))])))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [e.step_key for e in await store.journal(known.id)] == ["a"]


async def test_everything_is_there_after_the_process_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "parallax.db"
    made = execution(usage=Usage(cost=5), result={"deep": [1, None, "ü"]})
    async with Store(path) as first:
        bundle = insert_row("bundles", {"hash": "h", "path": "m", "bundle": "{}"})
        await first.commit(Change([bundle, insert_row("executions", execution_row(made))]))
        assert await first.next_epoch() == 1
    async with Store(path) as second:
        assert await second.execution(made.id) == made
        assert await second.next_epoch() == 2


async def test_a_question_keeps_its_options_and_state(store: Store, known: Execution) -> None:
    asked = Question(id="q1", execution=known.id, step_key="s", asker="a", kind="question", text="?",
                     options=({"id": "yes", "label": "Yes"},))  # fmt: skip
    await store.commit(Change([insert_row("questions", question_row(asked, 1.0))]))
    assert await store.question("q1") == asked
    assert await store.questions(states=("answered",)) == []


async def test_a_database_of_a_newer_parallax_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "parallax.db"
    async with Store(path):
        pass
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE meta SET value = '9999' WHERE key = 'schema'")
    connection.close()
    with pytest.raises(SchemaError, match="install the newer Parallax"):
        async with Store(path):
            pass


async def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "parallax.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    with pytest.raises(StorageError, match="is not Parallax's"):
        async with Store(path):
            pass


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "parallax.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StorageError, match=r"parallax\.db cannot be opened"):
        async with Store(path):
            pass


async def test_readers_that_leave_in_the_middle_do_not_hold_the_store_open(tmp_path: Path) -> None:
    begun = time.monotonic()
    async with Store(tmp_path / "parallax.db") as opened:
        for _ in range(40):
            reading = asyncio.create_task(opened.executions())
            await asyncio.sleep(0.0005)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
    assert time.monotonic() - begun < 3.0


async def test_what_was_spent_is_summed_up_as_asked(tmp_path: Path) -> None:
    def row(name: str, **more: object) -> dict[str, object]:
        zero = dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "cost"), 0)
        where = {"execution": "e", "agent_id": "a", "role": "r", "step_key": "s", "task": "t", "provider": "p"}
        return zero | where | {
            "id": name, "kind": "call", "state": "reserved", "account": "", "model": "m", "priced": "estimated",
            "turns": 0, "wall_s": 0.0, "at": 86_400.0, "cost": 10,
        } | more  # fmt: skip

    async with Store(tmp_path / "parallax.db") as opened:
        rows = [row("1"), row("2", role="q"), row("3", at=2 * 86_400.0, kind="turn", turns=1, cost=0)]
        await opened.commit(Change([insert_row("calls", made) for made in rows]))
        await opened.commit(Change([set_call("2", state="settled", cost=4, output_tokens=7, priced="table")]))
        by_role = await opened.spent(executions=["e"], by=("role",))
        assert [(r["role"], r["cost"], r["cost_estimated"], r["calls"]) for r in by_role] == [
            ("r", 10, 10, 1), ("q", 4, 0, 1),
        ]  # fmt: skip
        by_day = await opened.spent(by=("day",))
        assert [(r["day"], r["cost"], r["turns"], r["output_tokens"]) for r in by_day] == [
            ("1970-01-02", 14, 0, 7), ("1970-01-03", 0, 1, 0),
        ]  # fmt: skip
        assert await opened.spent(executions=["other"], by=("role",)) == []
        with pytest.raises(FencedError):
            await opened.commit(Change([set_call("9", cost=1)]))
