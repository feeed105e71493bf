"""What a person does to an execution under way: one step is cancelled, the branches of a join, a pause; over restarts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from parallax.errors import AttentionNeeded, ConflictError
from parallax.execution.host import ExecutionHost
from parallax.models import ExecutionState, hash12
from parallax.prism import Effect, Outcome
from tests.conftest import Team, TeamFactory
from tests.execution.test_recovery import starts, until
from tests.execution.test_team import ORG, answer, script

SLOW = script(
    engineer=[
        ("slow", [{"run": ["sleep", "60"]}, answer("slow")]),
        ("lasting", [{"wait": 0.8}, answer("lasting")]),
        ("quick", [answer("quick")]),
    ]
)
CAUGHT = ORG + (
    'let a = null\ntry { a = assign("engineer", "slow", {id: "a"}) } catch (e) { a = e }\n'
    'const b = assign("engineer", "quick", {id: "b"})\nreturn "${a} | ${b}"'
)


async def busy(t: Team, count: int = 1) -> list[int]:
    """The processes of the agents at work, as soon as there are so many."""
    async with asyncio.timeout(30):
        while True:
            pids = [agent.pid for agent in t.parallax.supervisor.agents() if agent.state == "busy" and agent.pid]
            if len(pids) >= count:
                return pids
            await asyncio.sleep(0.02)


async def test_a_cancelled_step_ends_its_process_group_and_the_program_goes_on(team: TeamFactory) -> None:
    async with team(SLOW) as t:
        execution = await t.start(CAUGHT)
        (pid,) = await busy(t)
        with pytest.raises(ConflictError, match=r"no step 'b' is running \(running: a\)"):
            await t.parallax.engine.cancel_step(execution.id, "b", "a test")
        assert await t.parallax.engine.cancel_step(execution.id, hash12("a"), "a test") == ("a",)
        assert not Path(f"/proc/{pid}").exists()
        done = await t.finish(execution)
        assert done.state is ExecutionState.SUCCEEDED, done.reason
        assert done.result == "'a' was cancelled by a test | quick"
        assert await t.told(done, "step.cancelled") == [{"cause": "cancelled by a test"}]


async def test_a_join_cancelled_ends_all_its_branches(team: TeamFactory) -> None:
    program = ORG + (
        "let both = null\n"
        'try { both = parallel(range(2), i => assign("engineer", "slow ${i}", {id: "p${i}"}), {id: "both"}) }'
        ' catch (e) { both = "caught" }\nreturn both'
    )
    async with team(SLOW) as t:
        execution = await t.start(program)
        pids = await busy(t, 2)
        assert sorted(await t.parallax.engine.cancel_step(execution.id, "both", "a test")) == ["p0", "p1"]
        assert (await t.finish(execution)).result == "caught"
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_a_cancel_that_the_server_did_not_outlive_is_still_a_cancel(team: TeamFactory) -> None:
    async with team(SLOW) as t:
        execution = await t.start(CAUGHT)
        await busy(t)
        journal = t.parallax.engine._running[execution.id].journal
        await journal.signal("cancel", "a", {"step": "a", "by": "a test"})
    async with team(SLOW) as t:
        done = await t.finish(execution)
        assert done.result == "'a' was cancelled by a test | quick"
        assert starts(t) == ["a/1", "b/1"]


async def test_the_loser_of_a_race_leaves_no_process(team: TeamFactory) -> None:
    program = ORG + (
        'race([() => assign("engineer", "slow", {id: "s"}), () => assign("engineer", "quick", {id: "q"})])'
    )
    async with team(SLOW) as t:
        execution = await t.start(program)
        done = await t.finish(execution)
        assert done.result == "quick"
        assert t.parallax.supervisor.agents(execution.id) == []


async def paused(t: Team, program: str) -> Any:
    execution = await t.start(program)
    await busy(t)
    await t.parallax.engine.pause(execution.id, "a test")
    await until(t, execution, "step.finished", "a")
    await asyncio.sleep(0.3)
    return execution


async def test_a_cancel_while_other_branches_are_let_go_is_not_lost(
    team: TeamFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ending, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def perform(_host: ExecutionHost, effect: Effect) -> Outcome:
        if effect.key == "a":
            await begun.wait()
            raise AttentionNeeded("somebody has to look")
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            await gone.wait()  # as an agent that takes its time to end
        return Outcome()

    monkeypatch.setattr(ExecutionHost, "perform", perform)
    async with team(SLOW) as t:
        execution = await t.start('parallel([() => askHuman("?", {id: "a"}), () => askHuman("?", {id: "b"})])')
        async with asyncio.timeout(20):
            await ending.wait()
            await t.parallax.engine.cancel(execution.id, "a test")
            gone.set()
            done = await t.finish(execution)
        assert (done.state, done.reason) == (ExecutionState.CANCELLED, "cancelled by a test")


PAUSED = ORG + 'assign("engineer", "lasting", {id: "a"})\nassign("engineer", "quick", {id: "b"})'


async def test_a_pause_lets_what_has_begun_end_and_nothing_begin(team: TeamFactory) -> None:
    async with team(SLOW) as t:
        execution = await paused(t, PAUSED)
        assert starts(t) == ["a/1"]
        assert (await t.parallax.store.execution(execution.id)).state is ExecutionState.PAUSED
        with pytest.raises(ConflictError, match="only what runs here can be paused"):
            await t.parallax.engine.pause(execution.id, "a test")
        await t.parallax.engine.release(execution.id)
        assert (await t.finish(execution)).result == "quick"


async def test_a_pause_outlives_the_server(team: TeamFactory) -> None:
    async with team(SLOW) as t:
        execution = await paused(t, PAUSED)
    async with team(SLOW) as t:
        await asyncio.sleep(0.5)
        assert t.parallax.engine.running == ()
        await t.parallax.engine.release(execution.id)
        assert (await t.finish(execution)).result == "quick"
        assert starts(t) == ["a/1", "b/1"]


async def test_what_is_paused_can_be_cancelled_here_and_after_a_restart(team: TeamFactory) -> None:
    async with team(SLOW) as t:
        here, later = await paused(t, PAUSED), await t.start(PAUSED)
        await t.parallax.engine.cancel(here.id, "a test")
        assert (await t.finish(here)).state is ExecutionState.CANCELLED
        await until(t, later, "step.started", "a")
        await t.parallax.engine.pause(later.id, "a test")
    begun = time.monotonic()
    async with team(SLOW) as t:
        await t.parallax.engine.cancel(later.id, "a test")
        assert (await t.finish(later)).state is ExecutionState.CANCELLED
    assert time.monotonic() - begun < 30
