"""The small repository and the team of these tests: two pieces of work, a check that proves them, a ledger outside."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_repository
from tests.e2e.processes import World

FILES = {
    "answer.txt": "41\n",
    "notes.txt": "one\ntwo\nthree\n",
    ".parallax.yaml": (
        "version: 1\nlanguage: other\nchecks:\n  answer: grep -q 42 answer.txt\n  always: test -f notes.txt\n"
        "defaults: {quick: [always], full: [always, answer]}\n"
    ),
}
CHART = """
name: duo
roles:
  lead: {description: You answer questions.}
  engineer: {reportsTo: lead, maxInstances: 2}
input:
  goal: {type: string}
  level: {type: integer, default: 1}
steps:
  - {id: first, type: assign, role: engineer, task: "first: ${input.goal}", verify: quick}
  - id: both
    type: parallel
    steps:
      - {id: left, type: assign, role: engineer, task: "left: ${input.goal}", verify: quick}
      - {id: right, type: assign, role: engineer, task: "right: ${input.goal}", verify: quick}
  - {id: whole, type: integrate, verify: full}
output: whole
"""


def rule(when: str, *actions: dict[str, Any], wait: float = 0.0) -> dict[str, Any]:
    """A rule of a script that ends with an answer."""
    pause = [{"wait": wait}] if wait else []
    return {"when": when, "do": [*actions, *pause, {"answer": {"value": f"{when} is done", "confidence": 0.9}}]}


def edit(path: str, content: str) -> dict[str, Any]:
    """Write a file."""
    return {"edit": {"path": path, "content": content}}


def script(wait: float = 0.2) -> dict[str, Any]:
    """What the duo does."""
    return {
        "roles": {
            "engineer": [
                rule("first:", edit("answer.txt", "42\n"), wait=wait),
                rule("left:", edit("left.txt", "left\n"), wait=wait),
                rule("right:", edit("right.txt", "right\n"), wait=2 * wait),
                rule("work", edit("answer.txt", "42\n"), wait=wait),
            ]
        }
    }


@contextmanager
def new_world(wait: float = 0.2, agents: dict[str, Any] | None = None) -> Iterator[World]:
    """A world in a directory of its own, not under /tmp; gone afterwards."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parallax-tests"
    place = cache / secrets.token_hex(4)
    place.mkdir(parents=True)
    try:
        made = World(place, make_repository(place / "repo", FILES), agents or script(wait))
        (place / "duo.yaml").write_text(CHART)
        try:
            yield made
        finally:
            made.close()
        assert made.agents_alive() == [], "a test left agents behind"
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def world() -> Iterator[World]:
    """A world of this test alone."""
    with new_world() as made:
        yield made
