"""What people get wrong: one sentence that says what, where and what to do; exit code 2; nothing half-made is left."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import git
from tests.e2e.conftest import new_world
from tests.e2e.processes import Done, World, finish, listing

BAD_ROLE = """
roles: {engineer: {description: works}}
steps:
  - {id: work, type: assign, role: enginer, task: do it}
"""


@pytest.fixture(scope="module")
def home() -> Iterator[World]:
    """A world whose data directory and mirror exist already, so that a listing shows what a mistake adds."""
    with new_world() as world:
        (world.place / "bad-role.yaml").write_text(BAD_ROLE)
        (world.place / "empty").mkdir()
        git(world.place / "empty", "init", "-q", "-b", "main")
        (world.place / "plain").mkdir()
        assert world.inside("run", "fix", "work", "--agent", "scripted", "--yes").code == 0
        yield world


def traces(world: World) -> tuple[object, ...]:
    """Files below the world, refs of the repository, and processes of the world."""
    refs = git(world.repo, "for-each-ref")
    return listing(world.place), refs, world.agents_alive(wait_s=1)


CASES: dict[str, tuple[list[str], list[str]]] = {
    "unknown pattern": (["run", "fixx", "g"], ["no pattern 'fixx'", "did you mean 'fix'", "./team.yaml"]),
    "unknown pattern file": (["run", "{place}/none.yaml", "g"], ["no pattern file", "{place}/none.yaml"]),
    "unknown role": (["run", "{place}/bad-role.yaml"], ["bad-role.yaml:4:", "'enginer'", "engineer"]),
    "unknown agent type": (["run", "fix", "g", "--agent", "claud"], ["agent type 'claud'", "claude, codex"]),
    "unknown input": (["run", "fix", "g", "--input", "gaol=x"], ["'fix'", "unknown input 'gaol'", "goal"]),
    "missing input": (["run", "fix"], ["'fix'", "missing input 'goal'", "--input goal="]),
    "wrong type": (["run", "{place}/duo.yaml", "g", "--input", "level=two"], ["'level'", "integer", '"two"']),
    "broken input": (["run", "fix", "g", "--input", "level"], ["--input needs KEY=VALUE", "'level'"]),
    "input given twice": (["run", "fix", "g", "--input", "goal=h"], ["'goal' is given twice"]),
    "no git repository": (["run", "fix", "g", "--repo", "{place}/plain"], ["{place}/plain", "git init", "commit"]),
    "no directory": (["run", "fix", "g", "--repo", "{place}/none"], ["{place}/none", "not a directory", "path"]),
    "no commit": (["run", "fix", "g", "--repo", "{place}/empty"], ["{place}/empty", "no commit", "commit something"]),
    "unknown base": (["run", "fix", "g", "--base", "mian"], ["no branch 'mian'", "main"]),
    "not installed": (["run", "fix", "g", "--agent", "codex"], ["Codex is not installed", "npm install"]),
    "detach without server": (["run", "fix", "g", "--detach"], ["--detach needs a running server", "parallax serve"]),
    "unknown execution": (["show", "zzzzzz"], ["no execution 'zzzzzz'", "parallax executions"]),
    "unknown agent": (["tell", "engineer.1", "hello"], ["no agent 'engineer.1'", "none"]),
    "unknown question": (["answer", "q000000", "yes"], ["no question 'q000000'", "parallax questions"]),
    "foreign address": (["serve", "--host", "0.0.0.0"], ["0.0.0.0 can be reached by others", "loopback", "SSH tunnel", "--expose"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(home: World, case: str) -> None:
    args, words = CASES[case]
    before = traces(home)
    agreed = ["--agent", "scripted"] if args[0] == "run" and "--agent" not in args else []
    yes = ["--yes"] if args[0] == "run" else []
    filled = [arg.replace("{place}", str(home.place)) for arg in args]
    done = home.inside(*filled, *agreed, *yes, PATH="/usr/bin:/bin")
    told(done, *(word.replace("{place}", str(home.place)) for word in words))
    assert traces(home) == before


def told(done: Done, *words: str) -> None:
    """Exit code 2, nothing on standard output, one message with all of these words."""
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert done.err.count("parallax: ") == 1, done.err
    missing = [word for word in words if word not in done.err]
    assert missing == [], done.err


def test_a_cli_that_is_not_logged_in_is_said_with_both_remedies(home: World) -> None:
    tools = home.place / "tools"
    tools.mkdir()
    (tools / "claude").write_text("#!/bin/sh\nexit 0\n")
    (tools / "claude").chmod(0o755)
    before = traces(home)
    done = home.run(
        "run", "fix", "g", "--agent", "claude", "--yes", PATH=f"{tools}:/usr/bin:/bin", HOME=str(home.place / "nobody")
    )
    told(done, "Claude Code has no account here", "set ANTHROPIC_API_KEY", "log in once with 'claude'")
    assert traces(home) == before


def test_a_mistake_as_a_process_ends_the_same_way(home: World) -> None:
    before = traces(home)
    done = home.run("run", "fixx", "g", "--agent", "scripted", "--yes")
    told(done, "no pattern 'fixx'")
    assert done.sentence
    assert traces(home) == before


def test_a_mistake_before_a_running_server_ends_the_same_way() -> None:
    with new_world() as world, world.serving():
        for args, words in [
            (["run", "fixx", "g"], ["no pattern 'fixx'"]),
            (["run", "fix"], ["missing input 'goal'"]),
            (["run", "fix", "g", "--repo", str(world.place)], ["is not a git repository"]),
        ]:
            told(world.inside(*args, "--agent", "scripted", "--yes"), *words)
        assert world.inside("executions", "--json").json == {"executions": []}


def test_a_taken_port_is_said_and_no_data_directory_is_made(home: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        data = home.place / "other-data"
        done = home.inside("serve", "--port", port, PARALLAX_DATA_DIR=str(data))
        told(done, f"127.0.0.1:{port}", "Address already in use", "--port", "PARALLAX_PORT")
    assert not data.exists()


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["run", "fix", "g", "--agent", "scripted", "--yes"]])
def test_an_unwritable_data_directory_is_said(home: World, command: list[str]) -> None:
    (home.place / "file").write_text("a file, not a directory")
    data = home.place / "file" / "data"
    told(home.inside(*command, PARALLAX_DATA_DIR=str(data)), str(data), "cannot be written", "PARALLAX_DATA_DIR")


def test_a_data_directory_that_another_server_owns_is_said() -> None:
    with new_world() as world, world.serving() as server:
        told(world.inside("serve", "--port", "0"), f"process {server.pid}", str(world.data), "PARALLAX_DATA_DIR")


def test_a_cli_that_is_not_logged_in_is_said_before_anything_starts(home: World) -> None:
    binaries = home.place / "bin"
    binaries.mkdir()
    for name in ("claude", "claude-agent-acp"):
        (binaries / name).write_text("#!/bin/sh\necho 2.0.0\n")
        (binaries / name).chmod(0o755)
    before = traces(home)
    done = home.inside(
        "run",
        "fix",
        "g",
        "--agent",
        "claude",
        "--yes",
        PATH=f"{binaries}:/usr/bin:/bin",
        HOME=str(home.place / "nobody"),
    )
    told(done, "Claude Code", "log")
    assert traces(home) == before


def test_without_a_terminal_nobody_can_agree(home: World) -> None:
    before = traces(home)
    told(home.inside("run", "fix", "g", "--agent", "scripted"), "nobody is there to agree", "--yes")
    told(home.inside("land"), "nobody is there to agree", "--yes")
    assert traces(home) == before


@pytest.mark.parametrize("given", [b"n\n", b"\x04"], ids=["no", "end of input"])
def test_whoever_does_not_agree_starts_nothing(home: World, given: bytes) -> None:
    refs = git(home.repo, "for-each-ref")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "parallax", "run", "fix", "g", "--agent", "scripted"],
        cwd=home.repo, env=home.env(), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    assert process.stderr is not None
    asked = ""
    while not asked.endswith("Start? [Y/n] "):
        asked += process.stderr.read(1)
    os.write(ours, given)
    done = finish(process)
    os.close(ours)
    assert (done.code, done.out) == (1, "")
    assert "nothing was started" in done.err
    assert "bounds" in asked, "the plan is shown before anybody is asked"
    assert git(home.repo, "for-each-ref") == refs


def test_a_bad_setting_names_its_variable(home: World) -> None:
    told(home.inside("executions", PARALLAX_PORT="http"), "PARALLAX_PORT", "'http'", ".env.example")


def test_a_command_or_option_that_does_not_exist_is_said_without_a_traceback(home: World) -> None:
    for args in (["runn"], ["run"], ["run", "fix", "--agnt", "x"], ["serve", "--port", "many"]):
        done = home.inside(*args)
        assert done.code == 2
        assert "Error: " in done.err
        assert "Traceback" not in done.err


def test_a_server_that_is_not_there_is_said(home: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    done = home.inside("executions", PARALLAX_API_URL=f"http://127.0.0.1:{port}")
    told(done, f"http://127.0.0.1:{port}", "parallax serve")


def test_uncommitted_changes_are_left_out_with_a_notice_and_the_run_goes_on() -> None:
    with new_world() as world:
        change(world.repo)
        done = world.inside("run", "fix", "work", "--agent", "scripted", "--yes")
        assert done.code == 0, done.err
        (notice,) = [line for line in done.err.splitlines() if "uncommitted" in line]
        assert "2 uncommitted paths are left out (--with-changes takes them along)" in notice
        assert result(world) == {"answer.txt": "42", "notes.txt": "one\ntwo\nthree", "new.txt": None}
        untouched(world.repo)


def test_with_changes_takes_them_as_base() -> None:
    with new_world() as world:
        change(world.repo)
        head = git(world.repo, "rev-parse", "HEAD")
        done = world.inside("run", "fix", "work", "--agent", "scripted", "--yes", "--with-changes")
        assert done.code == 0, done.err
        assert "2 uncommitted paths are taken along" in done.err
        assert result(world) == {"answer.txt": "42", "notes.txt": "mine", "new.txt": "new"}
        untouched(world.repo)
        assert git(world.repo, "rev-parse", "HEAD") == head


def change(repo: Path) -> None:
    (repo / "notes.txt").write_text("mine\n")
    (repo / "new.txt").write_text("new\n")


def untouched(repo: Path) -> None:
    assert git(repo, "status", "--porcelain").split() == ["M", "notes.txt", "??", "new.txt"]
    assert (repo / "notes.txt").read_text() == "mine\n"


def result(world: World) -> dict[str, str | None]:
    (branch,) = git(world.repo, "branch", "--list", "parallax/*/result", "--format=%(refname:short)").splitlines()
    names = git(world.repo, "ls-tree", "-r", "--name-only", branch).splitlines()
    wanted = ("answer.txt", "notes.txt", "new.txt")
    return {name: git(world.repo, "show", f"{branch}:{name}") if name in names else None for name in wanted}
