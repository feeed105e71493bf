"""The conformance cases, one test each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallax.prism.__main__ import case_problem, main

FILE = Path(__file__).parent / "cases.jsonl"
CASES = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    assert case_problem(case) is None


def test_the_command_counts_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cases", str(FILE)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(CASES)} passed, 0 failed"
