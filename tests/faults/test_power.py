"""R3: the power fails. The database and its log are cut anywhere or have a bit flipped; they open, and lose no word given.

kill -9 cannot show this: the page cache outlives the process. What was acknowledged before the cut has to be there, and
what is there has to be a prefix of what was written.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from pathlib import Path

from parallax.storage.statements import Change, JournalEntry, append
from parallax.storage.store import Store
from tests.faults.tier import record, rng, size

FRAME_B = 4096 + 24
HEADER_B = 32


async def written(path: Path, rows: int) -> list[int]:
    """Write that many entries, each acknowledged; returns the size of the log after each word given."""
    log, sizes = path.with_name(path.name + "-wal"), []
    async with Store(path) as store:
        for number in range(1, rows + 1):
            entry = JournalEntry(
                execution="e",
                step_key=f"s{number}",
                kind="result",
                attempt=1,
                epoch=1,
                body={"n": number, "x": "y" * 700},
            )
            await store.commit(Change([append(entry)]))
            sizes.append(log.stat().st_size)
        for suffix in ("", "-wal"):  # as the disk has them, with the server still running
            shutil.copy(path.with_name(path.name + suffix), path.with_name("cut.db" + suffix))
    return sizes


def read(path: Path) -> list[int]:
    """The numbers of the entries, by an SQLite that has recovered the log."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = connection.execute("SELECT json_extract(body, '$.n') FROM journal ORDER BY seq").fetchall()
    finally:
        connection.close()
    return [number for (number,) in rows]


def test_r3_a_log_cut_anywhere_opens_and_loses_no_word_given(tmp_path: Path) -> None:
    rows, cuts, flips = size((40, 60, 10), (300, 1000, 100), (300, 10_000, 1000))
    chance = rng("R3")
    sizes = asyncio.run(written(tmp_path / "parallax.db", rows))
    whole, log = (tmp_path / "cut.db").read_bytes(), (tmp_path / "cut.db-wal").read_bytes()
    begin = sizes[0]
    frames = range(HEADER_B, len(log) + 1, FRAME_B)
    places = [*(("cut", place) for place in frames), *(("cut", chance.randint(begin, len(log))) for _ in range(cuts))]
    places += [("flip", chance.randint(begin, len(log) - 1)) for _ in range(flips)]
    torn = tmp_path / "torn.db"
    for number, (kind, place) in enumerate(places):
        after = (
            log[:place]
            if kind == "cut"
            else log[:place] + bytes([log[place] ^ 1 << chance.randrange(8)]) + log[place + 1 :]
        )
        torn.write_bytes(whole)
        torn.with_name("torn.db-wal").write_bytes(after)
        torn.with_name("torn.db-shm").unlink(missing_ok=True)
        if place < HEADER_B + FRAME_B or not _has_schema(torn):
            assert place <= begin, f"nothing is left of a log cut at {place}"
            continue
        found = read(torn)
        assert found == list(range(1, len(found) + 1)), f"{kind} at {place}: not a prefix"
        given = sum(end <= place for end in sizes)
        assert len(found) >= given, f"{kind} at {place} (number {number}): {given} words given, {len(found)} kept"
    record(
        "R3",
        f"the log of {rows} acknowledged results cut at {cuts} random places and {len(frames)} frame ends, "
        f"{flips} bits flipped",
        f"{len(places)} of {len(places)} opened, every state a prefix, 0 acknowledged results lost",
    )


def _has_schema(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'journal'").fetchone())
    finally:
        connection.close()


async def test_the_writer_is_as_durable_as_r3_supposes(tmp_path: Path) -> None:
    """R3 counts on a log that is on the disk at each acknowledgement: `synchronous` is per connection."""
    async with Store(tmp_path / "parallax.db") as store:
        writer = store._database.writer  # type: ignore[attr-defined]
        assert await writer.submit(lambda c: c.execute("PRAGMA synchronous").fetchone()[0]) == 2
        assert await writer.submit(lambda c: c.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"
        assert await writer.submit(lambda c: c.execute("PRAGMA wal_autocheckpoint").fetchone()[0]) == 0
