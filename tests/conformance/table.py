"""The table of capability by CLI and version: made from what the conformance tests saw, kept in docs/agents.md."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conformance.install import PACKAGES

# way -> the CLI's name, the packages whose versions count. A way is an agent type and how it is spoken to.
WAYS = {
    "claude-acp": ("Claude Code", ("claude", "claude-agent-acp")),
    "claude-headless": ("Claude Code, headless", ("claude",)),
    "codex-acp": ("Codex", ("codex", "codex-acp")),
    "codex-headless": ("Codex, headless", ("codex",)),
    "gemini-acp": ("Gemini CLI", ("gemini",)),
    "opencode-acp": ("OpenCode", ("opencode",)),
    "qwen-acp": ("Qwen Code", ("qwen",)),
    "copilot-acp": ("Copilot CLI", ("copilot",)),
    "aider-headless": ("Aider, headless", ("aider",)),
}
COLUMNS = {
    "edits": "edits files",
    "runs": "runs commands",
    "usage": "usage it reports",
    "asks": "asks permission",
    "refuses": "read-only holds",
    "tools": "team tools",
    "resumes": "after kill -9",
    "limit": "a rate limit",
    "cancels": "cancel",
    "stops": "processes left",
}
UNTRIED = "–"
BEGIN, END = "<!-- conformance: written by `make conformance` -->", "<!-- end of conformance -->"

Cells = dict[str, dict[str, str]]


def render(cells: Cells) -> str:
    """As Markdown; what was not tried is a dash."""
    head = ["CLI", "version", *COLUMNS.values()]
    lines = [head, ["---"] * len(head), *_rows(cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(cells: Cells) -> list[list[str]]:
    rows = []
    for way, (name, packages) in WAYS.items():
        version = " + ".join(PACKAGES[package].version for package in packages)
        rows.append([name, version, *(cells.get(way, {}).get(column, UNTRIED) for column in COLUMNS)])
    return rows


def write(document: Path, cells: Cells) -> None:
    """Between the marks of a document. What was not tried keeps its cells there, if the versions are still the same."""
    text = document.read_text()
    known = {tuple(row[:2]): dict(zip(COLUMNS, row[2:], strict=False)) for row in read(document)}
    names = {tuple(row[:2]): way for row, way in zip(_rows({}), WAYS, strict=True)}
    kept = {names[named]: row for named, row in known.items() if named in names}
    cells = {way: kept.get(way, {}) | cells.get(way, {}) for way in WAYS}
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{render(cells)}\n{END}{after}")


def read(document: Path) -> list[list[str]]:
    """The rows of the table in a document, its head first."""
    text = document.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.strip().splitlines()]
    return [row for row in rows if not re.fullmatch(r"[-| ]*", "".join(row))]
