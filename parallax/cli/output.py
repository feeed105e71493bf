"""Where words go: answers to standard output, everything else to standard error.

Text that comes from agents or repositories is printed as text: no markup of it is ever interpreted, and control
characters do not reach the terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def safe(text: str) -> str:
    """Text without control characters: a terminal obeys those, and an agent must not command it."""
    return _CONTROL.sub("", text)


def err() -> Console:
    """For people: standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def out() -> Console:
    """For answers: standard output."""
    return Console(highlight=False, soft_wrap=True, markup=False)


def print_json(value: Any) -> None:
    """The one JSON document of a command."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def styled(*parts: tuple[str, str] | str) -> Text:
    """A line of plain and styled parts, each safe."""
    line = Text()
    for part in parts:
        if isinstance(part, str):
            line.append(safe(part))
        else:
            line.append(safe(part[0]), style=part[1])
    return line


def cut(text: str, limit: int) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(safe(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def print_line(console: Console, line: Text, *, whole: bool = False) -> None:
    """One line. On a terminal it is cut at the right edge, unless it must be read `whole`; in a file it never is."""
    if console.is_terminal and not whole:
        line.truncate(console.width, overflow="ellipsis")
    console.print(line)


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One row, one line: the last column gives way at a terminal's edge, and nothing is cut when it is piped."""
    lines = [list(header), *([" ".join(safe(cell).split()) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for number, line in enumerate(lines):
        padded = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print_line(console, Text(padded.rstrip(), style="bold" if number == 0 else ""))
