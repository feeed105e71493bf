"""RunningExecution: one execution that runs here, from its claim to its end, and what a person may do to it meanwhile.

`engine` makes one per execution and holds it for as long as its task lives. Whatever happens in it stays in it: a
failing execution never pulls down its neighbours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from parallax import prism
from parallax.agents.supervisor import AgentSupervisor
from parallax.errors import (
    AttentionNeeded,
    BudgetExhausted,
    ConflictError,
    FencedError,
    JournalError,
    ParallaxError,
    StorageError,
    leaf,
)
from parallax.events import Event
from parallax.execution.budget import Budgets
from parallax.execution.claiming import Claims
from parallax.execution.clocks import Waits
from parallax.execution.course import Course
from parallax.execution.course_factory import CourseFactory
from parallax.execution.ending import Ending
from parallax.execution.host import STOOD, ExecutionHost
from parallax.execution.interrupts import Interrupts
from parallax.execution.journal import Journal
from parallax.execution.recovery import Recovery
from parallax.execution.runtime_manager import RuntimeManager, names_of
from parallax.failpoints import fp
from parallax.models import Execution, ExecutionState
from parallax.storage.statements import not_ended, set_execution
from parallax.storage.store import Store
from parallax.tasks import to_its_end
from parallax.telemetry import logger

_log = logger("engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collaborators:
    """What every execution of this server is run with."""

    store: Store
    runtimes: RuntimeManager
    supervisor: AgentSupervisor
    budgets: Budgets
    waits: Waits
    recovery: Recovery
    claims: Claims
    courses: CourseFactory
    ending: Ending


class RunningExecution:
    """One execution's task. `ended` is called when nothing of it is left."""

    def __init__(
        self,
        execution: Execution,
        collaborators: Collaborators,
        group: asyncio.TaskGroup,
        ended: Callable[[RunningExecution], None],
    ) -> None:
        self._execution = execution  # as it was when it began
        self._with = collaborators
        self._store = collaborators.store
        self._ended = ended
        self._begun = False
        self._interrupts: Interrupts | None = None
        self._floor: Callable[[], None] | None = None  # gives back the floor that a suspect had to itself
        self.id = execution.id
        self.journal: Journal | None = None
        self.cancelled_by: str | None = None
        self.epoch = 0  # what it owns the execution by, once it does
        self.task = group.create_task(self._run(), name=f"execution {execution.id}")

    @property
    def claimed(self) -> bool:
        """Whether it has its journal: from its claim on."""
        return self.journal is not None

    @property
    def under_way(self) -> bool:
        """Whether its program has begun."""
        return self._interrupts is not None

    # -- what is done to it --------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancel its task, if that has begun: else it would never run, nor record its end."""
        if self._begun:
            self.task.cancel()

    async def cancel(self, by: str) -> None:
        """Record that it is to be cancelled, and stop it. A second one changes nothing."""
        if self.cancelled_by is not None:
            return
        self.cancelled_by = by
        try:
            if self.journal is not None:
                await self.journal.commit(
                    [
                        not_ended(self.id),
                        set_execution(self.id, state=str(ExecutionState.CANCELLING), reason=f"cancelled by {by}"),
                    ],
                    [self.journal.event("execution.cancelling", by=by)],
                )
            fp("cancel.recorded_before_kill")
        except FencedError:
            raise ConflictError(f"execution '{self.id}' has just ended") from None
        except BaseException:
            self.cancelled_by = None  # it was not stopped: whoever asks again is heard
            raise
        self.stop()

    def cancelled_elsewhere(self, by: str) -> None:
        """Another server has recorded that it is to be cancelled."""
        if self.cancelled_by is None:
            self.cancelled_by = by
            self.stop()

    async def pause(self, by: str) -> None:
        """What has begun comes to its end, nothing else begins, until `go_on`. Only while it is under way."""
        journal, interrupts = self._under_way()
        interrupts.pause()
        await journal.commit(
            [not_ended(self.id), set_execution(self.id, state=str(ExecutionState.PAUSED), reason=f"paused by {by}")],
            [journal.event("execution.paused", by=by)],
        )

    async def go_on(self) -> None:
        """End a pause."""
        journal, interrupts = self._under_way()
        data = {"epoch": self.epoch, "from": self.epoch, "finished": list(journal.finished)}
        await journal.commit(
            [not_ended(self.id), set_execution(self.id, state=str(ExecutionState.RUNNING), reason=None)],
            [Event(execution=self.id, type="execution.resumed", data=data)],
        )
        interrupts.go_on()

    async def cancel_step(self, step: str, by: str) -> tuple[str, ...]:
        """Cancel a running step, or what runs in the branches of a join; returns their keys. Only while under way.

        Raises ConflictError when nothing of that name runs.
        """
        return await self._under_way()[1].cancel(step, by)

    async def tell(self, agent_id: str, text: str, by: str) -> None:
        """A person's words to an agent. Only once it is claimed."""
        assert self.journal is not None
        told = self.journal.event("agent.told", agent_id=agent_id, text=text, by=by)
        await self.journal.signal("tell", f"agent {agent_id}", {"agent": agent_id, "text": text, "by": by}, [told])

    def _under_way(self) -> tuple[Journal, Interrupts]:
        assert self.journal is not None
        assert self._interrupts is not None
        return self.journal, self._interrupts

    # -- its course ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        self._begun = True
        try:
            if self.cancelled_by is not None:
                await self._end_cancelled()
                return
            async with self._with.runtimes.place():
                await self._own(self._execution)
        except asyncio.CancelledError:
            if self.cancelled_by is None:
                raise  # the server stops: the execution stays as it is
            _uncancelled()
            await self._kept(self._end_cancelled())
        except FencedError:
            pass  # somebody else owns it: stop, discard
        except StorageError as error:
            _log.error("the store refused", execution=self.id, cause=str(error))  # it stays live: resumed later
        except Exception as error:  # noqa: BLE001 - the last line: the cause is recorded, the neighbours go on
            await self._kept(self._park(f"{type(error).__name__}: {error}"))
        finally:
            if self._floor is not None:
                self._floor()
            try:
                await self._kept(self._with.supervisor.release(self.id))
            finally:  # also when it is cancelled while its agents go
                self._with.budgets.close(self.id)
                self._with.waits.close(self.id)
                self._ended(self)

    async def _kept(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it to its end; when the store refuses, say so and leave the execution to the next start."""

        async def said() -> None:
            try:
                await work
            except StorageError as error:
                _log.error("the store refused", execution=self.id, cause=str(error))

        await to_its_end(said())

    async def _number(self) -> int:
        """What it owns its execution by: taken once."""
        if not self.epoch:
            self.epoch = await self._with.claims.number()
        return self.epoch

    async def _end_cancelled(self) -> None:
        """Cancelled before its program ran."""
        stored = await self._store.execution(self.id)
        if self.journal is None:
            epoch = await self._number()
            try:
                self.journal = await self._with.claims.journal(stored, epoch)
            except JournalError:  # what it did cannot be read, but that it ends here can be told
                self.journal = await self._with.claims.blank(stored, epoch)
        cause = f"cancelled by {self.cancelled_by}"
        await self._with.ending.end(stored, self.journal, ExecutionState.CANCELLED, cause=cause)

    async def _park(self, cause: str) -> None:
        await self._with.ending.park(self.id, await self._number(), cause)

    async def _own(self, execution: Execution) -> None:
        """Claim it, when its turn has come, and drive it."""
        claims, recovery, epoch = self._with.claims, self._with.recovery, await self._number()
        if execution.epoch > 0:
            async with recovery.turn(execution) as self._floor:
                execution = await self._store.execution(self.id)  # it may have been cancelled while it waited
                if recovery.spent(execution):
                    await claims.claim(execution, epoch, execution.recoveries)
                    await self._park(f"{recovery.allowed} recoveries without a new result")
                    return
                journal = await claims.journal(execution, epoch)
        else:
            journal = await claims.journal(execution, epoch)
        self.journal = journal
        if execution.state is ExecutionState.CANCELLING or self.cancelled_by:
            cause = execution.reason or "cancelled"
            await self._with.ending.end(execution, journal, ExecutionState.CANCELLED, cause=cause)
            return
        execution = replace(execution, epoch=epoch, started_at=execution.started_at or time.time())
        await self._drive(await self._with.courses.make(execution, journal))

    async def _drive(self, course: Course) -> None:
        """Run the program and record how it ended."""
        execution, ending = course.execution, self._with.ending
        path, bundle = await self._store.bundle(execution.hash)
        program = await self._with.runtimes.program(path, bundle, execution.hash)
        host = ExecutionHost(course, printed=await self._store.count_events(execution.id, "log.printed"))
        self._interrupts = host.interrupts
        try:
            async with course.waits.run(self.id, _time_left(execution, course)) as course.clock:
                evaluation = await self._with.runtimes.runtime(program, host, names_of(execution)).run()
            await host.flush()
            await host.interrupts.gate()
        except (asyncio.CancelledError, TimeoutError, BaseExceptionGroup, ParallaxError, prism.PrismError) as error:
            cause = leaf(error)
            if self.task.cancelling():  # whatever else it met: a task group that is failing loses a cancellation
                cause = asyncio.CancelledError()
            elif course.clock is not None and course.clock.limit.expired():
                cause = BudgetExhausted("the time that this run may take is up; what is finished is kept")
            await self._ended_early(course, cause)
            return
        await ending.publish(course)
        try:
            undone = await ending.finalise(course)
        except asyncio.CancelledError as cancelled:
            await self._ended_early(course, cancelled)
            return
        await ending.end(
            execution, course.journal, ExecutionState.PARTIAL if undone else ExecutionState.SUCCEEDED,
            result=evaluation.value, confidence=evaluation.confidence, cause=undone,
            usage=course.meter.spent,
        )  # fmt: skip

    async def _ended_early(self, course: Course, cause: BaseException) -> None:
        match cause:
            case asyncio.CancelledError() | prism.PrismCancelled() if self.cancelled_by is None:
                raise asyncio.CancelledError from cause  # the server stops: the execution stays as it is
            case asyncio.CancelledError() | prism.PrismCancelled():
                _uncancelled()
                await self._with.supervisor.release(self.id, "cancelled")
                fp("killed_before_record")
                state, told = ExecutionState.CANCELLED, f"cancelled by {self.cancelled_by}"
            case AttentionNeeded():
                await self._with.supervisor.release(self.id, "it waits for a person")
                await self._park(str(cause))
                return
            case BudgetExhausted():
                state, told = ExecutionState.PARTIAL, str(cause)
            case StorageError():
                raise cause
            case prism.PrismError():
                state, told = ExecutionState.FAILED, _program_error(cause)
            case ParallaxError():
                state, told = ExecutionState.FAILED, str(cause)
            case _:
                raise cause
        await self._with.ending.publish(course)
        await self._with.ending.end(course.execution, course.journal, state, cause=told, usage=course.meter.spent)


def _uncancelled() -> None:
    """This task was cancelled to stop the work, not the record of its end."""
    current = asyncio.current_task()
    if current is not None:
        current.uncancel()


def _time_left(execution: Execution, course: Course) -> float | None:
    """Seconds that the run may still take, by the clock since it began; what waited for a person does not count."""
    limit_s = course.meter.limit.wall_s
    stood_s = sum(kept["s"] for kept in course.journal.signals(STOOD))
    began = execution.started_at or execution.created_at
    return None if limit_s is None else limit_s + stood_s - (time.time() - began)


def _program_error(error: prism.PrismError) -> str:
    place = f" (line {error.line} of the compiled program)" if error.line else ""
    return f"{error.message}{place}"
