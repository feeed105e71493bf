"""Claiming: how an execution gets its one owner, whose number is the fence around everything that is written for it.

`running` claims before it runs anything. The number is that of this start of the server (the boot epoch), and recovery
goes by `epoch < boot epoch`, never by time; where servers share a store, each ownership has a number of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from parallax.events import Event, EventBus
from parallax.execution.journal import Journal
from parallax.failpoints import fp
from parallax.models import Execution, ExecutionState
from parallax.storage.statements import Change, guard, not_ended, set_execution
from parallax.storage.store import Store


class Claims:
    """The claims of one start of the server."""

    def __init__(self, store: Store, bus: EventBus) -> None:
        self._store = store
        self._bus = bus
        self._epoch = 0

    async def open(self) -> None:
        """Number this start of the server."""
        self._epoch = await self._store.next_epoch()

    async def number(self) -> int:
        """What the next execution is owned by: the start of the server; where several share, a number of its own."""
        return await self._store.next_epoch() if self._store.shared else self._epoch

    async def claim(
        self, execution: Execution, epoch: int, recoveries: int, told: Iterable[Event] = (), **columns: Any
    ) -> None:
        """Become its owner and tell it in one commit. Raises FencedError when another is the owner, or it has ended."""
        changes = {"state": str(ExecutionState.RUNNING), "epoch": epoch, "recoveries": recoveries} | columns
        if execution.state is ExecutionState.CANCELLING:
            changes.pop("state")
        owned = [guard(execution.id, execution.epoch), not_ended(execution.id)]
        change = Change([*owned, set_execution(execution.id, **changes)], list(told))
        self._bus.publish(await self._store.commit(change))
        if execution.epoch > 0:
            fp("recovery.epoch_bumped")

    async def journal(self, execution: Execution, epoch: int) -> Journal:
        """Take ownership: from here on only this owner may write for the execution, and it writes in this journal.

        Raises JournalError when what it did cannot be read, FencedError as `claim` does.
        """
        entries = await self._store.journal(execution.id)
        journal = Journal(self._store, self._bus, execution.id, epoch, entries)
        recoveries, told = 0, journal.event("execution.started", epoch=epoch)
        if execution.epoch > 0:
            # A recovery counts only if nothing was finished since the last one.
            newest = max((entry.epoch for entry in entries if entry.kind in {"result", "join"}), default=0)
            recoveries = 0 if newest >= execution.epoch else execution.recoveries + 1
            data = {"epoch": epoch, "from": execution.epoch, "finished": list(journal.finished)}
            told = Event(execution=execution.id, type="execution.resumed", data=data)
        await self.claim(execution, epoch, recoveries, [told], started_at=execution.started_at or time.time())
        fp("claim.committed")
        return journal

    async def blank(self, execution: Execution, epoch: int) -> Journal:
        """Take ownership of what can only be ended, because what it did cannot be read."""
        await self.claim(execution, epoch, execution.recoveries)
        return Journal(self._store, self._bus, execution.id, epoch, ())
