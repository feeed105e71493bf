"""A server that ends in the middle goes on at its next start: finished steps stay finished, counted by the agents."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from parallax.errors import ConflictError, StorageError, UsageError
from parallax.execution.intake import Submission
from parallax.models import ExecutionState
from parallax.storage.statements import Change, set_execution
from tests.conftest import Team, TeamFactory
from tests.execution.test_team import ORG, answer, edit, script

THREE = ORG + (
    'const a = assign("engineer", "first", {id: "a"})\n'
    'const b = assign("engineer", "second", {id: "b"})\n'
    'const c = assign("engineer", "third", {id: "c"})\nreturn "${a} ${b} ${c}"'
)
# Only the first attempt leaves this; the second must not find it.
DEBRIS = """grep -q '/b/2"' "$PARALLAX_LEDGER" || echo debris > debris.txt"""
SLOW_SECOND = script(
    engineer=[
        ("first", [edit("1\n", "one.txt"), answer("one")]),
        (
            "second",
            [{"run": ["sh", "-c", DEBRIS]}, {"wait": 1.5}, edit("2\n", "two.txt"), answer("two")],
        ),
        ("third", [edit("3\n", "three.txt"), answer("three")]),
    ]
)


async def until(t: Team, execution: Any, type_: str, key: str | None = None) -> None:
    async with asyncio.timeout(20):
        async for event in t.parallax.bus.stream(execution.id):
            if event.type == type_ and event.step_key == key:
                return


def starts(t: Team) -> list[str]:
    return [entry["task"].partition("/")[2] for entry in t.ledger() if entry["event"] == "start"]


async def test_a_stopped_server_goes_on_from_the_journal_and_runs_no_finished_step_again(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        execution = await t.start(THREE)
        await until(t, execution, "step.started", "b")
        await asyncio.sleep(0.4)
    async with team(SLOW_SECOND) as t:
        done = await t.finish(execution)
        assert (done.state, done.result) == (ExecutionState.SUCCEEDED, "one two three")
        assert starts(t) == ["a/1", "b/1", "b/2", "c/1"]
        assert (await t.told(done, "execution.resumed"))[0]["finished"] == ["a"]
        files = {name: t.branch_file(done, f"{name}.txt") for name in ("one", "two", "three", "debris")}
        assert files == {"one": "1\n", "two": "2\n", "three": "3\n", "debris": None}


async def test_work_that_was_merged_but_not_recorded_is_done_again_from_the_result_as_it_stood(
    team: TeamFactory,
) -> None:
    async with team(SLOW_SECOND, failpoints="snapshot_done_before_result=raise@1") as t:
        execution = await t.start(THREE)
        async with asyncio.timeout(20):
            async for event in t.parallax.bus.stream(execution.id):
                if event.type == "execution.needs_attention":
                    assert "snapshot_done_before_result" in event.data["cause"]
                    break
        await t.parallax.store.commit(Change([set_execution(execution.id, state="running")]))
    async with team(SLOW_SECOND) as t:
        done = await t.finish(execution)
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        assert starts(t)[:2] == ["a/1", "a/2"]
        assert t.branch_file(done, "one.txt") == "1\n"


async def test_a_question_to_a_person_outlives_the_server(team: TeamFactory) -> None:
    program = 'askHuman("Go on?", {id: "go"})'
    async with team(SLOW_SECOND) as t:
        execution = await t.start(program)
        await until(t, execution, "question.surfaced", "go")
        (before,) = await t.parallax.store.questions(states=("with_person",))
    async with team(SLOW_SECOND) as t:
        async with asyncio.timeout(10):
            while before.id not in t.parallax.desk._waiting:
                await asyncio.sleep(0.02)
        (again,) = await t.parallax.store.questions(states=("with_person",))
        assert again == before
        await t.parallax.desk.answer(before.id, "yes")
        done = await t.finish(execution)
        assert done.result == "yes"
        assert len(await t.told(done, "question.asked")) == 1


async def test_what_an_agent_had_asked_stays_open_over_a_restart_and_reaches_it_when_it_asks_again(
    team: TeamFactory,
) -> None:
    asking = script(
        engineer=[{"ask": {"text": "Which?", "options": ["x", "y"], "save": "w"}}, answer("{w}")],
        lead=[answer("I cannot tell")],
    )
    program = ORG + 'assign("engineer", "go", {id: "go"})'
    async with team(asking) as t:
        execution = await t.start(program)
        await until(t, execution, "question.surfaced", "go")
        (before,) = await t.parallax.store.questions(states=("with_person",))
    async with team(asking) as t:
        (open_,) = await t.parallax.store.questions(states=("with_person",))
        assert open_.id == before.id
        await t.parallax.desk.answer(before.id, "y")  # whether or not its asker runs again by now
        done = await t.finish(execution)
        assert done.result == "y"
        (question,) = await t.parallax.store.questions(execution=done.id)
        assert (question.state, question.answer) == ("answered", "y")
        told = [e.type for e in await t.events(done) if e.type.startswith("question.")]
        assert told == ["question.asked", "question.routed", "question.surfaced", "question.answered"]
        assert [entry["task"].count("/") for entry in t.ledger() if entry["event"] == "start"] == [2, 2, 2]


async def test_a_store_that_refuses_while_idle_agents_are_let_go_takes_no_neighbour_along(
    team: TeamFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with team(script(engineer=[answer("quick")])) as t:
        neighbour = await t.start('askHuman("?", {id: "q"})')
        await until(t, neighbour, "question.surfaced", "q")
        execution = await t.start(ORG + 'assign("engineer", "first", {id: "a"})\nsleep(60000)')
        await until(t, execution, "step.finished", "a")
        async with asyncio.timeout(10):
            while [agent.state for agent in t.parallax.supervisor.agents(execution.id)] != ["ready"]:
                await asyncio.sleep(0.02)
        running = t.parallax.engine._running[execution.id]

        async def refuse(change: Change) -> None:
            raise StorageError("the disk is full")

        with monkeypatch.context() as full:
            full.setattr(t.parallax.store, "commit", refuse)
            running.stop()
            async with asyncio.timeout(10):
                await asyncio.wait({running.task})
        assert t.parallax.supervisor.agents(execution.id) == []
        assert t.parallax.engine.running == (neighbour.id,)
        (question,) = await t.parallax.store.questions(execution=neighbour.id)
        await t.parallax.desk.answer(question.id, "yes")
        assert (await t.finish(neighbour)).result == "yes"


async def test_a_sleep_is_not_begun_again(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        execution = await t.start('sleep(1500)\nreturn "up"')
        begun = time.monotonic()
        await asyncio.sleep(0.8)
    async with team(SLOW_SECOND) as t:
        done = await t.finish(execution)
        assert done.result == "up"
        assert time.monotonic() - begun < 4.0


async def test_an_execution_that_gets_nowhere_in_five_recoveries_is_parked_and_its_neighbour_goes_on(
    team: TeamFactory,
) -> None:
    async with team(SLOW_SECOND) as t:
        stuck = await t.start('askHuman("?", {id: "q"})')
        await until(t, stuck, "question.surfaced", "q")
        await t.parallax.store.commit(Change([set_execution(stuck.id, recoveries=6)]))  # the stop takes one back
    async with team(SLOW_SECOND) as t:
        neighbour = await t.run("return 1 + 1")
        assert neighbour.result == 2
        async with asyncio.timeout(10):
            while (parked := await t.parallax.store.execution(stuck.id)).state != ExecutionState.NEEDS_ATTENTION:
                await asyncio.sleep(0.02)
        assert parked.reason == "5 recoveries without a new result"
        await t.parallax.engine.release(stuck.id)
        await until(t, stuck, "execution.resumed")
        async with asyncio.timeout(10):
            while not t.parallax.desk._waiting:
                await asyncio.sleep(0.02)
        (question,) = await t.parallax.store.questions(states=("with_person",))
        await t.parallax.desk.answer(question.id, "released")
        assert (await t.finish(stuck)).result == "released"


async def test_what_needs_attention_can_be_cancelled(team: TeamFactory) -> None:
    async with team(SLOW_SECOND, failpoints="result.before_commit=raise@1") as t:
        execution = await t.start("return now()")
        await until(t, execution, "execution.needs_attention")
        await t.parallax.engine.cancel(execution.id, "a test")
        assert (await t.finish(execution)).state == ExecutionState.CANCELLED


async def test_printed_lines_are_not_told_twice(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        execution = await t.start('print("one")\nsleep(1200, {id: "s"})\nprint("two")')
        await until(t, execution, "log.printed")
    async with team(SLOW_SECOND) as t:
        done = await t.finish(execution)
        assert [p["line"] for p in await t.told(done, "log.printed")] == ["one", "two"]


async def test_a_cancelled_execution_stays_cancelled_over_a_restart(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        execution = await t.start('sleep(60000, {id: "s"})')
        await until(t, execution, "execution.started")
        await t.parallax.store.commit(
            Change([set_execution(execution.id, state="cancelling", reason="cancelled by you")])
        )
    async with team(SLOW_SECOND) as t:
        done = await t.finish(execution)
        assert done.state == ExecutionState.CANCELLED
        with pytest.raises(ConflictError, match="has ended already"):
            await t.parallax.engine.cancel(execution.id, "x")


async def test_one_key_is_one_execution_and_another_body_under_it_is_refused(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        path = t.pattern("return input.n")
        submissions = [Submission(pattern=path, input={"n": 1}) for _ in range(20)]
        made = await asyncio.gather(*(t.parallax.intake.submit(s, key="k1") for s in submissions))
        assert len({execution.id for execution, _ in made}) == 1
        assert sum(new for _, new in made) == 1
        with pytest.raises(UsageError, match="used with another request"):
            await t.parallax.intake.submit(Submission(pattern=path, input={"n": 2}), key="k1")
    async with team(SLOW_SECOND) as t:
        again, new = await t.parallax.intake.submit(submissions[0], key="k1")
        assert (again.id, new) == (made[0][0].id, False)


async def test_executions_beyond_the_pool_wait_for_their_turn(team: TeamFactory) -> None:
    async with team(SLOW_SECOND, max_executions=1) as t:
        first = await t.start('askHuman("?", {id: "q"})')
        await until(t, first, "question.surfaced", "q")
        second = await t.start("return 2")
        await asyncio.sleep(0.2)
        assert (await t.parallax.store.execution(second.id)).state == ExecutionState.QUEUED
        third = await t.start("return 3")
        await t.parallax.engine.cancel(third.id, "a test")
        assert (await t.finish(third)).state == ExecutionState.CANCELLED
        (question,) = await t.parallax.store.questions(states=("with_person",))
        await t.parallax.desk.answer(question.id, "ok")
        assert (await t.finish(second)).result == 2


async def test_no_agent_process_outlives_its_server(place: Path, team: TeamFactory) -> None:
    async with team(script(engineer=[{"wait": 60}, answer()])) as t:
        execution = await t.start(ORG + 'assign("engineer", "x", {id: "w"})')
        async with asyncio.timeout(20):
            while not any(agent.state == "busy" for agent in t.parallax.supervisor.agents()):
                await asyncio.sleep(0.02)
        pids = [agent.pid for agent in t.parallax.supervisor.agents(execution.id)]
        assert pids
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
