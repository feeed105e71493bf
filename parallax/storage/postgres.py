"""PostgreSQL: one database for several servers. One connection writes, in group commits; a pool reads; one listens.

A group is one transaction. Changes that only append to journals and tell events are merged into one statement for each
table; the others run one after another, each in a savepoint. The rows of the executions are locked first, in order of
their ids: that numbers events without gap, whoever writes, and it fences: a change is refused whose epoch is not the
row's, or whose server does not own the execution. Other servers hear by NOTIFY which execution has news, never what.

When the connection breaks, the group is tried again on a new one. Whether a commit whose answer was lost was kept, the
server's own row says: every group counts itself there, and reading it waits for the old transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from sqlalchemy import Executable, text
from sqlalchemy.dialects.postgresql import asyncpg as dialect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from parallax.errors import ConfigurationError, FencedError, StorageError, UsageError
from parallax.events import Event
from parallax.storage.blobs import UNNAMED_S, checked, name_of
from parallax.storage.database import REFUSED, Compiler
from parallax.storage.migrating import bring_up
from parallax.storage.statements import Change, Write, event_params, insert_journal, update_current, update_guard
from parallax.tasks import to_its_end

_T = TypeVar("_T")

GROUP: Final = 256  # changes in one commit at most
LOST_S: Final = 60.0  # how long a database that does not answer is waited for
FIRST_PAUSE_S: Final = 0.05
CONNECT_S: Final = 10.0
LEASE_S: Final = 10.0
LISTEN_CHECK_S: Final = 10.0
RELISTEN_S: Final = 0.2
CHANNEL: Final = "parallax"
_JOURNAL: Final = ("execution", "step_key", "kind", "attempt", "epoch", "input_hash", "body", "blob", "at")
_EVENT: Final = ("execution", "type", "at", "step_key", "agent_id", "data")
_TYPES: Final = {"attempt": "int", "epoch": "int", "at": "float8"}

# A commit is on disk when it is answered, and a transaction whose server is gone holds nobody up for long.
_SETTINGS: Final = {
    "application_name": "parallax", "synchronous_commit": "on", "idle_in_transaction_session_timeout": "15000",
}  # fmt: skip

# Leases go by the database's clock alone.
_LEASE: Final = """
UPDATE executions SET owner = $1, lease_until = extract(epoch FROM clock_timestamp()) + $2
WHERE id IN (
    SELECT id FROM executions
    WHERE state = ANY($3::text[]) AND coalesce(lease_until, 0) < extract(epoch FROM clock_timestamp())
    ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED)
RETURNING *"""
_RENEW: Final = """
UPDATE executions SET lease_until = extract(epoch FROM clock_timestamp()) + $2
WHERE owner = $1 AND id = ANY($3::text[]) RETURNING id"""
_LET_GO: Final = "UPDATE executions SET owner = NULL, lease_until = NULL WHERE owner = $1 AND state = ANY($2::text[])"

_LOCK: Final = """
WITH counted AS (UPDATE servers SET commits = $2 WHERE name = $3)
SELECT id, epoch, owner FROM executions WHERE id = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE"""


def _appending(table: str, columns: Sequence[str]) -> str:
    """Many rows for many executions in one statement, numbered behind what each execution has."""
    arrays = ", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(columns, 1))
    listed, named = ", ".join(columns), ", ".join(f"new.{name}" for name in columns)
    return f"""
INSERT INTO {table} ({listed}, seq)
SELECT {named}, coalesce((SELECT max(seq) FROM {table} AS old WHERE old.execution = new.execution), 0)
    + row_number() OVER (PARTITION BY new.execution ORDER BY new.place)
FROM unnest({arrays}) WITH ORDINALITY AS new({listed}, place)"""  # noqa: S608 - names of our own tables


_APPEND_JOURNAL: Final = _appending("journal", _JOURNAL)
_TELL: Final = f"""
WITH told AS ({_appending("events", _EVENT)} RETURNING execution, seq),
heard AS (SELECT pg_notify('{CHANNEL}', execution || ':' || max(seq)) FROM told GROUP BY execution)
SELECT execution, seq, (SELECT count(*) FROM heard) FROM told ORDER BY execution, seq"""  # noqa: S608 - as above


@dataclass(slots=True, eq=False)
class _Entry:
    change: Change
    done: asyncio.Future[list[Event]]
    told: list[Event] = field(default_factory=list)
    refused: Exception | None = None

    @property
    def plain(self) -> bool:
        """Whether it only appends: then it is merged with its neighbours."""
        return all(write.statement in (update_guard(), insert_journal()) for write in self.change.writes)

    @property
    def executions(self) -> set[str]:
        """Whose rows it needs."""
        guarded = {w.params["b_id"] for w in self.change.writes if w.statement in (update_guard(), update_current())}
        return guarded | {told.execution for told in self.change.events}


class PostgresDatabase:
    """A `Database` that several servers share. `name` is this server's own, the same after a restart."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._where = _urls(url)
        self._name = name
        self._sql = Compiler(dialect.dialect(paramstyle="numeric_dollar"))  # type: ignore[no-untyped-call]
        self._queue: asyncio.Queue[_Entry | None] = asyncio.Queue()
        self._commits = 0
        self._broken = False
        self._closed = False
        self._stack = AsyncExitStack()
        self._engine: AsyncEngine
        self._connection: Any
        self._heard: Callable[[str | None], None] = _nobody

    # -- its life ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Migrate under a lock of the database's, then connect."""
        _asyncpg()
        async with AsyncExitStack() as stack:
            self._engine = create_async_engine(
                self._url.replace("postgresql://", "postgresql+asyncpg://", 1), pool_size=4, max_overflow=4,
                pool_pre_ping=True,
            )  # fmt: skip
            stack.push_async_callback(self._dispose)
            await self._migrate()
            try:
                await self._connect()
            except _refusing() as error:
                raise StorageError(f"{self._where} cannot be opened: {_cause(error)}") from None
            stack.push_async_callback(self._disconnect)
            writing = asyncio.create_task(self._write(), name="postgres writer")
            stack.push_async_callback(self._stop, writing)
            listening = asyncio.create_task(self._listen(), name="postgres listener")
            stack.push_async_callback(_ended, listening)
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Finish what is queued and let go."""
        self._closed = True
        await self._stack.aclose()

    async def _stop(self, writing: asyncio.Task[None]) -> None:
        self._queue.put_nowait(None)
        await writing

    async def _dispose(self) -> None:
        with contextlib.suppress(TimeoutError):  # a database that does not answer does not say farewell
            async with asyncio.timeout(CONNECT_S):
                await self._engine.dispose()

    async def _disconnect(self) -> None:
        await _closed(self._connection)

    async def _migrate(self) -> None:
        try:
            async with self._engine.begin() as connection:
                await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('parallax schema'))"))
                await connection.run_sync(bring_up, self._where)
        except (SQLAlchemyError, OSError) as error:
            raise StorageError(f"{self._where} cannot be opened: {_cause(error)}") from None

    async def _connect(self) -> None:
        """A connection for writing, and how many groups of this server are kept."""
        self._connection = await _asyncpg().connect(self._url, timeout=CONNECT_S, server_settings=_SETTINGS)
        self._commits = await self._connection.fetchval(
            "INSERT INTO servers (name, commits, at) VALUES ($1, 0, $2) "
            "ON CONFLICT (name) DO UPDATE SET at = excluded.at RETURNING commits",
            self._name,
            time.time(),
            timeout=CONNECT_S,
        )

    # -- writing -------------------------------------------------------------------------------------------------------

    async def commit(self, change: Change) -> list[Event]:
        """Queue it for the next group and wait for its outcome, also when cancelled meanwhile."""
        if self._closed:
            raise StorageError(f"{self._where} is closed; nothing of this change was kept")
        entry = _Entry(change, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(entry)
        return await to_its_end(entry.done)

    async def _write(self) -> None:
        entry = await self._queue.get()
        while entry is not None:
            group = [entry]
            while len(group) < GROUP and not self._queue.empty() and (entry := self._queue.get_nowait()) is not None:
                group.append(entry)
            await self._settle(group)
            if entry is not None:
                entry = await self._queue.get()

    async def _settle(self, group: list[_Entry]) -> None:
        failed: Exception | None = None
        try:
            await self._kept(group)
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers hear of it and the writer goes on
            failed = error if isinstance(error, StorageError) else StorageError(f"{self._where}: {_cause(error)}")
        for entry in group:
            if failed is not None:
                entry.done.set_exception(failed)
            elif entry.refused is not None:
                entry.done.set_exception(entry.refused)
            else:
                entry.done.set_result(entry.told)

    async def _kept(self, group: list[_Entry]) -> None:
        """Commit the group, on a new connection where the old one breaks. Raises StorageError after LOST_S."""
        merged, pauses = True, _pauses()
        if self._broken:  # how far the commits came is not known: a number must not be used twice
            await self._reconnect(pauses)
        number = self._commits + 1
        while self._commits < number:
            try:
                await self._transaction(group, number, merged=merged)
                self._commits = number
            except _asyncpg().IntegrityConstraintViolationError:
                merged = False  # one of them is refused; which, comes out one by one
            except _contested():
                await self._pause(pauses)
            except _lost():
                await self._reconnect(pauses)

    async def _reconnect(self, pauses: Iterator[float]) -> None:
        """A new connection. It reads how far this server's commits came, and waits for one that is under way."""
        self._broken = True
        await self._disconnect()
        while self._broken:
            await self._pause(pauses)
            with contextlib.suppress(*_lost()):
                await self._connect()
                self._broken = False

    async def _pause(self, pauses: Iterator[float]) -> None:
        pause_s = next(pauses, None)
        if pause_s is None:
            raise StorageError(f"{self._where} does not answer; whether the last change was kept is not known")
        await asyncio.sleep(pause_s)

    async def _transaction(self, group: list[_Entry], number: int, *, merged: bool) -> None:
        connection = self._connection
        for entry in group:
            entry.told, entry.refused = [], None
        await connection.execute("BEGIN")
        try:
            plain: list[_Entry] = []
            for entry in group:
                if merged and entry.plain:
                    plain.append(entry)
                    continue
                await self._append(plain, number)
                plain = []
                await self._alone(entry, number)
            await self._append(plain, number)
            await connection.execute("COMMIT")
        except _asyncpg().PostgresError:
            if not connection.is_closed() and connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            raise

    async def _append(self, plain: list[_Entry], number: int) -> None:
        """Changes that only append, together."""
        if not plain:
            return
        rows = await self._locked({key for entry in plain for key in entry.executions}, number)
        for entry in plain:
            entry.refused = self._refusal(entry.change, rows)
        kept = [entry for entry in plain if entry.refused is None]
        lines = [w.params for entry in kept for w in entry.change.writes if w.statement is insert_journal()]
        if lines:
            await self._connection.execute(_APPEND_JOURNAL, *_columns(lines, _JOURNAL))
        await self._tell(kept)

    async def _alone(self, entry: _Entry, number: int) -> None:
        """A change of any kind, in a savepoint."""
        await self._connection.execute("SAVEPOINT change")
        try:
            rows = await self._locked(entry.executions, number)
            if (refusal := self._refusal(entry.change, rows)) is not None:
                raise refusal
            for write in entry.change.writes:
                if write.statement not in (update_guard(), update_current()):
                    await self._execute(write)
            await self._tell([entry])
        except (_asyncpg().IntegrityConstraintViolationError, FencedError) as error:
            await self._connection.execute("ROLLBACK TO SAVEPOINT change")
            fenced = isinstance(error, FencedError)
            entry.told, entry.refused = [], error if fenced else FencedError(f"refused by the store: {error}")
        await self._connection.execute("RELEASE SAVEPOINT change")

    async def _execute(self, write: Write) -> None:
        compiled = self._sql(write.statement)
        values = (_clean(write.params[name]) for name in compiled.positiontup)
        status = await self._connection.execute(compiled.string, *values)
        if write.expect is not None and int(status.rpartition(" ")[2]) != write.expect:
            raise FencedError(REFUSED)

    async def _locked(self, ids: set[str], number: int) -> dict[str, Any]:
        found = await self._connection.fetch(_LOCK, list(ids), number, self._name)
        return {row["id"]: row for row in found}

    def _refusal(self, change: Change, rows: dict[str, Any]) -> FencedError | None:
        """Why a change may not be made: its epoch is not the row's, or the execution is another server's."""
        guarded = set()
        for write in change.writes:
            owned = write.statement is update_guard()
            if not owned and write.statement is not update_current():
                continue
            guarded.add(write.params["b_id"])
            row = rows.get(write.params["b_id"])
            if row is None or row["epoch"] != write.params["b_epoch"] or (owned and not self._ours(row)):
                return FencedError(REFUSED)
        told = {event.execution for event in change.events} - guarded
        if any(not self._ours(rows[key]) for key in told if key in rows):
            return FencedError(REFUSED)
        return None

    def _ours(self, row: Any) -> bool:
        return row["owner"] in (None, self._name)

    async def _tell(self, entries: list[_Entry]) -> None:
        events = [(entry, event) for entry in entries for event in entry.change.events]
        if not events:
            return
        told = await self._connection.fetch(_TELL, *_columns([event_params(event) for _, event in events], _EVENT))
        numbers: dict[str, list[int]] = {}
        for row in reversed(told):
            numbers.setdefault(row["execution"], []).append(row["seq"])
        for entry, event in events:
            entry.told.append(replace(event, seq=numbers[event.execution].pop()))

    async def _again(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do it, and do it again where the connection breaks. For reads, and for writes that may be done twice."""
        pauses = _pauses()
        while True:
            try:
                return await work()
            except (SQLAlchemyError, _asyncpg().PostgresError, *_lost()) as error:
                if not _is_lost(error):
                    raise StorageError(f"{self._where}: {_cause(error)}") from error
                await self._pause(pauses)

    async def _once(self, sql: str, *values: Any) -> list[Any]:
        """A statement of its own, outside of the groups."""

        async def work() -> list[Any]:
            async with self._engine.connect() as pooled:
                raw: Any = (await pooled.get_raw_connection()).driver_connection
                found: list[Any] = await raw.fetch(sql, *values)
                return found

        return await self._again(work)

    async def next_epoch(self) -> int:
        """One more than any server had before."""
        rows = await self._once(
            "INSERT INTO meta (key, value) VALUES ('epoch', '1') "
            "ON CONFLICT (key) DO UPDATE SET value = (meta.value::bigint + 1)::text RETURNING value"
        )
        return int(rows[0]["value"])

    # -- blobs ---------------------------------------------------------------------------------------------------------

    async def put_blob(self, data: bytes) -> str:
        """A row."""
        name = name_of(data)
        await self._once(
            "INSERT INTO blobs (hash, data, at) VALUES ($1, $2, $3) ON CONFLICT (hash) DO UPDATE SET at = excluded.at",
            name,
            data,
            time.time(),
        )
        return name

    async def get_blob(self, name: str) -> bytes:
        """What the row holds."""
        rows = await self._once("SELECT data FROM blobs WHERE hash = $1", name)
        return checked(name, rows[0]["data"] if rows else None)

    async def collect_blobs(self, named: Iterable[str]) -> int:
        """Delete rows that nobody names."""
        gone = await self._once(
            "DELETE FROM blobs WHERE NOT (hash = ANY($1::text[])) AND at < $2 RETURNING hash",
            list(named),
            time.time() - UNNAMED_S,
        )
        return len(gone)

    async def vacuum(self, pages: int) -> bool:
        """PostgreSQL does that by itself."""
        return False

    async def backup(self, directory: Path) -> None:
        """Not from here."""
        raise UsageError(f"{self._where} is backed up with PostgreSQL's own tools, such as pg_dump")

    # -- reading -------------------------------------------------------------------------------------------------------

    async def rows(self, statement: Executable) -> Sequence[Any]:
        """Read, on another connection where one breaks."""

        async def work() -> Sequence[Any]:
            async with self._engine.connect() as connection:
                return (await connection.execute(statement)).mappings().all()

        return await self._again(work)

    # -- sharing -------------------------------------------------------------------------------------------------------

    def on_news(self, heard: Callable[[str | None], None]) -> None:
        """`heard` is told which execution another server has changed; None: any may have been."""
        self._heard = heard

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(*_lost()):
                await self._hear()
            await asyncio.sleep(RELISTEN_S)

    async def _hear(self) -> None:
        """Until the connection breaks; asked now and then, since a dead line says nothing."""
        connection = await _asyncpg().connect(self._url, timeout=CONNECT_S, server_settings=_SETTINGS)
        broken = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: broken.set())
            await connection.add_listener(CHANNEL, self._notified)
            self._heard(None)  # what was told while nobody listened
            while not broken.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LISTEN_CHECK_S):  # `wait_for` would lose a cancellation
                        await broken.wait()
                await connection.fetchval("SELECT 1", timeout=CONNECT_S)
        finally:
            await _closed(connection)

    def _notified(self, _connection: Any, pid: int, _channel: str, payload: Any) -> None:
        if self._connection.is_closed() or pid != self._connection.get_server_pid():
            self._heard(str(payload).partition(":")[0])

    async def lease(self, states: Sequence[str], limit: int) -> list[Any]:
        """Take at most so many executions in these states that no server holds; each goes to one server only."""
        return await self._once(_LEASE, self._name, LEASE_S, list(states), limit)

    async def renew(self, ids: Iterable[str]) -> set[str]:
        """Hold these for another while; returns those that are still this server's."""
        kept = await self._once(_RENEW, self._name, LEASE_S, list(ids))
        return {row["id"] for row in kept}

    async def let_go(self, states: Sequence[str]) -> None:
        """Leave whatever this server holds to anybody: at its end, and what a former life of it held at its start."""
        await self._once(_LET_GO, self._name, list(states))


def _asyncpg() -> Any:
    try:
        import asyncpg  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigurationError(
            "PARALLAX_DATABASE_URL names PostgreSQL, for which `asyncpg` is missing: "
            "pip install 'parallax-agents[postgres]'"
        ) from None
    return asyncpg


def _lost() -> tuple[type[Exception], ...]:
    """What says that the connection is gone, or that the database does not take one now."""
    a = _asyncpg()
    refused = (a.CannotConnectNowError, a.AdminShutdownError, a.CrashShutdownError, a.TooManyConnectionsError)
    return (a.PostgresConnectionError, a.InterfaceError, OSError, TimeoutError, *refused)


def _refusing() -> tuple[type[Exception], ...]:
    return (_asyncpg().PostgresError, *_lost())


def _contested() -> tuple[type[Exception], ...]:
    a = _asyncpg()
    return (a.DeadlockDetectedError, a.SerializationError, a.LockNotAvailableError)


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, _lost()):
        return True
    if isinstance(error, DBAPIError) and (error.connection_invalidated or isinstance(error.orig, _lost())):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error.__cause__
    return cause is not None and _is_lost(cause)


def _pauses() -> Iterator[float]:
    """Pauses that double, LOST_S of them in all."""
    waited, pause_s = 0.0, FIRST_PAUSE_S
    while waited < LOST_S:
        yield pause_s
        waited, pause_s = waited + pause_s, min(1.0, pause_s * 2)


async def _closed(connection: Any) -> None:
    """Close it, by force where it does not answer."""
    try:
        await connection.close(timeout=1.0)
    except _refusing():
        connection.terminate()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _nobody(_execution: str | None) -> None:
    """Nobody listens yet."""


def _columns(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[Any]]:
    return [[_clean(row[name]) for row in rows] for name in names]


def _clean(value: Any) -> Any:
    """PostgreSQL keeps no NUL in text; JSON has none."""
    return value.replace("\x00", "\ufffd") if isinstance(value, str) and "\x00" in value else value


def _cause(error: BaseException) -> str:
    """The words of the database, without the statement and its parameters."""
    inner = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(inner).splitlines()
    return lines[0] if lines else type(inner).__name__


def _urls(url: str) -> tuple[str, str]:
    """The URL as both libraries take it, and how it is named to people: without user and password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError("PARALLAX_DATABASE_URL is not a URL: postgresql://user@host:5432/database") from None
    if parts.scheme not in {"postgresql", "postgres"}:
        raise ConfigurationError(
            f"PARALLAX_DATABASE_URL has the scheme '{parts.scheme}': postgresql://user@host:5432/database is served; "
            "leave it unset for SQLite in the data directory"
        )
    host = parts.hostname or "localhost"
    return url.replace(f"{parts.scheme}://", "postgresql://", 1), (
        f"the database {parts.path.lstrip('/') or 'postgres'} on {host}{f':{port}' if port else ''}"
    )
