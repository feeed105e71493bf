"""Databases of earlier releases open and keep everything; newer ones and a crash in the middle change nothing."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from parallax.errors import SchemaError, StorageError
from parallax.storage import tables as t
from parallax.storage.store import Store

RELEASED = sorted((Path(__file__).parent / "released").glob("*.sql"))
MIGRATE = """
import sys
from pathlib import Path
from parallax import failpoints
from parallax.storage.migrating import bring_up_sqlite
failpoints.arm(sys.argv[2])
bring_up_sqlite(Path(sys.argv[1]))
"""


def made_by(release: Path, place: Path) -> Path:
    path = place / "parallax.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(release.read_text())
        connection.execute("PRAGMA journal_mode=WAL")
    return path


def schema(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])


def migrate(path: Path, failpoints: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MIGRATE, str(path), failpoints]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("release", RELEASED, ids=lambda path: path.stem)
async def test_a_database_of_every_release_opens_and_keeps_everything(release: Path, tmp_path: Path) -> None:
    path = made_by(release, tmp_path)
    async with Store(path) as store:
        (execution,) = await store.executions()
        assert (execution.input, execution.usage.cost, execution.epoch) == ({"goal": "ü"}, 12, 1)
        assert [(entry.kind, entry.step_key) for entry in await store.journal(execution.id)] == [
            ("intent", "a"),
            ("result", "a"),
        ]
        assert [event.seq for event in await store.events(execution.id, 0)] == [1, 2]
        assert (await store.question("q1")).text == "Go on?"
        assert await store.idempotent("k") == ("b", execution.id)
        assert (await store.spent())[0]["cost"] is None
        assert await store.next_epoch() == 2
    assert schema(path) == t.SCHEMA_VERSION


@pytest.mark.parametrize("release", RELEASED, ids=lambda path: path.stem)
def test_a_migrated_database_has_the_schema_of_a_new_one(release: Path, tmp_path: Path) -> None:
    """If this fails you changed `tables.py`: add the same change to the newest module of `migrations/versions`."""
    path = made_by(release, tmp_path)
    done = migrate(path)
    assert done.returncode == 0, done.stderr
    engine = create_engine(f"sqlite:///{path}")
    try:
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), t.metadata) == []
    finally:
        engine.dispose()


@pytest.mark.parametrize("strike", ["kill", "raise"])
def test_a_crash_in_mid_migration_leaves_the_old_schema_and_the_next_start_migrates(
    strike: str, tmp_path: Path
) -> None:
    path = made_by(RELEASED[0], tmp_path)
    crashed = migrate(path, f"migration.mid={strike}")
    assert crashed.returncode != 0
    assert schema(path) == RELEASED[0].stem
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'calls'").fetchone() == (0,)
    assert migrate(path).returncode == 0
    assert schema(path) == t.SCHEMA_VERSION


async def test_a_newer_schema_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = made_by(RELEASED[-1], tmp_path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE meta SET value = '0999' WHERE key = 'schema'")
        connection.commit()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(SchemaError, match=r"has schema 0999.*install the newer Parallax.*nothing was changed"):
        async with Store(path):
            pass
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


async def test_a_file_cut_short_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    path = made_by(RELEASED[-1], tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    before = path.read_bytes()
    with pytest.raises(StorageError, match=r"parallax\.db cannot be opened"):
        async with Store(path):
            pass
    assert path.read_bytes() == before


def test_alembic_is_loaded_only_when_a_migration_is_due(tmp_path: Path) -> None:
    current = made_by(RELEASED[0], tmp_path)
    assert migrate(current).returncode == 0
    probe = f"{MIGRATE}\nassert 'alembic' not in sys.modules, 'alembic was loaded'"
    for path in (current, tmp_path / "new.db"):
        done = subprocess.run([sys.executable, "-c", probe, str(path), ""], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
