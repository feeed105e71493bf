"""Interrupts: what a person may do to an execution under way: cancel a step, cancel the branches of a join, pause.

`host` lets each effect pass the gate and act through here; `running` passes on `cancel` and `pause`. A step is
cancelled for good: the wish is in the journal before anything is ended, and the step has failed for its program, which
may catch that. A pause lets what has begun come to its end, and nothing else begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from parallax.errors import ConflictError, StepFailed
from parallax.execution.journal import Journal
from parallax.models import hash12
from parallax.prism import Effect

Value = TypeVar("Value")
CANCEL: Final = "cancel"
# Words that take their time; the others are done before anybody could say a word.
LASTING: Final = frozenset(
    {"assign", "fanout", "review", "approve", "verify", "integrate", "askHuman", "escalate", "sleep"}
)


class Interrupts:
    """The interrupts of one execution."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._acting: dict[str, tuple[Effect, asyncio.Task[Any]]] = {}
        self._cancelled: dict[str, str] = {wish["step"]: wish["by"] for wish in journal.signals(CANCEL)}
        self._open = asyncio.Event()
        self._open.set()

    def pause(self) -> None:
        """Close the gate."""
        self._open.clear()

    def go_on(self) -> None:
        """Open the gate."""
        self._open.set()

    async def gate(self) -> None:
        """Wait while the execution is paused."""
        await self._open.wait()

    async def act(self, effect: Effect, work: Coroutine[Any, Any, Value]) -> Value:
        """Do an effect in a task of its own, so that it can be cancelled alone. Raises StepFailed when it was."""
        if effect.kind not in LASTING:
            return await work
        if effect.key in self._cancelled:
            work.close()
            raise self._told(effect.key)
        task = asyncio.ensure_future(work)
        self._acting[effect.key] = (effect, task)
        try:
            return await task
        except asyncio.CancelledError:
            whole = asyncio.current_task()
            if effect.key in self._cancelled and whole is not None and not whole.cancelling():
                raise self._told(effect.key) from None
            raise
        finally:
            del self._acting[effect.key]

    def _told(self, key: str) -> StepFailed:
        return StepFailed(f"'{key}' was cancelled by {self._cancelled[key]}")

    async def cancel(self, step: str, by: str) -> tuple[str, ...]:
        """Cancel a running step, or what runs in the branches of a join, named by key or id. Returns their keys.

        Returns when the wish is on disk and nothing of them runs any more. Raises ConflictError.
        """
        found = {key: task for key, (effect, task) in self._acting.items() if _named(step, effect)}
        if not found:
            running = ", ".join(sorted(self._acting)) or "none"
            raise ConflictError(f"no step '{step}' is running (running: {running})")
        for key in found:
            event = self._journal.event("step.cancelled", step_key=key, cause=f"cancelled by {by}")
            await self._journal.signal(CANCEL, key, {"step": key, "by": by}, [event])
            self._cancelled[key] = by
        for task in found.values():
            task.cancel()
        await asyncio.wait(set(found.values()))
        return tuple(found)


def _named(step: str, effect: Effect) -> bool:
    joins = [join for join, _ in effect.branch or ()]
    return any(step in (key, hash12(key)) for key in (effect.key, *joins))
