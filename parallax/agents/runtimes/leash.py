"""How a process of this host is held, with all that it starts: by a group and a mark, or by a namespace.

A process without a sandbox gets a session of its own, so one signal reaches its whole group, and a mark in its
environment, which children inherit even when they leave the group and outlive their parent. One that wipes its
environment and leaves the group escapes both. In a sandbox nothing does: the end of its first process is the end of
every process in it, and that first process ends with the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Final, Protocol

import psutil

from parallax.agents.runtimes import tree
from parallax.agents.runtimes.cgroups import ProcessGroups, leave

MARK: Final = "PARALLAX_OWNER"


class Leash(Protocol):
    """What `LocalProcess` needs of it."""

    def signal(self, number: signal.Signals) -> None:
        """To every process that it holds; no error when nothing lives."""
        ...

    def exit_code(self, code: int) -> int:
        """The agent's exit code, negative for a signal, where `code` is that of the process which was started."""
        ...

    async def gone(self) -> None:
        """Kill what is left and return when nothing lives any more."""
        ...

    def close(self) -> None:
        """Let go of its descriptors."""
        ...


class GroupLeash:
    """A process group and a mark. `pid` leads the group, `exited` is set when it has ended."""

    def __init__(self, pid: int, mark: str, exited: asyncio.Event) -> None:
        self._pid = pid
        self._mark = mark
        self._exited = exited
        self._last = False
        self._known: list[psutil.Process] = []

    def signal(self, number: signal.Signals) -> None:
        """To the group. Who is in the tree now is remembered: after the end of its root it cannot be found any more.

        After that end the group gets one more signal, for those that stayed in it: later the number may be another's.
        """
        if self._last:
            return
        self._last = self._exited.is_set()
        if not self._last:
            self._known += tree.living(self._pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def exit_code(self, code: int) -> int:
        """As it is."""
        return code

    async def gone(self) -> None:
        """Those of the tree, and whatever carries the mark."""
        await asyncio.to_thread(
            tree.end, lambda: tree.still(self._known) + tree.marked(MARK, lambda mark: mark == self._mark)
        )

    def close(self) -> None:
        """Nothing to let go of."""


class NamespaceLeash:
    """A sandbox's control socket, its control group, and a descriptor of its first process, for a number could be
    another's by now.
    """

    def __init__(self, pid: int, control: socket.socket) -> None:
        self._pid = pid
        self._control = control
        self._outer = _descriptor(pid)
        self._init = -1
        self._group: Path | None = None

    def hold(self, groups: ProcessGroups, name: str, most: int) -> None:
        """Take hold of the first process inside, the only child of bubblewrap's own, before it starts anything."""
        for child in _children(self._pid):
            self._init = _descriptor(child)
            self._group = groups.enter(name, child, most)

    def signal(self, number: signal.Signals) -> None:
        """SIGKILL to the namespace; any other signal goes through the relay to every process in it."""
        if number is not signal.SIGKILL:
            with contextlib.suppress(OSError):
                self._control.send(bytes([number]))
            return
        # The first process inside: bubblewrap's own, outside, collects it and ends, so that nobody else has to.
        descriptor = self._init if self._init >= 0 else self._outer
        if descriptor >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def exit_code(self, code: int) -> int:
        """What the relay said of the agent; without a word from it, how it ended itself, in bubblewrap's words."""
        try:
            (status,) = struct.unpack(">I", self._control.recv(4, socket.MSG_DONTWAIT))
            return os.waitstatus_to_exitcode(status)
        except (OSError, struct.error, ValueError):
            return 128 - code if code > 128 else code

    async def gone(self) -> None:
        """The kernel ends a namespace with its first process, and that process's end waits for all the others'."""
        self.signal(signal.SIGKILL)
        if self._init >= 0:
            await self._ended()
        if self._group is not None:
            await asyncio.to_thread(leave, self._group)

    async def _ended(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._init, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._init)

    def close(self) -> None:
        """The control socket and both descriptors."""
        self._control.close()
        for descriptor in (self._init, self._outer):
            if descriptor >= 0:
                os.close(descriptor)
        self._init = self._outer = -1


def _descriptor(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
    return []
