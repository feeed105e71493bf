"""Failpoints: places where a test may kill, fail or stall the server. Nothing in production.

`fp("result.committed_before_continue")` does nothing unless `arm` was called with a plan such as
`result.committed_before_continue=kill@3` (the third time that point is reached). Only `app` arms, and only when the
server was started with `--test-hooks`. The demo uses one to kill the server in the middle.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass


class FailpointError(RuntimeError):
    """Raised by a failpoint armed with `raise`."""


@dataclass(slots=True)
class _Plan:
    action: str
    at: int
    hits: int = 0


_armed: dict[str, _Plan] = {}


def arm(plan: str) -> None:
    """Read a plan `name=action[@N],...` with action kill, raise or stall; an empty plan disarms everything."""
    _armed.clear()
    for entry in filter(None, (part.strip() for part in plan.split(","))):
        name, _, what = entry.partition("=")
        action, _, at = what.partition("@")
        if action not in {"kill", "raise", "stall"}:
            raise ValueError(f"failpoint '{name}' has the unknown action '{action}', expected kill, raise or stall")
        _armed[name] = _Plan(action, int(at or 1))


def fp(name: str) -> None:
    """A named place. Free when nothing is armed."""
    if not _armed or (plan := _armed.get(name)) is None:
        return
    plan.hits += 1
    if plan.hits != plan.at:
        return
    match plan.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise FailpointError(name)
        case _:
            time.sleep(1.0)
