"""Set-ups: run once for each state of the lock files, shared, never half there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "agents"))
from agent_helpers import sandbox

from parallax.agents.runtimes.local import LocalRuntime
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.profile import load

from .conftest import git, write


@pytest.fixture
def checks(service, runtime):
    return CheckRunner(service, runtime)


def profile(count: Path, more: str = "touch built"):
    return load(
        f"setup: ['echo x >> {count}; mkdir -p deps; echo 1 > deps/a; {more}']\nchecks: {{a: test -f deps/a, b: test -f deps/a -a -f built}}"
    )


async def test_it_runs_once_for_each_state_of_the_lock_files(checks, service, user, tmp_path):
    count = tmp_path / "count"
    repo = await service.open_repository(str(user))
    found = await asyncio.gather(*(checks.run(repo, repo.base_commit, name, profile=profile(count)) for name in "ab"))
    assert [e.passed for e in found] == [True, True]
    write(user, {"src/a.py": "A = 2\n"})
    git(user, "commit", "-qam", "no lock file")
    second = await service.open_repository(str(user))
    assert (await checks.run(second, second.base_commit, "b", profile=profile(count))).passed
    assert count.read_text() == "x\n"
    write(user, {"sub/package-lock.json": "{}\n"})
    git(user, "add", "-A")
    git(user, "commit", "-qm", "a lock file")
    third = await service.open_repository(str(user))
    again = CheckRunner(service, checks._runtime)  # another life of the server
    assert (await again.run(third, third.base_commit, "a", profile=profile(count))).passed
    assert (await again.run(repo, repo.base_commit, "a", profile=profile(count))).passed
    assert count.read_text() == "x\nx\n"


async def test_two_agents_at_once_run_it_once_and_it_is_not_committed(checks, service, repo, tmp_path):
    count = tmp_path / "count"
    places = [await service.create("e1", "engineer", number, repo) for number in (1, 2)]
    wanted = profile(count, "sleep 0.3; touch built")
    await asyncio.gather(*(checks.equip(repo, w.tree, tmp_path / f"home{w.number}", w.head, wanted) for w in places))
    assert count.read_text() == "x\n"
    for place in places:
        assert (place.tree / "deps" / "a").read_text() == "1\n"
        await service.exclude(place, ["deps", "built"])
        assert (
            await service.commit(place, message="m", author="engineer", branch=f"parallax/e1/e/{place.number}") is None
        )


async def test_a_failed_one_is_one_clear_error_and_leaves_nothing(checks, service, repo, tmp_path):
    count = tmp_path / "count"
    broken = profile(count, "exit 4")
    for name in "ab":
        evidence = await checks.run(repo, repo.base_commit, name, profile=broken)
        assert evidence.passed is None
        assert "could not run: setup: " in evidence.detail
        assert "failed with exit code 4" in evidence.detail
    assert count.read_text() == "x\n", "it is not tried again for every check"
    assert not list((service.root / "setups").iterdir())


async def test_half_of_one_is_begun_again(checks, service, repo, tmp_path):
    count = tmp_path / "count"
    wanted = profile(count)
    await checks.run(repo, repo.base_commit, "a", profile=wanted)
    (made,) = (service.root / "setups").iterdir()
    (made / "setup.json").unlink()
    (made / "tree" / "deps" / "a").unlink()
    assert await service.sweep() == 1
    again = CheckRunner(service, checks._runtime)
    assert (await again.run(repo, repo.base_commit, "b", profile=wanted)).passed
    assert count.read_text() == "x\nx\n"


async def test_what_is_in_the_way_stays(checks, service, repo, tmp_path):
    place = await service.create("e1", "engineer", 1, repo)
    outside = tmp_path / "outside"
    outside.mkdir()
    (place.tree / "deps").symlink_to(outside)
    await checks.equip(repo, place.tree, tmp_path / "home", place.head, profile(tmp_path / "count"))
    assert not list(outside.iterdir())


async def test_in_a_sandbox_it_is_mounted_read_only(service, repo, tmp_path):
    runtime = LocalRuntime("test-setups", shut=sandbox(tmp_path / "etc"), wish="require")
    checks = CheckRunner(service, runtime)
    wanted = load(
        "setup: ['mkdir deps ~/.local ~/.local/share ~/.local/share/tool; echo 1 | tee deps/a ~/.local/share/tool/b']\n"
        "checks: {read: 'cat deps/a ~/.local/share/tool/b', write: '! touch deps/x && ! touch ~/.local/share/tool/x && touch ~/.local/y'}"
    )
    found = [await checks.run(repo, repo.base_commit, name, profile=wanted) for name in ("read", "write")]
    assert (found[0].passed, found[0].log) == (True, "1\n1\n")
    assert found[1].passed, found[1].log
