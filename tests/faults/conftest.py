"""The fault suite's page: printed at the end of a run, and written to PARALLAX_FAULTS_PAGE where that is set."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import new_world
from tests.e2e.processes import World
from tests.faults.tier import PAGE, SEED, TIER

MARKS = ("<!-- faults: begin -->", "<!-- faults: end -->")


@pytest.fixture
def world() -> Iterator[World]:
    """A world of this test alone."""
    with new_world() as made:
        yield made


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not PAGE:
        return
    counts = {what: len(terminalreporter.stats.get(what, ())) for what in ("passed", "failed", "skipped", "error")}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    lines = [
        f"Tier {TIER}, seed {SEED}, {time.strftime('%Y-%m-%d', time.gmtime())}, {machine}: {told}.",
        "",
        "| test | what was done | what was seen |",
        "|---|---|---|",
        *(f"| {test} | {done} | {seen} |" for test, (done, seen) in sorted(PAGE.items(), key=_number)),
    ]
    terminalreporter.section("fault suite")
    terminalreporter.write_line("\n".join(lines))
    if target := os.environ.get("PARALLAX_FAULTS_PAGE"):
        page = Path(target)
        before, _, rest = page.read_text().partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        page.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}")


def _number(entry: tuple[str, Any]) -> tuple[str, int]:
    letters, digits = re.match(r"([A-Z]*)(\d*)", entry[0]).groups()  # type: ignore[union-attr]
    return letters, int(digits or 0)
