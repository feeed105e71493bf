"""What the tests of the agents' room share: a task, a played turn, the processes that carry a mark."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from parallax.agents.runtimes import bubblewrap
from parallax.agents.runtimes.bubblewrap import Bubblewrap
from parallax.agents.runtimes.leash import MARK
from parallax.models import Question, Task, TaskResult


def task(text: str = "go", **fields: Any) -> Task:
    """A turn to ask."""
    return Task(
        **{"id": "e1/s1/1", "execution": "e1", "step_key": "s1", "attempt": 1, "role": "engineer", "text": text}
        | fields
    )


def sandbox(etc: Path, data: Path | None = None) -> Bubblewrap:
    """The sandbox of this host; the test is skipped where bubblewrap is not installed, unless CI says it must be."""
    found = bubblewrap.prepare(etc, (Path.home(), *([data] if data else [])))
    if found is None:
        if os.environ.get("PARALLAX_REQUIRE_SANDBOX"):
            pytest.fail("PARALLAX_REQUIRE_SANDBOX is set, but bubblewrap is not installed")
        pytest.skip("bubblewrap is not installed")
    return found


def marked(owner: str) -> list[int]:
    """The processes that carry the owner's mark and live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(f"{owner}:") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


async def play(client: Any, asked: Task | None = None, answers: dict[str, str] | None = None) -> tuple[list[Any], Any]:
    """Run a turn; returns what it showed and its result. `answers`: the answer by a text in the question."""
    shown: list[Any] = []
    async for item in client.turn(asked or task()):
        if isinstance(item, TaskResult):
            return shown, item
        shown.append(item)
        if isinstance(item, Question) and answers is not None:
            answer = next(answer for text, answer in answers.items() if text in item.text)
            await client.answer(item.id, answer)
    raise AssertionError("the turn ended without a result")
