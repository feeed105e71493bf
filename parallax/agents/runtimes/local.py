"""Agents as processes of this host. The supervisor starts them here; clients read and write their streams.

Choice of leash: a process gets a session of its own, so one signal reaches its whole group, and a mark in its
environment, PARALLAX_OWNER=<owner>:<life>.<number>, which children inherit even when they leave the group and outlive
their parent. `stop` ends the group and then whatever still carries the mark; `sweep`, called when a server starts, ends
what a killed server left behind. (A process that wipes its environment and leaves the group escapes both; only a
sandbox with a process namespace stops that one.)

Streams are read in chunks, never by line: a line limit in the stream reader turns a long line into an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, cast

import psutil

from parallax.errors import AgentCrashed, AgentUnavailable
from parallax.models import LaunchSpec, Limits

MARK: Final = "PARALLAX_OWNER"
AGENT_MEMORY_B: Final = 600_000_000  # what an idle coding CLI needs, seen on six of them: 250 to 550 MB
STREAM_BUFFER_B: Final = 65_536
HELD_PIPE_S: Final = 0.5  # how long output is waited for after the exit, where a descendant holds the pipe


class _Pipes(asyncio.subprocess.SubprocessStreamProtocol):
    """The streams, and an exit that does not wait for them.

    asyncio's own `Process.wait` returns only when all pipes are closed, and a pipe stays open as long as any descendant
    holds it: an agent that left a daemon behind would seem to live on. Its output ends with it, too, once it is read.
    """

    def __init__(self) -> None:
        super().__init__(limit=STREAM_BUFFER_B, loop=asyncio.get_running_loop())
        self.exited = asyncio.Event()
        self._transport_: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport_ = cast(asyncio.SubprocessTransport, transport)

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set()
        asyncio.get_running_loop().call_later(HELD_PIPE_S, self._end_streams)

    def _end_streams(self) -> None:
        assert self._transport_ is not None
        for descriptor in (1, 2):
            pipe = cast(asyncio.ReadTransport | None, self._transport_.get_pipe_transport(descriptor))
            if pipe is None or pipe.is_closing():
                continue
            if pipe.is_reading():
                pipe.close()
            else:  # its reader is behind: what lies in the pipe is still to be read
                asyncio.get_running_loop().call_later(HELD_PIPE_S, self._end_streams)


class LocalProcess:
    """A process of this host with its whole tree."""

    def __init__(self, transport: asyncio.SubprocessTransport, pipes: _Pipes, mark: str) -> None:
        self._transport = transport
        self._pipes = pipes
        self._pid = transport.get_pid()
        self._mark = mark
        self._stopping = asyncio.Lock()
        self._input_closed = False
        self._cpu_s = 0.0

    @property
    def handle(self) -> Mapping[str, str]:
        """What finds the process again."""
        return {"pid": str(self._pid), "mark": self._mark}

    async def write(self, data: bytes) -> None:
        """Write all of it; raises AgentCrashed when nobody reads any more."""
        stdin = self._pipes.stdin
        assert stdin is not None
        try:
            stdin.write(data)
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError, RuntimeError):
            raise AgentCrashed(f"the agent's process {self._pid} no longer reads its input") from None

    async def close_input(self) -> None:
        """Close standard input."""
        stdin = self._pipes.stdin
        assert stdin is not None
        self._input_closed = True
        stdin.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await stdin.wait_closed()

    async def read_out(self, n: int) -> bytes:
        """At most n bytes of standard output."""
        assert self._pipes.stdout is not None
        return await self._pipes.stdout.read(n)

    async def read_err(self, n: int) -> bytes:
        """At most n bytes of standard error."""
        assert self._pipes.stderr is not None
        return await self._pipes.stderr.read(n)

    async def wait(self) -> int:
        """The exit code."""
        await self._pipes.exited.wait()
        code = self._transport.get_returncode()
        assert code is not None
        return code

    async def stop(self, grace_s: float) -> int:
        """Close input, SIGTERM to the group, SIGKILL to the group and to all that carries the mark: within `grace_s`.

        The first 60 % of the grace belong to closing the input: nearly every agent leaves on that. A process whose
        input was closed before gets the signal at once.
        """
        async with self._stopping:
            tree = _tree(self._pid)
            try:
                if not self._input_closed:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(grace_s * 0.6):
                            await self.close_input()
                            await self._pipes.exited.wait()
                if not self._pipes.exited.is_set():
                    _signal_group(self._pid, signal.SIGTERM)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(grace_s * 0.4):
                            await self._pipes.exited.wait()
            finally:  # whoever cancels us wants a quicker end, not a survivor
                _signal_group(self._pid, signal.SIGKILL)
            code = await self.wait()
            await asyncio.to_thread(_end, lambda: _still(tree) + _marked(lambda mark: mark == self._mark))
            self._transport.close()
            return code

    def cpu_s(self) -> float:
        """Processor time that the process and its living descendants have used: a sign of life."""
        if not self._pipes.exited.is_set():
            self._cpu_s = sum(map(_cpu_of, _tree(self._pid)))
        return self._cpu_s


class LocalRuntime:
    """Starts agents on this host. One per server; `owner` names its data directory, so that two servers do not meet."""

    name = "local"

    def __init__(self, owner: str, sandbox: str = "off") -> None:
        self.owner = owner
        self.sandbox = sandbox
        self._life = secrets.token_hex(6)
        self._started = 0

    async def start(self, spec: LaunchSpec) -> LocalProcess:
        """Start the process; raises AgentUnavailable when its program or directory is missing."""
        self._started += 1
        mark = f"{self.owner}:{self._life}.{self._started}"
        env = {**spec.env, **{name: secret.reveal() for name, secret in spec.secrets.items()}, MARK: mark}
        program = shutil.which(spec.argv[0], path=env.get("PATH", os.defpath))
        if program is None:
            raise AgentUnavailable(
                f"The program '{spec.argv[0]}' was not found on {env.get('PATH', os.defpath)}: "
                "install it or correct the agent's command"
            )
        try:
            transport, pipes = await asyncio.get_running_loop().subprocess_exec(
                _Pipes,
                program,
                *spec.argv[1:],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=spec.cwd,
                env=env,
                start_new_session=True,
            )
        except OSError as error:
            what = f"its directory {spec.cwd}" if not spec.cwd.is_dir() else f"'{program}'"
            raise AgentUnavailable(f"The agent would not start, {what}: {error.strerror or error}") from None
        _limit(transport.get_pid(), spec.limits)
        return LocalProcess(transport, pipes, mark)

    async def sweep(self) -> int:
        """End what a former life of this owner left behind. Our own agents are spared."""
        return await asyncio.to_thread(self._sweep)

    def _sweep(self) -> int:
        # The server itself may have been started by an agent of this owner: it and its ancestors are not left-overs.
        spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        ours = f"{self.owner}:{self._life}."

        def left() -> list[psutil.Process]:
            theirs = _marked(lambda mark: mark.startswith(f"{self.owner}:") and not mark.startswith(ours))
            return [process for process in theirs if process.pid not in spared]

        return _end(left)

    def capacity(self) -> int:
        """How many agents this host can carry now, by free memory: at least one, at most 16."""
        return max(1, min(16, psutil.virtual_memory().available // AGENT_MEMORY_B))


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _limit(pid: int, limits: Limits) -> None:
    """Set resource limits from outside, right after the start: no code of ours runs between fork and exec.

    Memory is limited as data (RLIMIT_DATA): a JavaScript engine reserves far more address space than it uses.
    """
    if sys.platform != "linux":
        return
    import resource

    wanted = [(resource.RLIMIT_CORE, 0)]
    for kind, value in (
        (resource.RLIMIT_DATA, limits.memory_b),
        (resource.RLIMIT_NPROC, limits.processes),
        (resource.RLIMIT_NOFILE, limits.files),
    ):
        if value is not None:
            wanted.append((kind, value))
    for kind, value in wanted:
        with contextlib.suppress(OSError, ValueError):  # it has ended already, or the host's own limit is lower
            resource.prlimit(pid, kind, (value, value))


def _tree(pid: int) -> list[psutil.Process]:
    """The process and its descendants that live now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    # Time of ended and collected children counts too: a build of many short processes is life.
    return float(times.user + times.system + times.children_user + times.children_system)


def _marked(fits: Callable[[str], bool]) -> list[psutil.Process]:
    """Every process whose mark fits."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (mark := process.environ().get(MARK)) and fits(mark):
                found.append(process)
    return found


def _still(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live; a zombie does not, it only waits for its parent."""
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def _end(find: Callable[[], list[psutil.Process]]) -> int:
    """Kill what `find` finds until it finds nothing: they may be forking meanwhile. Returns how many were killed."""
    killed = 0
    for _ in range(10):
        found = set(_still(find()))
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed += 1
        # Not psutil.wait_procs: it would reap children of ours that asyncio waits for.
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and _still(list(found)):
            time.sleep(0.005)
    return killed
