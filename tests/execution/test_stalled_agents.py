"""A night in which agents are limited, logged out and stuck: nobody's work is lost, and the morning is told why."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from parallax.models import AgentState, Execution, ExecutionState, Question
from tests.conftest import Team, TeamFactory

ORG = 'org({lead: {}, engineer: {reportsTo: "lead", max: 3}})\n'
FIX = ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})'
INTERRUPTED = "You were interrupted"
DRAFT = {"edit": {"path": "draft.txt", "content": "half done\n"}}
RIGHT = {"edit": {"path": "answer.txt", "content": "42\n"}}
DONE = {"answer": {"value": "it says 42", "confidence": 0.9}}


def team_script(engineer: list[dict[str, Any]], lead: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"roles": {"engineer": engineer, "lead": lead or [{"do": [DONE]}]}}


async def question_of(t: Team, execution: Execution) -> Question:
    """The question that waits for a person."""
    async with asyncio.timeout(30):
        while True:
            found = await t.parallax.store.questions(execution=execution.id, states=("with_person",))
            if found:
                return found[0]
            await asyncio.sleep(0.05)


async def test_a_used_up_window_parks_the_work_and_nothing_of_it_is_lost(team: TeamFactory) -> None:
    resets_at = int(time.time()) + 3600
    limited = {"fail": {"message": f"usage limit reached|{resets_at}", "kind": "rate_limit"}}
    script = team_script([
        {"when": INTERRUPTED, "do": [{"run": ["grep", "-q", "half", "draft.txt"]}, RIGHT, DONE]},
        {"do": [DRAFT, limited]},
    ])  # fmt: skip
    async with team(script, agent_retries=0, max_agents=1) as t:
        one = await t.start(FIX)
        async with asyncio.timeout(30):
            while not (parked := [a for a in t.parallax.supervisor.agents() if a.state is AgentState.PARKED]):
                await asyncio.sleep(0.02)
        assert (parked[0].until, parked[0].pid) == (resets_at, None)
        # The place is free for others meanwhile.
        other = await t.run(ORG + 'assign("lead", "say something", {id: "word"})')
        assert other.state == ExecutionState.SUCCEEDED
        t.parallax.supervisor.wake(parked[0].id)  # the hour is over
        done = await t.finish(one)
        assert (done.state, done.confidence) == (ExecutionState.SUCCEEDED, 1.0)
        assert t.branch_file(done, "draft.txt") == "half done\n"
        assert [told["status"] for told in await t.told(done, "agent.tool") if "grep" in told["name"]][
            -1
        ] == "completed"
        assert [told["until"] for told in await t.told(done, "agent.parked")] == [resets_at]
        assert await t.told(done, "step.retrying") == []  # no attempt was used up
        assert [told["kind"] for told in await t.told(done, "agent.stalled")] == ["limit"]


async def test_a_login_that_has_expired_is_asked_of_a_person_and_no_step_fails(team: TeamFactory) -> None:
    expired = {"fail": {"message": "Authentication required", "code": -32000}}
    script = team_script([{"when": INTERRUPTED, "do": [RIGHT, DONE]}, {"do": [expired]}])
    async with team(script, agent_retries=0) as t:
        execution = await t.start(FIX)
        question = await question_of(t, execution)
        assert (question.kind, question.topic, question.depth) == ("help", "login", 0)  # no colleague can log it in
        assert "not logged in" in question.text
        (agent,) = t.parallax.supervisor.agents()
        assert (agent.state, agent.pid) == (AgentState.ASKING, None)
        await t.parallax.desk.answer(question.id, "retry")
        done = await t.finish(execution)
        assert (done.state, done.confidence) == (ExecutionState.SUCCEEDED, 1.0)
        assert await t.told(done, "step.failed") == []
        (asking,) = [told for told in await t.told(done, "agent.asking") if told["kind"] == "login"]
        assert asking["text"].endswith("Authentication required")


async def test_help_that_is_refused_fails_the_step_with_the_cause(team: TeamFactory) -> None:
    stuck = [{"garbage": "Do you trust the files in this folder?"}, {"hang": True}]
    async with team(team_script([{"do": stuck}]), agent_timeout_ms=500) as t:
        execution = await t.start(FIX)
        question = await question_of(t, execution)
        assert (question.kind, question.topic) == ("help", "trust")
        await t.parallax.desk.answer(question.id, "end")
        done = await t.finish(execution)
        assert done.state == ExecutionState.FAILED
        assert "a trust dialog that only a terminal can answer" in (done.reason or "")


async def test_a_cancelled_execution_leaves_no_parked_agent(team: TeamFactory) -> None:
    limited = {"fail": {"message": f"usage limit reached|{int(time.time()) + 3600}", "kind": "rate_limit"}}
    async with team(team_script([{"do": [limited]}])) as t:
        execution = await t.start(FIX)
        async with asyncio.timeout(30):
            while not await t.told(execution, "agent.parked"):
                await asyncio.sleep(0.05)
        await t.parallax.engine.cancel(execution.id, "a person")
        done = await t.finish(execution)
        assert done.state == ExecutionState.CANCELLED
        assert t.parallax.supervisor.agents() == []
        assert (await t.told(execution, "agent.stopped"))[-1]["reason"]


async def test_an_agent_that_does_nothing_is_tried_again_and_then_the_step_fails_with_the_cause(
    team: TeamFactory,
) -> None:
    async with team(team_script([{"do": [{"crash": 0}]}]), agent_retries=1) as t:
        done = await t.run(FIX)
        assert done.state == ExecutionState.FAILED
        assert "exit code 0" in (done.reason or "")
        assert [told["kind"] for told in await t.told(done, "agent.stalled")] == ["nothing", "nothing"]
        assert len(await t.told(done, "step.retrying")) == 1
