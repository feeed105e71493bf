"""Each kind of stall by its signals, and what is no stall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from parallax.agents.stalls import KINDS, Consequence, Signals, detect
from parallax.errors import (
    AgentCrashed,
    AgentStalled,
    EmptyTurn,
    HelpNeeded,
    LoginNeeded,
    ProviderLimited,
)
from parallax.models import Question, TaskResult

LIVING = Signals(limit_s=30.0, output_s=2.0, cpu_s=2.0)
SILENT = Signals(limit_s=30.0, output_s=31.0, cpu_s=31.0)
EMPTY = EmptyTurn("The agent ended its turn without a word or a deed")


def asked(kind: str, text: str) -> Question:
    return Question(id="q1", execution="e1", step_key="s", asker="e1.engineer.1", kind=kind, text=text)


def ended(message: str = "done", stop: str = "end_turn") -> TaskResult:
    return TaskResult(task_id="t", attempt=1, agent_id="e1.engineer.1", value=None, message=message, stop=stop)


# kind, what differs from SILENT, consequence, whether it acts at once
CASES: list[tuple[str, dict[str, Any], Consequence, bool]] = [
    ("permission", {"question": asked("permission", "Run rm -rf build"), "output_s": 1}, Consequence.ASK, True),
    ("permission", {"words": "Allow this edit to src/a.py? (y/n)"}, Consequence.ASK, False),
    ("permission", {"words": "Add file to the chat? (Y)es/(N)o [Yes]:"}, Consequence.ASK, False),
    ("trust", {"words": "Do you trust the files in this folder?\n1. Yes, proceed"}, Consequence.ASK, False),
    ("trust", {"question": asked("permission", "Trust this workspace?")}, Consequence.ASK, True),
    ("question", {"question": asked("question", "Which database?")}, Consequence.ASK, True),
    ("question", {"words": "? Which database shall I use (Use arrow keys)\n❯ SQLite"}, Consequence.ASK, False),
    ("question", {"words": "Press Enter to continue"}, Consequence.ASK, False),
    ("login", {"error": LoginNeeded("not logged in")}, Consequence.ASK, True),
    ("login", {"words": "Invalid API key · Please run /login"}, Consequence.ASK, False),
    ("login", {"words": "Sign in to continue: https://example.invalid/device"}, Consequence.ASK, False),
    ("login", {"error": EMPTY, "status": 401}, Consequence.ASK, True),
    ("hung_tool", {"tool": "npm test", "tool_s": 31}, Consequence.RETRY, False),
    ("hung_mcp", {"tool": "mcp__database__query", "tool_s": 31}, Consequence.RETRY, False),
    ("hung_mcp", {"tool": "query (database MCP Server)", "tool_s": 31, "in_flight": 1}, Consequence.RETRY, False),
    ("limit", {"error": ProviderLimited("429", 1000.0)}, Consequence.PARK, True),
    ("limit", {"result": ended(), "limited": True, "status": 429, "resets_at": 1000.0}, Consequence.PARK, True),
    ("limit", {"error": EMPTY, "limited": True, "status": 429, "resets_at": 1000.0}, Consequence.PARK, True),
    ("full_context", {"error": EMPTY, "context_fill": 0.97}, Consequence.RETRY, True),
    ("full_context", {"result": ended("", "max_tokens"), "context_fill": 0.99}, Consequence.RETRY, True),
    ("nothing", {"error": AgentCrashed("ended with exit code 0"), "exit_code": 0}, Consequence.RETRY, True),
    ("nothing", {"error": EMPTY}, Consequence.RETRY, True),
    ("never_ends", {"claimed": True}, Consequence.END, True),
    ("never_ends", {"claimed": True, "final": True, "output_s": 6, "cpu_s": 6}, Consequence.END, True),
    ("silent_retry", {"refused": 2, "status": 500, "traffic_s": 1}, Consequence.RETRY, False),
    ("silent_retry", {"refused": 4, "status": 429, "limited": True, "resets_at": 9.0}, Consequence.PARK, True),
    ("dead_peer", {"error": AgentCrashed("closed its output")}, Consequence.RETRY, True),
    ("dead_peer", {"in_flight": 1, "traffic_s": 31}, Consequence.RETRY, False),
    ("silent", {}, Consequence.RETRY, False),
]


@pytest.mark.parametrize(("kind", "signs", "consequence", "certain"), CASES)
def test_each_kind_is_recognised(kind: str, signs: dict[str, Any], consequence: Consequence, certain: bool) -> None:
    stall = detect(replace(SILENT, **signs))
    assert stall is not None
    assert (stall.kind, stall.consequence, stall.certain) == (kind, consequence, certain)
    assert stall.cause


@pytest.mark.parametrize(("kind", "signs"), [(kind, signs) for kind, signs, *_ in CASES if signs.keys() == {"words"}])
def test_words_that_look_like_a_prompt_are_believed_after_more_silence(kind: str, signs: dict[str, Any]) -> None:
    stall = detect(replace(SILENT, **signs, output_s=90.0, cpu_s=90.0))
    assert stall is not None
    assert (stall.kind, stall.certain) == (kind, True)


def test_all_twelve_are_in_the_table_and_have_a_case() -> None:
    assert len(KINDS) == 12
    assert {kind for kind, *_ in CASES} == {*KINDS, "silent"}


@pytest.mark.parametrize(
    "signs",
    [
        {},
        {"output_s": 500.0},  # quiet, and its processes work
        {"output_s": 500.0, "cpu_s": 500.0, "traffic_s": 3.0, "in_flight": 1},  # quiet, and its model answers
        {"cpu_s": 500.0, "words": "Continue? (y/n)"},  # it has asked nobody yet: the words are seconds old
        {"tool": "npm test", "tool_s": 900.0, "output_s": 900.0},  # a long quiet tool that works
        {"claimed": True, "final": True},  # it has two more seconds to leave
        {"claimed": True, "output_s": 29.0, "cpu_s": 29.0},
        {"refused": 5, "status": 500, "traffic_s": 1.0},  # it says what it does meanwhile
        {"refused": 5, "status": 500, "output_s": 500.0, "tool": "make"},  # a tool works; somebody else is refused
        {"result": ended(), "limited": False, "status": 200},
        {"result": ended("it is done\n\nCONFIDENCE: 0.9"), "limited": True, "status": 429},
        {"result": ended(), "output_s": 99.0, "cpu_s": 99.0},
        {"error": AgentCrashed("ended with exit code 3"), "exit_code": 3},
    ],
)
def test_what_lives_or_has_ended_is_no_stall(signs: dict[str, Any]) -> None:
    assert detect(replace(LIVING, **signs)) is None


def test_old_words_are_not_what_a_hung_tool_waits_for() -> None:
    stall = detect(replace(SILENT, tool="npm test", tool_s=40.0, words=""))
    assert stall is not None
    assert stall.kind == "hung_tool"


def test_a_consequence_is_an_error_that_the_retry_layer_understands() -> None:
    def error(**signs: Any) -> Exception:
        stall = detect(replace(SILENT, **signs))
        assert stall is not None
        return stall.error("e1.engineer.1")

    limited = error(refused=3, status=429, limited=True, resets_at=99.0)
    assert isinstance(limited, ProviderLimited)
    assert limited.resets_at == 99.0
    assert isinstance(error(words="Please run /login"), LoginNeeded)
    prompt = error(words="Do you trust this folder?")
    assert isinstance(prompt, HelpNeeded)
    assert prompt.kind == "trust"
    assert isinstance(error(), AgentStalled)
    assert str(error()).startswith("e1.engineer.1: no sign of life for 31 s")
