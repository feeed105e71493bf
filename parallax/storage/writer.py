"""The one writer: a thread that owns the only writing connection, a queue, and group commit.

`Store` hands it batches; each caller awaits its own commit. One connection both writes and checkpoints, which keeps
clear of the WAL-reset fault of SQLite before 3.51.3 and needs no lock. A batch that fails (a guard, a constraint) is
rolled back to its savepoint alone: its neighbours in the group commit. When the disk is full, the ballast is let go and
the group is tried once more: what is finished has to be kept even then.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from parallax.errors import StorageError, StorageFull
from parallax.failpoints import FailpointError, fp
from parallax.tasks import to_its_end
from parallax.telemetry import logger

Batch: TypeAlias = Callable[[sqlite3.Connection], Any]
Group: TypeAlias = list[tuple[Batch, asyncio.Future[Any]]]

GROUP: Final = 100  # batches in one commit at most
CHECKPOINT_PAGES: Final = 4096  # 16 MB of write-ahead log
IDLE_S: Final = 2.0  # without a write, before the log is checkpointed whatever its size
PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=5000",
    "wal_autocheckpoint=0",
    "trusted_schema=OFF",
    "cell_size_check=ON",
)
_log = logger("writer")


class Writer:
    """Executes batches in order, many to a commit; `submit` returns when the batch is on disk."""

    def __init__(self, path: Path, relieve: Callable[[], bool] | None = None) -> None:
        """`relieve` makes room on a full disk; it says whether it could. It is called on the writer's thread."""
        self._path = path
        self._relieve = relieve or _no_relief
        self._dirty = False
        self._queue: queue.SimpleQueue[tuple[Batch, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="parallax-writer", daemon=True)
        self._opened: Future[None] = Future()
        self._closed = False
        self.commits = 0

    async def open(self) -> None:
        """Open the connection on the writer's own thread; raises StorageError."""
        self._thread.start()
        await asyncio.wrap_future(self._opened)

    async def submit(self, batch: Batch) -> Any:
        """Run the batch in a transaction of its own and wait until it is durable.

        Waited for to its end: a cancelled caller cannot turn a commit whose outcome it does not know into a second run.
        """
        if self._closed:
            raise StorageError(f"{self._path} is closed; nothing of this change was kept")
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put((batch, waiter))
        return await to_its_end(waiter)

    async def close(self) -> None:
        """Finish what is queued, checkpoint, close. Later batches are refused, not left waiting."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, StorageError) as error:
            self._opened.set_exception(StorageError(f"{self._path} cannot be opened for writing: {error}"))
            return
        self._opened.set_result(None)
        stopping = False
        while not stopping:
            group, stopping = self._next(connection)
            if group:
                self._commit(connection, group)
        self._checkpoint(connection, "TRUNCATE")
        connection.close()

    def _next(self, connection: sqlite3.Connection) -> tuple[Group, bool]:
        """Whatever has queued up while the last commit was being written, and whether it is the last."""
        group: Group = []
        try:
            item = self._queue.get(timeout=IDLE_S if self._dirty else None)
            while item is not None:
                group.append(item)
                if len(group) == GROUP:
                    return group, False
                item = self._queue.get_nowait()
        except queue.Empty:
            if not group:
                self._checkpoint(connection, "PASSIVE")
                self._dirty = False
            return group, False
        return group, True

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=True)
        try:
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            if connection.execute("PRAGMA synchronous").fetchone()[0] != 2:
                raise StorageError("SQLite did not take synchronous=FULL")
        except (sqlite3.Error, StorageError):
            connection.close()
            raise
        return connection

    def _commit(self, connection: sqlite3.Connection, group: Group) -> None:
        try:
            outcomes = self._transaction(connection, group)
        except sqlite3.Error as error:
            if is_full(error) and self._relieve():
                return self._commit(connection, group)
            kind = StorageFull if is_full(error) else StorageError
            failure = kind(f"{self._path}: {error}; nothing of this change was kept")
            outcomes = [(None, failure) for _ in group]
        self._dirty = True
        self._wake(group, outcomes)
        if self.commits % 64 == 0 and self._log_size() > CHECKPOINT_PAGES * 4096:
            self._checkpoint(connection, "PASSIVE")
        return None

    def _wake(self, group: Group, outcomes: list[tuple[Any, BaseException | None]]) -> None:
        """All callers of a group in one call of their loop: waking it for each would cost more than the commit."""
        waiters = [waiter for _, waiter in group]
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            waiters[0].get_loop().call_soon_threadsafe(_settle, waiters, outcomes)

    def _transaction(self, connection: sqlite3.Connection, group: Group) -> list[tuple[Any, BaseException | None]]:
        """All batches in one commit; raises sqlite3.Error when the commit as a whole failed.

        They are run plainly first. When one is refused, all are rolled back and run again, each in a savepoint, so that
        its neighbours commit.
        """
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                outcomes: list[tuple[Any, BaseException | None]] = [(batch(connection), None) for batch, _ in group]
            except Exception as error:
                if isinstance(error, sqlite3.Error) and is_full(error):
                    raise
                connection.execute("ROLLBACK")
                connection.execute("BEGIN IMMEDIATE")
                outcomes = self._one_by_one(connection, group)
            connection.execute("COMMIT")
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.commits += 1
        return outcomes

    def _one_by_one(self, connection: sqlite3.Connection, group: Group) -> list[tuple[Any, BaseException | None]]:
        outcomes: list[tuple[Any, BaseException | None]] = []
        for batch, _ in group:
            connection.execute("SAVEPOINT batch")
            try:
                outcomes.append((batch(connection), None))
            except Exception as error:
                if isinstance(error, sqlite3.Error) and is_full(error):
                    raise
                connection.execute("ROLLBACK TO batch")
                outcomes.append((None, error))
            connection.execute("RELEASE batch")
        return outcomes

    def _log_size(self) -> int:
        try:
            return self._path.with_name(self._path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self, connection: sqlite3.Connection, mode: str) -> None:
        """Bring the log into the database. What it cannot do now, for want of room, it does the next time."""
        try:
            connection.execute(f"PRAGMA wal_checkpoint({mode})")
            fp("checkpoint.mid")
        except (sqlite3.Error, FailpointError) as error:
            _log.warning("no checkpoint", cause=str(error))


def _settle(waiters: list[asyncio.Future[Any]], outcomes: list[tuple[Any, BaseException | None]]) -> None:
    for waiter, (value, failed) in zip(waiters, outcomes, strict=True):
        if waiter.done():
            continue
        if failed is None:
            waiter.set_result(value)
        else:
            waiter.set_exception(failed)


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk had no room for it. (Without room for its index of the log, SQLite says I/O error.)"""
    code = getattr(error, "sqlite_errorcode", None)
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def _no_relief() -> bool:
    return False
