"""Processes of this host: their environment, their end, and what they leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from agent_helpers import marked

from parallax.agents.runtimes.local import LocalProcess, LocalRuntime
from parallax.errors import AgentCrashed, AgentUnavailable
from parallax.models import LaunchSpec, Limits
from parallax.redaction import Secret


def python(code: str, tmp_path: Path, **fields: Any) -> LaunchSpec:
    env = {"PATH": os.environ["PATH"]} | fields.pop("env", {})
    return LaunchSpec(argv=(sys.executable, "-S", "-c", code), cwd=tmp_path, env=env, **fields)


async def read_all(process: LocalProcess) -> bytes:
    data = b""
    while chunk := await process.read_out(65536):
        data += chunk
    return data


async def test_the_environment_is_the_specs_and_no_more(runtime: LocalRuntime, tmp_path: Path, owner: str) -> None:
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    spec = python(code, tmp_path, env={"A": "1", "LC_ALL": "C.UTF-8"}, secrets={"KEY": Secret("s3cret-value")})
    process = await runtime.start(spec)
    env = json.loads(await read_all(process))
    await process.stop(1)
    assert env.pop("PARALLAX_OWNER").startswith(f"{owner}:")
    assert env == {"PATH": os.environ["PATH"], "A": "1", "KEY": "s3cret-value", "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./x"])
async def test_a_missing_program_is_one_sentence(runtime: LocalRuntime, tmp_path: Path, program: str) -> None:
    with pytest.raises(AgentUnavailable, match=r"was not found on .*install it"):
        await runtime.start(LaunchSpec(argv=(program,), cwd=tmp_path, env={"PATH": "/usr/bin"}))


async def test_a_missing_directory_and_a_broken_program_are_named(runtime: LocalRuntime, tmp_path: Path) -> None:
    with pytest.raises(AgentUnavailable, match=r"its directory .*/gone"):
        await runtime.start(python("", tmp_path / "gone"))
    (tmp_path / "broken").write_text("#!/no/such/interpreter\n")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(AgentUnavailable, match="would not start"):
        await runtime.start(LaunchSpec(argv=(str(tmp_path / "broken"),), cwd=tmp_path))


async def test_streams_and_exit_code(runtime: LocalRuntime, tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('err'); print(sys.stdin.read().upper(), end=''); sys.exit(3)"
    process = await runtime.start(python(code, tmp_path))
    await process.write(b"hello")
    await process.close_input()
    assert await read_all(process) == b"HELLO"
    assert await process.read_err(10) == b"err"
    assert await process.wait() == 3
    with pytest.raises(AgentCrashed, match="no longer reads"):
        await process.write(b"x" * 1_000_000)
    assert await process.stop(1) == 3
    assert await process.stop(1) == 3


async def test_a_deaf_process_and_its_escaped_children_are_gone_in_time(
    runtime: LocalRuntime, tmp_path: Path, owner: str
) -> None:
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sleep = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
        "subprocess.Popen(sleep); subprocess.Popen(sleep, start_new_session=True)\n"
        "subprocess.run(['sh', '-c', 'setsid sleep 60 &'])\n"
        "print('up', flush=True); time.sleep(60)\n"
    )
    process = await runtime.start(python(code, tmp_path))
    assert await process.read_out(10) == b"up\n"
    assert len(marked(owner)) == 4
    began = time.monotonic()
    assert await process.stop(0.4) == -9
    assert time.monotonic() - began < 2
    assert marked(owner) == []


async def test_a_stop_that_is_cancelled_still_kills(runtime: LocalRuntime, tmp_path: Path, owner: str) -> None:
    process = await runtime.start(python("import time; time.sleep(60)", tmp_path))
    stopping = asyncio.create_task(process.stop(20))
    await asyncio.sleep(0.05)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert await process.wait() == -9
    await process.stop(1)
    assert marked(owner) == []


async def test_sweep_ends_what_a_former_life_left_and_spares_the_rest(tmp_path: Path, owner: str) -> None:
    sleep = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])"
    former, other, now = (LocalRuntime(name, wish="off") for name in (owner, f"{owner}x", owner))
    left = await former.start(python(sleep, tmp_path))
    foreign = await other.start(python(sleep, tmp_path))
    ours = await now.start(python(sleep, tmp_path))
    while len(marked(owner)) < 4:
        await asyncio.sleep(0.01)
    assert await now.sweep() == 2
    assert await left.wait() == -9
    assert len(marked(owner)) == 2
    assert len(marked(f"{owner}x")) == 2
    assert await now.sweep() == 0
    for process in (left, foreign, ours):
        await process.stop(0.1)
    assert marked(owner) == marked(f"{owner}x") == []


async def test_limits_hold(runtime: LocalRuntime, tmp_path: Path) -> None:
    code = (
        "import sys, resource; sys.stdin.read()\n"
        "try: x = bytearray(300_000_000); print('too much')\n"
        "except MemoryError: print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    process = await runtime.start(python(code, tmp_path, limits=Limits(memory_b=200_000_000, files=64)))
    await process.close_input()
    assert await read_all(process) == b"64\n"
    await process.stop(1)


async def test_processor_time_of_the_tree_is_seen(runtime: LocalRuntime, tmp_path: Path) -> None:
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'while True: pass'])"
    process = await runtime.start(python(busy, tmp_path))
    async with asyncio.timeout(20):
        while process.cpu_s() <= 0.2:
            await asyncio.sleep(0.05)
    await process.stop(0.1)


def test_capacity_is_sane() -> None:
    assert 1 <= LocalRuntime("x").capacity() <= 16


async def test_many_cycles_leave_nothing(runtime: LocalRuntime, tmp_path: Path, owner: str) -> None:
    before = len(os.listdir("/proc/self/fd")), threads(os.getpid())
    for _ in range(40):
        process = await runtime.start(python("import sys; sys.stdin.read()", tmp_path))
        await process.stop(2)
    assert (len(os.listdir("/proc/self/fd")), marked(owner)) == (before[0], [])
    assert threads(os.getpid()) <= before[1] + 8  # the loop's own pool


def threads(pid: int) -> int:
    return psutil.Process(pid).num_threads()
