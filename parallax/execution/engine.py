"""ExecutionEngine: holds the executions that run here: begins them, finds those of a former life, lets them go.

`app` builds it, `intake` begins what is new, the doors call `cancel`, `pause`, `release`. Each execution is one task of
the engine's task group (`running`) and one owner of its journal (`claiming`). Every live execution has a task, always.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from parallax.errors import ConflictError, FencedError, StorageError
from parallax.events import Event, EventBus
from parallax.execution.questions import QuestionDesk
from parallax.execution.running import Collaborators, RunningExecution
from parallax.execution.sharing import Share
from parallax.failpoints import fp
from parallax.models import Execution, ExecutionState
from parallax.storage.space import Space
from parallax.storage.statements import Change, current, not_ended, set_execution, uncount_recovery
from parallax.telemetry import logger

WATCH_S: Final = 10.0
_log = logger("engine")
RELEASED: Final = (ExecutionState.PAUSED, ExecutionState.NEEDS_ATTENTION)
LIVE: Final = (ExecutionState.QUEUED, ExecutionState.RUNNING, ExecutionState.CANCELLING)


class ExecutionEngine:
    """Runs Programs and nothing else. `async with engine:` owns every execution's task."""

    def __init__(
        self, collaborators: Collaborators, *, bus: EventBus, desk: QuestionDesk, space: Space, runs: bool = True
    ) -> None:
        self._collaborators = collaborators
        self._store = collaborators.store
        self._bus = bus
        self._desk = desk
        self._space = space
        self._runs = runs
        self._group = asyncio.TaskGroup()
        self._watchdog: asyncio.Task[None] | None = None
        self._running: dict[str, RunningExecution] = {}
        self._share: Share | None = None
        self.ready = asyncio.Event()

    # -- the engine's own life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        await self._collaborators.claims.open()
        self._store.on_news(self._heard)
        if self._runs:
            await self._store.let_go(LIVE)  # of a former life: this one has its directory to itself
            await self._recover()
            watch = self._watch() if not self._store.shared else self._sharing().run()
            self._watchdog = self._group.create_task(watch, name="watchdog")
        self.ready.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ready.clear()
        self._desk.stop()
        if self._watchdog is not None:
            self._watchdog.cancel()
        stopped = {key: running.epoch for key, running in self._running.items() if running.claimed}
        for running in self._running.values():
            running.task.cancel()  # they stay `running` in the store: the next start resumes them
        await self._group.__aexit__(None, None, None)  # what failed around the engine is not wrapped by it
        await self._stopped_in_order(stopped)

    async def _stopped_in_order(self, executions: Mapping[str, int]) -> None:
        """A stop in good order is no crash: it does not count among an execution's recoveries, and leaves no lease."""
        try:
            for execution_id, epoch in executions.items():
                await self._store.commit(Change([uncount_recovery(execution_id, epoch)]))
            if self._runs:
                await self._store.let_go(LIVE)
        except StorageError as error:
            _log.error("the store refused", cause=str(error))

    async def _recover(self) -> None:
        """Begin every live execution that has no task; of a shared store those that nobody holds and that find room."""
        fp("recovery.scan.mid")
        if self._store.shared:
            room = self._collaborators.runtimes.limit - len(self._running)
            found = await self._store.lease(LIVE, room) if room > 0 else []
        else:
            found = await self._store.executions(states=LIVE, limit=10_000)
        for execution in found:
            self._begin(execution)

    def _sharing(self) -> Share:
        self._share = Share(
            self._store, held=lambda: self._running, lost=self._lost, look=self._look, take=self._recover
        )
        return self._share

    def _heard(self, execution_id: str | None) -> None:
        """Another server has written."""
        self._bus.hear(execution_id)
        if self._share is not None:
            self._share.hear(execution_id)

    def _lost(self, execution_id: str) -> None:
        """It belongs to another server now: stop, discard."""
        if (running := self._running.get(execution_id)) is not None:
            running.stop()

    async def _look(self, execution_id: str) -> None:
        """A person may have cancelled it by another server."""
        stored, running = await self._store.execution(execution_id), self._running.get(execution_id)
        if stored.state is ExecutionState.CANCELLING and running is not None:
            running.cancelled_elsewhere((stored.reason or "").removeprefix("cancelled by ") or "a person")

    async def _watch(self) -> None:
        """Every live execution has a task, always: one that lost it, because the store refused, gets another."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._space.scarce:
                continue  # what is begun now would only fail again, and be counted
            try:
                await self._recover()
            except StorageError as error:
                _log.error("the store refused", cause=str(error))

    @property
    def running(self) -> tuple[str, ...]:
        """Ids of the executions that run here now."""
        return tuple(self._running)

    def begin(self, execution: Execution) -> None:
        """It may run now: here, or in a shared store by whoever leases it first."""
        if self._share is not None:
            self._share.hear(execution.id)
        elif self._runs:
            self._begin(execution)

    def _begin(self, execution: Execution) -> None:
        if execution.id not in self._running:
            running = RunningExecution(execution, self._collaborators, self._group, self._ended)
            self._running[execution.id] = running

    def _ended(self, running: RunningExecution) -> None:
        if self._running.get(running.id) is running:  # it may have been released and begun anew meanwhile
            del self._running[running.id]

    # -- changing ------------------------------------------------------------------------------------------------------

    async def cancel(self, execution_id: str, by: str) -> Execution:
        """Cancel; returns at once, the execution ends `cancelled` when nothing of it runs any more."""
        execution = await self._store.execution(execution_id)
        if execution.state.final:
            raise ConflictError(f"execution '{execution_id}' has ended already ({execution.state})")
        if execution_id not in self._running and execution.state in RELEASED:
            execution = await self.release(execution_id)  # it ends as any other: its agents gone and its end recorded
        running = self._running.get(execution_id)
        if running is None:
            return await self._cancel_elsewhere(execution, by)
        await running.cancel(by)
        return await self._store.execution(execution_id)

    async def _cancel_elsewhere(self, execution: Execution, by: str) -> Execution:
        """Record it; the server that runs it, or the next one that takes it, hears of it and ends it."""
        if not self._store.shared:
            raise ConflictError(f"execution '{execution.id}' does not run in this server")
        change = Change(
            [
                current(execution.id, execution.epoch),
                not_ended(execution.id),
                set_execution(execution.id, state=str(ExecutionState.CANCELLING), reason=f"cancelled by {by}"),
            ],
            [Event(execution=execution.id, type="execution.cancelling", data={"by": by})],
        )
        try:
            self._bus.publish(await self._store.commit(change))
        except FencedError:
            raise ConflictError(f"execution '{execution.id}' changes hands just now: try again") from None
        self.begin(execution)
        return await self._store.execution(execution.id)

    async def release(self, execution_id: str) -> Execution:
        """A person lets an execution go on that is paused or needed attention; its recoveries are counted anew."""
        execution = await self._store.execution(execution_id)
        if execution.state not in RELEASED:
            raise ConflictError(
                f"execution '{execution_id}' is {execution.state}; what is paused or needs attention can go on"
            )
        if execution.state is ExecutionState.PAUSED and (running := self._running.get(execution_id)) is not None:
            await running.go_on()
            return await self._store.execution(execution_id)
        changes = [
            current(execution_id, execution.epoch),
            set_execution(
                execution_id, state=str(ExecutionState.RUNNING), reason=None, recoveries=0, owner=None, lease_until=None
            ),
        ]
        if (ending := self._running.get(execution_id)) is not None:
            await asyncio.wait({ending.task})  # it was parked a moment ago and is letting its agents go
        await self._store.commit(Change(changes))
        released = await self._store.execution(execution_id)
        self.begin(released)
        return released

    async def pause(self, execution_id: str, by: str) -> Execution:
        """What has begun comes to its end, nothing else begins, until `release`; also over a restart."""
        running, execution = self._running.get(execution_id), await self._store.execution(execution_id)
        if execution.state is not ExecutionState.RUNNING or running is None or not running.under_way:
            raise ConflictError(f"execution '{execution_id}' is {execution.state}; only what runs here can be paused")
        await running.pause(by)
        return await self._store.execution(execution_id)

    async def cancel_step(self, execution_id: str, step: str, by: str) -> tuple[str, ...]:
        """Cancel a running step, or all that runs in the branches of a join; the execution goes on without it.

        Returns the keys of what was cancelled. Raises NotFoundError, ConflictError.
        """
        await self._store.execution(execution_id)
        running = self._running.get(execution_id)
        if running is None or not running.under_way:
            raise ConflictError(f"execution '{execution_id}' does not run in this server")
        return await running.cancel_step(step, by)

    async def tell(self, execution_id: str, agent_id: str, text: str, by: str) -> None:
        """A person's words to an agent, kept until a turn of it has carried them. Raises ConflictError."""
        running = self._running.get(execution_id)
        if running is None or not running.claimed:
            raise ConflictError(f"execution '{execution_id}' does not run in this server")
        await running.tell(agent_id, text, by)
