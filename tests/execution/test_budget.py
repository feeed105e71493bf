"""Budgets hold: what is set aside fits, what is spent is never forgotten, and calls in flight are waited for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from budget_helpers import living, turn

from parallax import failpoints
from parallax.errors import AgentCrashed, BudgetExhausted, ProviderLimited
from parallax.failpoints import FailpointError
from parallax.models import Budget, TaskResult, Usage
from parallax.ports import ModelCall

RESULT = TaskResult(task_id="t", attempt=1, agent_id="a", value=None, message="done", stop="end_turn")


Life = Callable[[], Any]


@pytest.fixture
def life(tmp_path: Path) -> Life:
    """`async with life() as house:` — each time another life of the server on the same store."""
    return lambda: living(tmp_path / "parallax.db")


def call(agent: str = "e1.eng.1", cost: int = 100, tokens: int = 10) -> ModelCall:
    most = Usage(input_tokens=tokens, cost=cost, priced="table")
    return ModelCall(agent_id=agent, provider="anthropic", model="m", most=most)


def used(cost: int, tokens: int = 5, priced: str = "table") -> Usage:
    return Usage(input_tokens=tokens, cost=cost, priced=priced)


async def test_a_call_sets_its_most_aside_and_gives_the_rest_back(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget(cost=250))
        async with turn(meter) as one:
            first = await house.budgets.reserve(call())
            second = await house.budgets.reserve(call())
            assert (first, second) == ("e1/s1/2", "e1/s1/3")  # addressed by step; the turn itself is number 1
            waiting = asyncio.ensure_future(house.budgets.reserve(call()))
            await asyncio.sleep(0.05)
            assert not waiting.done()  # 200 of 250 are set aside: it waits for what comes back
            await house.budgets.settle(first, used(30), account="default", status=200)
            third = await waiting
            await house.budgets.settle(second, used(40), account="default", status=200)
            await house.budgets.settle(third, used(50), account="default", status=200)
            await house.budgets.settle(third, used(50), account="default", status=200)  # a second time changes nothing
            counted = one.counted(RESULT)
        assert (counted.usage.cost, counted.usage.input_tokens, counted.usage.priced) == (120, 15, "table")
        assert (meter.spent.cost, meter.spent.turns) == (120, 1)


async def test_what_does_not_fit_is_refused_and_said_once(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget(cost=150))

        async def cleanly() -> None:
            async with turn(meter) as one:
                await house.budgets.settle(await house.budgets.reserve(call()), used(90), account="d", status=200)
                for _ in range(3):
                    with pytest.raises(BudgetExhausted):
                        await house.budgets.reserve(call())
                one.counted(RESULT)  # the CLI ended cleanly, but this end is the budget's

        with pytest.raises(
            BudgetExhausted, match=r"budget of \$0\.0001 is used up \(\$0\.0001 spent, and the next call"
        ):
            await cleanly()
        assert await house.told("budget.exhausted") == [{"scope": "execution", "spent": 90, "limit": 150}]
        assert meter.spent.cost == 90
        with pytest.raises(BudgetExhausted):
            async with turn(meter):  # something is left for a turn, nothing for its first call
                await house.budgets.reserve(call())


@pytest.mark.parametrize("failure", [AgentCrashed("it went down over it"), ProviderLimited("it takes it for a limit")])
async def test_an_agent_that_fails_because_it_was_refused_ends_the_run_not_the_attempt(
    life: Life, failure: Exception
) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget(cost=50))

        async def crash() -> None:
            async with turn(meter):
                with pytest.raises(BudgetExhausted):
                    await house.budgets.reserve(call())
                raise failure

        with pytest.raises(BudgetExhausted):
            await crash()


@pytest.mark.parametrize(
    ("limits", "scope"),
    [({"role_limit": Budget(cost=150)}, "role 'eng'"), ({"step_limit": Budget(tokens=15)}, "step 's1'")],
)
async def test_roles_and_steps_have_budgets_of_their_own(life: Life, limits: dict[str, Budget], scope: str) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget(cost=10_000))
        async with turn(meter, **limits):
            await house.budgets.settle(await house.budgets.reserve(call()), used(100, 10), account="d", status=200)
        with pytest.raises(BudgetExhausted, match=f"the budget of {scope}"):
            async with turn(meter, **limits):
                await house.budgets.reserve(call())
        other = {name: Budget() for name in limits}
        async with turn(meter, "e1.lead.1", "s2", **other):
            await house.budgets.reserve(call("e1.lead.1"))


async def test_turns_and_time_are_budgets_too(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget(turns=2))
        async with turn(meter), turn(meter, "e1.lead.1"):
            pass  # a colleague's turn within a turn
        with pytest.raises(BudgetExhausted, match=r"the budget of 2 turns is used up \(2 turns spent\)"):
            async with turn(meter):
                pass
        await house.take_in("e2")
        meter = await house.open(Budget(), "e2")
        limit = Budget(wall_s=0.2)
        with pytest.raises(BudgetExhausted, match="the time of role 'eng', 0 s, is up"):
            async with turn(meter, "e2.eng.1", role_limit=limit):
                await asyncio.sleep(5)
        with pytest.raises(BudgetExhausted):
            async with turn(meter, "e2.eng.1", role_limit=limit):
                pass


async def test_what_waits_for_a_person_uses_up_no_time(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter, limit = await house.open(Budget()), Budget(wall_s=1.0)
        async with turn(meter, role_limit=limit):
            for asked in ("s1", "s1/part"):  # its own question, and one of the part that it waits for
                with house.waits.asked("e1", asked):
                    await asyncio.sleep(0.8)
        [row] = await house.store.spent(executions=["e1"], by=("role",))
        assert row["wall_s"] < 0.8
        others = house.waits.asked("e1", "s10"), house.waits.asked("e2", "s1")
        with others[0], others[1], pytest.raises(BudgetExhausted, match="the time of role 'eng', 1 s, is up"):
            async with turn(meter, role_limit=limit):
                await asyncio.sleep(5)


async def test_what_nobody_metered_counts_as_the_cli_reports_it(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget(tokens=1000))
        async with turn(meter) as one:
            said = Usage(input_tokens=900, cost=70)
            counted = one.counted(TaskResult(**{**_fields(RESULT), "usage": said}))
        assert counted.usage.priced == "reported"
        assert (meter.spent.cost, meter.spent.input_tokens, meter.spent.priced) == (70, 900, "reported")
        [row] = await house.store.spent(executions=["e1"], by=("role",))
        assert (row["cost"], row["cost_reported"], row["turns"], row["calls"]) == (70, 70, 1, 0)


def _fields(result: TaskResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in TaskResult.__slots__}


async def test_children_share_their_parents_budget(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        await house.take_in("e2", parent="e1")
        parent = await house.open(Budget(cost=250))
        child = await house.open(Budget(), "e2", parent="e1")
        async with turn(child, "e2.eng.1"):
            name = await house.budgets.reserve(call("e2.eng.1", cost=200))
            await house.budgets.settle(name, used(180), account="d", status=200)
            async with turn(parent):
                with pytest.raises(BudgetExhausted):
                    await house.budgets.reserve(call())
        assert (parent.spent.cost, child.spent.cost) == (180, 180)
    async with life() as house:
        parent = await house.open(Budget(cost=250))
        assert parent.spent.cost == 180  # what its child spent is not forgotten either


@pytest.mark.parametrize(
    ("point", "spent"), [("budget.reserved=raise@2", 100), ("usage.reported_before_settle=raise", 100), ("", 30)]
)
async def test_a_crash_around_a_call_forgets_nothing(life: Life, point: str, spent: int) -> None:
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(life())
        await house.take_in("e1")
        meter = await house.open(Budget(cost=250))
        failpoints.arm(point)
        stack.callback(failpoints.arm, "")
        inside = await stack.enter_async_context(_dying(turn(meter)))
        assert inside is not None
        try:
            name = await house.budgets.reserve(call())
            await house.budgets.settle(name, used(30), account="d", status=200)
        except FailpointError:
            pass  # here the server dies
    async with life() as house:
        meter = await house.open(Budget(cost=250))
        assert meter.spent.cost == spent  # at most too much, never too little
        assert meter.spent.turns == 1
        assert meter.spent.priced == ("estimated" if point else "table")
        async with turn(meter):
            name = await house.budgets.reserve(call())
            assert name == "e1/s1/4"  # no address is given twice


@asynccontextmanager
async def _dying(turn: Any) -> AsyncIterator[Any]:
    """A turn whose end is never written: its server died."""
    yield await turn.__aenter__()


async def test_usage_is_told_in_batches(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget())
        async with turn(meter):
            for _ in range(30):
                await house.budgets.settle(await house.budgets.reserve(call()), used(3), account="d", status=200)
        told = await house.told("agent.usage")
        assert len(told) <= 3
        assert sum(data["usage"]["cost"] for data in told) == 90


async def test_an_agent_without_a_turn_spends_nothing(life: Life) -> None:
    async with life() as house:
        await house.take_in("e1")
        meter = await house.open(Budget())
        with pytest.raises(BudgetExhausted, match="has no turn"):
            await house.budgets.reserve(call())
        async with turn(meter):
            pass
        house.budgets.close("e1")
        with pytest.raises(BudgetExhausted, match="has no turn"):
            await house.budgets.reserve(call())


@pytest.mark.parametrize("seed", range(5))
async def test_many_agents_with_random_budgets_never_spend_beyond_them(life: Life, seed: int) -> None:
    """Calls of random size, held for random times, some never answered: at no moment is a limit passed."""
    dice = random.Random(seed)
    async with life() as house:
        await house.take_in("e1")
        limit = dice.randrange(500, 3000)
        meter = await house.open(Budget(cost=limit))
        roles = {f"r{number}": Budget(cost=dice.randrange(100, 1500)) for number in range(4)}
        ledger: dict[str, int] = dict.fromkeys(roles, 0)

        async def agent(number: int) -> None:
            role = f"r{number % 4}"
            name = f"e1.{role}.{number}"
            try:
                async with turn(meter, name, f"s{number}", role_limit=roles[role]):
                    for _ in range(20):
                        most = dice.randrange(1, 120)
                        held = await house.budgets.reserve(call(name, cost=most))
                        await asyncio.sleep(dice.random() * 0.004)
                        cost = dice.randrange(0, most + 1)
                        ledger[role] += cost
                        await house.budgets.settle(held, used(cost), account="d", status=200)
            except BudgetExhausted:
                return

        await gather(*(agent(number) for number in range(20)))
        assert sum(ledger.values()) <= limit
        assert all(ledger[role] <= (roles[role].cost or 0) for role in roles)
        assert meter.spent.cost == sum(ledger.values())  # counted to the last micro-dollar
        rows = await house.store.spent(executions=["e1"], by=("role",))
        assert {row["role"]: row["cost"] for row in rows} == ledger


async def gather(*work: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)
