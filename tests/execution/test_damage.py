"""A damaged or foreign journal: its execution is parked with the cause, nothing of it is run, the neighbours go on."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

from parallax.errors import NotFoundError
from parallax.models import Execution, ExecutionState
from tests.conftest import Team, TeamFactory
from tests.execution.test_recovery import SLOW_SECOND, THREE, starts, until


async def interrupted(t: Team) -> Execution:
    """An execution whose first step is recorded and whose second is under way."""
    execution = await t.start(THREE)
    await until(t, execution, "step.started", "b")
    return execution


def damage(t: Team, sql: str, *values: Any) -> None:
    connection = sqlite3.connect(t.place / "data" / "parallax.db")
    with connection:
        assert connection.execute(sql, values).rowcount == 1
    connection.close()


async def parked(t: Team, execution: Execution) -> str:
    async with asyncio.timeout(20):
        while (now := await t.parallax.store.execution(execution.id)).state is not ExecutionState.NEEDS_ATTENTION:
            assert not now.state.final, now.reason
            await asyncio.sleep(0.05)
    return now.reason or ""


@pytest.mark.parametrize("body", ["{", "\u0000", "", '{"outcome": {"value": NaN}}'])
async def test_an_entry_that_is_no_json_parks_its_execution_alone(team: TeamFactory, body: str) -> None:
    async with team(SLOW_SECOND) as t:
        execution = await interrupted(t)
    damage(
        t, "UPDATE journal SET body = ? WHERE execution = ? AND step_key = 'a' AND kind = 'result'", body, execution.id
    )
    async with team(SLOW_SECOND) as t:
        begun = len(starts(t))
        assert "of the journal" in await parked(t, execution)
        assert "backup" in await parked(t, execution)
        assert (await t.run("return 1 + 1")).result == 2
        assert len(starts(t)) == begun
        await t.parallax.engine.cancel(execution.id, "a test")
        assert (await t.finish(execution)).state is ExecutionState.CANCELLED


async def test_an_entry_of_another_request_is_a_divergence_and_nothing_is_run(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        execution = await interrupted(t)
    wrong = "0" * 64
    damage(
        t,
        "UPDATE journal SET input_hash = ? WHERE execution = ? AND step_key = 'a' AND kind = 'result'",
        wrong,
        execution.id,
    )
    async with team(SLOW_SECOND) as t:
        begun = starts(t)
        done = await t.finish(execution)
        assert done.state is ExecutionState.FAILED
        assert "at step 'a': it was recorded with another request" in str(done.reason)
        assert starts(t) == begun
        assert (await t.run("return 1 + 1")).result == 2


async def test_an_execution_that_does_not_exist_is_said_so_everywhere(team: TeamFactory) -> None:
    async with team(SLOW_SECOND) as t:
        engine, unknown = t.parallax.engine, "0" * 26
        for act in (
            engine.cancel(unknown, "a test"), engine.pause(unknown, "a test"), engine.release(unknown),
            engine.cancel_step(unknown, "a", "a test"),
        ):  # fmt: skip
            with pytest.raises(NotFoundError, match="parallax executions"):
                await act
