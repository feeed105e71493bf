"""Ending: what is done when an execution ends or is left to a person, in the order that a crash may cut anywhere.

`running` calls it. The branches are published first, then whatever runs for the execution is let go, and the last event
is told in the commit that records the end.
"""

from __future__ import annotations

import time

from parallax.agents.supervisor import AgentSupervisor
from parallax.errors import JournalError, RemoteError, StepFailed, UsageError
from parallax.events import Event, EventBus
from parallax.execution.course import Course
from parallax.execution.finalising import Finalising
from parallax.execution.journal import Journal
from parallax.execution.questions import QuestionDesk
from parallax.failpoints import fp
from parallax.models import Execution, ExecutionState, Json, Usage
from parallax.storage.statements import Change, guard, not_ended, set_execution
from parallax.storage.store import Store
from parallax.workspaces.credentials import CredentialService
from parallax.workspaces.finalising import Finaliser, Wish
from parallax.workspaces.service import WorkspaceService


class Ending:
    """Ends executions: one for all that run here."""

    def __init__(
        self,
        *,
        store: Store,
        bus: EventBus,
        supervisor: AgentSupervisor,
        desk: QuestionDesk,
        credentials: CredentialService,
        workspaces: WorkspaceService,
        finaliser: Finaliser,
    ) -> None:
        self._store = store
        self._bus = bus
        self._supervisor = supervisor
        self._desk = desk
        self._credentials = credentials
        self._workspaces = workspaces
        self._finaliser = finaliser

    async def publish(self, course: Course) -> None:
        """The branches appear in the user's repository, under refs/heads/parallax/ alone."""
        if course.repo is None:
            return
        published = await self._workspaces.publish(course.repo, course.execution.id)
        event = course.journal.event
        await course.journal.tell(
            *(event("branch.published", branch=branch, commit=commit) for branch, commit in published)
        )

    async def finalise(self, course: Course) -> str | None:
        """Push, and open a pull request, where the run was asked to; returns why that was not done."""
        wish = Wish.read((course.execution.options or {}).get("wish") or {})
        if not wish or course.repo is None:
            return None
        try:
            await Finalising(course, self._finaliser).run(wish)
        except (RemoteError, UsageError, StepFailed) as error:
            name = course.execution.id[-6:]
            return f"the work is done and kept, but {error} (`parallax land {name} --push` tries again)"
        return None

    async def end(
        self,
        execution: Execution,
        journal: Journal,
        state: ExecutionState,
        *,
        result: Json = None,
        confidence: float | None = None,
        usage: Usage | None = None,
        cause: str | None = None,
    ) -> None:
        """Record the end and tell it, once nothing of the execution runs and nobody is asked for it any more."""
        await self._supervisor.release(execution.id)  # before the last event: nothing of it runs when its end is told
        await self._desk.withdraw(journal)
        await self._credentials.release(execution.id)
        now, usage = time.time(), usage or Usage()
        try:
            blob, _ = await self._store.keep_if_large(result, "the result")
        except JournalError as too_large:
            state, blob, result, confidence, cause = ExecutionState.FAILED, None, None, None, str(too_large)
        result = result if blob is None else None  # it is in the blob, which is on disk by now
        fp("final.before_commit")
        await journal.commit(
            [
                set_execution(
                    execution.id, state=str(state), reason=cause, result=result, result_blob=blob,
                    confidence=confidence, usage=usage, ended_at=now,
                )
            ],
            [
                journal.event(
                    f"execution.{state}", result=result, result_blob=blob, confidence=confidence, usage=usage,
                    cause=cause, duration_s=round(now - execution.created_at, 3),
                )
            ],
        )  # fmt: skip
        fp("final.committed_before_cleanup")

    async def park(self, execution_id: str, epoch: int, cause: str) -> None:
        """Leave it to a person. What could not even be claimed, because its journal is damaged, is claimed with it."""
        event = Event(execution=execution_id, type="execution.needs_attention", data={"cause": cause})
        owner = (await self._store.execution(execution_id)).epoch
        writes = [
            guard(execution_id, min(owner, epoch)),
            not_ended(execution_id),
            set_execution(execution_id, state=str(ExecutionState.NEEDS_ATTENTION), epoch=epoch, reason=cause),
        ]
        self._bus.publish(await self._store.commit(Change(writes, [event])))
