"""A store with executions, and the budgets of one life of a server: for the tests of budgets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from parallax.events import EventBus
from parallax.execution.budget import Budgets, Meter
from parallax.execution.clocks import Waits
from parallax.execution.journal import Journal
from parallax.models import Budget, Execution, ExecutionState
from parallax.storage.statements import Change, execution_row, insert_row
from parallax.storage.store import Store


class House:
    """A store with executions, and the budgets of one life of a server."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.bus = EventBus(store)
        self.waits = Waits()
        self.budgets = Budgets(self.waits)

    async def take_in(self, id_: str, parent: str | None = None) -> None:
        execution = Execution(
            id=id_, pattern="p", version="1", hash="h", input={}, repo=None, base=None, parent=parent,
            state=ExecutionState.RUNNING, created_at=time.time(), options={},
        )  # fmt: skip
        bundle = insert_row("bundles", {"hash": "h", "path": "p", "bundle": "{}"}, replace_row=True)
        await self.store.commit(Change([bundle, insert_row("executions", execution_row(execution))]))

    async def open(self, limit: Budget, id_: str = "e1", parent: str | None = None) -> Meter:
        journal = await Journal.load(self.store, self.bus, id_, 0)
        return await self.budgets.open(journal, self.store, limit, parent)

    async def told(self, type_: str, id_: str = "e1") -> list[Any]:
        return [event.data for event in await self.store.events(id_, 0) if event.type == type_]


@asynccontextmanager
async def living(path: Path) -> AsyncIterator[House]:
    """One life of a server on a store; another one may follow on the same."""
    async with Store(path) as store:
        yield House(store)


def turn(meter: Meter, agent: str = "e1.eng.1", step: str = "s1", **limits: Budget) -> Any:
    return meter.turn(agent_id=agent, role=agent.split(".")[1], step_key=step, task=f"e1/{step}/1", **limits)
