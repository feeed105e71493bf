"""Every question finds somebody: the preset, the org chart, a person, or its default."""

from __future__ import annotations

import pytest

from parallax.execution.questions import by_preset, pick, read_answer, routed_to
from parallax.models import Escalation, OrgChart, Question, Role, Route

ALLOW_ONCE = {"id": "a1", "label": "Allow", "kind": "allow_once"}
ALLOW_ALWAYS = {"id": "a2", "label": "Always", "kind": "allow_always"}
REJECT = {"id": "r1", "label": "Reject", "kind": "reject_once"}


def permission(topic: str | None, *options: dict[str, str]) -> Question:
    return Question(id="q", execution="e", step_key="s", asker="a", kind="permission", text="May I?", topic=topic,
                    options=options or (ALLOW_ALWAYS, ALLOW_ONCE, REJECT))  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "kind", "chosen"),
    [
        ("readonly", "read", "a1"), ("readonly", "edit", "r1"), ("readonly", "execute", "r1"), ("readonly", None, "r1"),
        ("standard", "edit", "a1"), ("standard", "execute", "a1"), ("standard", "other", None),
        ("permissive", "other", "a1"), ("autonomous", "anything", "a1"),
    ],
)  # fmt: skip
def test_a_permission_is_answered_by_the_preset_or_asked(preset: str, kind: str | None, chosen: str | None) -> None:
    assert by_preset(permission(kind), preset) == chosen


def test_the_narrower_permission_is_taken_and_none_is_invented() -> None:
    assert pick(permission("edit"), "allow") == "a1"
    assert pick(permission("edit", ALLOW_ALWAYS), "allow") == "a2"
    assert pick(permission("edit", REJECT), "allow") is None


CHART = OrgChart(
    roles={
        "boss": Role(name="boss"),
        "lead": Role(name="lead", reports_to="boss"),
        "engineer": Role(name="engineer", reports_to="lead"),
        "security": Role(name="security", reports_to="boss"),
    },
    routing=(
        Route(sources=("engineer",), target="lead"),
        Route(sources=("*",), target="security", topics=("security",), priority=5),
    ),
)


def test_a_question_climbs_its_topic_then_the_rules_then_the_reporting_line() -> None:
    asked = permission("security")
    assert routed_to(asked, "engineer", CHART) == ("security", "lead", "boss")
    assert routed_to(permission("design"), "engineer", CHART) == ("lead", "boss")
    assert routed_to(permission("design"), "boss", CHART) == ()


def test_depth_and_behaviour_of_the_escalation_hold() -> None:
    flat = OrgChart(roles=CHART.roles, escalation=Escalation(default_behavior="surface_to_user"))
    assert routed_to(permission(None), "engineer", flat) == ()
    short = OrgChart(roles=CHART.roles, escalation=Escalation(max_depth=1, topic_routes={"db": "security"}))
    assert routed_to(permission("db"), "engineer", short) == ("security",)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("a1", "a1"), ("Allow", "a1"), ("I would say r1.", "r1"), ("a1 or r1", None), ("no idea", None), ("", None)],
)
def test_an_answer_must_be_one_of_the_options(text: str, answer: str | None) -> None:
    assert read_answer(permission("edit", ALLOW_ONCE, REJECT), text) == answer


def test_without_options_any_words_are_an_answer() -> None:
    free = Question(id="q", execution="e", step_key="s", asker="a", kind="question", text="?")
    assert read_answer(free, "  use ints ") == "use ints"
    assert read_answer(free, "   ") is None
