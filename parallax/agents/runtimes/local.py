"""Agents as processes of this host. The supervisor starts them here; clients read and write their streams.

With bubblewrap each process gets a place of its own (`bubblewrap` says what it finds there); without, it runs as the
server's user and is held by its group and a mark in its environment, PARALLAX_OWNER=<owner>:<life>.<number>. `sweep`,
called when a server starts, ends what a killed server left behind. Which of the two it is, is asked for by setting,
probed once (`probe`), and never changed behind the user's back.

Streams are read in chunks, never by line: a line limit in the stream reader turns a long line into an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import psutil

from parallax.agents.runtimes import tree
from parallax.agents.runtimes.bubblewrap import HOME, PORT, SOCKET, Bubblewrap, limits
from parallax.agents.runtimes.cgroups import ProcessGroups
from parallax.agents.runtimes.leash import MARK, GroupLeash, Leash, NamespaceLeash
from parallax.errors import AgentCrashed, AgentUnavailable
from parallax.models import LaunchSpec, Limits
from parallax.ports import AgentSession

AGENT_MEMORY_B: Final = 600_000_000  # what an idle coding CLI needs, seen on six of them: 250 to 550 MB
STREAM_BUFFER_B: Final = 65_536
HELD_PIPE_S: Final = 0.5  # how long output is waited for after the exit, where a descendant holds the pipe
ENTER_S: Final = 30.0  # for a sandbox to be built and the agent to be executed: a tenth of a second on an idle machine


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

    def __init__(self, transport: asyncio.SubprocessTransport, pipes: _Pipes, leash: Leash, mark: str) -> None:
        self._transport = transport
        self._pipes = pipes
        self._leash = leash
        self._pid = transport.get_pid()
        self._mark = mark
        self._stopping = asyncio.Lock()
        self._input_closed = False
        self._cpu_s = 0.0
        self._code: int | None = None
        self._gone = False

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
        """Close standard input, after what was written before."""
        stdin = self._pipes.stdin
        assert stdin is not None
        self._input_closed = True
        stdin.close()  # its end is not waited for: a cancelled wait would make asyncio stumble over it later

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
        if self._code is None:
            code = self._transport.get_returncode()
            assert code is not None
            self._code = self._leash.exit_code(code)
        return self._code

    async def stop(self, grace_s: float) -> int:
        """Close input, SIGTERM to all of it, SIGKILL to all of it, within `grace_s`; nothing lives when this returns.

        The first 60 % of the grace belong to closing the input: nearly every agent leaves on that. A process whose
        input was closed before gets the signal at once.
        """
        async with self._stopping:
            if self._gone:
                return await self.wait()
            try:
                if not self._input_closed:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(grace_s * 0.6):
                            await self.close_input()
                            await self._pipes.exited.wait()
                if not self._pipes.exited.is_set():
                    self._leash.signal(signal.SIGTERM)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(grace_s * 0.4):
                            await self._pipes.exited.wait()
            finally:  # whoever cancels us wants a quicker end, not a survivor
                self._leash.signal(signal.SIGKILL)
            await self._leash.gone()
            code = await self.wait()
            self._gone = True
            self._leash.close()
            self._transport.close()
            return code

    def cpu_s(self) -> float:
        """Processor time that the process and its living descendants have used: a sign of life."""
        if not self._pipes.exited.is_set():
            self._cpu_s = sum(map(tree.cpu_s, tree.living(self._pid)))
        return self._cpu_s


class LocalRuntime:
    """Starts agents on this host. One per server; `owner` names its data directory, so that two servers do not meet.

    `wish` is what the user wants of the sandbox: require, auto, off, or None for what the agent's type wishes. `shut`
    builds the sandbox where one works; without it, `problem` says why there is none.
    """

    name = "local"

    def __init__(
        self,
        owner: str,
        *,
        shut: Bubblewrap | None = None,
        wish: str | None = None,
        problem: str = "no sandbox was set up",
    ) -> None:
        self.owner = owner
        self.wish = wish
        self.problem = problem
        self._shut = shut if wish != "off" else None
        self._life = secrets.token_hex(6)
        self._started = 0
        self._starting: set[asyncio.Task[LocalProcess]] = set()
        self._groups = ProcessGroups(owner)

    @property
    def sandbox(self) -> str:
        """What holds the agents here: bubblewrap or off."""
        return "off" if self._shut is None else "bubblewrap"

    def refusal(self, wish: str | None) -> str | None:
        """Why an agent whose type wishes this cannot be started here, or None."""
        if self._shut is not None or (self.wish or wish or "require") != "require":
            return None
        return (
            f"agents run in a sandbox only, and there is none here: {self.problem}; "
            "PARALLAX_SANDBOX=off runs them without, with all rights of your own"
        )

    @property
    def shuts_in(self) -> bool:
        """Whether what it starts is in a sandbox, where directories can be mounted."""
        return self._shut is not None

    def inside(self, session: AgentSession) -> AgentSession:
        """The session with the names that its places have for the agent."""
        return session if self._shut is None else self._shut.inside(session)

    async def start(self, spec: LaunchSpec) -> LocalProcess:
        """Start the process; raises AgentUnavailable when its program, its directory or a sandbox is missing."""
        if refused := self.refusal(spec.sandbox):
            raise AgentUnavailable(refused[0].upper() + refused[1:])
        # asyncio cannot give up half a subprocess: it would wait for pipes that were never joined. So a start that
        # nobody wants any more is brought to its end, and then stopped, however often its caller is cancelled.
        wanted = asyncio.Event()
        wanted.set()
        starting = asyncio.create_task(self._start(spec, wanted))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            wanted.clear()
            with contextlib.suppress(AgentUnavailable):
                await asyncio.shield(starting)
            raise

    async def _start(self, spec: LaunchSpec, wanted: asyncio.Event) -> LocalProcess:
        self._started += 1
        mark = f"{self.owner}:{self._life}.{self._started}"
        env = {**spec.env, **{name: secret.reveal() for name, secret in spec.secrets.items()}, MARK: mark}
        program = _program(spec, env.get("PATH", os.defpath))
        if not spec.cwd.is_dir():
            raise AgentUnavailable(f"The agent would not start, its directory {spec.cwd} is not there")
        for path in spec.writable:
            path.touch()
        if self._shut is None:
            process = await self._start_open(spec, program, env, mark)
        else:
            process = await self._start_shut(self._shut, spec, program, env, mark)
        if not wanted.is_set():
            await process.stop(0)
        return process

    async def _start_open(self, spec: LaunchSpec, program: str, env: dict[str, str], mark: str) -> LocalProcess:
        if spec.home is not None:
            env = {**env, "HOME": str(spec.home)}
        transport, pipes = await _spawn([program, *spec.argv[1:]], cwd=spec.cwd, env=env)
        _limit(transport.get_pid(), spec.limits)
        return LocalProcess(transport, pipes, GroupLeash(transport.get_pid(), mark, pipes.exited), mark)

    async def _start_shut(
        self, shut: Bubblewrap, spec: LaunchSpec, program: str, env: dict[str, str], mark: str
    ) -> LocalProcess:
        document: dict[str, Any] = {
            "argv": [program, *spec.argv[1:]],
            "env": {**env, "HOME": str(HOME)},
            "limits": limits(spec.limits),
            "gateway": SOCKET if spec.gateway is not None and spec.network == "gateway" else None,
            "port": PORT,
        }
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                command = await asyncio.to_thread(shut.command, spec, program, theirs.fileno())
                transport, pipes = await _spawn(command, cwd=Path("/"), env={MARK: mark}, pass_fds=(theirs.fileno(),))
        except BaseException:
            ours.close()
            raise
        leash = NamespaceLeash(transport.get_pid(), ours)
        process = LocalProcess(transport, pipes, leash, mark)
        answer = b""
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(ENTER_S):
                if await asyncio.get_running_loop().sock_recv(ours, 1):
                    leash.hold(self._groups, mark.replace(":", "."), document["limits"]["NPROC"])
                    answer = await _enter(ours, json.dumps(document).encode())
        if answer == b"\0":
            return process
        await process.stop(0)
        said = answer[1:] or await process.read_err(2000) or b"it said nothing"
        raise AgentUnavailable(
            f"'{program}' would not start in the sandbox: {said.decode('utf-8', 'replace').strip()}"
            + (" (is it readable there? See docs/sandbox.md)" if answer else "")
        )

    async def sweep(self) -> int:
        """End what a former life of this owner left behind. Our own agents are spared."""
        return await asyncio.to_thread(self._sweep)

    def _sweep(self) -> int:
        # The server itself may have been started by an agent of this owner: it and its ancestors are not left-overs.
        spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        ours = f"{self.owner}:{self._life}."

        def left() -> list[psutil.Process]:
            theirs = tree.marked(MARK, lambda mark: mark.startswith(f"{self.owner}:") and not mark.startswith(ours))
            return [process for process in theirs if process.pid not in spared]

        ended = tree.end(left)
        self._groups.sweep()
        return ended

    def capacity(self) -> int:
        """How many agents this host can carry now, by free memory: at least one, at most 16."""
        return max(1, min(16, psutil.virtual_memory().available // AGENT_MEMORY_B))


def _program(spec: LaunchSpec, path: str) -> str:
    """The program as a path; one that is named from the workspace stays as it is."""
    name = spec.argv[0]
    if "/" in name and not name.startswith("/"):
        program = name if os.access(spec.cwd / name, os.X_OK) else None
    else:
        program = shutil.which(name, path=path)
    if program is None:
        raise AgentUnavailable(
            f"The program '{name}' was not found on {path}: install it or correct the agent's command"
        )
    return program


async def _spawn(
    command: list[str], *, cwd: Path, env: Mapping[str, str], pass_fds: tuple[int, ...] = ()
) -> tuple[asyncio.SubprocessTransport, _Pipes]:
    try:
        return await asyncio.get_running_loop().subprocess_exec(
            _Pipes,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except OSError as error:
        raise AgentUnavailable(f"The agent would not start, '{command[0]}': {error.strerror or error}") from None


async def _enter(control: socket.socket, document: bytes) -> bytes:
    """Say what to do; returns the relay's answer, nothing when it has ended."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(control, struct.pack(">I", len(document)) + document)
    answer = await loop.sock_recv(control, 1)  # and no more: the status of a program that has ended may follow
    return answer if answer != b"\1" else answer + await loop.sock_recv(control, 1000)


def _limit(pid: int, asked: Limits) -> None:
    """Set resource limits from outside, right after the start: no code of ours runs between fork and exec.

    Memory is limited as data (RLIMIT_DATA): a JavaScript engine reserves far more address space than it uses. The
    number of processes is left alone unless it is asked for: without a sandbox it counts all of the user's.
    """
    if sys.platform != "linux":
        return
    import resource

    wanted = {"CORE": 0, "NOFILE": asked.files, "FSIZE": asked.file_b, "NPROC": asked.processes, "DATA": asked.memory_b}
    for name, value in wanted.items():
        if value is not None:
            with contextlib.suppress(OSError, ValueError):  # it has ended already, or the host's own limit is lower
                resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}"), (value, value))
