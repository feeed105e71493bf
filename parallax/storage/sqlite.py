"""SQLite: one file, one process. Writes go to the one writer thread, reads to a read-only engine, blobs beside it.

Reads run in threads of their own rather than through sqlalchemy.ext.asyncio, which loads the whole ORM at every start
and changes threads for each call of a read.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from asyncio import to_thread
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine, Executable, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import SQLAlchemyError

from parallax.errors import FencedError, StorageError
from parallax.events import Event
from parallax.storage.blobs import BlobFiles
from parallax.storage.database import REFUSED, Compiler
from parallax.storage.migrating import bring_up_sqlite
from parallax.storage.statements import Change, event_params, insert_event
from parallax.storage.writer import Writer

READERS = 4  # threads that read, each with one connection


class SqliteDatabase:
    """A `Database` in one file."""

    def __init__(self, path: Path, relieve: Callable[[], bool] | None = None) -> None:
        self._path = path
        self._stack = AsyncExitStack()
        self._sql = Compiler(sqlite.dialect(paramstyle="named"))
        self._blobs = BlobFiles(path.parent / "blobs")
        self._reader: Engine
        self._threads: ThreadPoolExecutor
        self.writer = Writer(path, relieve)

    async def open(self) -> None:
        """Migrate, then open the writer, then the readers."""
        await to_thread(bring_up_sqlite, self._path)
        async with AsyncExitStack() as stack:
            await self.writer.open()
            stack.push_async_callback(self.writer.close)
            self._reader = _read_only(self._path)
            stack.callback(self._reader.dispose)
            self._threads = ThreadPoolExecutor(READERS, "parallax-reader")
            stack.push_async_callback(to_thread, self._threads.shutdown)
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Finish what is queued and let go."""
        await self._stack.aclose()

    async def commit(self, change: Change) -> list[Event]:
        """One batch for the writer."""
        events: list[Event] = await self.writer.submit(partial(self._apply, change))
        return events

    def _apply(self, change: Change, connection: sqlite3.Connection) -> list[Event]:
        try:
            for write in change.writes:
                changed = connection.execute(self._sql(write.statement).string, write.params).rowcount
                if write.expect is not None and changed != write.expect:
                    raise FencedError(REFUSED)
            committed = []
            for told in change.events:
                row = connection.execute(self._sql(insert_event()).string, event_params(told)).fetchone()
                committed.append(replace(told, seq=row[0]))
        except sqlite3.IntegrityError as error:
            raise FencedError(f"refused by the store: {error}") from error
        return committed

    async def rows(self, statement: Executable) -> Sequence[Any]:
        """Read from the file, beside the writer."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, statement)
        except SQLAlchemyError as error:
            raise StorageError(f"{self._path} cannot be read: {error.__cause__ or error}") from error

    def _read(self, statement: Executable) -> Sequence[Any]:
        with self._reader.connect() as connection:
            return connection.execute(statement).mappings().all()

    async def next_epoch(self) -> int:
        """One more than ever before."""

        def batch(connection: sqlite3.Connection) -> int:
            row = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
            epoch = int(row[0]) + 1 if row else 1
            connection.execute("INSERT OR REPLACE INTO meta(key, value) VALUES ('epoch', ?)", (str(epoch),))
            return epoch

        epoch: int = await self.writer.submit(batch)
        return epoch

    async def put_blob(self, data: bytes) -> str:
        """A file, fsynced."""
        try:
            return await to_thread(self._blobs.put, data)
        except OSError as error:
            raise StorageError(f"a large result cannot be kept beside {self._path}: {error}") from error

    async def get_blob(self, name: str) -> bytes:
        """What the file holds."""
        try:
            return await to_thread(self._blobs.get, name)
        except OSError as error:
            raise StorageError(f"a large result beside {self._path} cannot be read: {error}") from error

    async def collect_blobs(self, named: Iterable[str]) -> int:
        """Delete files that nobody names."""
        return await to_thread(self._blobs.collect, named)

    async def vacuum(self, pages: int) -> bool:
        """Some freed pages; a database of an earlier version keeps them for later rows."""

        def batch(connection: sqlite3.Connection) -> bool:
            if connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 0:
                return False
            connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
            return bool(connection.execute("PRAGMA freelist_count").fetchone()[0])

        more: bool = await self.writer.submit(batch)
        return more

    async def backup(self, directory: Path) -> None:
        """Through a connection that only reads: it can neither write nor checkpoint."""
        try:
            await to_thread(self._copy, directory)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"the backup into {directory} failed: {error}") from error

    def _copy(self, directory: Path) -> None:
        source = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)
        copy = sqlite3.connect(directory / self._path.name)
        try:
            source.backup(copy)  # in one step: a copy in many begins again with each commit
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            (verdict,) = copy.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise StorageError(f"{self._path} is damaged: {verdict}")
        finally:
            copy.close()
            source.close()
        blobs = self._path.parent / "blobs"
        if blobs.is_dir():
            shutil.copytree(blobs, directory / "blobs", copy_function=_link)


def _link(source: str, target: str) -> None:
    """A second name for a blob, which nobody changes; a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _read_only(path: Path) -> Engine:
    url = f"sqlite:///file:{quote(str(path))}?mode=ro&uri=true"
    engine = create_engine(url, pool_size=READERS, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in ("busy_timeout=5000", "query_only=ON", "trusted_schema=OFF"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
