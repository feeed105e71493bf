"""Output that means harm: floods, endless lines, no text at all. Memory stays, the loop stays quick, the end is named."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from agent_helpers import play, task

from parallax.agents.clients.headless import HeadlessClient
from parallax.agents.clients.wire import CHUNK, Lines, Tail
from parallax.agents.clis.claude import ClaudeHeadless
from parallax.agents.runtimes.bubblewrap import interpreter
from parallax.agents.runtimes.local import LocalRuntime
from parallax.errors import AgentError
from parallax.models import LaunchSpec
from parallax.ports import AgentSession, ModelDoor
from parallax.redaction import Secret

MB = int(os.environ.get("PARALLAX_FLOOD_MB", "150"))  # 1000 is what is promised


@asynccontextmanager
async def lag() -> AsyncIterator[list[float]]:
    """Seconds by which the loop was late, each ten milliseconds."""
    found: list[float] = []

    async def look() -> None:
        while True:
            begun = time.perf_counter()
            await asyncio.sleep(0.01)
            found.append(time.perf_counter() - begun - 0.01)

    looking = asyncio.create_task(look())
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


@pytest.mark.parametrize("how", ["runtime", "shut_runtime"])
async def test_a_flood_on_both_streams_costs_little_memory_and_no_time_of_the_loop(
    how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    runtime: LocalRuntime = request.getfixturevalue(how)
    flood = (
        "import os, threading\n"
        f"block = (b'x' * 999 + b'\\n') * 1000\n"
        "def pour(fd):\n"
        f"    for _ in range({MB}):\n"
        "        view = memoryview(block)\n"
        "        while view: view = view[os.write(fd, view):]\n"
        "other = threading.Thread(target=pour, args=(2,)); other.start(); pour(1); other.join()\n"
    )
    spec = LaunchSpec(argv=(interpreter(), "-I", "-S", "-c", flood), cwd=tmp_path, env={})
    memory, most, counted = psutil.Process(), 0, [0, 0]
    lines, tail = Lines(1 << 20), Tail()
    process = await runtime.start(spec)
    before, begun = memory.memory_info().rss, time.perf_counter()

    async def read_out() -> None:
        nonlocal most
        while chunk := await process.read_out(CHUNK):
            counted[0] += sum(len(line) + 1 for line in lines.feed(chunk))
            most = max(most, memory.memory_info().rss)

    async def read_err() -> None:
        while chunk := await process.read_err(CHUNK):
            counted[1] += len(chunk)
            tail.add(chunk)

    async with lag() as late:
        await asyncio.gather(read_out(), read_err())
    took = time.perf_counter() - begun
    await process.stop(1)
    assert counted == [MB * 1_000_000, MB * 1_000_000]
    grown, rate = (most - before) / 1e6, 2 * MB / took
    print(f"{how}: {grown:.1f} MB more, {rate:.0f} MB/s, loop late by {p99(late) * 1000:.1f} ms (p99)")
    assert grown < 50
    assert rate > 100 / 3
    assert p99(late) < 0.150


LINES: dict[str, tuple[str, str]] = {
    "a line of 100 MB": ("w(b'x' * 100_000_000 + b'\\n')", r"a line of more than 50 MiB"),
    "NULs": ("w(b'\\0' * 1_000_000 + b'\\n')", r"without a result"),
    "bad UTF-8": ("w(b'\\xff\\xfe{\"type\": \\xc3\\x28}\\n' * 1000)", r"without a result"),
    "colours": ("w(b'\\x1b[31m{}\\x1b[0m\\r\\n' * 1000)", r"without a result"),
    "half a frame": ('w(b\'{"type": "result", "subtype": "succ\')', r"without a result"),
    "deep": ("w(b'[' * 100_000 + b'\\n')", r"without a result"),
    "numbers": (
        'w(b\'{"type": "result", "num_turns": NaN, "x": 1e400, "y": \' + b\'9\' * 5000 + b\'}\\n\')',
        r"without a result",
    ),
    "half surrogates": ('w(b\'{"type": "\\\\ud800"}\\n\')', r"without a result"),
}


@pytest.mark.parametrize("name", LINES)
async def test_what_is_no_message_is_a_named_end(
    name: str, runtime: LocalRuntime, session: AgentSession, tmp_path: Path
) -> None:
    code, expected = LINES[name]
    program = tmp_path / "claude"
    program.write_text(
        f"#!{interpreter()} -IS\nimport os, sys\nsys.stdin.read()\nw = sys.stdout.buffer.write\n{code}\n"
    )
    program.chmod(0o755)
    door = ModelDoor(url="http://127.0.0.1:9", token=Secret("plx_t"), providers=frozenset({"anthropic"}))
    at_door = AgentSession(**{slot: getattr(session, slot) for slot in session.__slots__} | {"door": door})
    client = HeadlessClient(runtime=runtime, cli=ClaudeHeadless(), session=at_door, program=str(program), grace_s=0.5)
    await client.open()
    with pytest.raises(AgentError, match=expected):
        await play(client, task())
    await client.close()


async def test_a_byte_order_mark_before_the_first_message_is_passed_over(
    runtime: LocalRuntime, session: AgentSession, tmp_path: Path
) -> None:
    """Kept here beside its kin: the result after it counts."""
    program = tmp_path / "claude"
    result = '{"type": "result", "subtype": "success", "is_error": false, "result": "done"}'
    program.write_text(
        f"#!{interpreter()} -IS\nimport sys\nsys.stdin.read()\n"
        f"sys.stdout.buffer.write(b'\\xef\\xbb\\xbf' + b'banner\\n' + {result.encode()!r} + b'\\n')\n"
    )
    program.chmod(0o755)
    door = ModelDoor(url="http://127.0.0.1:9", token=Secret("plx_t"), providers=frozenset({"anthropic"}))
    at_door = AgentSession(**{slot: getattr(session, slot) for slot in session.__slots__} | {"door": door})
    client = HeadlessClient(runtime=runtime, cli=ClaudeHeadless(), session=at_door, program=str(program), grace_s=0.5)
    await client.open()
    _, ended = await play(client, task())
    assert ended.message == "done"
