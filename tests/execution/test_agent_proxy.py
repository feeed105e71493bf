"""Targets name roles and agents; retries wait with jitter and only where another try makes sense."""

from __future__ import annotations

import time

import pytest

from parallax.errors import AgentCrashed, AgentUnavailable, ProviderLimited, UsageError
from parallax.execution.agent_proxy import role_of
from parallax.execution.journal import input_hash
from parallax.execution.resilience import RetryPolicy
from parallax.models import OrgChart, Role

CHART = OrgChart(roles={"lead": Role(name="lead"), "engineer": Role(name="engineer", capabilities=("code", "sql"))})


@pytest.mark.parametrize(
    ("target", "role", "number"),
    [
        ("engineer", "engineer", None),
        ("engineer.2", "engineer", 2),
        ("01m8.engineer.3", "engineer", 3),
        ({"role": "lead"}, "lead", None),
        ({"capabilities": ["sql"]}, "engineer", None),
    ],
)
def test_a_target_is_a_role_an_agent_or_a_selector(target: object, role: str, number: int | None) -> None:
    found, which = role_of(CHART, target)
    assert (found.name, which) == (role, number)


@pytest.mark.parametrize("target", ["nobody", "nobody.1", {"role": "x"}, {"capabilities": ["art"]}, 7])
def test_a_target_that_fits_nobody_is_refused_with_the_roles(target: object) -> None:
    with pytest.raises(UsageError, match=r"no role fits .* \(roles: lead, engineer\)"):
        role_of(CHART, target)


def test_without_a_chart_every_name_is_a_role_of_its_own() -> None:
    assert role_of(OrgChart(), "writer")[0] == Role(name="writer")


def test_a_retry_waits_longer_each_time_and_never_beyond_its_cap() -> None:
    policy = RetryPolicy(retries=8, first_s=1.0, cap_s=5.0)
    waits = [[policy.wait_s(AgentCrashed("x"), attempt) or 0.0 for _ in range(300)] for attempt in range(1, 9)]
    assert [max(w) <= min(5.0, 2.0**n) for n, w in enumerate(waits)] == [True] * 8
    assert max(waits[3]) > 3.0  # full jitter uses the whole range
    assert min(waits[3]) < 1.0


def test_what_cannot_pass_is_not_tried_again_and_neither_is_the_last_attempt() -> None:
    policy = RetryPolicy(retries=2)
    assert policy.wait_s(AgentUnavailable("not installed"), 1) is None
    assert policy.wait_s(AgentCrashed("x"), 3) is None


def test_a_limit_is_waited_for_as_often_as_it_comes_but_not_blindly_for_ever() -> None:
    policy = RetryPolicy(blind_parks=3)
    assert policy.parks(ProviderLimited("429", resets_at=time.time() + 30), 1_000)
    assert [policy.parks(ProviderLimited("429"), times) for times in (1, 3, 4)] == [True, True, False]
    assert not RetryPolicy(auto_resume=False).parks(ProviderLimited("429", resets_at=time.time() + 30), 1)


def test_a_request_is_hashed_by_its_content_whatever_the_order_of_its_keys() -> None:
    assert input_hash("assign", {"a": 1, "b": [2]}) == input_hash("assign", {"b": [2], "a": 1})
    assert input_hash("assign", {"a": 1}) != input_hash("fanout", {"a": 1})
