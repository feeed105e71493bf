"""Process trees of this host: who lives, what they used, how they are ended. Blocking; `local` calls it in a thread."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import psutil


def living(pid: int) -> list[psutil.Process]:
    """The process and its descendants that live now."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def cpu_s(process: psutil.Process) -> float:
    """Processor time of one process, with that of children that ended: a build of many short processes is life."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def marked(variable: str, fits: Callable[[str], bool]) -> list[psutil.Process]:
    """Every process whose mark, the value of an environment variable, fits."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if (mark := process.environ().get(variable)) and fits(mark):
                found.append(process)
    return found


def still(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live; a zombie does not, it only waits for its parent."""
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def end(find: Callable[[], list[psutil.Process]]) -> int:
    """Kill what `find` finds until it finds nothing: they may be forking meanwhile. Returns how many were killed.

    Twice nothing, that is: while a process executes another program, it shows no environment for a moment.
    """
    killed = nothing = 0
    for _ in range(10):
        found = set(still(find()))
        if not found:
            nothing += 1
            if nothing == 2:
                break
            time.sleep(0.02)
            continue
        nothing = 0
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed += 1
        # Not psutil.wait_procs: it would reap children of ours that asyncio waits for.
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and still(list(found)):
            time.sleep(0.005)
    return killed
