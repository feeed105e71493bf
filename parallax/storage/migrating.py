"""Migrating: a database is made, brought up to this version's schema, or refused, before anything else opens it.

`Store` calls it first. Everything happens in one transaction, so that a crash in the middle leaves the old schema
whole. Alembic is loaded only when a migration is due: it costs most of a second.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, inspect, select, update
from sqlalchemy.exc import SQLAlchemyError

from parallax.errors import SchemaError, StorageError
from parallax.failpoints import fp
from parallax.storage import tables as t


def bring_up(connection: Connection, where: str) -> None:
    """Make or upgrade the schema in the connection's transaction.

    Raises SchemaError for a newer schema and StorageError for a database of somebody else's; both change nothing.
    """
    names = set(inspect(connection).get_table_names())
    if not names:
        t.metadata.create_all(connection)
        connection.execute(t.meta.insert().values(key="schema", value=t.SCHEMA_VERSION))
        return
    version = None
    if t.meta.name in names:
        version = connection.execute(select(t.meta.c.value).where(t.meta.c.key == "schema")).scalar()
    if due(version, where):
        _upgrade(connection, str(version))


def due(version: str | None, where: str) -> bool:
    """Whether a database with this schema is to be migrated. Raises SchemaError, StorageError."""
    if version is None:
        raise StorageError(f"{where} is not Parallax's: move it away, or choose another PARALLAX_DATA_DIR")
    if len(version) != len(t.SCHEMA_VERSION) or version > t.SCHEMA_VERSION:
        raise SchemaError(
            f"{where} has schema {version}, this Parallax knows {t.SCHEMA_VERSION}: "
            "install the newer Parallax, or choose another PARALLAX_DATA_DIR (nothing was changed)"
        )
    return version < t.SCHEMA_VERSION


def _upgrade(connection: Connection, version: str) -> None:
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    with Operations.context(MigrationContext.configure(connection)):
        for step in reversed(list(script.iterate_revisions(t.SCHEMA_VERSION, version))):
            step.module.upgrade()
            fp("migration.mid")
            connection.execute(update(t.meta).where(t.meta.c.key == "schema").values(value=step.revision))


def bring_up_sqlite(path: Path) -> None:
    """The SQLite file; looked at read-only first, so that what is current, newer or foreign is not touched."""
    where = f"the database {path}"
    try:
        if path.exists() and path.stat().st_size > 0 and not due(_version(path), where):
            return
        engine = create_engine(f"sqlite:///{path}")
        event.listen(engine, "connect", _no_implicit_transactions)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        try:
            with engine.begin() as connection:
                bring_up(connection, where)
        finally:
            engine.dispose()
    except (sqlite3.Error, SQLAlchemyError, OSError) as error:
        raise StorageError(f"{path} cannot be opened: {error}") from error


def _no_implicit_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's own transactions would leave CREATE and ALTER outside
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: it must come before the first page


def _version(path: Path) -> str | None:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not names:
            return "0000"
        if t.meta.name not in names:
            return None
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        return None if row is None else str(row[0])
    finally:
        connection.close()
