"""The ACP client against real scripted agents: what they show, ask, hide and break."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agent_helpers import marked, play, task

from parallax.agents.clients.acp import AcpClient
from parallax.agents.clients.acp_shapes import progress_of
from parallax.agents.clients.wire import Lines, read_frame
from parallax.agents.clis.generic import AcpCommand
from parallax.agents.clis.scripted import AGENT, ScriptedCLI
from parallax.agents.runtimes.local import LocalRuntime
from parallax.errors import (
    AgentCrashed,
    AgentError,
    AgentStalled,
    AgentUnavailable,
    EmptyTurn,
    LoginNeeded,
    ProtocolViolation,
    ProviderLimited,
)
from parallax.models import LaunchSpec, Progress, Question, TaskResult
from parallax.ports import AgentSession, Quirks


def kinds(shown: list[Any]) -> list[str]:
    """What was shown, in order; how text was cut into pieces does not matter."""
    return [kind for kind, _ in itertools.groupby(item.kind for item in shown)]


async def test_a_turn_edits_runs_reports_and_costs(start: Any, session: AgentSession, tmp_path: Path) -> None:
    client = await start(
        {"think": "hm"},
        {"say": "I look at it. " * 20},
        {"plan": ["one", "two"]},
        {"edit": {"path": "src/a.py", "content": "x = 1\n"}},
        {"edit": {"path": "src/a.py", "replace": "1", "with": "2"}},
        {"edit": {"path": "src/a.py", "replace": "missing", "with": "2"}},
        {"run": ["cat", "src/a.py"]},
        {"run": ["sh", "-c", "exit 4"]},
        {"usage": {"input": 1200, "output": 300, "cached": 7, "cost": 0.01}},
        {"answer": {"value": {"files": ["src/a.py"]}, "confidence": 0.9}},
    )
    shown, result = await play(client)
    assert (session.tree / "src/a.py").read_text() == "x = 2\n"
    assert kinds(shown) == ["thought", "output", "plan", "tool", "usage", "output"]
    tools = [(item.text, item.data["status"], item.data.get("exit_code")) for item in shown if item.kind == "tool"]
    assert tools[1::2] == [
        ("Edit src/a.py", "completed", None),
        ("Edit src/a.py", "completed", None),
        ("Edit src/a.py", "failed", None),
        ("cat src/a.py", "completed", 0),
        ("sh -c exit 4", "failed", 4),
    ]
    assert result == TaskResult(
        task_id="e1/s1/1",
        attempt=1,
        agent_id="e1.engineer.1",
        value={"files": ["src/a.py"]},
        message=result.message,
        stop="end_turn",
        reported=0.9,
        session_ref=result.session_ref,
        usage=result.usage,
    )
    assert result.message.startswith("```json")
    usage = result.usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.turns) == (1200, 300, 7, 1)
    assert (usage.cost, usage.priced) == (10_000, "reported")
    _, second = await play(client, task(id="e1/s1/2", attempt=2, text="again"))
    assert second.usage.cost == 10_000  # the agent reports the sum of its session
    lines = [json.loads(line) for line in (tmp_path / "ledger").read_text().splitlines()]
    assert [(line["task"], line["event"]) for line in lines] == [
        ("e1/s1/1", "start"),
        ("e1/s1/1", "end"),
        ("e1/s1/2", "start"),
        ("e1/s1/2", "end"),
    ]


@pytest.mark.parametrize(
    ("answer", "done", "denied"),
    [("allow", True, ()), ("Allow once", True, ()), ("yes", True, ()), ("reject", False, ("Run rm",))],
)
async def test_a_permission_is_asked_and_obeyed(
    start: Any, session: AgentSession, answer: str, done: bool, denied: tuple[str, ...]
) -> None:
    client = await start(
        {"permission": {"title": "Run rm", "kind": "execute", "denied": "then not"}},
        {"run": ["touch", "ran"]},
        {"say": "over"},
    )
    shown, result = await play(client, answers={"Run rm": answer})
    question = next(item for item in shown if isinstance(item, Question))
    assert (question.kind, question.topic, question.default) == ("permission", "execute", "reject")
    assert question.options[0] == {"id": "allow", "label": "Allow once", "kind": "allow_once"}
    assert (question.execution, question.step_key, question.asker) == ("e1", "s1", "e1.engineer.1")
    assert (session.tree / "ran").exists() is done
    assert result.denied == denied
    assert result.value == "over"


async def test_a_question_waits_for_its_answer_and_uses_it(start: Any) -> None:
    client = await start(
        {"ask": {"text": "Which one?", "options": ["red", "blue"], "topic": "design", "save": "colour"}},
        {"ask": {"text": "And why?"}},
        {"answer": {"value": "I take {colour} because {answer}", "confidence": 0.7, "verdict": "approve"}},
    )
    shown, result = await play(client, answers={"Which": "blue", "why": "it is calm"})
    first, second = (item for item in shown if isinstance(item, Question))
    assert (first.kind, first.text, first.topic) == ("question", "Which one?", "design")
    assert [option["id"] for option in first.options] == ["red", "blue"]
    assert second.options == ()
    assert result.value == "I take blue because it is calm"
    assert "VERDICT: approve" in result.message


async def test_further_iteration_is_allowed_while_a_question_is_open(start: Any) -> None:
    client = await start({"ask": {"text": "Well?"}}, {"answer": {"value": "{answer}"}})
    turn = client.turn(task())
    question = await anext(turn)
    pending = asyncio.create_task(anext(turn))
    await asyncio.sleep(0.05)
    assert not pending.done()
    await client.answer("unknown", "x")
    await client.answer(question.id, "yes")
    await client.answer(question.id, "twice")
    assert (await pending).text == "yes"
    assert isinstance(await anext(turn), TaskResult)
    with pytest.raises(StopAsyncIteration):
        await anext(turn)


@pytest.mark.parametrize(
    "action", [{"hang": True}, {"wait": 60}, {"ask": {"text": "?"}}, {"permission": {"title": "x"}}]
)
async def test_cancel_ends_the_turn_and_keeps_the_agent(start: Any, action: Any) -> None:
    client = await start(rules=[{"when": "hang", "do": [{"say": "a"}, action]}, {"do": [{"say": "fine"}]}])
    turn = client.turn(task("hang"))
    await anext(turn)
    await client.cancel()
    rest = [item async for item in turn]
    assert rest[-1].stop == "cancelled"
    assert client.alive
    _, result = await play(client, task("go"))
    assert result.value == "fine"


async def test_a_crash_says_how_and_with_which_last_words(start: Any) -> None:
    client = await start({"say": "x"}, {"crash": 3})
    with pytest.raises(
        AgentCrashed, match=r"'scripted' ended with exit code 3 in mid-turn; its last words: scripted crash"
    ):
        await play(client)
    assert not client.alive
    with pytest.raises(AgentCrashed, match="exit code 3"):
        await play(client)


async def test_a_kill_is_named_by_its_signal(start: Any) -> None:
    client = await start({"kill": True})
    with pytest.raises(AgentCrashed, match="was killed by signal 9 in mid-turn"):
        await play(client)


async def test_death_in_half_a_frame(start: Any) -> None:
    client = await start({"garbage": {"text": '{"jsonrpc": "2.0", "half', "newline": False}}, {"crash": 0})
    with pytest.raises(AgentCrashed, match="exit code 0 in mid-turn"):
        await play(client)


async def test_death_while_a_question_is_open(start: Any) -> None:
    client = await start({"ask": {"text": "?"}})
    turn = client.turn(task())
    question = await anext(turn)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(AgentCrashed):
        await anext(turn)
    await client.answer(question.id, "too late")


async def test_an_agent_that_does_not_start_is_named(
    runtime: LocalRuntime, session: AgentSession, tmp_path: Path, owner: str
) -> None:
    (tmp_path / "bad.json").write_text("{}")

    def client(program: str, script: str, start_s: float = 5) -> AcpClient:
        cli = ScriptedCLI(tmp_path / script)
        return AcpClient(runtime=runtime, cli=cli, session=session, program=program, start_s=start_s, grace_s=0.3)

    with pytest.raises(AgentUnavailable, match="not found"):
        await client("/no/such/python", "x.json").open()
    with pytest.raises(AgentCrashed, match=r"exit code 2 at its start; its last words: .*a script is a mapping"):
        await client(sys.executable, "bad.json").open()
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\necho loading >&2\nsleep 60\n")
    silent.chmod(0o755)
    with pytest.raises(AgentStalled, match=r"did not answer within 0.2 s of its start; its last words: loading"):
        await client(str(silent), "x.json", 0.2).open()
    assert marked(owner) == []


@pytest.mark.parametrize(
    ("action", "error", "words"),
    [
        ({"fail": {"message": "slow down", "kind": "rate_limit"}}, ProviderLimited, "slow down"),
        ({"fail": {"message": "API Error: 429 too many"}}, ProviderLimited, "429"),
        ({"fail": {"message": "Authentication required", "code": -32000}}, LoginNeeded, "not logged in"),
        ({"fail": {"message": "Please run /login"}}, LoginNeeded, "/login"),
        ({"fail": {"message": "API Error: 500"}}, AgentError, "with an error: API Error: 500"),
        ({"wait": 0}, EmptyTurn, "without a word or a deed"),
        ({"answer": {"value": "x", "confidence": 7}}, ProtocolViolation, "confidence '7'"),
    ],
)
async def test_what_went_wrong_is_one_of_our_errors(start: Any, action: Any, error: type, words: str) -> None:
    client = await start(action)
    with pytest.raises(error, match=words) as caught:
        await play(client)
    assert type(caught.value) is error
    assert client.alive


@pytest.mark.parametrize(
    "garbage",
    [
        "not json",
        "{}",
        "[1, 2]",
        '{"method": 7}',
        '{"id": [1], "result": {}}',
        '{"id": 1, "error": "no"}',
        '{"jsonrpc": "2.0", "method": "session/update", "params": {"update": {"sessionUpdate": "new_kind"}}}',
        '{"jsonrpc": "2.0", "method": "session/update", "params": {"update": 5}}',
        '{"jsonrpc": "2.0", "method": "session/update", "params": [1]}',
        '{"jsonrpc": "2.0", "method": "no/such"}',
        '{"jsonrpc": "2.0", "id": 9, "method": "fs/read_text_file", "params": {"sessionId": "x", "path": "/a"}}',
        '{"jsonrpc": "2.0", "id": 9, "method": "session/request_permission", "params": {}}',
        '{"jsonrpc": "2.0", "id": 9, "method": "_vendor/x", "params": {}}',
        '{"a": NaN}',
        '{"a": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a": ' * 50_000,
        {"hex": "00ff00"},
        {"hex": "efbbbf7b7d"},
        "\x1b[31mred\x1b[0m",
    ],
)
async def test_broken_frames_are_skipped(start: Any, garbage: Any, caplog: Any) -> None:
    client = await start({"garbage": garbage}, {"say": "still here"})
    _, result = await play(client)
    assert result.value == "still here"
    assert caplog.records == []


def test_frames_that_can_be_mended() -> None:
    assert read_frame(b'Loading... {"jsonrpc":"2.0","id":1,"result":{}}') == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert read_frame(b'{"id":1,"result":{"t":"\xff"}}') == {"id": 1, "result": {"t": "\ufffd"}}
    assert read_frame(b'{"id":1,"result":{"t":"\\ud800"}}') == {"id": 1, "result": {"t": "?"}}
    assert read_frame(b'{"id":1,"error":"bad"}') == {"id": 1, "error": {"code": -32603, "message": "bad", "data": None}}


def test_lines_are_cut_whatever_the_chunks() -> None:
    data = b"ab\n\ncdefgh\n" + b"x" * 50 + b"\nok\nrest"
    for size in (1, 2, 7, 100):
        lines = Lines(20)
        cut = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
        assert lines.rest() == b"rest"
        assert [line for line in cut if len(line) < 50] == [b"ab", b"", b"cdefgh", b"ok"]


async def test_a_line_of_100_mb_is_refused_in_bounded_memory(start: Any) -> None:
    client = await start({"flood": {"bytes": 100_000_000, "as": "line"}}, {"say": "after"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ProtocolViolation, match="a line of more than 50 MiB"):
        await play(client)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 130_000  # kB
    assert not client.alive
    with pytest.raises(ProtocolViolation):
        await play(client)


async def test_a_flood_is_passed_on_in_bounded_memory(start: Any) -> None:
    client = await start({"flood": 20_000_000}, {"flood": {"bytes": 20_000_000, "as": "stderr"}}, {"say": "done"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = 0
    async for item in client.turn(task()):
        if isinstance(item, Progress):
            size += len(item.text)
        else:
            result = item
    assert size == 20_000_000 + len("done")
    assert len(result.message) <= 1_048_576
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


async def test_a_reader_that_pauses_holds_the_agent_back(start: Any) -> None:
    client = await start({"flood": 50_000_000}, {"say": "done"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    turn = client.turn(task())
    await anext(turn)
    await asyncio.sleep(0.5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000
    await turn.aclose()
    assert not client.alive  # it still works on the abandoned turn


async def test_signs_of_life(start: Any) -> None:
    busy = [sys.executable, "-S", "-c", "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"]
    client = await start({"run": busy}, {"answer": {"value": "x", "confidence": 0.9}}, {"hang": True})
    turn = client.turn(task())
    await anext(turn)
    await asyncio.sleep(0.3)
    before, quiet_s = client.cpu_s(), client.vitals().output_s
    await asyncio.sleep(0.8)
    assert client.cpu_s() > before  # no output, but its child works
    assert client.vitals().output_s > quiet_s
    assert not client.vitals().claimed
    async for item in turn:
        if getattr(item, "kind", "") == "output" and "CONFIDENCE" in item.text:
            break
    assert client.vitals().claimed  # it has reported, and does not end its turn
    assert client.claim().value == "x"
    await turn.aclose()
    assert client.vitals().exit_code is None


async def test_a_report_counts_for_a_cli_that_hides_limits_in_a_normal_end(
    runtime: LocalRuntime, session: AgentSession, tmp_path: Path
) -> None:
    class Hiding(ScriptedCLI):
        quirks = Quirks(end_turn_hides_limit=True)

    script = tmp_path / "script.json"
    script.write_text(json.dumps({"rules": [{"do": [{"say": "x\n\nCONFIDENCE: 0.9"}, {"hang": True}]}]}))
    client = AcpClient(runtime=runtime, cli=Hiding(script), session=session, program=sys.executable)
    await client.open()
    turn = client.turn(task())
    async for _ in turn:
        if client.vitals().claimed:
            break
    claim = client.claim()  # its turn has not ended, so it has told no usage
    assert claim is not None
    assert (claim.value, claim.reported, claim.stop) == ("x", 0.9, "end_turn")
    await turn.aclose()
    await client.close()


async def test_a_session_is_continued_by_its_id(runtime: LocalRuntime, session: AgentSession, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"rules": [{"do": [{"say": "hi"}]}]}')
    known = dataclasses.replace(session, cli_session="abc")
    client = AcpClient(runtime=runtime, cli=ScriptedCLI(tmp_path / "s.json"), session=known, program=sys.executable)
    assert await client.open() == "abc"
    _, result = await play(client)
    assert result.session_ref == "abc"
    await client.close()


async def test_a_forgotten_session_is_begun_anew(runtime: LocalRuntime, session: AgentSession, tmp_path: Path) -> None:
    source = AGENT.read_text().replace('case "session/load":', 'case "session/load" if not params["sessionId"]:')
    (tmp_path / "forgetful.py").write_text(source)
    (tmp_path / "s.json").write_text('{"rules": [{"do": [{"say": "hi"}]}]}')

    class Forgetful(ScriptedCLI):
        def launch(self, session: AgentSession, program: str) -> LaunchSpec:
            spec = super().launch(session, program)
            return dataclasses.replace(spec, argv=(program, str(tmp_path / "forgetful.py"), *spec.argv[3:]))

    known = dataclasses.replace(session, cli_session="abc")
    client = AcpClient(runtime=runtime, cli=Forgetful(tmp_path / "s.json"), session=known, program=sys.executable)
    assert await client.open() not in {"abc", None}
    await client.close()


def test_the_input_of_a_tool_is_bounded() -> None:
    raw: dict[str, Any] = {"content": "x" * 1_000_000, "command": ["a", "b"], "deep": {"a": ["y" * 9_000]}}
    raw |= {f"k{n}": n for n in range(99)}
    item = progress_of({"sessionUpdate": "tool_call", "toolCallId": "1", "title": "t", "rawInput": raw})
    assert item is not None
    assert item.data["input"]["command"] == ["a", "b"]
    assert len(json.dumps(item.data)) < 10_000


async def test_close_in_mid_turn_leaves_nothing(start: Any, owner: str) -> None:
    client = await start({"daemon": 60}, {"say": "x"}, {"hang": "deaf"}, grace_s=0.3)
    turn = client.turn(task())
    await anext(turn)
    assert len(marked(owner)) == 2
    began = time.monotonic()
    await client.close()
    assert time.monotonic() - began < 1
    assert marked(owner) == []
    with pytest.raises(AgentCrashed, match="was stopped"):
        await anext(turn)


WANTS_LOGIN = """
import json, sys
known = False
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"result": {}}
    match asked["method"]:
        case "initialize":
            answer = {"result": {"protocolVersion": 1, "agentInfo": {"name": "shy", "version": "3.2.1"}}}
        case "authenticate":
            known = asked["params"]["methodId"] == "token"
        case "session/new":
            refused = {"error": {"code": -32000, "message": "Authentication required"}}
            answer = {"result": {"sessionId": "s1"}} if known else refused
    print("Welcome to Shy!", json.dumps({"jsonrpc": "2.0", "id": asked["id"], **answer}), flush=True)
"""


@pytest.mark.parametrize("auth", ["token", "other", None])
async def test_an_agent_is_authenticated_by_its_method_or_asks_for_a_login(
    runtime: LocalRuntime, session: AgentSession, auth: str | None
) -> None:
    cli = AcpCommand(type="shy", argv=("-c", WANTS_LOGIN), quirks=Quirks(auth=auth))
    client = AcpClient(runtime=runtime, cli=cli, session=session, program=sys.executable)
    if auth == "token":
        assert await client.open() == "s1"
        assert client.version == "3.2.1"
    else:
        with pytest.raises(LoginNeeded, match="not logged in: Authentication required"):
            await client.open()
    await client.close()


async def test_a_role_without_a_rule_is_a_refusal(start: Any) -> None:
    client = await start(rules=[{"when": "never", "do": []}])
    _, result = await play(client)
    assert result.stop == "refusal"
    assert "no rule for the role engineer and the prompt: go" in result.value
