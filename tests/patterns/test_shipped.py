"""Every shipped pattern loads without a warning, says when to use it, and runs to its end with scripted agents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallax import prism
from parallax.execution.intake import Submission
from parallax.models import ExecutionState
from parallax.patterns.engine import load
from parallax.patterns.shipped import shipped_patterns
from tests.conftest import TeamFactory

SHIPPED = sorted(path for path in shipped_patterns().iterdir() if path.is_file())
DONE = [{"edit": {"path": "answer.txt", "content": "42\n"}}, {"answer": {"value": "it says 42", "confidence": 0.9}}]
APPROVED = [{"answer": {"value": "good", "confidence": 0.95, "verdict": "approve"}}]
SCRIPT: dict[str, Any] = {
    "roles": {
        "lead": [
            {"when": "Split this goal", "do": [{"answer": {"value": {"tasks": ["make it 42"]}, "confidence": 0.9}}]},
            {"do": DONE},
        ],
        "engineer": [{"do": DONE}],
        "reviewer": [{"do": APPROVED}],
    }
}


def test_there_are_patterns_to_ship() -> None:
    assert {path.stem for path in SHIPPED} >= {"startup-team", "fix", "second-opinion"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_pattern_is_without_fault_and_says_when_to_use_it(path: Path) -> None:
    pattern = load(path)
    assert (pattern.name, pattern.warnings) == (path.stem, ())
    assert pattern.description
    assert "When to use it" in pattern.source
    assert [d for d in prism.check(pattern.prism) if d.severity == "error"] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
async def test_a_shipped_pattern_runs_and_its_result_is_proven(path: Path, team: TeamFactory) -> None:
    async with team(SCRIPT) as t:
        submission = Submission(
            pattern=str(path), input={"goal": "make it 42"}, repo=str(t.repository), agent="scripted"
        )
        execution, _ = await t.parallax.intake.submit(submission)
        done = await t.finish(execution)
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        assert done.confidence == 1.0
        assert t.branch_file(done, "answer.txt") == "42\n"
        assert done.result["checks"][0]["passed"] is True
