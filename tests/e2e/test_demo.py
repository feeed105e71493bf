"""`parallax demo` as a newcomer runs it: one command, and everything it promises is seen and true."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import git
from tests.e2e.conftest import new_world
from tests.e2e.processes import Done, World


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[World, Done, float]]:
    """One demo, looked at by all tests of this module."""
    with new_world() as world:
        begun = time.monotonic()
        done = world.run("demo")
        yield world, done, time.monotonic() - begun


def sample(world: World) -> Path:
    return world.place / "cache" / "parallax" / "demo" / "tally"


def result_branch(world: World) -> str:
    branches = git(sample(world), "branch", "--list", "parallax/*/result", "--format=%(refname:short)").splitlines()
    assert len(branches) == 1
    return branches[0]


def test_it_succeeds_in_well_under_a_minute(demo: tuple[World, Done, float]) -> None:
    _, done, took = demo
    assert done.code == 0, done.err
    assert took < 60


def test_each_thing_that_others_fail_at_is_one_visible_line(demo: tuple[World, Done, float]) -> None:
    _, done, _ = demo
    wanted = [
        r"✗ engineer\.\d says it is done; the check tests fails",
        r"↩ build 0 is sent back to engineer\.\d",
        r"\? engineer\.\d asks: What should mode\(\) do",
        r"→ the question goes to lead",
        r"! lead answers: Raise ValueError",
        r"☠ Parallax is killed with SIGKILL",
        r"⟳ it is started again on the same data",
        r"resumed after a restart; 2 finished steps are kept: plan, build \d",
        r"✓ whole accepted at 1\.00",
    ]
    missing = [line for line in wanted if not re.search(line, done.err)]
    assert missing == [], done.err
    assert "finished steps that ran again after the SIGKILL: 0 (" in done.out
    assert "Traceback" not in done.err + done.out


def test_the_next_commands_are_short_and_the_place_of_the_data_stands_alone(demo: tuple[World, Done, float]) -> None:
    world, done, _ = demo
    lines = [line.strip() for line in done.out.splitlines()]
    assert f"export PARALLAX_DATA_DIR={world.place}/cache/parallax/demo/data" in lines
    for command in ("parallax show --why", "parallax diff", "parallax land"):
        (found,) = [line for line in lines if line.startswith(command)]
        assert len(found) <= 80


def test_the_commands_that_it_offers_work(demo: tuple[World, Done, float]) -> None:
    world, done, _ = demo
    data = str(world.place / "cache" / "parallax" / "demo" / "data")
    offered = re.findall(r"^  parallax ((?:show|diff|land) .*?) *(?:#.*)?$", done.out, re.MULTILINE)
    assert len(offered) == 3
    for command in offered:
        confirmed = ["--yes"] if command.startswith("land") else []
        answer = world.inside(*command.split(), *confirmed, PARALLAX_DATA_DIR=data)
        assert answer.code == 0, answer.err
    assert git(sample(world), "rev-parse", "tested") == git(sample(world), "rev-parse", result_branch(world))


def test_the_tests_pass_on_the_result_branch_and_still_fail_on_main(demo: tuple[World, Done, float]) -> None:
    world, _, _ = demo
    passes = {}
    for branch in ("main", result_branch(world)):
        clone = world.place / f"clone-{branch.replace('/', '-')}"
        git(world.place, "clone", "-q", "--branch", branch, str(sample(world)), str(clone))
        tests = subprocess.run(["python3", "-m", "unittest"], cwd=clone, capture_output=True, check=False)
        passes[branch] = tests.returncode == 0
    assert passes == {"main": False, result_branch(world): True}


def test_main_is_untouched(demo: tuple[World, Done, float]) -> None:
    world, _, _ = demo
    assert git(sample(world), "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(sample(world), "rev-list", "--count", "HEAD") == "1"
    assert git(sample(world), "status", "--porcelain") == ""
    assert git(sample(world), "diff", "--stat", "HEAD") == ""


def test_a_real_agent_that_is_not_there_is_said_before_anything_starts(demo: tuple[World, Done, float]) -> None:
    world, _, _ = demo
    answer = world.inside("demo", "--agent", "codex", PATH="/usr/bin:/bin")
    assert answer.code == 2
    assert "Codex is not installed" in answer.sentence
    assert "parallax doctor" in answer.sentence
