"""Accepted work goes into the result: once, whole, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from parallax.errors import MergeConflict

from .conftest import git


async def test_the_first_merge_moves_the_result_from_the_base(integration, repo, workspace, commit):
    assert await integration.head(repo, "exec1") == repo.base_commit
    sha = await commit(workspace, {"x": "1"})
    merged = await integration.merge(repo, "exec1", sha, message="Take x", trailers={"Parallax-Step": "one"})
    assert (merged.sha, merged.files) == (sha, 1)
    assert await integration.head(repo, "exec1") == sha


async def test_a_second_branch_becomes_a_merge_commit_with_trailers(integration, service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo)
    one, two = await commit(workspace, {"x": "1"}), await commit(other, {"y": "1"})
    await integration.merge(repo, "exec1", one, message="x")
    merged = await integration.merge(repo, "exec1", two, message="Take y", trailers={"Parallax-Step": "two"})
    assert git(repo.mirror, "rev-parse", f"{merged.sha}^1", f"{merged.sha}^2").split() == [one, two]
    assert git(repo.mirror, "log", "-1", "--format=%s|%(trailers:key=Parallax-Step,valueonly)", merged.sha) == (
        "Take y|two"
    )
    assert merged.files == 1
    again = await integration.merge(repo, "exec1", two, message="Take y")
    assert (again.sha, again.files) == (merged.sha, 0)


async def test_a_conflict_names_the_files_and_changes_nothing(integration, service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo)
    one, two = await commit(workspace, {"src/a.py": "1"}), await commit(other, {"src/a.py": "2"})
    await integration.merge(repo, "exec1", one, message="x")
    with pytest.raises(MergeConflict) as caught:
        await integration.merge(repo, "exec1", two, message="y")
    assert caught.value.files == ("src/a.py",)
    assert await integration.head(repo, "exec1") == one


async def test_merges_at_the_same_time_are_all_in_the_result(integration, service, repo, commit):
    spaces = [await service.create("exec1", "engineer", n, repo) for n in range(1, 5)]
    shas = [await commit(ws, {f"f{ws.number}": "1"}, f"s{ws.number}") for ws in spaces]
    await asyncio.gather(*(integration.merge(repo, "exec1", sha, message="m") for sha in shas))
    head = await integration.head(repo, "exec1")
    assert {f.path for f in await service.files(repo.mirror, head)} >= {"f1", "f2", "f3", "f4"}


async def test_the_next_turn_sees_the_result(integration, service, repo, workspace, commit):
    other = await service.create("exec1", "tester", 1, repo)
    await integration.merge(repo, "exec1", await commit(workspace, {"x": "1"}), message="x")
    merged = await service.merge_into(other, await integration.head(repo, "exec1"))
    assert not merged.conflicts
    assert (other.tree / "x").exists()
