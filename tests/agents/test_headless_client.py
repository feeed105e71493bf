"""The headless client on recorded output of the real CLIs, played by a small program in their place."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agent_helpers import marked, play, task

from parallax.agents.clients.headless import HeadlessClient
from parallax.agents.clis.aider import Aider
from parallax.agents.clis.claude import ClaudeHeadless
from parallax.agents.clis.codex import CodexHeadless
from parallax.agents.runtimes.local import LocalRuntime
from parallax.errors import AgentCrashed, AgentError, EmptyTurn, LoginNeeded, ProtocolViolation, ProviderLimited
from parallax.models import LaunchSpec, Progress, Task, TaskResult
from parallax.ports import AgentCLI, AgentSession, ModelDoor, Quirks
from parallax.redaction import Secret

TRANSCRIPTS = Path(__file__).parent / "transcripts"
Replay = Callable[..., HeadlessClient]


@pytest.fixture
def replay(runtime: LocalRuntime, session: AgentSession, tmp_path: Path, owner: str) -> Any:
    """`replay("claude-write", code=0)`: a client whose CLI prints that transcript (or those lines) and exits so."""

    at_door = replace(
        session,
        door=ModelDoor(
            url="http://127.0.0.1:9", token=Secret("plx_token"), providers=frozenset({"anthropic", "openai", "gemini"})
        ),
    )

    def client(
        lines: str | list[Any], *, code: int = 0, cli: AgentCLI | None = None, end: str = "", err: str = ""
    ) -> HeadlessClient:
        if isinstance(lines, str):
            text = (TRANSCRIPTS / f"{lines}.jsonl").read_text()
            cli = cli or (ClaudeHeadless() if lines.startswith("claude") else CodexHeadless())
        else:
            text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        (tmp_path / "out").write_text(text)
        program = tmp_path / "cli"
        program.write_text(
            f"#!{sys.executable} -S\n"
            "import json, os, sys, time\n"
            f"os.write(2, {err.encode()!r})\n"
            f"open({str(tmp_path / 'call')!r}, 'w').write(json.dumps([sys.argv[1:], sys.stdin.read()]))\n"
            f"sys.stdout.write(open({str(tmp_path / 'out')!r}).read())\n"
            "sys.stdout.flush()\n"
            f"{end}\n"
            f"sys.exit({code})\n"
        )
        program.chmod(0o755)
        return HeadlessClient(
            runtime=runtime, cli=cli or ClaudeHeadless(), session=at_door, program=str(program), grace_s=0.5
        )

    yield client
    assert marked(owner) == []


async def test_claude_writes(replay: Replay, tmp_path: Path) -> None:
    client = replay("claude-write")
    assert await client.open() is None
    shown, result = await play(client, task("Create hello.txt"))
    assert [(item.kind, item.text) for item in shown] == [
        ("tool", "Write"),
        ("tool", "Write"),
        ("tool", "Bash"),
        ("tool", "Bash"),
        ("output", "I wrote hello.txt.\n\nCONFIDENCE: 0.9"),
    ]
    assert shown[3].data["output"] == "hello from the model"
    assert (result.value, result.reported, result.stop) == ("I wrote hello.txt.", 0.9, "end_turn")
    assert (result.task_id, result.attempt, result.agent_id) == ("e1/s1/1", 1, "e1.engineer.1")
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.cost) == (300, 60, 2400)
    assert result.usage.priced == "reported"
    arguments, prompt = json.loads((tmp_path / "call").read_text())
    assert arguments[:3] == ["-p", "--output-format", "stream-json"]
    assert "--resume" not in arguments
    assert prompt == "Create hello.txt"
    await play(client)
    arguments, _ = json.loads((tmp_path / "call").read_text())
    assert arguments[arguments.index("--resume") + 1] == result.session_ref  # the next turn goes on with it


async def test_codex_writes(replay: Replay, tmp_path: Path) -> None:
    client = replay("codex-write")
    shown, result = await play(client, task("Create hello.txt"))
    tools = [(item.data["kind"], item.data["status"]) for item in shown if item.kind == "tool"]
    assert tools == [
        ("edit", "in_progress"),
        ("edit", "completed"),
        ("execute", "in_progress"),
        ("execute", "completed"),
    ]
    assert (result.value, result.reported, result.stop) == ("I wrote hello.txt.", 0.9, "end_turn")
    assert (result.usage.input_tokens, result.usage.cached_tokens, result.usage.output_tokens) == (270, 30, 60)
    await play(client)
    arguments, _ = json.loads((tmp_path / "call").read_text())
    assert arguments[-3:] == ["resume", result.session_ref, "-"]


async def test_denials_are_in_the_result_of_a_success(replay: Replay) -> None:
    _, result = await play(replay("claude-denied"))
    assert result.stop == "end_turn"
    assert result.denied == ("Bash: python3 -c 'print(1)'",)


@pytest.mark.parametrize(("name", "code"), [("claude-429", 1), ("codex-429", 1)])
async def test_a_rate_limit_is_named(replay: Replay, name: str, code: int) -> None:
    with pytest.raises(ProviderLimited, match="429"):
        await play(replay(name, code=code))


SO = {"type": "assistant", "message": {"content": [{"type": "text", "text": "so"}]}}
RESULT = {"type": "result", "subtype": "success", "is_error": False, "result": "ok", "session_id": "s"}


@pytest.mark.parametrize(
    ("changes", "stop"),
    [({"subtype": "error_max_turns"}, "max_turn_requests"), ({"subtype": "error_max_budget_usd"}, "budget_exhausted")],
)
async def test_other_ends_are_told_apart(replay: Replay, changes: Any, stop: str) -> None:
    _, result = await play(replay([RESULT | changes], code=1))
    assert result.stop == stop


@pytest.mark.parametrize(
    ("lines", "code", "err", "error", "words"),
    [
        ([RESULT | {"is_error": True, "result": "Invalid API key"}], 1, "", LoginNeeded, "Invalid API key"),
        ([RESULT | {"is_error": True, "result": "boom"}], 1, "", AgentError, "boom"),
        ([RESULT], 3, "oh no", AgentCrashed, "exit code 3 although its result says success; its last words: oh no"),
        ([], 0, "", AgentCrashed, "exit code 0 without a result"),
        (
            ["banner\n", '{"type": "assis'],
            0,
            "",
            AgentCrashed,
            'without a result; its last words: banner\n{"ty',
        ),
        ([], 1, "Error: not logged in", LoginNeeded, "not logged in"),
        ([RESULT | {"result": ""}], 0, "", EmptyTurn, "without a word or a deed"),
        ([RESULT | {"result": "CONFIDENCE: 2"}], 0, "", ProtocolViolation, "confidence"),
    ],
)
async def test_what_went_wrong_is_named(
    replay: Replay, lines: list[Any], code: int, err: str, error: type, words: str
) -> None:
    with pytest.raises(error) as caught:
        await play(replay(lines, code=code, err=err))
    assert type(caught.value) is error
    assert words in str(caught.value)


async def test_death_by_a_signal(replay: Replay) -> None:
    with pytest.raises(AgentCrashed, match="killed by signal 9 without a result"):
        await play(replay([], end="os.kill(os.getpid(), 9)"))


ODD = (
    "5",
    "[]",
    "{}",
    '{"type": "assistant"}',
    '{"type": "assistant", "message": {"content": "x"}}',
    '{"type": "user", "message": {"content": [{"type": "tool_result"}]}}',
    "\x00\x01",
    "[" * 100_000,
    '{"type": "system", "subtype": "init", "session_id": 5}',
    '{"type": "item.completed", "item": 5}',
    '{"type": "assistant", "message": {"content": [{"type": "tool_use", "id": ["x"]}]}}',
)


@pytest.mark.parametrize("line", ODD)
@pytest.mark.parametrize("cli", [ClaudeHeadless(), CodexHeadless()])
async def test_odd_lines_are_no_exception(replay: Replay, line: str, cli: AgentCLI) -> None:
    end = [RESULT] if isinstance(cli, ClaudeHeadless) else ['{"type":"turn.completed","usage":{"input_tokens":-5}}\n']
    said = ['{"type": "item.completed", "item": {"type": "agent_message", "text": "ok"}}\n']
    _, result = await play(replay([f"{line}\n", *said, *end], cli=cli))
    assert result.value == "ok"


@pytest.mark.parametrize("cost", [None, -1, "1", 1e300, True])
async def test_a_nonsense_cost_is_not_believed(replay: Replay, cost: Any) -> None:
    _, result = await play(replay([RESULT | {"total_cost_usd": cost, "usage": {"input_tokens": "many"}}]))
    assert (result.usage.cost, result.usage.priced, result.usage.input_tokens) == (0, "estimated", 0)


async def test_a_result_counts_even_if_the_process_does_not_leave(replay: Replay) -> None:
    began = time.monotonic()
    _, result = await play(replay([RESULT], end="time.sleep(60)"))
    assert result.value == "ok"
    assert time.monotonic() - began < 3


async def test_cancel_ends_the_turn(replay: Replay) -> None:
    client = replay([SO], end="time.sleep(60)")
    turn = client.turn(task())
    assert (await anext(turn)).text == "so"
    assert client.pid
    rest = asyncio.create_task(anext(turn))
    await client.cancel()
    result = await rest
    assert (result.stop, result.message) == ("cancelled", "so")
    assert client.alive
    await client.close()
    assert not client.alive
    with pytest.raises(AgentCrashed, match="stopped"):
        await anext(client.turn(task()))


async def test_a_reader_that_goes_away_leaves_no_process(replay: Replay, owner: str) -> None:
    client = replay([SO], end="time.sleep(60)")
    turn = client.turn(task())
    await anext(turn)
    await turn.aclose()
    assert marked(owner) == []


class _Text:
    """A CLI that prints prose and exits."""

    type = "text"
    quirks = Quirks(protocol="text")

    def launch(self, session: AgentSession, program: str) -> LaunchSpec:
        return LaunchSpec(argv=(program,), cwd=session.tree, env={"PATH": os.environ["PATH"]})

    def files(self, session: AgentSession) -> dict[str, str]:
        return {"conf/a.txt": session.role}

    def prompt(self, task: Task) -> tuple[tuple[str, ...], bytes]:
        return ("--message", task.text), b""

    def read(self, line: bytes) -> Progress | TaskResult | None:
        return Progress(kind="output", text=line.decode() + "\n")


async def test_a_text_cli_is_judged_by_its_exit(replay: Replay, session: AgentSession, tmp_path: Path) -> None:
    client = replay(["I did it\n", "CONFIDENCE: 0.6\n"], cli=_Text())
    await client.open()
    assert (session.home / "conf/a.txt").read_text() == "engineer"
    _, result = await play(client)
    assert (result.value, result.reported) == ("I did it", 0.6)
    assert json.loads((tmp_path / "call").read_text())[0] == ["--message", "go"]
    with pytest.raises(AgentCrashed, match="exit code 1"):
        await play(replay(["I did it\n"], cli=_Text(), code=1))


@pytest.mark.parametrize(("cost", "priced"), [(" Cost: $0.01 message, $0.01 session.", "reported"), ("", "estimated")])
async def test_a_cost_that_a_text_cli_does_not_know_is_not_nothing(replay: Replay, cost: str, priced: str) -> None:
    _, result = await play(replay(["I did it\n", f"Tokens: 120 sent, 20 received.{cost}\n"], cli=Aider()))
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.priced) == (120, 20, priced)


async def test_the_home_is_private_and_links_in_it_are_not_followed(
    runtime: LocalRuntime, session: AgentSession, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    session.home.mkdir()
    (session.home / "conf").symlink_to(outside)
    client = HeadlessClient(runtime=runtime, cli=_Text(), session=session, program="x")
    await client.open()
    assert list(outside.iterdir()) == []
    path = session.home / "conf/a.txt"
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    (outside / "b").write_text("kept")
    path.symlink_to(outside / "b")
    await HeadlessClient(runtime=runtime, cli=_Text(), session=replace(session, role="x"), program="x").open()
    assert (outside / "b").read_text() == "kept"
    assert path.read_text() == "x"


@pytest.mark.parametrize("way", ["conf", "conf/a.txt/b"])
async def test_what_an_agent_left_in_the_way_of_its_configuration_is_replaced(
    runtime: LocalRuntime, session: AgentSession, way: str
) -> None:
    (session.home / way).parent.mkdir(parents=True)
    (session.home / way).write_text("in the way")
    await HeadlessClient(runtime=runtime, cli=_Text(), session=session, program="x").open()
    assert (session.home / "conf/a.txt").read_text() == "engineer"
