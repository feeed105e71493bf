"""Blobs: results too large for a row, as files beside the database, named by the SHA-256 of what they hold.

`Store` writes one before the row that names it, on disk when `put` returns; reads it with its row; and deletes what no
row names any more. With a shared database the blobs lie in a table of it instead (`storage.postgres`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from parallax.errors import JournalError

UNNAMED_S: Final = 3600.0  # a blob without a row is kept so long: its row may be about to be written


def name_of(data: bytes) -> str:
    """The name of a blob."""
    return hashlib.sha256(data).hexdigest()


def checked(name: str, data: bytes | None) -> bytes:
    """The blob, if it is what its name says."""
    if data is None:
        raise JournalError(f"the large result {name[:12]} is missing: restore it from a backup")
    if name_of(data) != name:
        raise JournalError(f"the large result {name[:12]} is damaged: restore it from a backup")
    return data


class BlobFiles:
    """Files `<root>/<two digits>/<name>`. Blocking: `Store` calls it off the loop."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()  # a blob must not be collected while it is named anew

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name

    def put(self, data: bytes) -> str:
        """Keep it, fsynced with its directory."""
        name = name_of(data)
        path = self._path(name)
        with self._lock:
            if path.exists():
                os.utime(path)
                return name
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = path.with_name(f".{secrets.token_hex(6)}")
            try:
                with new.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                new.rename(path)
            except OSError:
                new.unlink(missing_ok=True)
                raise
            for directory in (path.parent, self._root, self._root.parent):
                _fsync(directory)
        return name

    def get(self, name: str) -> bytes:
        """What it holds; raises JournalError."""
        try:
            return checked(name, self._path(name).read_bytes())
        except FileNotFoundError:
            return checked(name, None)

    def collect(self, named: Iterable[str]) -> int:
        """Delete what is not named and older than an hour, half-written files included."""
        keep, before, gone = set(named), time.time() - UNNAMED_S, 0
        with self._lock:
            for path in self._root.glob("??/*") if self._root.exists() else ():
                if path.name not in keep and path.stat().st_mtime < before:
                    path.unlink()
                    gone += 1
        return gone


def _fsync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_size_within(value: object, limit_b: int) -> bool:
    """Whether JSON of the value may fit, told without building it: a gigabyte must not become two.

    Counts characters, a lower bound of the bytes; stops at the limit.
    """
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        match item:
            case str():
                size += len(item) + 2
            case dict():
                size += 4 * len(item)
                waiting.extend(item)
                waiting.extend(item.values())
            case list() | tuple():
                size += 2 * len(item)
                waiting.extend(item)
            case _:
                size += 1
        if size > limit_b:
            return False
    return True
