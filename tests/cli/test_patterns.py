"""At the desk, without a server: patterns, check, compile, plan, prism, doctor."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import new_world
from tests.e2e.processes import World

BAD_CHART = """roles: {a: {}}
steps:
  - {type: assign, role: b, task: x}
"""
BAD_PRISM = "const x = 1\ny = \n"


@pytest.fixture(scope="module")
def desk() -> Iterator[World]:
    with new_world() as world:
        bad = world.place / "bad"
        bad.mkdir()
        (bad / "chart.yaml").write_text(BAD_CHART)
        (bad / "program.prism").write_text(BAD_PRISM)
        (bad / "good.prism").write_text("/* @name good */\nreturn 1 ~> 0.5\n")
        (world.place / "empty").mkdir()
        yield world


def on_a_terminal(world: World, *args: str, columns: int) -> str:
    """What a command prints on a terminal of that width."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "parallax", *args], cwd=world.repo, stdin=theirs, stdout=theirs, stderr=theirs,
        env=world.env(COLUMNS=str(columns), TERM="xterm"),
    )  # fmt: skip
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 4096):
            text += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(timeout=30) == 0
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())


def test_patterns_lists_the_shipped_ones(desk: World) -> None:
    done = desk.inside("patterns")
    assert done.code == 0
    assert done.out.splitlines()[0].split() == ["pattern", "version", "format", "from", "when", "to", "use", "it"]
    names = [line.split()[0] for line in done.out.splitlines()[1:]]
    assert names == ["fix", "second-opinion", "startup-team"]


def test_a_table_has_one_line_for_a_row_at_80_columns_and_is_never_cut_in_a_pipe(desk: World) -> None:
    shown = on_a_terminal(desk, "patterns", columns=80).splitlines()
    piped = desk.inside("patterns", COLUMNS="80").out.splitlines()
    assert len(shown) == len(piped) == 4
    assert any("…" in line for line in shown)
    assert not any("…" in line for line in piped)
    assert not any(line.endswith(" ") for line in piped)


def test_patterns_as_json(desk: World) -> None:
    document = desk.inside("patterns", "--json").json
    fix = next(pattern for pattern in document["patterns"] if pattern["name"] == "fix")
    assert fix["input"]["goal"]["type"] == "string"
    assert document["errors"] == []


def test_check_of_good_patterns(desk: World) -> None:
    done = desk.inside("check")
    assert (done.code, done.out) == (0, "3 good, 0 with mistakes\n")
    assert desk.inside("check", "startup-team", "--json").json["errors"] == []


def test_check_of_a_directory_tells_every_mistake_with_its_place(desk: World) -> None:
    done = desk.inside("check", str(desk.place / "bad"))
    assert done.code == 2
    assert "chart.yaml:3:" in done.out
    assert "program.prism:3:1: Expected expression" in done.out
    assert done.out.endswith("1 good, 2 with mistakes\n")
    document = desk.inside("check", str(desk.place / "bad"), "--json")
    assert document.code == 2
    assert document.json["checked"] == 3
    assert len(document.json["errors"]) == 2


def test_check_of_a_directory_without_patterns_says_so(desk: World) -> None:
    done = desk.inside("check", str(desk.place / "empty"))
    assert done.code == 2
    assert "no pattern in" in done.sentence


def test_compile_prints_prism_that_compiles(desk: World) -> None:
    done = desk.inside("compile", "startup-team")
    assert done.code == 0
    again = desk.place / "again.prism"
    again.write_text(done.out)
    assert desk.inside("check", str(again)).code == 0
    document = desk.inside("compile", "startup-team", "--json").json
    assert document["prism"] == done.out


def test_plan_shows_team_steps_and_bounds(desk: World) -> None:
    done = desk.inside("plan", "startup-team", "make it fast")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "startup-team 1.0.0"
    assert lines[1].split() == ["team", "lead,", "engineer", "x4,", "reviewer"]
    assert any("1 plan" in line and "make it fast" in line for line in lines)
    assert any(line.strip() == "reviewed by reviewer" for line in lines)
    assert lines[-1].strip().startswith("bounds  at most 6 agents")
    assert desk.inside("plan", "startup-team", "--json").json["agents_at_most"] == 6


def test_plan_refuses_an_input_that_the_pattern_has_not(desk: World) -> None:
    done = desk.inside("plan", "fix", "goal", "--input", "x=1")
    assert done.code == 2
    assert "unknown input 'x'" in done.sentence


def test_a_plan_fits_80_columns(desk: World) -> None:
    shown = on_a_terminal(desk, "plan", "startup-team", "a goal " * 30, columns=80)
    steps = [line for line in shown.splitlines() if "lead:" in line]
    assert len(steps) == 1
    assert steps[0].rstrip().endswith("…")


def test_doctor_says_what_is_there_and_what_is_not(desk: World) -> None:
    done = desk.inside("doctor", PATH="/usr/bin:/bin")
    assert done.code == 0
    for part in ("python", "git", "sqlite", "data", "sandbox", "claude", "codex"):
        assert part in done.out
    assert "npm install" in done.out
    document = desk.inside("doctor", "--json").json
    assert {finding["part"] for finding in document["machine"]} >= {"python", "git", "data"}


def test_doctor_says_which_account_an_agent_has_and_how(desk: World) -> None:
    tools = desk.place / "tools"
    for name in ("claude", "codex", "aider"):
        (tools / name).parent.mkdir(exist_ok=True)
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    login = desk.place / "me" / ".codex" / "auth.json"
    login.parent.mkdir(parents=True)
    login.write_text("{}")
    local = '[{"id": "critic", "endpoint": "http://127.0.0.1:9000"}]'
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(desk.place / "me"), "PARALLAX_SANDBOX": "off"}
    done = desk.inside("doctor", ANTHROPIC_API_KEY="sk-ant-not-shown", PARALLAX_LOCAL_AGENTS=local, **env)
    lines = {line.split()[1]: " ".join(line.split()) for line in done.out.splitlines() if line.startswith(("✓", "·"))}
    assert "account: ANTHROPIC_API_KEY in the environment; the gateway adds it" in lines["claude"]
    assert f"account: {login}, copied into the agent's private home" in lines["codex"]
    assert "account: ANTHROPIC_API_KEY" in lines["aider"]
    assert lines["critic"] == "✓ critic found; registered at http://127.0.0.1:9000"
    assert "npm install -g @google/gemini-cli" in lines["gemini"]
    assert "sk-ant-not-shown" not in done.out


def test_doctor_without_git_ends_with_1(desk: World) -> None:
    done = desk.inside("doctor", PATH="/nowhere")
    assert done.code == 1
    assert "install git" in done.out


class TestPrism:
    """`parallax prism run|check|fmt`."""

    def write(self, world: World, text: str | bytes) -> str:
        path = world.place / "program.prism"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def test_run_prints_lines_and_value(self, desk: World) -> None:
        done = desk.inside("prism", "run", self.write(desk, 'print("hi")\nreturn 1 ~> 0.5\n'))
        assert (done.code, done.out) == (0, "hi\n1 ~> 0.5\n")

    def test_a_program_that_fails_ends_with_1_and_its_place(self, desk: World) -> None:
        done = desk.inside("prism", "run", self.write(desk, "const a = 1\nreturn a.b.c\n"))
        assert done.code == 1
        assert "ERROR" in done.err
        assert "2:" in done.err
        assert "Traceback" not in done.err

    def test_a_program_that_calls_agents_is_told_why_it_cannot(self, desk: World) -> None:
        done = desk.inside("prism", "run", self.write(desk, 'org({a: {}})\nassign("a", "x")\n'))
        assert done.code == 1
        assert "Traceback" not in done.err

    def test_check_of_a_mistake_ends_with_2(self, desk: World) -> None:
        done = desk.inside("prism", "check", self.write(desk, BAD_PRISM))
        assert done.code == 2
        assert "Expected expression" in done.out
        assert desk.inside("prism", "check", self.write(desk, "return 1\n")).code == 0

    def test_fmt_rewrites_and_leaves_what_it_cannot_read(self, desk: World) -> None:
        path = self.write(desk, "const   a=1\nreturn a\n")
        assert desk.inside("prism", "fmt", path).code == 0
        assert Path(path).read_text() == "const a = 1\nreturn a\n"
        path = self.write(desk, BAD_PRISM)
        assert desk.inside("prism", "fmt", path).code == 2
        assert Path(path).read_text() == BAD_PRISM

    @pytest.mark.parametrize("command", ["run", "check", "fmt"])
    def test_what_is_no_text_or_no_file_is_said(self, desk: World, command: str) -> None:
        done = desk.inside("prism", command, self.write(desk, b"\xff\xfe"))
        assert done.code == 2
        assert "no UTF-8 text" in done.sentence
        missing = desk.inside("prism", command, str(desk.place / "none.prism"))
        assert missing.code == 2
        assert "does not exist" in missing.err


def test_json_is_one_document(desk: World) -> None:
    for args in (["patterns"], ["check"], ["compile", "fix"], ["plan", "fix"], ["doctor"]):
        json.loads(desk.inside(*args, "--json").out)
