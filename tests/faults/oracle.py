"""The judge: what the agents noted outside of Parallax, against what the database holds. It imports nothing of Parallax.

After each kill it copies the database (with its write-ahead log), opens the copy, and compares: nothing that was
recorded before may be gone or changed, and no step may begin again once its result was recorded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Begun:
    """A line of the ledger: an agent began or ended a turn."""

    step: str  # <execution>/<step key>
    attempt: int
    event: str
    at: float


@dataclass(frozen=True)
class Recorded:
    """A result in the journal."""

    digest: str
    at: float


@dataclass
class Oracle:
    """Compares one data directory with one ledger, again and again."""

    database: Path
    ledger: Path
    results: dict[str, Recorded] = field(default_factory=dict)
    known_at: dict[str, int] = field(default_factory=dict)  # lines that the ledger had when the result was first seen
    faults: list[str] = field(default_factory=list)
    in_flight: list[int] = field(default_factory=list)  # at each kill: begun in that life, without a result
    _seen: int = 0  # lines of the ledger at the last kill

    def lines(self) -> list[Begun]:
        """The ledger; a line that a kill cut short belongs to nobody."""
        found = []
        text = self.ledger.read_text() if self.ledger.exists() else ""
        for line in text.split("\n")[:-1]:
            entry = json.loads(line)
            step, _, attempt = entry["task"].rpartition("/")
            found.append(Begun(step, int(attempt), entry["event"], entry["at"]))
        return found

    def after_kill(self) -> None:
        """Look at what a killed server left."""
        now, lines = self._journal(), self.lines()
        for step, before in self.results.items():
            if (kept := now.get(step)) is None:
                self.faults.append(f"the result of {step} is gone")
            elif kept.digest != before.digest:
                self.faults.append(f"the result of {step} has changed")
        for step in now.keys() - self.results.keys():
            self.known_at[step] = len(lines)
        self.results = now
        begun = {line.step for line in lines[self._seen :] if line.event == "start"}
        self._seen = len(lines)
        self.in_flight.append(len(begun - now.keys()))
        self._judge(lines)

    def _judge(self, lines: list[Begun]) -> None:
        for number, line in enumerate(lines):
            if line.event != "start" or line.step not in self.results:
                continue
            if number >= self.known_at[line.step] or line.at > self.results[line.step].at:
                self.faults.append(f"{line.step} began again (attempt {line.attempt}) after its result")

    def again(self) -> int:
        """How many turns were begun more than once."""
        starts = Counter(line.step for line in self.lines() if line.event == "start")
        return sum(count - 1 for count in starts.values())

    def _journal(self) -> dict[str, Recorded]:
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "copy.db"
            for suffix in ("", "-wal"):
                source = self.database.with_name(self.database.name + suffix)
                if source.exists():
                    shutil.copy(source, copy.with_name(copy.name + suffix))
            connection = sqlite3.connect(copy)
            try:
                (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
                if verdict != "ok":
                    self.faults.append(f"integrity check: {verdict}")
                rows = connection.execute(
                    "SELECT execution, step_key, body, at FROM journal WHERE kind = 'result'"
                ).fetchall()
                twice = connection.execute(
                    "SELECT execution, step_key FROM journal WHERE kind IN ('result', 'join') "
                    "GROUP BY execution, step_key HAVING count(*) > 1"
                ).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                return {}  # killed before its first start was through
            finally:
                connection.close()
        self.faults += [f"{execution}/{step} has two results" for execution, step in twice]
        return {
            f"{execution}/{step}": Recorded(hashlib.sha256(body.encode()).hexdigest(), at)
            for execution, step, body, at in rows
        }

    def column(self, sql: str) -> list[tuple[object, ...]]:
        """Rows of the database of a server that has stopped."""
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()
