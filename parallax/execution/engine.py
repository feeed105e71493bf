"""ExecutionEngine: takes executions in, runs them to their end, cancels them, and resumes them after a crash.

`app` builds it, the doors call `submit`, `cancel`, `answer`. Each execution is one task of the engine's task group and
one owner of its journal: the number of this start of the server (the boot epoch) is the fence. Recovery goes by
`epoch < boot epoch`, never by time. A failing execution never pulls down its neighbours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import orjson

from parallax import prism
from parallax.agents.supervisor import AgentSupervisor
from parallax.errors import (
    AgentUnavailable,
    AttentionNeeded,
    BudgetExhausted,
    ConflictError,
    FencedError,
    JournalError,
    ParallaxError,
    RemoteError,
    RepositoryError,
    StepFailed,
    StorageError,
    UsageError,
    leaf,
)
from parallax.events import Event, EventBus
from parallax.execution.agent_proxy import AgentProxy, TypeProblem
from parallax.execution.budget import Budgets, options_budget
from parallax.execution.course import Course
from parallax.execution.finalising import Finalising
from parallax.execution.host import ExecutionHost
from parallax.execution.interrupts import Interrupts
from parallax.execution.journal import Journal, input_hash
from parallax.execution.llm import ModelAgents
from parallax.execution.questions import QuestionDesk
from parallax.execution.recovery import Recovery
from parallax.execution.resilience import RetryPolicy
from parallax.execution.runtime_manager import RuntimeManager
from parallax.execution.sharing import Share
from parallax.execution.team_tools import TeamTools
from parallax.failpoints import fp
from parallax.models import Budget, Execution, ExecutionState, Json, Usage, new_id
from parallax.patterns.engine import Pattern, PatternEngine, check_input
from parallax.patterns.plan import Plan, plan_of
from parallax.ports import Doors
from parallax.redaction import Secret
from parallax.storage.space import Space
from parallax.storage.statements import (
    Change,
    Write,
    current,
    execution_row,
    guard,
    insert_row,
    not_ended,
    set_execution,
    uncount_recovery,
)
from parallax.storage.store import Store
from parallax.tasks import to_its_end
from parallax.telemetry import logger
from parallax.workspaces.checks import CheckRunner
from parallax.workspaces.credentials import CredentialService, Wanted
from parallax.workspaces.finalising import Finaliser, Wish
from parallax.workspaces.integration import Integration
from parallax.workspaces.profile import Profile
from parallax.workspaces.remotes import Errand
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService

WATCH_S: Final = 10.0
_log = logger("engine")
RELEASED: Final = (ExecutionState.PAUSED, ExecutionState.NEEDS_ATTENTION)
LIVE: Final = (ExecutionState.QUEUED, ExecutionState.RUNNING, ExecutionState.CANCELLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What somebody asks for. `budget` is in micro-dollars; `agent` replaces every role's types."""

    pattern: str
    input: Mapping[str, Json] = field(default_factory=dict)
    repo: str | None = None
    base: str | None = None
    with_changes: bool = False
    agent: str | None = None
    model: str | None = None
    budget: int | None = None
    budget_tokens: int | None = None
    budget_turns: int | None = None
    budget_time_s: float | None = None
    auto_resume: bool = True
    depth: int | None = None  # so many commits of a URL's history
    wish: Wish = field(default_factory=Wish)
    token: Secret | None = None  # for the repository's remote, for this execution alone; no part of what is asked for

    @property
    def budgets(self) -> dict[str, float | None]:
        """The limits by name, as they are kept with the execution."""
        return {
            "budget": self.budget, "budget_tokens": self.budget_tokens, "budget_turns": self.budget_turns,
            "budget_time_s": self.budget_time_s,
        }  # fmt: skip

    @property
    def hash(self) -> str:
        """What an idempotency key is tied to."""
        return input_hash(
            "submission",
            {
                "pattern": self.pattern, "input": dict(self.input), "repo": self.repo, "base": self.base,
                "with_changes": self.with_changes, "agent": self.agent, "model": self.model,
                "auto_resume": self.auto_resume, **self.budgets, "depth": self.depth,
                "wish": asdict(self.wish),
            },
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A submission that was looked at: nothing is written yet."""

    submission: Submission
    pattern: Pattern
    plan: Plan
    input: dict[str, Json]
    repo: Repository | None
    agents: dict[str, str]


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    journal: Journal | None = None
    cancelled_by: str | None = None
    begun: bool = False
    interrupts: Interrupts | None = None
    epoch: int = 0  # what it owns the execution by, once it does
    floor: Callable[[], None] | None = None  # gives back the floor that a suspect had to itself


class ExecutionEngine:
    """Runs Programs and nothing else. `async with engine:` owns every execution's task."""

    def __init__(
        self,
        *,
        store: Store,
        bus: EventBus,
        patterns: PatternEngine,
        runtimes: RuntimeManager,
        supervisor: AgentSupervisor,
        desk: QuestionDesk,
        tools: TeamTools,
        workspaces: WorkspaceService,
        integration: Integration,
        checks: CheckRunner,
        credentials: CredentialService,
        finaliser: Finaliser,
        profile_of: Callable[[Repository], Any],
        type_problem: TypeProblem,
        default_types: tuple[str, ...],
        places: int,
        homes: Path,
        retry: RetryPolicy,
        budgets: Budgets,
        doors: Doors,
        recoveries: int,
        space: Space,
        runs: bool = True,
    ) -> None:
        self._store = store
        self._bus = bus
        self._patterns = patterns
        self._runtimes = runtimes
        self._supervisor = supervisor
        self._desk = desk
        self._tools = tools
        self._workspaces = workspaces
        self._integration = integration
        self._checks = checks
        self._credentials = credentials
        self._finaliser = finaliser
        self._profile_of = profile_of
        self._type_problem = type_problem
        self._default_types = default_types
        self._places = asyncio.Semaphore(places)
        self._homes = homes
        self._retry = retry
        self._budgets = budgets
        self._doors = doors
        self._recovery = Recovery(recoveries)
        self._space = space
        self._runs = runs
        self._group = asyncio.TaskGroup()
        self._watchdog: asyncio.Task[None] | None = None
        self._running: dict[str, _Running] = {}
        self._epoch = 0
        self._share: Share | None = None
        self.ready = asyncio.Event()

    # -- the engine's own life -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._epoch = await self._store.next_epoch()
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
        stopped = {key: running.epoch for key, running in self._running.items() if running.journal is not None}
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
            room = self._runtimes.limit - len(self._running)
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
        if (running := self._running.get(execution_id)) is not None and running.begun:
            running.task.cancel()

    async def _look(self, execution_id: str) -> None:
        """A person may have cancelled it by another server."""
        stored, running = await self._store.execution(execution_id), self._running.get(execution_id)
        if stored.state is ExecutionState.CANCELLING and running is not None and running.cancelled_by is None:
            running.cancelled_by = (stored.reason or "").removeprefix("cancelled by ") or "a person"
            if running.begun:
                running.task.cancel()

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

    def _ready_to_run(self, execution: Execution) -> None:
        """It may run now: here, or in a shared store by whoever leases it first."""
        if self._share is not None:
            self._share.hear(execution.id)
        elif self._runs:
            self._begin(execution)

    def _begin(self, execution: Execution) -> None:
        if execution.id in self._running:
            return
        task = self._group.create_task(self._guarded(execution), name=f"execution {execution.id}")
        self._running[execution.id] = _Running(task)

    # -- taking in -----------------------------------------------------------------------------------------------------

    async def prepare(self, submission: Submission) -> Prepared:
        """Look at all that a submission names before anything is written. Raises UsageError, AgentUnavailable."""
        pattern = self._patterns.get(submission.pattern)
        given = check_input(pattern, submission.input)
        plan = plan_of(pattern, given)
        agents = self.agents_for(plan, submission)
        repo = None
        if submission.repo is not None:
            errand = Errand(url=submission.repo, token=submission.token)
            repo = await self._workspaces.open_repository(
                submission.repo, submission.base, with_changes=submission.with_changes, depth=submission.depth,
                errand=errand,
            )  # fmt: skip
            if submission.wish:
                await self._finaliser.check(repo, submission.wish, errand)
        elif _needs_repository(plan):
            raise RepositoryError(f"pattern '{pattern.name}' works on a repository: give one with --repo DIR")
        if submission.wish and repo is None:
            raise UsageError("there is no repository that could be pushed: give one with --repo, or leave --push out")
        return Prepared(submission=submission, pattern=pattern, plan=plan, input=given, repo=repo, agents=agents)

    def agents_for(self, plan: Plan, submission: Submission) -> dict[str, str]:
        """The agent type of every role, found ready now: a team that cannot start should not begin."""
        chosen: dict[str, str] = {}
        for role in plan.chart.roles.values():
            types = (submission.agent,) if submission.agent else role.agent_types or self._default_types
            problems = {type_: self._type_problem(type_) for type_ in types}
            ready = next((type_ for type_, problem in problems.items() if problem is None), None)
            if ready is None:
                first = next(iter(problems.values()))
                more = "" if submission.agent else f" (none of {', '.join(types)} is ready: `parallax doctor` says why)"
                raise AgentUnavailable(f"no agent for role '{role.name}': {first}{more}")
            chosen[role.name] = ready
        if not plan.chart.roles and submission.agent and (problem := self._type_problem(submission.agent)):
            raise AgentUnavailable(problem)
        return chosen

    async def submit(self, submission: Submission, *, key: str | None = None) -> tuple[Execution, bool]:
        """Take an execution in; returns it once it is on disk, and whether it is new.

        A known idempotency key returns the execution it stands for; another body under it raises UsageError.
        """
        if (known := await self.repeated(key, submission.hash)) is not None:
            return known, False
        prepared = await self.prepare(submission)
        execution = Execution(
            id=new_id(),
            pattern=prepared.pattern.name,
            version=prepared.pattern.version,
            hash=prepared.pattern.hash,
            input=prepared.input,
            repo=prepared.repo.location if prepared.repo else None,
            base=prepared.repo.base_commit if prepared.repo else None,
            base_branch=prepared.repo.base_branch if prepared.repo else None,
            state=ExecutionState.QUEUED,
            created_at=time.time(),
            options={
                "agents": prepared.agents, "agent": submission.agent, "model": submission.model,
                "path": prepared.pattern.path, "auto_resume": submission.auto_resume, **submission.budgets,
                "wish": asdict(submission.wish),
            },
        )  # fmt: skip
        shared = []
        if submission.token is not None and prepared.repo is not None:
            url = await self._workspaces.remote_of(prepared.repo)
            wanted = Wanted(url=url, access="write", execution=execution.id)
            shared.append(insert_row("credentials", self._credentials.row(wanted, submission.token, source="user")))
        return await self.admit(execution, prepared.pattern.program, key=key, asked_hash=submission.hash, shared=shared)

    async def admit(
        self,
        execution: Execution,
        program: prism.Program,
        *,
        key: str | None,
        asked_hash: str,
        shared: Iterable[Write] = (),
        told: Iterable[Event] = (),
    ) -> tuple[Execution, bool]:
        """Make a new execution durable and begin it; `shared` and `told` are what it begins with.

        Raises StorageFull when the disk is too full for new work.
        """
        self._space.check()
        writes = [
            insert_row(
                "bundles",
                {"hash": program.hash, "path": program.path, "bundle": orjson.dumps(dict(program.bundle)).decode()},
                replace_row=True,
            ),
            insert_row("executions", execution_row(execution)),
            *shared,
        ]
        if key is not None:
            row = {"key": key, "body_hash": asked_hash, "execution": execution.id, "at": time.time()}
            writes.append(insert_row("idempotency", row))
        queued = Event(
            execution=execution.id,
            type="execution.queued",
            data={"pattern": execution.pattern, "version": execution.version, "hash": execution.hash},
        )
        fp("api.create.before_commit")
        try:
            self._bus.publish(await self._store.commit(Change(writes, [queued, *told])))
        except FencedError:
            if (known := await self.repeated(key, asked_hash)) is None:
                raise
            return known, False  # the same key, a moment earlier
        fp("api.create.committed_before_reply")
        self._ready_to_run(execution)
        return execution, True

    async def repeated(self, key: str | None, asked_hash: str) -> Execution | None:
        """What an idempotency key stands for, if it was used before. Raises UsageError when with another request."""
        if key is None or (known := await self._store.idempotent(key)) is None:
            return None
        body_hash, execution_id = known
        if body_hash != asked_hash:
            raise UsageError(f"the idempotency key '{key}' was used with another request; take a new key")
        return (await self._store.execution(execution_id)).as_accepted()

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
        if running.cancelled_by is None:
            running.cancelled_by = by
            if running.journal is not None:
                try:
                    await running.journal.commit(
                        [
                            not_ended(execution_id),
                            set_execution(
                                execution_id, state=str(ExecutionState.CANCELLING), reason=f"cancelled by {by}"
                            ),
                        ],
                        [running.journal.event("execution.cancelling", by=by)],
                    )
                except FencedError:
                    raise ConflictError(f"execution '{execution_id}' has just ended") from None
            fp("cancel.recorded_before_kill")
            if running.begun:  # a task that is cancelled before its first step would never run, nor record its end
                running.task.cancel()
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
        self._ready_to_run(execution)
        return await self._store.execution(execution.id)

    async def release(self, execution_id: str) -> Execution:
        """A person lets an execution go on that is paused or needed attention; its recoveries are counted anew."""
        execution = await self._store.execution(execution_id)
        if execution.state not in RELEASED:
            raise ConflictError(
                f"execution '{execution_id}' is {execution.state}; what is paused or needs attention can go on"
            )
        if execution.state is ExecutionState.PAUSED and (running := self._running.get(execution_id)) is not None:
            return await self._unpaused(execution, running)
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
        self._ready_to_run(released)
        return released

    async def _unpaused(self, execution: Execution, running: _Running) -> Execution:
        assert running.journal is not None
        assert running.interrupts is not None
        data = {"epoch": running.epoch, "from": running.epoch, "finished": list(running.journal.finished)}
        await running.journal.commit(
            [not_ended(execution.id), set_execution(execution.id, state=str(ExecutionState.RUNNING), reason=None)],
            [Event(execution=execution.id, type="execution.resumed", data=data)],
        )
        running.interrupts.go_on()
        return await self._store.execution(execution.id)

    async def pause(self, execution_id: str, by: str) -> Execution:
        """What has begun comes to its end, nothing else begins, until `release`; also over a restart."""
        running, execution = self._running.get(execution_id), await self._store.execution(execution_id)
        if execution.state is not ExecutionState.RUNNING or running is None or running.interrupts is None:
            raise ConflictError(f"execution '{execution_id}' is {execution.state}; only what runs here can be paused")
        assert running.journal is not None
        running.interrupts.pause()
        await running.journal.commit(
            [
                not_ended(execution_id),
                set_execution(execution_id, state=str(ExecutionState.PAUSED), reason=f"paused by {by}"),
            ],
            [running.journal.event("execution.paused", by=by)],
        )
        return await self._store.execution(execution_id)

    async def cancel_step(self, execution_id: str, step: str, by: str) -> tuple[str, ...]:
        """Cancel a running step, or all that runs in the branches of a join; the execution goes on without it.

        Returns the keys of what was cancelled. Raises NotFoundError, ConflictError.
        """
        await self._store.execution(execution_id)
        running = self._running.get(execution_id)
        if running is None or running.interrupts is None:
            raise ConflictError(f"execution '{execution_id}' does not run in this server")
        return await running.interrupts.cancel(step, by)

    async def tell(self, execution_id: str, agent_id: str, text: str, by: str) -> None:
        """A person's words to an agent, kept until a turn of it has carried them. Raises ConflictError."""
        running = self._running.get(execution_id)
        if running is None or running.journal is None:
            raise ConflictError(f"execution '{execution_id}' does not run in this server")
        told = running.journal.event("agent.told", agent_id=agent_id, text=text, by=by)
        await running.journal.signal("tell", f"agent {agent_id}", {"agent": agent_id, "text": text, "by": by}, [told])

    # -- running -------------------------------------------------------------------------------------------------------

    async def _guarded(self, execution: Execution) -> None:
        """One execution's task: whatever happens in it stays in it."""
        running = self._running[execution.id]
        running.begun = True
        try:
            if running.cancelled_by is not None:
                await self._end_cancelled(execution)
                return
            async with self._runtimes.place():
                await self._own(execution)
        except asyncio.CancelledError:
            if running.cancelled_by is None:
                raise  # the server stops: the execution stays as it is
            _uncancelled()
            await self._kept(execution, self._end_cancelled(execution))
        except FencedError:
            pass  # somebody else owns it: stop, discard
        except StorageError as error:
            _log.error("the store refused", execution=execution.id, cause=str(error))  # it stays live: resumed later
        except Exception as error:  # noqa: BLE001 - the last line: the cause is recorded, the neighbours go on
            await self._kept(execution, self._park(execution, f"{type(error).__name__}: {error}"))
        finally:
            if running.floor is not None:
                running.floor()
            await self._kept(execution, self._supervisor.release(execution.id))
            self._budgets.close(execution.id)
            if self._running.get(execution.id) is running:  # it may have been released and begun anew meanwhile
                del self._running[execution.id]

    async def _kept(self, execution: Execution, work: Coroutine[Any, Any, None]) -> None:
        """Do it to its end; when the store refuses, say so and leave the execution to the next start."""
        try:
            await to_its_end(work)
        except StorageError as error:
            _log.error("the store refused", execution=execution.id, cause=str(error))

    async def _end_cancelled(self, execution: Execution) -> None:
        """Cancelled before its program ran."""
        running = self._running[execution.id]
        stored = await self._store.execution(execution.id)
        if running.journal is None:
            epoch = await self._number(running)
            try:
                running.journal = await self._claimed(stored)
            except JournalError:  # what it did cannot be read, but that it ends here can be told
                await self._claim(stored, stored.recoveries)
                running.journal = Journal(self._store, self._bus, execution.id, epoch, ())
        await self._end(stored, running.journal, ExecutionState.CANCELLED, cause=f"cancelled by {running.cancelled_by}")

    async def _park(self, execution: Execution, cause: str) -> None:
        """Leave it to a person. What could not even be claimed, because its journal is damaged, is claimed with it."""
        event = Event(execution=execution.id, type="execution.needs_attention", data={"cause": cause})
        owner = (await self._store.execution(execution.id)).epoch
        epoch = await self._number(self._running[execution.id])
        writes = [
            guard(execution.id, min(owner, epoch)),
            not_ended(execution.id),
            set_execution(execution.id, state=str(ExecutionState.NEEDS_ATTENTION), epoch=epoch, reason=cause),
        ]
        self._bus.publish(await self._store.commit(Change(writes, [event])))

    async def _own(self, execution: Execution) -> None:
        running = self._running[execution.id]
        await self._number(running)
        if execution.epoch > 0:
            async with self._recovery.turn(execution) as running.floor:
                execution = await self._store.execution(execution.id)  # it may have been cancelled while it waited
                if self._recovery.spent(execution):
                    await self._claim(execution, execution.recoveries)
                    await self._park(execution, f"{self._recovery.allowed} recoveries without a new result")
                    return
                journal = await self._claimed(execution)
        else:
            journal = await self._claimed(execution)
        running.journal = journal
        if execution.state is ExecutionState.CANCELLING or running.cancelled_by:
            await self._end(execution, journal, ExecutionState.CANCELLED, cause=execution.reason or "cancelled")
            return
        execution = replace(execution, epoch=running.epoch, started_at=execution.started_at or time.time())
        async with self._coursing(execution, journal) as course:
            await self._drive(execution, course, running)

    async def _number(self, running: _Running) -> int:
        """What it owns its execution by: the start of the server; where several share, a number of its own."""
        if not running.epoch:
            running.epoch = await self._store.next_epoch() if self._store.shared else self._epoch
        return running.epoch

    async def _claim(self, execution: Execution, recoveries: int, told: Iterable[Event] = (), **columns: Any) -> None:
        """Become its owner and tell it in one commit. Raises FencedError when another is the owner, or it has ended."""
        epoch = self._running[execution.id].epoch
        changes = {"state": str(ExecutionState.RUNNING), "epoch": epoch, "recoveries": recoveries} | columns
        if execution.state is ExecutionState.CANCELLING:
            changes.pop("state")
        owned = [guard(execution.id, execution.epoch), not_ended(execution.id)]
        change = Change([*owned, set_execution(execution.id, **changes)], list(told))
        self._bus.publish(await self._store.commit(change))
        if execution.epoch > 0:
            fp("recovery.epoch_bumped")

    async def _claimed(self, execution: Execution) -> Journal:
        """Take ownership: from here on only this start of the server may write for the execution."""
        entries, epoch = await self._store.journal(execution.id), self._running[execution.id].epoch
        journal = Journal(self._store, self._bus, execution.id, epoch, entries)
        recoveries, told = 0, journal.event("execution.started", epoch=epoch)
        if execution.epoch > 0:
            # A recovery counts only if nothing was finished since the last one.
            newest = max((entry.epoch for entry in entries if entry.kind in {"result", "join"}), default=0)
            recoveries = 0 if newest >= execution.epoch else execution.recoveries + 1
            data = {"epoch": epoch, "from": execution.epoch, "finished": list(journal.finished)}
            told = Event(execution=execution.id, type="execution.resumed", data=data)
        await self._claim(execution, recoveries, [told], started_at=execution.started_at or time.time())
        fp("claim.committed")
        return journal

    @asynccontextmanager
    async def _coursing(self, execution: Execution, journal: Journal) -> AsyncIterator[Course]:
        repo = None
        profile = Profile()
        if execution.repo is not None:
            errand = Errand(url=execution.repo, execution=execution.id)
            repo = await self._workspaces.open_repository(execution.repo, execution.base, errand=errand)
            repo = replace(repo, base_branch=execution.base_branch or repo.base_branch)
            profile = await self._profile_of(repo)
        limit = options_budget(execution.options or {})
        if profile.budget is not None:
            limit &= Budget(cost=round(profile.budget * 1e6))
        meter = await self._budgets.open(journal, self._store, limit, execution.parent)
        proxy = AgentProxy(
            execution=execution,
            journal=journal,
            supervisor=self._supervisor,
            type_problem=self._type_problem,
            default_types=self._default_types,
            places=self._places,
            homes=self._homes,
            objects=None if repo is None else repo.objects,
            retry=self._retry,
            meter=meter,
            limited_until=self._doors.limited_until,
        )
        yield Course(
            execution=execution,
            journal=journal,
            proxy=proxy,
            desk=self._desk,
            tools=self._tools,
            meter=meter,
            llm=ModelAgents(execution, self._doors, meter, self._retry, self._homes),
            workspaces=self._workspaces,
            integration=self._integration,
            checks=self._checks,
            repo=repo,
            profile=profile,
        )

    async def _drive(self, execution: Execution, course: Course, running: _Running) -> None:
        """Run the program and record how it ended."""
        path, bundle = await self._store.bundle(execution.hash)
        program = await self._runtimes.program(path, bundle, execution.hash)
        host = ExecutionHost(course, printed=await self._store.count_events(execution.id, "log.printed"))
        running.interrupts = host.interrupts
        journal = course.journal
        try:
            async with asyncio.timeout(_time_left(execution, course)) as clock:
                evaluation = await self._runtimes.runtime(program, host, names_of(execution)).run()
            await host.flush()
            await host.interrupts.gate()
        except (asyncio.CancelledError, TimeoutError, BaseExceptionGroup, ParallaxError, prism.PrismError) as error:
            cause = leaf(error)
            if clock.expired() and running.cancelled_by is None:
                cause = BudgetExhausted("the time that this run may take is up; what is finished is kept")
            await self._ended_early(execution, course, running, cause)
            return
        await self._publish(course)
        try:
            undone = await self._finalise(course)
        except asyncio.CancelledError as cancelled:
            await self._ended_early(execution, course, running, cancelled)
            return
        await self._end(
            execution, journal, ExecutionState.PARTIAL if undone else ExecutionState.SUCCEEDED,
            result=evaluation.value, confidence=evaluation.confidence, cause=undone,
            usage=course.meter.spent,
        )  # fmt: skip

    async def _ended_early(self, execution: Execution, course: Course, running: _Running, cause: BaseException) -> None:
        match cause:
            case asyncio.CancelledError() | prism.PrismCancelled() if running.cancelled_by is None:
                raise asyncio.CancelledError from cause  # the server stops: the execution stays as it is
            case asyncio.CancelledError() | prism.PrismCancelled():
                _uncancelled()
                await self._supervisor.release(execution.id, "cancelled")
                fp("killed_before_record")
                state, told = ExecutionState.CANCELLED, f"cancelled by {running.cancelled_by}"
            case AttentionNeeded():
                await self._supervisor.release(execution.id, "it waits for a person")
                await self._park(execution, str(cause))
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
        await self._publish(course)
        await self._end(execution, course.journal, state, cause=told, usage=course.meter.spent)

    async def _finalise(self, course: Course) -> str | None:
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

    async def _publish(self, course: Course) -> None:
        """The branches appear in the user's repository, under refs/heads/parallax/ alone."""
        if course.repo is None:
            return
        published = await self._workspaces.publish(course.repo, course.execution.id)
        event = course.journal.event
        await course.journal.tell(
            *(event("branch.published", branch=branch, commit=commit) for branch, commit in published)
        )

    async def _end(
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


def names_of(execution: Execution) -> dict[str, Json]:
    """The names that a program finds: the same in every life of an execution, and in its replay."""
    context = {
        "executionId": execution.id, "pattern": execution.pattern, "version": execution.version,
        "attempt": execution.attempt,
    }  # fmt: skip
    return {"input": execution.input, "context": context}


def _uncancelled() -> None:
    """This task was cancelled to stop the work, not the record of its end."""
    current = asyncio.current_task()
    if current is not None:
        current.uncancel()


def _time_left(execution: Execution, course: Course) -> float | None:
    """Seconds that the run may still take, by the clock since it began."""
    limit_s = course.meter.limit.wall_s
    return None if limit_s is None else limit_s - (time.time() - (execution.started_at or execution.created_at))


def _program_error(error: prism.PrismError) -> str:
    place = f" (line {error.line} of the compiled program)" if error.line else ""
    return f"{error.message}{place}"


def _needs_repository(plan: Plan) -> bool:
    return any(role.workspace != "none" for role in plan.chart.roles.values())
