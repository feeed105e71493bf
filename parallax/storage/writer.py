"""The one writer: a thread that owns the only writing connection, a queue, and group commit.

`Store` hands it batches; each caller awaits its own commit. One connection both writes and checkpoints, which keeps
clear of the WAL-reset fault of SQLite before 3.51.3 and needs no lock. A batch that fails (a guard, a constraint) is
rolled back to its savepoint alone: its neighbours in the group commit.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, TypeAlias

from parallax.errors import StorageError

Batch: TypeAlias = Callable[[sqlite3.Connection], Any]

GROUP: Final = 100  # batches in one commit at most
CHECKPOINT_PAGES: Final = 4096  # 16 MB of write-ahead log
PRAGMAS: Final = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "busy_timeout=5000",
    "wal_autocheckpoint=0",
    "trusted_schema=OFF",
    "cell_size_check=ON",
)


class Writer:
    """Executes batches in order, many to a commit; `submit` returns when the batch is on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[Batch, Future[Any]] | None] = queue.SimpleQueue()
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

        The wait is shielded: a cancelled caller cannot turn a commit whose outcome it does not know into a second run.
        The cancellation is honoured once the outcome is there.
        """
        if self._closed:
            raise StorageError(f"{self._path} is closed; nothing of this change was kept")
        done: Future[Any] = Future()
        self._queue.put((batch, done))
        waiter = asyncio.wrap_future(done)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            await asyncio.wait([waiter])
            if not waiter.cancelled():
                waiter.exception()  # retrieved: its caller is gone
            raise

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
        running = True
        while running:
            group: list[tuple[Batch, Future[Any]]] = []
            item = self._queue.get()
            while True:  # whatever has queued up while the last commit was being written goes into this one
                if item is None:
                    running = False
                    break
                group.append(item)
                if len(group) == GROUP:
                    break
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._commit(connection, group)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

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

    def _commit(self, connection: sqlite3.Connection, group: list[tuple[Batch, Future[Any]]]) -> None:
        outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for batch, done in group:
                connection.execute("SAVEPOINT batch")
                try:
                    outcomes.append((done, batch(connection), None))
                except Exception as error:  # noqa: BLE001 - whatever a batch raises is its caller's, not the thread's
                    connection.execute("ROLLBACK TO batch")
                    outcomes.append((done, None, error))
                connection.execute("RELEASE batch")
            connection.execute("COMMIT")
            self.commits += 1
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            failure = StorageError(f"{self._path}: {error}; nothing of this change was kept")
            outcomes = [(done, None, failure) for _, done in group]
        for done, value, failed in outcomes:
            if failed is None:
                done.set_result(value)
            else:
                done.set_exception(failed)
        if self.commits % 64 == 0:
            self._checkpoint(connection)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        try:
            wal = self._path.with_name(self._path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return
        if wal > CHECKPOINT_PAGES * 4096:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
