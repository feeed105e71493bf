"""What has outlived its use goes, branches stay, a round that was cut short is made up for; a full disk takes nothing in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parallax import failpoints
from parallax.errors import JournalError, NotFoundError, StorageFull
from parallax.execution.housekeeping import Housekeeping, Keep
from parallax.models import Execution, ExecutionState
from parallax.storage.space import Space
from parallax.storage.statements import Change, set_execution
from tests.conftest import Team, TeamFactory
from tests.execution.test_team import ORG, RIGHT, script

WORK = ORG + 'assign("engineer", "make it 42", {id: "fix"})'
AGENTS = script(engineer=RIGHT)


def keeper(t: Team, **keep: Any) -> Housekeeping:
    parts = t.parallax
    return Housekeeping(
        store=parts.store, workspaces=parts.workspaces, homes=parts.settings.homes, space=parts.space, keep=Keep(**keep)
    )


def places(t: Team, execution: Execution) -> list[Path]:
    """Its directories that are there."""
    settings = t.parallax.settings
    return [root / execution.id for root in (settings.workspaces, settings.homes) if (root / execution.id).exists()]


async def test_workspaces_go_after_their_days_and_branches_stay(team: TeamFactory) -> None:
    async with team(AGENTS) as t:
        done = await t.run(WORK)
        assert done.state is ExecutionState.SUCCEEDED, done.reason
        assert places(t, done)
        await keeper(t).round()
        assert places(t, done), "its days are not over"
        await keeper(t, workspace_days=0).round()
        assert places(t, done) == []
        assert t.branch_file(done, "answer.txt") == "42\n"
        assert (await t.parallax.store.execution(done.id)).state is ExecutionState.SUCCEEDED
        assert [event.type for event in await t.events(done)][-1] == "workspace.cleaned_up"


async def test_what_is_too_old_or_one_too_many_is_forgotten_whole_and_what_lives_is_not(team: TeamFactory) -> None:
    async with team(AGENTS) as t:
        old, new = [await t.run("return 1") for _ in range(2)]
        asking = await t.start('askHuman("?", {id: "q"})')
        await keeper(t, count=2).round()
        with pytest.raises(NotFoundError):
            await t.parallax.store.execution(old.id)
        assert await t.events(old) == []
        assert await t.parallax.store.journal(old.id) == []
        assert (await t.parallax.store.execution(new.id)).result == 1
        await keeper(t, days=0).round()
        left = await t.parallax.store.executions()
        assert [execution.id for execution in left] == [asking.id]


async def test_a_round_that_was_cut_short_is_made_up_for(team: TeamFactory) -> None:
    async with team(AGENTS) as t:
        done = await t.run(WORK)
        failpoints.arm("cleanup.mid=raise")
        assert await t.parallax.store.rows("workspaces", execution=done.id)
        with pytest.raises(failpoints.FailpointError):
            await keeper(t, workspace_days=0, days=0).round()
        failpoints.arm("")
        await keeper(t, workspace_days=0, days=0).round()
        assert places(t, done) == []
        assert await t.parallax.store.rows("workspaces", execution=done.id) == []
        with pytest.raises(NotFoundError):
            await t.parallax.store.execution(done.id)


async def test_a_damaged_result_does_not_keep_the_round_from_its_end(team: TeamFactory) -> None:
    async with team(AGENTS) as t:
        done = await t.run(WORK)
        await t.parallax.store.commit(Change([set_execution(done.id, result_blob="0" * 64)]))
        with pytest.raises(JournalError, match="is missing"):
            await t.parallax.store.execution(done.id)
        await keeper(t, workspace_days=0).round()
        assert places(t, done) == []


async def test_below_the_mark_new_work_is_refused_and_the_ballast_comes_and_goes(team: TeamFactory) -> None:
    async with team(AGENTS, min_free_mb=10**9) as t:
        with pytest.raises(StorageFull, match="PARALLAX_MIN_FREE_MB"):
            await t.run("return 1")
        assert await t.parallax.store.executions() == []
    space = Space(t.place, 8 * 1024 * 1024)
    space.hold()
    assert (t.place / "ballast").stat().st_size == 1024 * 1024
    assert space.release()
    assert not space.release()
