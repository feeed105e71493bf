"""A bound on the processes of one sandbox where the server is root: the kernel counts none of root's against a limit.

Control groups of either version, one directory for each agent, below the server's own group. Where they cannot be
written (a container, a server that is not root) nothing is done: then RLIMIT_NPROC holds, or nothing. Used by `local`.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/sys/fs/cgroup")
_LEAVE_S: Final = 1.0
_OLD_S: Final = 600.0


class ProcessGroups:
    """The control groups of one owner's agents."""

    def __init__(self, owner: str) -> None:
        self._owner = f"parallax-{owner}"
        self._above: Path | None = None
        if os.geteuid() == 0:
            with contextlib.suppress(OSError):
                self._above = _own_group()

    @property
    def work(self) -> bool:
        """Whether there are any here."""
        return self._above is not None

    def enter(self, name: str, pid: int, most: int) -> Path | None:
        """Put a process into a group of its own, with all that it will start; None where there are no groups."""
        if self._above is None:
            return None
        group = self._above / f"parallax-{name}"
        try:
            group.mkdir(exist_ok=True)
            (group / "pids.max").write_text(str(most))
            (group / "cgroup.procs").write_text(str(pid))
        except OSError:
            leave(group)
            return None
        return group

    def sweep(self) -> None:
        """Remove the groups that killed servers left, of other owners only those that have long been empty."""
        if self._above is None:
            return
        for group in self._above.glob("parallax-*"):
            with contextlib.suppress(OSError):  # another server removes it
                young = time.time() - group.stat().st_mtime < _OLD_S
                if not (group / "cgroup.procs").read_text() and (group.name.startswith(f"{self._owner}.") or not young):
                    leave(group)


def leave(group: Path) -> None:
    """Remove a group whose processes have been killed: the kernel lets go of them a moment later."""
    deadline = time.monotonic() + _LEAVE_S
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.002)


def _own_group() -> Path | None:
    """The server's own group, if processes can be bound below it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "pids" in controllers.split(","):
            return _writable(_ROOT / "pids" / path.lstrip("/"))
        if not controllers and (_ROOT / "cgroup.controllers").is_file():
            above = _ROOT / path.lstrip("/")
            (above / "cgroup.subtree_control").write_text("+pids")
            return _writable(above)
    return None


def _writable(group: Path) -> Path | None:
    return group if os.access(group, os.W_OK) else None
