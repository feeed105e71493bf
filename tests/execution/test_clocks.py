"""A clock stands still for as long as a person is waited for, and no longer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from parallax.execution.clocks import Waits
from parallax.models import Execution, ExecutionState, Question
from tests.conftest import Team, TeamFactory

LIMIT_S = 6.0
ASKS = [{"ask": {"text": "Left or right?", "save": "way"}}, {"answer": {"value": "{way}"}}]
SCRIPT: dict[str, Any] = {"roles": {"engineer": [{"do": ASKS}]}}


async def test_a_run_stands_still_only_while_all_that_acts_waits_for_a_person() -> None:
    waits = Waits()
    async with waits.run("e", 60.0) as clock:
        with waits.acting("e", "a"), waits.asked("e", "a"):
            await asyncio.sleep(0.05)
            stood_s = clock.stood_s
            assert stood_s >= 0.05
            with waits.acting("e", "b"):
                stood_s = clock.stood_s
                await asyncio.sleep(0.05)
                assert clock.stood_s == stood_s, "b works"
                with waits.asked("e", "b/part"):
                    await asyncio.sleep(0.05)
                    assert clock.stood_s >= stood_s + 0.05
        stood_s = clock.stood_s
        assert clock.untold_s() == pytest.approx(stood_s)
        await asyncio.sleep(0.05)
        assert (clock.stood_s, clock.untold_s()) == (stood_s, 0.0)


async def test_a_clock_that_goes_on_ends_what_takes_too_long() -> None:
    waits = Waits()
    answered = False

    async def asks_and_goes_on() -> None:
        nonlocal answered
        async with waits.turn("e", "a", 0.2):
            with waits.asked("e", "a"):
                await asyncio.sleep(0.5)
                answered = True
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await asks_and_goes_on()
    assert answered


async def surfaced(t: Team, execution: Execution) -> Question:
    async with asyncio.timeout(30):
        while not (asked := await t.parallax.store.questions(execution=execution.id, states=("with_person",))):
            await asyncio.sleep(0.05)
    question: Question = asked[0]
    return question


async def test_a_run_of_limited_time_waits_for_a_person_also_over_a_restart(team: TeamFactory) -> None:
    async with team(SCRIPT) as t:
        execution = await t.start(
            'askHuman("Go on?", {id: "one"})\nreturn askHuman("And now?", {id: "two"})', budget_time_s=LIMIT_S
        )
        question = await surfaced(t, execution)
        await asyncio.sleep(LIMIT_S + 1)
        await t.parallax.desk.answer(question.id, "yes")
        async with asyncio.timeout(30):
            while (second := await surfaced(t, execution)).id == question.id:
                await asyncio.sleep(0.05)
    async with team(SCRIPT) as t:  # more time than it has is gone, but it waited
        await t.parallax.desk.answer(second.id, "no")
        done = await t.finish(execution)
    assert (done.state, done.result, done.reason) == (ExecutionState.SUCCEEDED, "no", None)


async def test_an_agent_that_waits_for_a_person_uses_up_no_time_of_its_role(team: TeamFactory) -> None:
    program = f"""org({{engineer: {{workspace: "none", budget: {{time: {LIMIT_S * 1000:.0f}}}}}}})
return assign("engineer", "x", {{id: "w"}})"""
    async with team(SCRIPT) as t:
        execution = await t.start(program)
        question = await surfaced(t, execution)
        await asyncio.sleep(LIMIT_S + 1)
        await t.parallax.desk.answer(question.id, "left")
        done = await t.finish(execution)
        assert (done.state, done.result, done.reason) == (ExecutionState.SUCCEEDED, "left", None)
        assert done.usage.wall_s < LIMIT_S
