"""Store: everything that is kept. One writer makes changes durable, many readers look.

Called by `execution` (journal, executions, questions) and by the doors (lists, streams). A change is handed over as a
`Change`: statements with their guards, and the events that tell it. All of it is one durable transaction; the events
come back with the `seq` that the commit gave them. Where it is kept is a `Database`: a SQLite file, or PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson
from sqlalchemy import BigInteger, Executable, case, cast, func, select

from parallax.errors import JournalError, NotFoundError
from parallax.events import Event
from parallax.models import Execution, ExecutionState, Json, Question, Usage
from parallax.storage import tables as t
from parallax.storage.blobs import json_size_within
from parallax.storage.database import Database, Sharing
from parallax.storage.sqlite import SqliteDatabase
from parallax.storage.statements import Change, JournalEntry, forget, forget_bundles
from parallax.tasks import to_its_end

SUMS: Final = (
    "input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "cost", "turns", "wall_s",
)  # fmt: skip
INLINE_B: Final = 1024 * 1024  # a larger body or result is a blob
LARGEST_B: Final = 50_000_000  # and beyond this it is an error


class Store:
    """The store of one installation. `async with Store(path) as store`, or `Store.shared_by(url, server)`."""

    def __init__(self, path: Path, relieve: Callable[[], bool] | None = None) -> None:
        """`relieve` makes room on a full disk, and says whether it could."""
        self._database: Database = SqliteDatabase(path, relieve)
        self._sharing: Sharing | None = None

    @classmethod
    def shared_by(cls, url: str, server: str) -> Self:
        """A PostgreSQL database that several servers share; `server` is the name of this one, kept over restarts.

        Raises ConfigurationError for a URL that cannot be served.
        """
        from parallax.storage.postgres import PostgresDatabase

        store = cls.__new__(cls)
        store._database = store._sharing = PostgresDatabase(url, server)
        return store

    @property
    def shared(self) -> bool:
        """Whether other servers may write here, too: executions are then held by leases."""
        return self._sharing is not None

    async def __aenter__(self) -> Self:
        await self._database.open()
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._database.close()

    # -- writing ---------------------------------------------------------------------------------------------------

    async def commit(self, change: Change) -> list[Event]:
        """Make the change durable; returns its events with their `seq`.

        Raises FencedError when a guard or the one-result index refuses it, StorageError when the disk does.
        """
        return await self._database.commit(change)

    async def next_epoch(self) -> int:
        """Count the starts of this store: recovery goes by `epoch < boot epoch`, never by time."""
        return await self._database.next_epoch()

    async def keep_if_large(self, value: Json, what: str) -> tuple[str | None, int]:
        """Put a value over the inline limit aside; returns the blob's name, if it was, and the size of its JSON.

        Call it before the commit that names the blob. Raises JournalError for more than the largest result allowed.
        """
        encoded = orjson.dumps(value) if json_size_within(value, LARGEST_B) else None
        if encoded is None or len(encoded) > LARGEST_B:
            raise JournalError(
                f"{what} is larger than {LARGEST_B // 1_000_000} MB, the most that is kept: "
                "leave large things in files of the workspace and return where they are"
            )
        blob = await self._database.put_blob(encoded) if len(encoded) > INLINE_B else None
        return blob, len(encoded)

    async def collect_blobs(self) -> int:
        """Delete blobs that no row names any more; returns how many."""
        named = select(t.journal.c.blob.label("blob")).where(t.journal.c.blob.is_not(None))
        results = select(t.executions.c.result_blob.label("blob")).where(t.executions.c.result_blob.is_not(None))
        return await self._database.collect_blobs([row["blob"] for row in await self._rows(named.union(results))])

    async def forget(self, executions: Sequence[str]) -> None:
        """Delete executions with all their rows, and the programs that nobody uses any more."""
        writes = [write for execution in executions for write in forget(execution)]
        await self._database.commit(Change([*writes, forget_bundles()]))

    async def vacuum(self, pages: int) -> bool:
        """Give some freed pages back to the file system; whether there may be more."""
        return await self._database.vacuum(pages)

    async def backup(self, directory: Path) -> None:
        """A consistent copy of everything, with the store in use, into an empty directory: it is a data directory."""
        await self._database.backup(directory)

    # -- sharing -----------------------------------------------------------------------------------------------------

    def on_news(self, heard: Callable[[str | None], None]) -> None:
        """`heard` is told which execution another server has changed; None: any may have been. Else nobody calls it."""
        if self._sharing is not None:
            self._sharing.on_news(heard)

    async def lease(self, states: Sequence[ExecutionState], limit: int) -> list[Execution]:
        """Take executions that no living server holds, for a while; see `Sharing`. Only where the store is shared."""
        assert self._sharing is not None
        return [_execution(row) for row in await self._sharing.lease([str(state) for state in states], limit)]

    async def renew(self, ids: Sequence[str]) -> set[str]:
        """Hold these for another while; returns those that are still this server's."""
        assert self._sharing is not None
        return await self._sharing.renew(ids)

    async def let_go(self, states: Sequence[ExecutionState]) -> None:
        """Leave whatever this server holds to the others: at its end, and after a crash at its start."""
        if self._sharing is not None:
            await self._sharing.let_go([str(state) for state in states])

    # -- reading ---------------------------------------------------------------------------------------------------

    async def _rows(self, statement: Executable) -> Sequence[Any]:
        # A reader that leaves in the middle must not take a connection with an open read along: the read is short, so
        # it is let to its end, and the cancellation is honoured then.
        return await to_its_end(self._database.rows(statement))

    async def rows(self, table_name: str, **equal: Any) -> list[dict[str, Any]]:
        """The rows of a table whose columns have these values: for tables that one room keeps for itself."""
        table = t.metadata.tables[table_name]
        found = await self._rows(select(table).where(*(table.c[name] == value for name, value in equal.items())))
        return [{str(name): value for name, value in row.items()} for row in found]

    async def execution(self, execution_id: str) -> Execution:
        """One execution; raises NotFoundError."""
        rows = await self._rows(select(t.executions).where(t.executions.c.id == execution_id))
        if not rows:
            raise NotFoundError(f"there is no execution '{execution_id}' (`parallax executions` lists them)")
        found = _execution(rows[0])
        if found.result_blob is not None:
            found = replace(found, result=_decoded(await self._database.get_blob(found.result_blob), found.id))
        return found

    async def executions(
        self, *, states: Sequence[ExecutionState] = (), before: str | None = None, limit: int = 50
    ) -> list[Execution]:
        """Newest first, without results that lie in blobs. `before` is the id that the last page ended with."""
        statement = select(t.executions).order_by(t.executions.c.id.desc()).limit(limit)
        if states:
            statement = statement.where(t.executions.c.state.in_([str(state) for state in states]))
        if before:
            statement = statement.where(t.executions.c.id < before)
        return [_execution(row) for row in await self._rows(statement)]

    async def outlived(self, ended_before: float, count: int, limit: int) -> list[str]:
        """Ended executions that are too old, or have more than `count` newer ones; some of them at a time."""
        rows = t.executions.c
        newest = select(rows.id).order_by(rows.id.desc()).limit(1).offset(count).scalar_subquery()
        old = (rows.ended_at < ended_before) | (rows.id <= newest)
        statement = select(rows.id).where(rows.ended_at.is_not(None), old).order_by(rows.id).limit(limit)
        return [str(row["id"]) for row in await self._rows(statement)]

    async def ended(self, execution: str) -> bool:
        """Whether the execution is in a final state."""
        rows = await self._rows(select(t.executions.c.state).where(t.executions.c.id == execution))
        return bool(rows) and ExecutionState(rows[0]["state"]).final

    async def bundle(self, bundle_hash: str) -> tuple[str, dict[str, str]]:
        """The pinned program: path of its main module, and every module's text."""
        rows = await self._rows(select(t.bundles).where(t.bundles.c.hash == bundle_hash))
        if not rows:
            raise NotFoundError(f"the program {bundle_hash[:12]} is not in the store")
        return rows[0]["path"], _decoded(rows[0]["bundle"], f"the program {bundle_hash[:12]}")

    async def journal(self, execution: str) -> list[JournalEntry]:
        """The whole journal of one execution, in order."""
        rows = await self._rows(select(t.journal).where(t.journal.c.execution == execution).order_by(t.journal.c.seq))
        return [await self._entry(row) for row in rows]

    async def _entry(self, row: Any) -> JournalEntry:
        raw = row["body"] if row["blob"] is None else await self._database.get_blob(row["blob"])
        body = _decoded(raw, f"entry {row['seq']} of the journal of {row['execution']}")
        return JournalEntry(**(dict(row) | {"body": body, "size_b": len(raw)}))

    async def events(self, execution: str, after: int, limit: int = 500) -> list[Event]:
        """Committed events of one execution above `after`, in order."""
        rows = await self._rows(
            select(t.events)
            .where(t.events.c.execution == execution, t.events.c.seq > after)
            .order_by(t.events.c.seq)
            .limit(limit)
        )
        return [Event(**(dict(row) | {"data": _decoded(row["data"], "an event")})) for row in rows]

    async def count_events(self, execution: str, type_: str) -> int:
        """How many events of a type an execution has."""
        rows = await self._rows(
            select(func.count().label("n")).where(t.events.c.execution == execution, t.events.c.type == type_)
        )
        return int(rows[0]["n"])

    async def spent(
        self, *, executions: Sequence[str] | None = None, by: Sequence[str] = (), since: float = 0.0
    ) -> list[dict[str, Any]]:
        """What was spent, summed up by columns of `calls` (and `day`, in UTC): one row per group, the dearest first."""
        rows = t.calls.c
        columns: dict[str, Any] = {name: rows[name] for name in by if name != "day"}
        if "day" in by:
            columns["day"] = cast(rows.at, BigInteger) // 86_400
        sums = {name: func.sum(rows[name]) for name in SUMS}
        counts = {
            "calls": func.sum(case((rows.kind == "call", 1), else_=0)),
            "cost_estimated": func.sum(case((rows.priced == "estimated", rows.cost), else_=0)),
            "cost_reported": func.sum(case((rows.priced == "reported", rows.cost), else_=0)),
        }
        labelled = [column.label(name) for name, column in (columns | sums | counts).items()]
        statement = select(*labelled).where(rows.at >= since).group_by(*columns.values()).order_by(sums["cost"].desc())
        if executions is not None:
            statement = statement.where(rows.execution.in_(executions))
        found = [dict(row) for row in await self._rows(statement)]
        return [row | {"day": _date(row["day"])} for row in found] if "day" in by else found

    async def family(self, execution: str) -> list[str]:
        """An execution, its children, and theirs."""
        found, newest = [execution], [execution]
        while newest:
            rows = await self._rows(select(t.executions.c.id).where(t.executions.c.parent.in_(newest)))
            newest = [row["id"] for row in rows]
            found += newest
        return found

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


def _decoded(raw: str | bytes, what: str) -> Json:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{what} is damaged ({error}): restore the database from a backup") from None


def _execution(row: Any) -> Execution:
    values = {name: value for name, value in dict(row).items() if name != "lease_until"}
    for name in ("input", "options", "result"):
        values[name] = None if values[name] is None else _decoded(values[name], f"execution {row['id']}")
    values["usage"] = Usage(**orjson.loads(values["usage"])) if values["usage"] else Usage()
    values["state"] = ExecutionState(values["state"])
    return Execution(**values)


def _question(row: Any) -> Question:
    values = {name: value for name, value in dict(row).items() if name != "asked_at"}
    return Question(**(values | {"options": tuple(orjson.loads(values["options"]))}))


def _date(day: int) -> str:
    """A day counted from 1970 as people write it."""
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
