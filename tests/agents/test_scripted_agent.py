"""The scripted agent by itself: its start, its mistakes, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from parallax.agents import scripted_agent
from parallax.agents.scripted_agent import ScriptError, choose, load_script

AGENT = Path(scripted_agent.__file__)


def write(path: Path, script: Any) -> Path:
    path.write_text(script if isinstance(script, str) else json.dumps(script))
    return path


def begin(script: Path, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", str(AGENT), "--script", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=script.parent,
        env={"PATH": os.environ["PATH"], **env},
    )


def ask(agent: subprocess.Popen[bytes], method: str, params: dict[str, Any], number: int = 1) -> dict[str, Any]:
    """Send a request and read frames until its answer."""
    assert agent.stdin
    assert agent.stdout
    agent.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n")
    agent.stdin.flush()
    for line in agent.stdout:
        message = json.loads(line)
        if message.get("id") == number and "method" not in message:
            return message
    raise AssertionError("no answer")


def close(agent: subprocess.Popen[bytes]) -> int:
    try:
        agent.communicate(timeout=2)
    finally:
        agent.kill()
    return agent.returncode


def test_it_starts_fast(tmp_path: Path) -> None:
    script = write(tmp_path / "s.json", {"rules": []})
    best, promised = 10.0, 0.060
    for _ in range(20):
        began = time.perf_counter()
        agent = begin(script)
        ask(agent, "initialize", {"protocolVersion": 1})
        best = min(best, time.perf_counter() - began)
        assert close(agent) == 0
        if best < promised:
            break
    assert best < 3 * promised  # a busy machine gets three times that


def test_it_imports_the_standard_library_only(tmp_path: Path) -> None:
    script = write(tmp_path / "s.json", {"rules": []})
    code = (
        f"import sys; sys.argv = ['x', '--script', {str(script)!r}]; sys.path.insert(0, {str(AGENT.parent)!r})\n"
        "import scripted_agent; scripted_agent.load_script(sys.argv[2])\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})"
    )
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["scripted_agent"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("[]", "a script is a mapping with 'roles' or 'rules'"),
        ("{", "Expecting property name"),
        ({"rolls": {}}, "a script is a mapping"),
        ({"roles": {}, "x": 1}, "unknown key 'x'"),
        ({"roles": {"a": [{"when": "x"}]}}, "role 'a', rule 1: a rule is a mapping with a list 'do'"),
        ({"roles": {"a": [{"do": [], "if": 1}]}}, "unknown key 'if'"),
        ({"rules": [{"when": [1], "do": []}]}, "'when' must be a text or a list of texts"),
        ({"rules": [{"do": [{"sya": "x"}]}]}, "action 1: unknown action 'sya', expected one of say,"),
        ({"rules": [{"do": [{"say": "x", "wait": 1}]}]}, "exactly one key"),
        ({"rules": [{"do": [{"wait": "long"}]}]}, "'wait' takes int or float, not 'long'"),
        ({"rules": [{"do": [{"crash": True}]}]}, "'crash' takes int, not True"),
        ({"rules": [{"do": [{"edit": {"path": "a"}}]}]}, "'edit' needs one of 'content'"),
        ({"rules": [{"do": [{"edit": {"content": "a"}}]}]}, "'edit' needs 'path'"),
        ({"rules": [{"do": [{"run": []}]}]}, "'run' takes a list of texts"),
        ({"rules": [{"do": [{"stop": "now"}]}]}, "'stop' takes one of end_turn"),
        ({"rules": [{"do": [{"answer": {"value": 1, "sure": 1}}]}]}, "'answer' has no key 'sure'"),
    ],
)
def test_a_mistake_in_a_script_is_one_sentence(tmp_path: Path, script: Any, words: str) -> None:
    path = write(tmp_path / "s.json", script)
    with pytest.raises(ScriptError, match=r"s\.json") as caught:
        load_script(str(path))
    assert words in str(caught.value)


def test_mistakes_end_it_with_exit_code_2(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", write(tmp_path / "s.yaml", "a: [")):
        agent = begin(path)
        assert agent.wait(5) == 2
        assert agent.stderr
        assert len(agent.stderr.read().splitlines()) == 1
        close(agent)


def test_the_first_rule_that_fits_wins_and_the_role_goes_first(tmp_path: Path) -> None:
    script = load_script(
        str(
            write(
                tmp_path / "s.yaml",
                """
roles:
  engineer:
    - when: ["sent back", "parser"]
      do: [{say: one}]
    - when: parser
      unless: [draft, sketch]
      do: [{say: two}]
rules:
  - do: [{say: three}]
""",
            )
        )
    )
    assert choose(script, "engineer", "the parser was sent back") == [{"say": "one"}]
    assert choose(script, "engineer", "the parser") == [{"say": "two"}]
    assert choose(script, "engineer", "the parser, a sketch") == [{"say": "three"}]
    assert choose(script, "lead", "the parser was sent back") == [{"say": "three"}]


@pytest.mark.parametrize("action", [{"wait": 60}, {"hang": True}, {"hang": "deaf"}, {"run": ["sleep", "60"]}])
def test_the_end_of_input_ends_it_in_the_middle_of_anything(tmp_path: Path, action: Any) -> None:
    agent = begin(write(tmp_path / "s.json", {"rules": [{"do": [{"say": "x"}, action]}]}))
    assert agent.stdin
    assert agent.stdout
    agent.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"session/prompt","params":{}}\n')
    agent.stdin.flush()
    assert b"agent_message_chunk" in agent.stdout.readline()
    time.sleep(0.05)
    began = time.monotonic()
    assert close(agent) in {0, -signal.SIGKILL}
    assert time.monotonic() - began < 1


def test_the_ledger_counts_turns_and_shows_a_death(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    script = write(tmp_path / "s.json", {"rules": [{"when": "die", "do": [{"kill": True}]}, {"do": [{"say": "ok"}]}]})
    agent = begin(script, PARALLAX_LEDGER=str(ledger))
    ask(agent, "session/prompt", {"prompt": [{"type": "text", "text": "live"}], "_meta": {"parallax.task": "e/s/1"}})
    prompt = {"prompt": [{"type": "text", "text": "die"}], "_meta": {"parallax.task": "e/s/2"}}
    with pytest.raises(AssertionError, match="no answer"):
        ask(agent, "session/prompt", prompt, 2)
    close(agent)
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(line["task"], line["event"]) for line in lines] == [
        ("e/s/1", "start"),
        ("e/s/1", "end"),
        ("e/s/2", "start"),
    ]
    assert {line["pid"] for line in lines} == {agent.pid}


def test_a_prompt_without_a_rule_is_refused_with_its_role(tmp_path: Path) -> None:
    agent = begin(write(tmp_path / "s.json", {"roles": {"lead": []}}), PARALLAX_ROLE="tester")
    reply = ask(agent, "session/prompt", {"prompt": [{"type": "text", "text": "do it"}]})
    close(agent)
    assert reply["result"]["stopReason"] == "refusal"
