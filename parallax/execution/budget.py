"""Budgets that hold: what may be spent, what is set aside, what is spent; by execution, role and step.

The gateway asks `Budgets` before each call of a model and tells it after. The most that a call may cost is set aside
first, durably; a call that does not fit is refused, one that only waits for calls in flight waits. So nothing is ever
spent beyond a limit, however many agents run, and a server that dies between the two has spent the most that the call
could cost: never less than it did. A child execution counts in its parent's scopes as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from parallax.errors import BudgetExhausted, ProviderLimited
from parallax.events import Event
from parallax.execution.clocks import Clock, Waits
from parallax.execution.journal import Journal
from parallax.failpoints import fp
from parallax.models import Budget, TaskResult, Usage
from parallax.ports import ModelCall
from parallax.storage.statements import Write, insert_row, lost_calls, set_call
from parallax.storage.store import Store
from parallax.tasks import to_its_end

TELL_S: Final = 1.0  # an agent's usage is one event in this time, however many calls it makes
KINDS: Final = ("cost", "tokens")
FIELDS: Final = ("input_tokens", "output_tokens", "cached_tokens", "cache_write_tokens", "cost", "turns", "wall_s")


@dataclass(slots=True, kw_only=True, eq=False)
class Scope:
    """One thing that has a budget. `held` is set aside for calls in flight and turns under way."""

    name: str
    limit: Budget
    spent: Usage = field(default_factory=Usage)
    held: Usage = field(default_factory=lambda: Usage(priced="table"))
    told: bool = False

    def over(self, most: Usage, *, with_held: bool) -> str | None:
        """Which kind of its limit would be passed; None when it fits."""
        for kind in (*KINDS, "turns"):
            limit = getattr(self.limit, kind)
            if limit is None:
                continue
            used, wanted = getattr(self.spent, kind), getattr(most, kind)
            held = getattr(self.held, kind) if with_held else 0
            if used + held + wanted > limit or (used >= limit and kind in KINDS):
                return kind
        if self.limit.wall_s is not None and self.spent.wall_s >= self.limit.wall_s:
            return "wall_s"
        return None

    def hold(self, most: Usage) -> None:
        """Set aside."""
        self.held += most

    def release(self, most: Usage, used: Usage) -> None:
        """What was set aside is spent or free again."""
        self.held = _minus(self.held, most)
        self.spent += used

    def refusal(self, kind: str, most: Usage) -> str:
        """The sentence for people, and for the agent whose call is refused."""
        limit, spent = getattr(self.limit, kind), getattr(self.spent, kind)
        whose = "" if self.name == "execution" else f" of {self.name}"
        next_one = ""
        if kind in KINDS and spent < limit:
            next_one = f", and the next call may use {_amount(kind, getattr(most, kind))}"
        return (
            f"the budget{whose} of {_amount(kind, limit)} is used up ({_amount(kind, spent)} spent{next_one}): "
            "no further turn is begun; what is finished is kept"
        )


@dataclass(slots=True, kw_only=True, eq=False)
class Turn:
    """One turn of one agent: the scopes that it counts in, and what its calls used."""

    meter: Meter
    agent_id: str
    role: str
    step_key: str
    task: str
    scopes: Sequence[Scope]
    used: Usage = field(default_factory=Usage)
    calls: int = 0
    refused: str | None = None

    def counted(self, result: TaskResult) -> TaskResult:
        """The result with what the turn used: as the gateway counted it, else as the CLI said. Raises BudgetExhausted
        when calls of it were refused: its end is not its own.
        """
        if self.refused is not None:
            raise BudgetExhausted(self.refused)
        if self.calls:
            return replace(result, usage=self.used)
        self.used = replace(result.usage, priced="reported")
        return replace(result, usage=self.used)


@dataclass(frozen=True, slots=True)
class _Held:
    """A call in flight."""

    turn: Turn
    most: Usage


class Meter:
    """What one execution may spend and has spent. Restored from the rows of its calls."""

    def __init__(
        self,
        journal: Journal,
        limit: Budget | None = None,
        parent: Meter | None = None,
        turns: dict[str, Turn] | None = None,
        waits: Waits | None = None,
    ) -> None:
        self._journal = journal
        self._waits = Waits() if waits is None else waits
        self._turns = {} if turns is None else turns
        self.limit = limit or Budget()
        self._root = Scope(name="execution", limit=replace(self.limit, wall_s=None))  # its clock is the run's
        self._above: tuple[Scope, ...] = () if parent is None else (parent._root, *parent._above)
        self._scopes: dict[str, Scope] = {}
        self._spent: dict[tuple[str, str], Usage] = {}  # (role, step) -> before this start of the server
        self._numbers: dict[str, int] = {}
        self.freed: asyncio.Condition = asyncio.Condition() if parent is None else parent.freed
        self._untold: dict[str, tuple[float, Usage]] = {}

    @property
    def spent(self) -> Usage:
        """All that the execution has used, its children's part included."""
        return self._root.spent

    async def restore(self, store: Store) -> None:
        """Take over what was spent before, children's part included.

        Calls that were in flight when the server died are counted as the most that they could use.
        """
        execution = self._journal.execution
        await self._journal.commit([lost_calls(execution)], [])
        for row in await store.spent(executions=await store.family(execution), by=("execution", "role", "step_key")):
            usage = Usage(
                **{name: row[name] for name in FIELDS},
                priced="estimated" if row["cost_estimated"] else "reported" if row["cost_reported"] else "table",
            )
            self._root.spent += usage
            if row["execution"] == execution:
                self._spent[row["role"], row["step_key"]] = usage
                step = row["step_key"]
                self._numbers[step] = self._numbers.get(step, 0) + row["calls"] + row["turns"]

    def scope(self, name: str, limit: Budget, *, role: str | None = None, step: str | None = None) -> Scope:
        """The scope of a role or of a step, with what it has spent before."""
        if (known := self._scopes.get(name)) is not None:
            return known
        spent = Usage()
        for (of_role, of_step), usage in self._spent.items():
            if role in (None, of_role) and (step is None or of_step == step or of_step.startswith(f"{step}/")):
                spent += usage
        made = self._scopes[name] = Scope(name=name, limit=limit, spent=spent)
        return made

    async def hold(self, turn: Turn, most: Usage) -> None:
        """Set aside in every scope of the turn, or in none; raises BudgetExhausted, and then says so once."""
        while True:
            over = [(scope, kind) for scope in turn.scopes if (kind := scope.over(most, with_held=True))]
            if not over:
                break
            never = [(scope, kind) for scope, kind in over if scope.over(most, with_held=False)]
            if never:
                await self._exhausted(turn, *never[0], most)
            async with self.freed:
                await self.freed.wait()
        for scope in turn.scopes:
            scope.hold(most)

    async def _exhausted(self, turn: Turn, scope: Scope, kind: str, most: Usage) -> None:
        refusal = scope.refusal(kind, most)
        if not scope.told:
            scope.told = True
            spent, limit = getattr(scope.spent, kind), getattr(scope.limit, kind)
            await self.commit([], self.event("budget.exhausted", turn, scope=scope.name, spent=spent, limit=limit))
        raise BudgetExhausted(refusal)

    async def release(self, turn: Turn, most: Usage, used: Usage) -> None:
        """What was set aside is spent or free again, and whoever waits for it looks again."""
        for scope in turn.scopes:
            scope.release(most, used)
        async with self.freed:
            self.freed.notify_all()

    async def commit(self, writes: Sequence[Write], *events: Event) -> None:
        """One durable transaction in the name of the execution's owner."""
        await self._journal.commit(writes, events)

    def event(self, type_: str, turn: Turn, **data: Any) -> Event:
        """An event of this execution."""
        return self._journal.event(type_, step_key=turn.step_key, agent_id=turn.agent_id, **data)

    def usage_events(self, turn: Turn, used: Usage, *, now: bool = False) -> list[Event]:
        """The agent's usage since it was told last: not more often than each second, and at the end of a turn."""
        told_at, waiting = self._untold.get(turn.agent_id, (0.0, Usage()))
        waiting += used
        due = now or time.monotonic() - told_at >= TELL_S
        self._untold[turn.agent_id] = (time.monotonic(), Usage()) if due else (told_at, waiting)
        return [self.event("agent.usage", turn, usage=waiting)] if due and waiting.tokens else []

    # -- turns ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(
        self,
        *,
        agent_id: str,
        role: str,
        step_key: str,
        task: str,
        role_limit: Budget | None = None,
        step_limit: Budget | None = None,
    ) -> AsyncIterator[Turn]:
        """Around one turn: what the agent asks of models in it counts there. Raises BudgetExhausted at its beginning
        when nothing is left, at its end when calls of it were refused, in its middle when its time is up.
        """
        scopes = self._scopes_of(role, role_limit or Budget(), step_key, step_limit or Budget())
        turn = Turn(meter=self, agent_id=agent_id, role=role, step_key=step_key, task=task, scopes=scopes)
        one, name = Usage(turns=1, priced="table"), f"{self.name(step_key)}#turn"
        await self.hold(turn, one)
        await self.release(turn, one, one)  # spent by its beginning: what it waits for may itself take turns
        await self.commit([self._row(turn, "turn", name, one, "reserved")])
        fp("budget.reserved")
        self._turns[agent_id] = turn
        turns, clock = 1, None
        try:
            async with self._in_time(step_key, scopes[:2]) as clock:
                yield turn
        except BudgetExhausted:
            raise
        except Exception as error:
            if turn.refused is not None:  # whatever the CLI made of the refusal
                raise BudgetExhausted(turn.refused) from None
            if isinstance(error, ProviderLimited):
                turns = 0  # the agent is parked, and goes on with this turn later
            raise
        finally:
            reported = Usage(priced="table") if turn.calls else turn.used
            used = replace(reported, wall_s=0.0 if clock is None else round(clock.ran_s, 3))
            await self.release(turn, Usage(), replace(used, turns=turns - 1))
            fp("usage.reported_before_settle")
            events = self.usage_events(turn, reported, now=True)
            await to_its_end(self.commit([_settled(name, replace(used, turns=turns))], *events))

    @asynccontextmanager
    async def _in_time(self, step_key: str, scopes: Sequence[Scope]) -> AsyncIterator[Clock]:
        """Raises BudgetExhausted when the time of one of the scopes is up; what waits for a person uses none."""
        limited = [
            (scope.limit.wall_s - scope.spent.wall_s, scope) for scope in scopes if scope.limit.wall_s is not None
        ]
        left_s, scope = min(limited, key=lambda entry: entry[0], default=(None, None))
        try:
            async with self._waits.turn(self._journal.execution, step_key, left_s) as clock:
                yield clock
        except TimeoutError:
            if not clock.limit.expired() or scope is None:
                raise
            told = _amount("wall_s", scope.limit.wall_s)
            raise BudgetExhausted(f"the time of {scope.name}, {told}, is up; what is finished is kept") from None

    async def call(self, turn: Turn, call: ModelCall) -> str:
        """Set the most that a call may use aside, durably; returns the call's address. Raises BudgetExhausted."""
        try:
            await self.hold(turn, call.most)
        except BudgetExhausted as error:
            turn.refused = str(error)
            raise
        name = self.name(turn.step_key)
        row = self._row(turn, "call", name, call.most, "reserved", provider=call.provider, model=call.model)
        try:
            await self.commit([row])
        except BaseException:
            await self.release(turn, call.most, Usage())
            raise
        turn.calls += 1
        return name

    def _row(self, turn: Turn, kind: str, name: str, usage: Usage, state: str, **more: Any) -> Write:
        """A row of what was spent."""
        row = {column: getattr(usage, column) for column in (*FIELDS, "priced")} | {
            "id": name, "execution": self._journal.execution, "kind": kind, "state": state,
            "agent_id": turn.agent_id, "role": turn.role, "step_key": turn.step_key, "task": turn.task,
            "provider": "", "account": "", "model": "", "at": time.time(),
        }  # fmt: skip
        return insert_row("calls", row | more)

    def name(self, step_key: str) -> str:
        """The address of a call: `<execution>/<step key>/<number>`."""
        self._numbers[step_key] = number = self._numbers.get(step_key, 0) + 1
        return f"{self._journal.execution}/{step_key}/{number}"

    def _scopes_of(self, role: str, limit: Budget, step_key: str, step_limit: Budget) -> tuple[Scope, ...]:
        """The scopes of a turn, the narrowest first."""
        step = step_key.partition("/")[0]
        return (
            self.scope(f"step '{step}'", step_limit, step=step),
            self.scope(f"role '{role}'", limit, role=role),
            self._root,
            *self._above,
        )


class Budgets:
    """The meters of all executions that run here, and which turn each agent is in. The gateway's `Meter`."""

    def __init__(self, waits: Waits | None = None) -> None:
        self._waits = Waits() if waits is None else waits
        self._meters: dict[str, Meter] = {}
        self._turns: dict[str, Turn] = {}
        self._calls: dict[str, _Held] = {}

    async def open(self, journal: Journal, store: Store, limit: Budget, parent: str | None = None) -> Meter:
        """The meter of an execution that begins or goes on; a child's counts in its parent's, too."""
        above = self._meters.get(parent) if parent else None
        meter = Meter(journal, limit, above, self._turns, self._waits)
        await meter.restore(store)
        self._meters[journal.execution] = meter
        return meter

    def close(self, execution: str) -> None:
        """The execution does not run here any more: no further call of its agents is passed on."""
        self._meters.pop(execution, None)
        for agent_id in [agent_id for agent_id, turn in self._turns.items() if agent_id.startswith(f"{execution}.")]:
            del self._turns[agent_id]

    # -- the gateway's Meter -------------------------------------------------------------------------------------------

    async def reserve(self, call: ModelCall) -> str:
        """Set the most aside, durably; returns the call's address. Raises BudgetExhausted."""
        turn = self._turns.get(call.agent_id)
        if turn is None:
            raise BudgetExhausted("this agent has no turn, so nothing is set aside for its calls")
        name = await turn.meter.call(turn, call)
        self._calls[name] = _Held(turn, call.most)
        fp("budget.reserved")
        return name

    async def settle(self, call_id: str, used: Usage, *, account: str, status: int | None) -> None:
        """What the call did use. A call that is not known here was settled by its execution's end."""
        held = self._calls.pop(call_id, None)
        if held is None:
            return
        turn, meter = held.turn, held.turn.meter
        turn.used += used
        await meter.release(turn, held.most, used)
        fp("usage.reported_before_settle")
        await meter.commit([_settled(call_id, used, account=account, status=status)], *meter.usage_events(turn, used))


def _settled(name: str, used: Usage, **more: Any) -> Write:
    return set_call(name, state="settled", priced=used.priced, **{f: getattr(used, f) for f in FIELDS}, **more)


def _minus(usage: Usage, less: Usage) -> Usage:
    return replace(usage, **{name: getattr(usage, name) - getattr(less, name) for name in FIELDS})


def _amount(kind: str, amount: Any) -> str:
    match kind:
        case "cost":
            return f"${amount / 1e6:.2f}" if amount >= 10_000 or not amount else f"${amount / 1e6:.4f}"
        case "tokens":
            return f"{amount:,} tokens"
        case "turns":
            return f"{amount} turn{'s' * (amount != 1)}"
        case _:
            return f"{amount / 60:.0f} min" if amount >= 120 else f"{amount:.0f} s"


def options_budget(options: Mapping[str, Any]) -> Budget:
    """What the person who started the run allows."""
    return Budget(
        cost=options.get("budget"),
        tokens=options.get("budget_tokens"),
        turns=options.get("budget_turns"),
        wall_s=options.get("budget_time_s"),
    )
