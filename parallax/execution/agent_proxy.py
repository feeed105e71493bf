"""AgentProxy: which agent gets the turn, and the guards around it.

One per execution. A role has slots, one per instance; a task takes a free one (the one it had before a restart, if it
had one), starts another while the role's maximum allows, or waits in order. Around the turn stands the one retry layer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from parallax.agents.supervisor import AgentSupervisor
from parallax.agents.turn import Ask
from parallax.errors import (
    AgentCrashed,
    AgentError,
    AgentUnavailable,
    AttentionNeeded,
    HelpNeeded,
    ProviderLimited,
    UsageError,
)
from parallax.execution.budget import Meter
from parallax.execution.journal import Journal
from parallax.execution.resilience import RetryPolicy
from parallax.models import Execution, OrgChart, Role, Task, TaskResult
from parallax.ports import AgentSession

TypeProblem = Callable[[str], str | None]
LimitedUntil = Callable[[str], float | None]
Reset = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False)
class Slot:
    """A place in a role for one agent, held by one step at a time. `env` are its workspace's ports, `shared`
    what the repository's set-up has built for it."""

    role: Role
    number: int
    agent_id: str
    type: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    env: Mapping[str, str] = field(default_factory=dict)
    shared: tuple[tuple[str, Path], ...] = ()


class AgentProxy:
    """Chooses and calls the agents of one execution."""

    def __init__(
        self,
        *,
        execution: Execution,
        journal: Journal,
        supervisor: AgentSupervisor,
        type_problem: TypeProblem,
        default_types: tuple[str, ...],
        places: asyncio.Semaphore,
        homes: Path,
        objects: Path | None,
        retry: RetryPolicy,
        meter: Meter,
        limited_until: LimitedUntil,
    ) -> None:
        self._execution = execution
        self._journal = journal
        self._supervisor = supervisor
        self._type_problem = type_problem
        self._default_types = default_types
        self._places = places
        self._homes = homes
        self._objects = objects
        self._retry = retry
        self._meter = meter
        self._limited_until = limited_until
        self._slots: dict[str, list[Slot]] = {}
        self._free: dict[str, set[int]] = {}
        self._changed = asyncio.Condition()

    # -- choosing --------------------------------------------------------------------------------------------------

    def type_of(self, role: Role) -> str:
        """The agent type for a role: the user's `--agent`, else the first of the role's types that is ready.

        Raises AgentUnavailable with the reason of the first type.
        """
        options = self._execution.options or {}
        wanted = options.get("agents", {}).get(role.name) or options.get("agent")
        types = (wanted,) if wanted else role.agent_types or self._default_types
        problems = []
        for type_ in types:
            if (problem := self._type_problem(type_)) is None:
                return type_
            problems.append(problem)
        raise AgentUnavailable(f"no agent for role '{role.name}': {problems[0]}")

    def free(self, role: Role) -> int | None:
        """The number of a slot that is free now, or None."""
        return self._available(role, None)

    @asynccontextmanager
    async def hold(self, role: Role, *, number: int | None = None, wait: bool = True) -> AsyncIterator[Slot]:
        """Hold a free slot of the role (the named one, if given); waits for one, in order.

        With `wait` False it raises AgentUnavailable instead.
        """
        async with self._changed:
            if not wait and self._available(role, number) is None:
                raise AgentUnavailable(f"no {role.name} is free now")
            await self._changed.wait_for(lambda: self._available(role, number) is not None)
            chosen = self._available(role, number)
            assert chosen is not None
            slot = self._take(role, chosen)
        try:
            yield slot
        finally:
            async with self._changed:
                self._free[role.name].add(slot.number)
                self._changed.notify_all()

    def _available(self, role: Role, number: int | None) -> int | None:
        slots = self._slots.setdefault(role.name, [])
        free = self._free.setdefault(role.name, set())
        if number is not None:
            return number if number in free or number > len(slots) else None
        if free:
            return min(free)
        return len(slots) + 1 if len(slots) < max(1, role.instances[1]) else None

    def _take(self, role: Role, number: int) -> Slot:
        slots = self._slots[role.name]
        while len(slots) < number:
            place = len(slots) + 1
            slots.append(Slot(role, place, f"{self._execution.id}.{role.name}.{place}", self.type_of(role)))
            self._free[role.name].add(place)
        self._free[role.name].discard(number)
        return slots[number - 1]

    def home(self, slot: Slot) -> Path:
        """Where the agent of a slot keeps what is its own."""
        return self._homes / self._execution.id / f"{slot.role.name}.{slot.number}"

    # -- calling ---------------------------------------------------------------------------------------------------

    async def call(
        self,
        slot: Slot,
        task: Task,
        tree: Path,
        ask: Ask,
        *,
        preset: str,
        reset: Reset,
        retries: int | None = None,
        lent: bool = False,
    ) -> TaskResult:
        """One turn, tried again where that makes sense; `reset` puts the workspace back before another try.

        A parked agent and one that a person has to help hold no place while they wait, and use up no attempt: they go
        on with their session where the CLI can. `lent`: it runs in the place of another agent that waits for it, and
        takes none of its own. Raises AgentError when it was tried often enough.
        """
        policy = self._retry if retries is None else replace(self._retry, retries=retries)
        attempt = parks = 0
        tried = {slot.type}
        while True:
            try:
                async with nullcontext() if lent else self._places, slot.turn:
                    return await self._turn(slot, task, tree, ask, preset)
            except AgentError as error:
                parks += isinstance(error, ProviderLimited)
                park = policy.parks(parks, error)
                failed = await self._kept(slot, task, ask, error, park=park, tried=tried)
                if failed is not None:
                    attempt += 1
                    wait_s = policy.wait_s(failed, attempt)
                    if wait_s is None:
                        raise failed from error.__cause__
                    await self._tell_retry(slot, task, failed, attempt, wait_s)
                    await asyncio.sleep(wait_s)
            if not self._supervisor.goes_on(slot.agent_id):
                await reset()

    async def _moved(self, slot: Slot, task: Task, error: ProviderLimited, tried: set[str]) -> bool:
        """Give the place to an agent of another type that the role allows and whose provider is not limited now."""
        options = self._execution.options or {}
        types = () if options.get("agent") else slot.role.agent_types or self._default_types
        for type_ in types:
            if type_ in tried or self._type_problem(type_) is not None or self._limited_until(type_) is not None:
                continue
            tried.add(type_)
            await self._supervisor.give_up(slot.agent_id, str(error))
            told = f"{slot.type} is limited: {error}"
            slot.type = type_
            event = self._journal.event(
                "agent.chosen", step_key=task.step_key, agent_id=slot.agent_id, role=slot.role.name, type=type_,
                reason=told,
            )  # fmt: skip
            await self._journal.tell(event)
            return True
        return False

    async def _kept(
        self, slot: Slot, task: Task, ask: Ask, error: AgentError, *, park: bool, tried: set[str]
    ) -> AgentError | None:
        """Wait until what keeps an agent from working is over: None then, else the error that ends its attempt.

        A limit is first got around by another type of agent; `tried` are those that have met one in this turn.
        """
        match error:
            case ProviderLimited() if await self._moved(slot, task, error, tried):
                return None
            case ProviderLimited() if not (self._execution.options or {}).get("auto_resume", True):
                raise _waits_for_a_person(slot, error) from error
            case ProviderLimited() if park:
                if await self._supervisor.rest(slot.agent_id):
                    return None
                return AgentCrashed(f"agent {slot.agent_id} was stopped while it was parked ({error})")
            case ProviderLimited():
                await self._supervisor.give_up(slot.agent_id, str(error))
            case HelpNeeded() if await self._supervisor.help(slot.agent_id, task, error, ask):
                return None
        return error

    async def renew(self, slot: Slot) -> None:
        """Its next turn knows nothing of the ones before."""
        await self._supervisor.renew(slot.agent_id)

    def interrupt(self, slot: Slot, error: AgentError) -> None:
        """End its running turn with this error."""
        self._supervisor.interrupt(slot.agent_id, error)

    async def consult(self, slot: Slot, task: Task, tree: Path, ask: Ask, *, preset: str) -> TaskResult:
        """A short turn within somebody else's, such as a colleague's question: it takes no place of its own."""
        async with slot.turn:
            try:
                return await self._turn(slot, task, tree, ask, preset)
            except AgentError as error:  # whoever asked goes to the next colleague rather than wait for this one
                await self._supervisor.give_up(slot.agent_id, str(error))
                raise

    async def _turn(self, slot: Slot, task: Task, tree: Path, ask: Ask, preset: str) -> TaskResult:
        session = AgentSession(
            agent_id=slot.agent_id,
            execution=self._execution.id,
            role=slot.role.name,
            type=slot.type,
            home=self.home(slot),
            tree=tree,
            preset=preset,
            model=(self._execution.options or {}).get("model"),
            objects=self._objects,
            capabilities=slot.role.capabilities,
            env=slot.env,
            shared=slot.shared,
        )
        async with self._meter.turn(
            agent_id=slot.agent_id,
            role=slot.role.name,
            step_key=task.step_key,
            task=task.id,
            role_limit=slot.role.budget,
            step_limit=task.budget,
        ) as turn:
            await self._supervisor.ensure(session, number=slot.number)
            return turn.counted(await self._supervisor.turn(slot.agent_id, task, ask))

    async def _tell_retry(self, slot: Slot, task: Task, error: AgentError, attempt: int, wait_s: float) -> None:
        event = self._journal.event(
            "step.retrying",
            step_key=task.step_key,
            agent_id=slot.agent_id,
            attempt=attempt + 1,
            critique=str(error),
            next_s=round(wait_s, 2),
        )
        await self._journal.tell(event)


def _waits_for_a_person(slot: Slot, error: ProviderLimited) -> AttentionNeeded:
    until = "" if error.resets_at is None else time.strftime(" until %H:%M", time.localtime(error.resets_at))
    return AttentionNeeded(
        f"{slot.role.name} ({slot.type}) is limited{until} and shall not go on by itself (--no-auto-resume): {error}"
    )


def role_of(chart: OrgChart, target: object) -> tuple[Role, int | None]:
    """The role that `assign`'s target names: a role, an agent (`engineer.2`), or a selector with a role or type."""
    match target:
        case str() if target in chart.roles:
            return chart.roles[target], None
        case str() if (parts := target.split("."))[-1].isdigit() and parts[-2:-1] and parts[-2] in chart.roles:
            return chart.roles[parts[-2]], int(parts[-1])
        case {"role": str() as name} if name in chart.roles:
            return chart.roles[name], None
        case {"capabilities": list() as wanted}:
            for role in chart.roles.values():
                if set(wanted) <= set(role.capabilities):
                    return role, None
        case str() if not chart.roles:
            return Role(name=target), None  # a script without `org`: every name is a role of its own
        case _:
            pass
    known = ", ".join(chart.roles) or "none"
    raise UsageError(f"no role fits {target!r} (roles: {known})")
