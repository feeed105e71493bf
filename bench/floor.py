"""The floor that durable work is measured against: SQLite in WAL with synchronous=FULL, one thread, group commit.

Nothing of Parallax: one INSERT of one 200-byte event, and the caller waits until it is on disk.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

EVENT = "x" * 200


class Floor:
    """`async with Floor(path) as floor: await floor.keep()`. `group` False commits each event by itself."""

    def __init__(self, path: Path, *, group: bool = True) -> None:
        self._path = path
        self._most = 100 if group else 1
        self._queue: queue.SimpleQueue[tuple[Any, Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run)

    async def __aenter__(self) -> Floor:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def keep(self) -> None:
        done: Future[None] = Future()
        self._queue.put((EVENT, done))
        await asyncio.wrap_future(done)

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE IF NOT EXISTS events(seq INTEGER PRIMARY KEY, data TEXT)")
        item = self._queue.get()
        while item is not None:
            group = [item]
            while len(group) < self._most:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    break
                group.append(item)
            connection.execute("BEGIN IMMEDIATE")
            for data, _ in group:
                connection.execute("INSERT INTO events(data) VALUES (?)", (data,))
            connection.execute("COMMIT")
            for _, done in group:
                done.set_result(None)
            if item is not None:
                item = self._queue.get()
        connection.close()
