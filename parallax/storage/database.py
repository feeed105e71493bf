"""Database: what `Store` asks of what it is kept in. SQLite is one process's own, PostgreSQL is shared by servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from sqlalchemy import Executable
from sqlalchemy.engine import Dialect

from parallax.events import Event
from parallax.storage.statements import Change

REFUSED: Final = "another owner holds this execution, or its step has a result already"


class Database(Protocol):
    """One database: a single writer, and readers."""

    async def open(self) -> None:
        """Bring the schema up to date and connect. Raises StorageError, SchemaError."""
        ...

    async def close(self) -> None:
        """Finish what is queued and let go."""
        ...

    async def commit(self, change: Change) -> list[Event]:
        """Make the change durable, or nothing of it; see `Store.commit`."""
        ...

    async def rows(self, statement: Executable) -> Sequence[Any]:
        """Read. Raises StorageError."""
        ...

    async def next_epoch(self) -> int:
        """The next number of the one counter of ownerships."""
        ...

    async def put_blob(self, data: bytes) -> str:
        """Keep a large result; durable when this returns. Returns its name."""
        ...

    async def get_blob(self, name: str) -> bytes:
        """What a blob holds. Raises JournalError when it is missing or damaged."""
        ...

    async def collect_blobs(self, named: Iterable[str]) -> int:
        """Delete the old ones that nobody names; returns how many."""
        ...

    async def vacuum(self, pages: int) -> bool:
        """Give some freed pages back to the file system; whether there may be more."""
        ...

    async def backup(self, directory: Path) -> None:
        """A consistent copy into an empty directory. Raises StorageError, and UsageError where others back it up."""
        ...


class Sharing(Protocol):
    """What a database can do besides where several servers share it."""

    def on_news(self, heard: Callable[[str | None], None]) -> None:
        """`heard` is told which execution another server has changed; None: any may have been."""
        ...

    async def lease(self, states: Sequence[str], limit: int) -> list[Any]:
        """Take at most so many executions in these states that no server holds; each goes to one server only."""
        ...

    async def renew(self, ids: Iterable[str]) -> set[str]:
        """Hold these for another while; returns those that are still this server's."""
        ...

    async def let_go(self, states: Sequence[str]) -> None:
        """Leave whatever this server holds to anybody."""
        ...


class Compiler:
    """Statements as SQL of one dialect, each compiled once. They are built once, too, so they are their own keys."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: dict[int, tuple[Executable, Any]] = {}

    def __call__(self, statement: Executable) -> Any:
        """The compiled form: its text, and for positional dialects the order of its parameters."""
        known = self._known.get(id(statement))
        if known is None:
            compiled = statement.compile(dialect=self._dialect)  # type: ignore[attr-defined]
            known = self._known[id(statement)] = (statement, compiled)  # holding it keeps its id its own
        return known[1]
