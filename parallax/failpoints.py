"""Failpoints: places where a test may kill, fail or stall the server. Nothing in production.

`fp("result.committed_before_continue")` does nothing unless `arm` was called with a plan such as
`result.committed_before_continue=kill@3` (the third time that point is reached). Only `app` arms, and only when the
server was started with `--test-hooks`. The demo uses one to kill the server in the middle. A point that strikes says so
on standard error, which is how a test knows that it was reached.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Final

# Every place by the number that the fault suite knows it by. `arm` takes no other name, and the suite strikes each.
# FP26 and FP27 were meant for an outbox, which Parallax does without (docs/decisions.md).
POINTS: Final[dict[str, str]] = {
    "FP01": "api.create.before_commit",
    "FP02": "api.create.committed_before_reply",
    "FP03": "claim.committed",
    "FP04": "clone.mid",
    "FP05": "clone.done_before_record",
    "FP06": "token.minted_before_use",
    "FP07": "snapshot.before_step",
    "FP08": "intent.before_commit",
    "FP09": "intent.committed_before_spawn",
    "FP10": "spawned_before_pid_record",
    "FP11": "pid_recorded",
    "FP12": "output.mid_batch",
    "FP13": "events.committed_before_publish",
    "FP14": "sse.mid_write",
    "FP15": "agent_exited_before_snapshot",
    "FP16": "snapshot_done_before_result",
    "FP17": "result.before_commit",
    "FP18": "result.committed_before_continue",
    "FP19": "budget.reserved",
    "FP20": "usage.reported_before_settle",
    "FP21": "timer.fired_before_record",
    "FP22": "approval.received_before_record",
    "FP23": "push.before",
    "FP24": "push.done_before_record",
    "FP25": "pr.created_before_record",
    "FP28": "cancel.recorded_before_kill",
    "FP29": "killed_before_record",
    "FP30": "final.before_commit",
    "FP31": "final.committed_before_cleanup",
    "FP32": "cleanup.mid",
    "FP33": "recovery.scan.mid",
    "FP34": "recovery.epoch_bumped",
    "FP35": "migration.mid",
    "FP36": "checkpoint.mid",
}
STALL_S: Final = 1.0


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
        if name not in POINTS.values():
            raise ValueError(f"there is no failpoint '{name}'")
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
    os.write(2, f"failpoint {name} {plan.action}\n".encode())
    match plan.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise FailpointError(name)
        case _:
            time.sleep(STALL_S)
