"""The fault suite's page: printed at the end of a run, and written to PARALLAX_FAULTS_PAGE where that is set.

Workers of pytest-xdist send what they found to the process that prints. Only a run that failed nowhere is written.
"""

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
from tests.faults.points import ELSEWHERE
from tests.faults.tier import PAGE, SEED, STRUCK, TIER

MARKS = ("<!-- faults: begin -->", "<!-- faults: end -->")


@pytest.fixture
def world() -> Iterator[World]:
    """A world of this test alone."""
    with new_world() as made:
        yield made


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """In the process that hands tests out: takes over what a worker found when it ends."""
    found = getattr(node, "workeroutput", {})
    PAGE.update({test: (done, seen) for test, (done, seen) in found.get("faults_page", {}).items()})
    STRUCK.extend((point, kind) for point, kind in found.get("faults_struck", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # a worker's way to the process that prints
    if output is not None:
        output["faults_page"] = {test: list(line) for test, line in PAGE.items()}
        output["faults_struck"] = [list(strike) for strike in STRUCK]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if STRUCK:
        PAGE["R2"] = _strikes()
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
    if (target := os.environ.get("PARALLAX_FAULTS_PAGE")) and (counts["failed"] or counts["error"]):
        terminalreporter.write_line(f"{target} is left as it was: something failed")
    elif target:
        page = Path(target)
        before, _, rest = page.read_text().partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        page.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}")


def _strikes() -> tuple[str, str]:
    """R2's line."""
    kinds = {"kill": "killed", "raise": "failed", "stall": "stalled"}
    by_kind = {kind: {point for point, how in STRUCK if how == kind} for kind in kinds}
    done = ", ".join(f"{word} at {len(by_kind[kind])} failpoints" for kind, word in kinds.items() if by_kind[kind])
    return (
        f"the server is {done}, one server each",
        f"after {len(STRUCK)} strikes, some in a row on one execution, every one came to its undisturbed end (the "
        f"cancelled to theirs), and no finished step again; struck by tests of their rooms: {', '.join(sorted(ELSEWHERE))}",
    )


def _number(entry: tuple[str, Any]) -> tuple[str, int]:
    letters, digits = re.match(r"([A-Z]*)(\d*)", entry[0]).groups()  # type: ignore[union-attr]
    return letters, int(digits or 0)
