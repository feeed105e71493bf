"""Store: everything that is kept, in SQLite. Writes go to the one writer thread, reads to a read-only engine.

Called by `execution` (journal, executions, questions) and by the doors (lists, streams). A change is handed over as a
`Change`: statements with their guards, and the events that tell it. All of it is one durable transaction; the events
come back with the `seq` that the commit gave them.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson
from sqlalchemy import (
    Executable,
    Insert,
    ScalarSelect,
    Table,
    bindparam,
    case,
    event,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from parallax.errors import FencedError, NotFoundError, SchemaError, StorageError
from parallax.events import Event
from parallax.models import Execution, ExecutionState, Json, Question, Usage
from parallax.storage import tables as t
from parallax.storage.writer import Writer

SUMS: Final = (
    "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "cost", "turns", "wall_s",
)  # fmt: skip
_DIALECT: Final = sqlite.dialect(paramstyle="named")


def dumps(value: Json) -> str:
    """Strict JSON text."""
    return orjson.dumps(value).decode()


def _sql(statement: Executable) -> str:
    return str(statement.compile(dialect=_DIALECT))  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Write:
    """One statement. `expect` is the number of rows it must change, else the whole change is refused as fenced."""

    sql: str
    params: dict[str, Any]
    expect: int | None = None


@dataclass(slots=True)
class Change:
    """What one transaction does: statements in order, then events."""

    writes: list[Write] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A line of the journal. kind: header, intent, result, join, timer, signal."""

    execution: str
    step_key: str
    kind: str
    attempt: int
    epoch: int
    body: Json
    input_hash: str | None = None
    at: float = field(default_factory=time.time)
    seq: int = 0


def _next_seq(table: Table) -> ScalarSelect[Any]:
    # The number is given inside the commit: a rolled-back one would look like a gap.
    return (
        select(func.coalesce(func.max(table.c.seq), literal_column("0")) + literal_column("1"))
        .where(table.c.execution == bindparam("execution"))
        .scalar_subquery()
    )


def _appending(table: Table) -> Insert:
    values: dict[str, Any] = {column.name: bindparam(column.name) for column in table.c if column.name != "seq"}
    return insert(table).inline().values(**values, seq=_next_seq(table))


@cache
def _insert_event() -> str:
    return _sql(_appending(t.events).returning(t.events.c.seq))


@cache
def _insert_journal() -> str:
    return _sql(_appending(t.journal))


@cache
def _guard() -> str:
    # Touches the row only when the caller's epoch still owns it.
    rows = t.executions
    return _sql(
        update(rows)
        .where(rows.c.id == bindparam("b_id"), rows.c.epoch == bindparam("b_epoch"))
        .values(epoch=bindparam("b_epoch"))
    )


@cache
def _update_execution(columns: tuple[str, ...]) -> str:
    rows = t.executions
    return _sql(
        update(rows).where(rows.c.id == bindparam("b_id")).values({name: bindparam(f"v_{name}") for name in columns})
    )


@cache
def _end_guard() -> str:
    rows = t.executions
    final = [str(state) for state in ExecutionState if state.final]
    return _sql(
        update(rows)
        .where(rows.c.id == bindparam("b_id"), rows.c.state.not_in([literal_column(f"'{state}'") for state in final]))
        .values(id=bindparam("b_id"))
    )


@cache
def _uncount() -> str:
    rows = t.executions
    return _sql(
        update(rows)
        .where(rows.c.id == bindparam("b_id"), rows.c.epoch == bindparam("b_epoch"))
        .where(rows.c.recoveries > literal_column("0"))
        .values(recoveries=rows.c.recoveries - literal_column("1"))
    )


@cache
def _insert(table_name: str, replace_row: bool) -> str:
    table = t.metadata.tables[table_name]
    statement = insert(table).values({column.name: bindparam(column.name) for column in table.c})
    return _sql(statement.prefix_with("OR REPLACE") if replace_row else statement)


@cache
def _update_call(columns: tuple[str, ...]) -> str:
    rows = t.calls
    return _sql(
        update(rows).where(rows.c.id == bindparam("b_id")).values({name: bindparam(f"v_{name}") for name in columns})
    )


def set_call(call_id: str, **columns: Any) -> Write:
    """Set columns of one row of what was spent."""
    params = {"b_id": call_id} | {f"v_{name}": value for name, value in columns.items()}
    return Write(_update_call(tuple(columns)), params, expect=1)


def insert_row(table_name: str, row: dict[str, Any], *, replace_row: bool = False) -> Write:
    """Insert (or replace) one row; absent columns are NULL."""
    table = t.metadata.tables[table_name]
    return Write(_insert(table_name, replace_row), {column.name: row.get(column.name) for column in table.c})


def guard(execution: str, epoch: int) -> Write:
    """Refuse the change unless `epoch` still owns the execution."""
    return Write(_guard(), {"b_id": execution, "b_epoch": epoch}, expect=1)


def not_ended(execution: str) -> Write:
    """Refuse the change when the execution is in a final state."""
    return Write(_end_guard(), {"b_id": execution}, expect=1)


def uncount_recovery(execution: str, epoch: int) -> Write:
    """Take back the count of a recovery that ended in good order."""
    return Write(_uncount(), {"b_id": execution, "b_epoch": epoch})


def set_execution(execution: str, **columns: Any) -> Write:
    """Set columns of one execution; JSON columns are encoded here."""
    values = {
        name: dumps(value) if name in {"result", "usage", "options", "input"} and value is not None else value
        for name, value in columns.items()
    }
    params = {"b_id": execution} | {f"v_{name}": value for name, value in values.items()}
    return Write(_update_execution(tuple(columns)), params, expect=1)


def append(entry: JournalEntry) -> Write:
    """Append to the journal; `seq` is given by the commit."""
    return Write(
        _insert_journal(),
        {
            "execution": entry.execution,
            "step_key": entry.step_key,
            "kind": entry.kind,
            "attempt": entry.attempt,
            "epoch": entry.epoch,
            "input_hash": entry.input_hash,
            "body": dumps(entry.body),
            "at": entry.at,
        },
    )


def execution_row(execution: Execution) -> dict[str, Any]:
    """An execution as a row of its table."""
    row = {f.name: getattr(execution, f.name) for f in fields(execution)}
    row["state"] = str(execution.state)
    for name in ("input", "options", "result"):
        row[name] = None if row[name] is None and name == "result" else dumps(row[name])
    row["usage"] = dumps(execution.usage)
    return row


def question_row(question: Question, asked_at: float) -> dict[str, Any]:
    """A question as a row of its table."""
    row = {f.name: getattr(question, f.name) for f in fields(question)}
    return row | {"options": dumps([dict(option) for option in question.options]), "asked_at": asked_at}


class Store:
    """The SQLite store of one data directory. `async with Store(path) as store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = Writer(path)
        self._stack = AsyncExitStack()
        self._reader: AsyncEngine

    async def __aenter__(self) -> Self:
        await self._writer.open()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._writer.close)
            await self._writer.submit(_migrate)
            self._reader = _read_only(self._path)
            stack.push_async_callback(self._reader.dispose)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._stack.aclose()

    # -- writing ---------------------------------------------------------------------------------------------------

    async def commit(self, change: Change) -> list[Event]:
        """Make the change durable; returns its events with their `seq`.

        Raises FencedError when a guard or the one-result index refuses it, StorageError when the disk does.
        """

        def batch(connection: sqlite3.Connection) -> list[Event]:
            try:
                for write in change.writes:
                    changed = connection.execute(write.sql, write.params).rowcount
                    if write.expect is not None and changed != write.expect:
                        raise FencedError("another owner holds this execution, or its step has a result already")
                committed = []
                for told in change.events:
                    row = connection.execute(
                        _insert_event(),
                        {
                            "execution": told.execution,
                            "type": told.type,
                            "at": told.at,
                            "step_key": told.step_key,
                            "agent_id": told.agent_id,
                            "data": dumps(told.data),
                        },
                    ).fetchone()
                    committed.append(replace(told, seq=row[0]))
            except sqlite3.IntegrityError as error:
                raise FencedError(f"refused by the store: {error}") from error
            return committed

        events: list[Event] = await self._writer.submit(batch)
        return events

    async def next_epoch(self) -> int:
        """Count the starts of this store: recovery goes by `epoch < boot epoch`, never by time."""

        def batch(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
            epoch = int(row[0]) + 1 if row else 1
            connection.execute("INSERT OR REPLACE INTO meta(key, value) VALUES ('epoch', ?)", (str(epoch),))
            return epoch

        epoch: int = await self._writer.submit(batch)
        return epoch

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _rows(self, statement: Executable) -> Sequence[Any]:
        # A reader that leaves in the middle must not take a connection with an open read along: the read is short, so
        # it is let to its end, and the cancellation is honoured then.
        reading = asyncio.ensure_future(self._read(statement))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # retrieved: its reader is gone
            raise

    async def _read(self, statement: Executable) -> Sequence[Any]:
        async with self._reader.connect() as connection:
            return (await connection.execute(statement)).mappings().all()

    async def execution(self, execution_id: str) -> Execution:
        """One execution; raises NotFoundError."""
        rows = await self._rows(select(t.executions).where(t.executions.c.id == execution_id))
        if not rows:
            raise NotFoundError(f"there is no execution '{execution_id}' (`parallax executions` lists them)")
        return _execution(rows[0])

    async def executions(
        self, *, states: Sequence[ExecutionState] = (), before: str | None = None, limit: int = 50
    ) -> list[Execution]:
        """Newest first. `before` is the id that the last page ended with."""
        statement = select(t.executions).order_by(t.executions.c.id.desc()).limit(limit)
        if states:
            statement = statement.where(t.executions.c.state.in_([str(state) for state in states]))
        if before:
            statement = statement.where(t.executions.c.id < before)
        return [_execution(row) for row in await self._rows(statement)]

    async def ended(self, execution: str) -> bool:
        """Whether the execution is in a final state."""
        rows = await self._rows(select(t.executions.c.state).where(t.executions.c.id == execution))
        return bool(rows) and ExecutionState(rows[0]["state"]).final

    async def bundle(self, bundle_hash: str) -> tuple[str, dict[str, str]]:
        """The pinned program: path of its main module, and every module's text."""
        rows = await self._rows(select(t.bundles).where(t.bundles.c.hash == bundle_hash))
        if not rows:
            raise NotFoundError(f"the program {bundle_hash[:12]} is not in the store")
        return rows[0]["path"], orjson.loads(rows[0]["bundle"])

    async def journal(self, execution: str) -> list[JournalEntry]:
        """The whole journal of one execution, in order."""
        rows = await self._rows(select(t.journal).where(t.journal.c.execution == execution).order_by(t.journal.c.seq))
        return [JournalEntry(**(dict(row) | {"body": orjson.loads(row["body"])})) for row in rows]

    async def events(self, execution: str, after: int, limit: int = 500) -> list[Event]:
        """Committed events of one execution above `after`, in order."""
        rows = await self._rows(
            select(t.events)
            .where(t.events.c.execution == execution, t.events.c.seq > after)
            .order_by(t.events.c.seq)
            .limit(limit)
        )
        return [Event(**(dict(row) | {"data": orjson.loads(row["data"])})) for row in rows]

    async def count_events(self, execution: str, type_: str) -> int:
        """How many events of a type an execution has."""
        rows = await self._rows(
            select(func.count().label("n")).where(t.events.c.execution == execution, t.events.c.type == type_)
        )
        return int(rows[0]["n"])

    async def spent(
        self, *, execution: str | None = None, by: Sequence[str] = (), since: float = 0.0
    ) -> list[dict[str, Any]]:
        """What was spent, summed up by columns of `calls` (and `day`, in UTC): one row per group, the dearest first."""
        rows = t.calls.c
        columns: dict[str, Any] = {name: rows[name] for name in by if name != "day"}
        if "day" in by:
            columns["day"] = func.date(rows.at, "unixepoch")
        sums = {name: func.sum(rows[name]) for name in SUMS}
        counts = {
            "calls": func.sum(case((rows.kind == "call", 1), else_=0)),
            "cost_estimated": func.sum(case((rows.priced == "estimated", rows.cost), else_=0)),
            "cost_reported": func.sum(case((rows.priced == "reported", rows.cost), else_=0)),
        }
        labelled = [column.label(name) for name, column in (columns | sums | counts).items()]
        statement = select(*labelled).where(rows.at >= since).group_by(*columns.values()).order_by(sums["cost"].desc())
        if execution is not None:
            statement = statement.where(rows.execution == execution)
        return [dict(row) for row in await self._rows(statement)]

    async def question(self, question_id: str) -> Question:
        """One question; raises NotFoundError."""
        rows = await self._rows(select(t.questions).where(t.questions.c.id == question_id))
        if not rows:
            raise NotFoundError(f"there is no question '{question_id}' (`parallax questions` lists the open ones)")
        return _question(rows[0])

    async def questions(
        self, *, execution: str | None = None, states: Sequence[str] = (), limit: int = 200
    ) -> list[Question]:
        """Oldest first."""
        statement = select(t.questions).order_by(t.questions.c.asked_at).limit(limit)
        if execution:
            statement = statement.where(t.questions.c.execution == execution)
        if states:
            statement = statement.where(t.questions.c.state.in_(list(states)))
        return [_question(row) for row in await self._rows(statement)]

    async def idempotent(self, key: str) -> tuple[str, str] | None:
        """What an idempotency key stands for: (hash of the body, execution id)."""
        rows = await self._rows(select(t.idempotency).where(t.idempotency.c.key == key))
        return (rows[0]["body_hash"], rows[0]["execution"]) if rows else None


def _migrate(connection: sqlite3.Connection) -> None:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        for table in t.metadata.sorted_tables:
            connection.execute(str(CreateTable(table).compile(dialect=_DIALECT)))
            for index in table.indexes:
                connection.execute(str(CreateIndex(index).compile(dialect=_DIALECT)))
        connection.execute("INSERT INTO meta(key, value) VALUES ('schema', ?)", (t.SCHEMA_VERSION,))
        return
    if "meta" not in tables:
        raise StorageError("this database is not Parallax's: move it away or choose another PARALLAX_DATA_DIR")
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if row is None or row[0] > t.SCHEMA_VERSION:
        raise SchemaError(
            f"the database has schema {row and row[0]}, this Parallax knows {t.SCHEMA_VERSION}: "
            "install the newer Parallax, or choose another PARALLAX_DATA_DIR"
        )


def _read_only(path: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///file:{path}?mode=ro&uri=true", pool_size=4, max_overflow=4)

    @event.listens_for(engine.sync_engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("busy_timeout=5000", "query_only=ON", "trusted_schema=OFF"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine


def _execution(row: Any) -> Execution:
    values = dict(row)
    for name in ("input", "options", "result"):
        values[name] = None if values[name] is None else orjson.loads(values[name])
    values["usage"] = Usage(**orjson.loads(values["usage"])) if values["usage"] else Usage()
    values["state"] = ExecutionState(values["state"])
    return Execution(**values)


def _question(row: Any) -> Question:
    values = {name: value for name, value in dict(row).items() if name != "asked_at"}
    return Question(**(values | {"options": tuple(orjson.loads(values["options"]))}))
