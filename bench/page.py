"""Writes what a bench printed into docs/performance.md, between its marks; only with --record."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import time
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def tell(name: str, lines: list[str]) -> None:
    """Print the lines; with --record they replace those of the last recorded run."""
    load = os.getloadavg()[0]
    machine = (
        f"{os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
    )
    text = "\n".join([f"`python bench/{name}.py --record`, {time.strftime('%Y-%m-%d')}, {machine}.", "", *lines])
    print(text)
    if "--record" not in sys.argv:
        return
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def row(what: str, ours: float, floor: float, unit: str, target: str, ratio: float) -> str:
    """One line of the table."""
    return f"| {what} | {ours:,.0f} | {floor:,.0f} | {unit} | {ratio:.2f}x | {target} |"


HEAD = ["| what | Parallax | limit | unit | ratio | target |", "|---|---|---|---|---|---|"]
