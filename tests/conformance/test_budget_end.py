"""A spent budget ends every real CLI's turn cleanly: at once, without a storm of further attempts."""

from __future__ import annotations

import asyncio
import time

import pytest
from agent_helpers import play

from parallax.errors import AgentError, BudgetExhausted
from parallax.models import Usage
from parallax.ports import ModelCall
from tests.conformance.conformance_bench import Bench
from tests.conformance.test_real_cli import every_way, split

pytestmark = [pytest.mark.real_cli, pytest.mark.timeout(300)]

MOST_TRIES = 6  # some ask beside the turn, for a title or a suggestion, or try a second model
END_S = 60.0


class Poor:
    """A meter with money for one call, or for none."""

    def __init__(self, calls: int) -> None:
        self.left = calls
        self.refused = 0

    async def reserve(self, call: ModelCall) -> str:
        if not self.left:
            self.refused += 1
            raise BudgetExhausted("the budget of $0.01 is used up ($0.01 spent)")
        self.left -= 1
        return "e1/s/1"

    async def settle(self, call_id: str, used: Usage, *, account: str, status: int | None) -> None:
        """Nothing to count."""


@every_way
async def test_a_spent_budget_ends_the_turn(bench: Bench, way: str) -> None:
    meter = Poor(0 if way == "aider-headless" else 1)  # aider makes one call in a turn
    client = await bench.start(*split(way))
    bench.gateway._passing._meter = meter
    began = time.monotonic()
    try:
        async with asyncio.timeout(END_S):
            _, result = await play(client)
        ended = f"a result ({result.stop})"
    except AgentError as error:
        ended = type(error).__name__
    print(f"{way}: {ended} after {time.monotonic() - began:.1f} s, {meter.refused} calls refused")
    assert 1 <= meter.refused <= MOST_TRIES
    traffic = bench.gateway.traffic(bench.agent_id)
    assert traffic is not None
    assert "is used up" in (traffic.last_error or "")
