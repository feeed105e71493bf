"""Intake: looks at what somebody asks for, and makes an execution of it that is on disk before anybody is answered.

The doors call `prepare` and `submit`; `history` admits its forks here. Nothing is written before everything that a
submission names was looked at. What is on disk is handed to `begin`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

import orjson

from parallax import prism
from parallax.errors import AgentUnavailable, FencedError, RepositoryError, UsageError
from parallax.events import Event, EventBus
from parallax.execution.agent_proxy import TypeProblem
from parallax.execution.journal import input_hash
from parallax.failpoints import fp
from parallax.models import Execution, ExecutionState, Json, new_id
from parallax.patterns.engine import Pattern, PatternEngine, check_input
from parallax.patterns.plan import Plan, plan_of
from parallax.redaction import Secret
from parallax.storage.space import Space
from parallax.storage.statements import Change, Write, execution_row, insert_row
from parallax.storage.store import Store
from parallax.workspaces.credentials import CredentialService, Wanted
from parallax.workspaces.finalising import Finaliser, Wish
from parallax.workspaces.remotes import Errand
from parallax.workspaces.repository import Repository
from parallax.workspaces.service import WorkspaceService


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


class Intake:
    """Takes executions in. `begin` is told of each one that is new."""

    def __init__(
        self,
        *,
        store: Store,
        bus: EventBus,
        patterns: PatternEngine,
        workspaces: WorkspaceService,
        credentials: CredentialService,
        finaliser: Finaliser,
        type_problem: TypeProblem,
        default_types: tuple[str, ...],
        space: Space,
        begin: Callable[[Execution], None],
    ) -> None:
        self._store = store
        self._bus = bus
        self._patterns = patterns
        self._workspaces = workspaces
        self._credentials = credentials
        self._finaliser = finaliser
        self._type_problem = type_problem
        self._default_types = default_types
        self._space = space
        self._begin = begin

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
        self._begin(execution)
        return execution, True

    async def repeated(self, key: str | None, asked_hash: str) -> Execution | None:
        """What an idempotency key stands for, if it was used before. Raises UsageError when with another request."""
        if key is None or (known := await self._store.idempotent(key)) is None:
            return None
        body_hash, execution_id = known
        if body_hash != asked_hash:
            raise UsageError(f"the idempotency key '{key}' was used with another request; take a new key")
        return (await self._store.execution(execution_id)).as_accepted()


def _needs_repository(plan: Plan) -> bool:
    return any(role.workspace != "none" for role in plan.chart.roles.values())
