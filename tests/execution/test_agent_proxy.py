"""Targets name roles and agents; retries wait with jitter and only where another try makes sense."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from budget_helpers import living

from parallax.errors import AgentCrashed, AgentUnavailable, AttentionNeeded, ProviderLimited, UsageError
from parallax.execution.agent_proxy import AgentProxy, role_of
from parallax.execution.journal import Journal, input_hash
from parallax.execution.resilience import RetryPolicy
from parallax.models import Budget, OrgChart, Role, Task, TaskResult
from parallax.ports import AgentSession

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
    known = ProviderLimited("429", resets_at=time.time() + 30)
    assert policy.parks(1_000, known)
    assert [policy.parks(times, ProviderLimited("429")) for times in (1, 3, 4)] == [True, True, False]
    assert policy.wait_s(known, 1) is None


def test_a_request_is_hashed_by_its_content_whatever_the_order_of_its_keys() -> None:
    assert input_hash("assign", {"a": 1, "b": [2]}) == input_hash("assign", {"b": [2], "a": 1})
    assert input_hash("assign", {"a": 1}) != input_hash("fanout", {"a": 1})


class TwoVendors:
    """A supervisor's side: agents of type `claude` meet a limit, others do their turn."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.ended: list[str] = []
        self.type = ""

    async def ensure(self, session: AgentSession, *, number: int) -> None:
        self.type = session.type

    async def turn(self, agent_id: str, task: Task, ask: Any) -> TaskResult:
        self.turns.append(self.type)
        if self.type == "claude":
            raise ProviderLimited("429", resets_at=time.time() + 3600)
        return TaskResult(task_id=task.id, attempt=1, agent_id=agent_id, value=1, message="", stop="end_turn")

    async def give_up(self, agent_id: str, reason: str) -> None:
        self.ended.append(reason)

    def goes_on(self, agent_id: str) -> bool:
        return False


@pytest.mark.parametrize("closed", [False, True])
async def test_work_moves_to_another_vendor_where_the_role_allows(tmp_path: Path, closed: bool) -> None:
    supervisor: Any = TwoVendors()
    resets: list[None] = []

    async def reset() -> None:
        resets.append(None)

    async with living(tmp_path / "parallax.db") as house:
        await house.take_in("e1")
        meter = await house.open(Budget())
        proxy = AgentProxy(
            execution=replace(await house.store.execution("e1"), options={"auto_resume": False}),
            journal=await Journal.load(house.store, house.bus, "e1", 0),
            supervisor=supervisor,
            type_problem=lambda type_: "not here" if type_ == "gemini" else None,
            default_types=(),
            places=asyncio.Semaphore(1),
            homes=tmp_path,
            objects=None,
            retry=RetryPolicy(),
            meter=meter,
            limited_until=lambda type_: time.time() + 60 if closed else None,
        )
        role = Role(name="engineer", agent_types=("claude", "gemini", "codex"))
        task = Task(id="e1/s/1", execution="e1", step_key="s", attempt=1, role="engineer", text="x")
        async with proxy.hold(role) as slot:
            call = proxy.call(slot, task, tmp_path, _nobody, preset="standard", reset=reset)
            if closed:  # nobody else can either, and this run shall not go on by itself
                with pytest.raises(AttentionNeeded, match=r"engineer \(claude\) is limited until \d\d:\d\d and shall"):
                    await call
                return
            assert (await call).value == 1
        assert (supervisor.turns, supervisor.ended, len(resets)) == (["claude", "codex"], ["429"], 1)
        [told] = await house.told("agent.chosen")
        assert (told["type"], told["reason"]) == ("codex", "claude is limited: 429")
        assert meter.spent.turns == 1


async def _nobody(question: Any) -> str:
    raise AssertionError("nothing is asked")
