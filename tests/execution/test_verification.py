"""Confidence is earned: evidence before claims, and an oracle that could not run is no pass."""

from __future__ import annotations

import pytest

from parallax.errors import UsageError
from parallax.execution.turns import read_review
from parallax.execution.verification import (
    Oracles,
    Verdict,
    claims_evidence,
    critique,
    decide,
    judge,
    oracles_of,
    red_before,
    schema_evidence,
    summary,
)
from parallax.models import Action, Evidence, Policy, Source, TaskResult


def evidence(passed: bool | None, score: float | None = None, detail: str = "", oracle: str = "quick") -> Evidence:
    return Evidence(oracle=oracle, passed=passed, score=score, detail=detail)


@pytest.mark.parametrize(
    ("found", "reported", "confidence", "source"),
    [
        ([], None, 0.5, Source.PRIOR),
        ([], 0.7, 0.7, Source.REPORTED),
        ([evidence(True)], 0.1, 1.0, Source.EVIDENCE),
        ([evidence(False)], 0.99, 0.0, Source.EVIDENCE),
        ([evidence(None, 0.9)], 0.99, 0.0, Source.EVIDENCE),
        ([evidence(True, 0.8), evidence(True, 0.6)], 1.0, 0.6, Source.EVIDENCE),
        ([evidence(True, 1.0, oracle="schema")], 0.7, 0.7, Source.REPORTED),
        ([evidence(True, 1.0, oracle="schema")], None, 0.5, Source.PRIOR),
        ([evidence(False, 0.0, oracle="schema")], 0.9, 0.0, Source.EVIDENCE),
    ],
)
def test_evidence_comes_before_the_report_and_the_report_before_the_prior(
    found: list[Evidence], reported: float | None, confidence: float, source: Source
) -> None:
    assert judge(found, reported) == Verdict(confidence=confidence, source=source)


@pytest.mark.parametrize(
    ("confidence", "rounds_left", "action"),
    [
        (0.8, 2, Action.ACCEPT),
        (0.79, 2, Action.ACCEPT_WITH_WARNING),
        (0.6, 2, Action.ACCEPT_WITH_WARNING),
        (0.59, 1, Action.RETRY),
        (0.59, 0, Action.ACCEPT_WITH_WARNING),
        (0.4, 0, Action.ACCEPT_WITH_WARNING),
        (0.39, 1, Action.RETRY),
        (0.39, 0, Action.ESCALATE),
    ],
)
def test_the_policy_decides_by_its_thresholds_and_the_rounds_left(
    confidence: float, rounds_left: int, action: Action
) -> None:
    assert decide(Verdict(confidence=confidence, source=Source.EVIDENCE), Policy(), rounds_left=rounds_left) is action


def test_where_nothing_speaks_for_or_against_a_result_it_is_not_sent_back() -> None:
    verdict = Verdict(confidence=0.5, source=Source.PRIOR)
    assert decide(verdict, Policy(), rounds_left=2) is Action.ACCEPT_WITH_WARNING
    assert decide(Verdict(confidence=0.0, source=Source.REPORTED), None, rounds_left=2) is Action.ACCEPT


def test_oracles_are_names_arguments_or_lists_of_them_and_never_built_text() -> None:
    assert oracles_of("quick") == Oracles(checks=("quick",))
    assert oracles_of(["make", "test"]) == Oracles(checks=(("make", "test"),))
    assert oracles_of({"oracles": ["quick", {"check": ["true"]}]}) == Oracles(checks=("quick", ("true",)))
    assert not oracles_of(None)
    with pytest.raises(UsageError, match="unknown oracle"):
        oracles_of({"command": "rm"})


@pytest.mark.parametrize(
    ("now", "then", "passed"),
    [
        ("5 passed, 1 failed", "2 passed, 1 failed", True),  # nothing broken, more proven
        ("2 passed, 1 failed", "2 passed, 1 failed", False),  # a repair that repairs nothing
        ("5 passed, 2 failed", "2 passed, 1 failed", False),  # something broken
        ("exit code 1", "exit code 1", False),  # nothing to count
    ],
)
def test_a_check_that_was_red_before_is_held_against_work_that_adds_no_passing_test(
    now: str, then: str, passed: bool
) -> None:
    judged = red_before(evidence(False, 0.0, now), evidence(False, 0.0, then))
    assert judged.passed is passed
    assert judged.score == (0.7 if passed else 0.0)
    assert red_before(evidence(False, 0.0, now), evidence(True)).passed is False


def test_the_critique_says_what_failed_and_what_was_claimed() -> None:
    failed = Evidence(oracle="quick", passed=False, score=0.0, detail="1 failed", log="AssertionError: 2 != 3")
    text = critique([evidence(True), failed, evidence(None, detail="no such file", oracle="full")], "All tests pass.")
    assert "quick failed: 1 failed" in text
    assert "AssertionError: 2 != 3" in text
    assert "full could not run: no such file" in text
    assert "You had reported: All tests pass." in text
    assert summary([failed, evidence(True)]) == "quick failed (1 failed); quick passed"


def result(message: str, stop: str = "end_turn") -> TaskResult:
    return TaskResult(task_id="t", attempt=1, agent_id="a", value=message, message=message, stop=stop)


@pytest.mark.parametrize(
    ("message", "verdict", "confidence"),
    [
        ("Good.\nVERDICT: approve", "approve", 0.9),
        ("Good.\nVERDICT: accept\nCONFIDENCE: 0.75", "approve", 0.75),
        ("Hm.\nVERDICT: revise\nCONFIDENCE: 0.95", "revise", 0.6),
        ("No.\nVERDICT: reject\nCONFIDENCE: 0.95", "reject", 0.3),
        ("VERDICT: approve\nOn second thought\nVERDICT: revise", "revise", 0.6),
        ("It looks fine to me.", "revise", 0.6),  # no verdict is no approval
    ],
)
def test_a_review_is_about_its_subject_and_never_approves_by_silence(
    message: str, verdict: str, confidence: float
) -> None:
    reviewed = read_review(result(message), "reviewer.1")
    assert (reviewed.verdict, reviewed.confidence) == (verdict, confidence)
    assert reviewed.approved is (verdict == "approve")


def test_a_turn_that_did_not_end_well_speaks_against_its_work() -> None:
    assert claims_evidence(result("fine"), ()) == []
    refused, markers = claims_evidence(result("I will not", stop="refusal"), ("a.py",))
    assert refused.detail == "the turn ended with refusal: I will not"
    assert markers.detail == "conflict markers are left in a.py"


def test_a_report_is_held_to_its_schema() -> None:
    schema = {"type": "object", "required": ["tasks"], "properties": {"tasks": {"type": "array", "maxItems": 1}}}
    assert schema_evidence({"tasks": ["a"]}, schema).passed is True
    assert schema_evidence({"tasks": ["a", "b"]}, schema).detail.startswith("tasks: ['a', 'b'] is too long")
    assert schema_evidence("text", schema).passed is False
    with pytest.raises(UsageError, match="is no JSON Schema"):
        schema_evidence({}, {"type": 7})
