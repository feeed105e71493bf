"""Twenty agents at one gateway with random budgets, against a provider that keeps books of its own.

A larger run: `make budgets` (PARALLAX_BUDGET_CALLS calls for each agent).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from budget_helpers import living, turn

from parallax.agents.gateway.providers import Account
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.errors import BudgetExhausted
from parallax.models import Budget
from parallax.ports import AgentSession, ModelDoor
from parallax.redaction import Secret
from tests.conftest import on_loopback

CALLS = int(os.environ.get("PARALLAX_BUDGET_CALLS", "12"))
AGENTS = 20
IN, OUT, READ, WRITE = 3.0, 15.0, 0.3, 3.75  # micro-dollars a token of claude-sonnet-4-5, by the provider's own list


class Provider:
    """Answers in Anthropic's dialect, streaming and not, and keeps books of what it charged, by key of the session."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.books: dict[str, dict[str, int]] = {}
        self.most_at_once = self.now = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        await asyncio.sleep(self.dice.random() * 0.02)
        sent = len(json.dumps(body)) // 4
        usage = {
            "input_tokens": sent // 2, "cache_read_input_tokens": sent // 4, "cache_creation_input_tokens": sent // 8,
            "output_tokens": self.dice.randint(1, body["max_tokens"]),
        }  # fmt: skip
        books = self.books.setdefault(body["metadata"]["user_id"], dict.fromkeys(usage, 0))
        for kind, count in usage.items():
            books[kind] += count
        self.now -= 1
        if not body.get("stream"):
            return web.json_response({"type": "message", "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        start = {"type": "message_start", "message": {"usage": usage | {"output_tokens": 1}}}
        end = {"type": "message_delta", "usage": {"output_tokens": usage["output_tokens"]}}
        for event in (start, {"type": "content_block_delta", "delta": {"text": "x" * 50}}, end):
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        return response

    def charged(self, role: str = "") -> float:
        """Micro-dollars."""
        return sum(
            books["input_tokens"] * IN + books["output_tokens"] * OUT
            + books["cache_read_input_tokens"] * READ + books["cache_creation_input_tokens"] * WRITE
            for name, books in self.books.items() if name.startswith(role)
        )  # fmt: skip

    def count(self, kind: str) -> int:
        return sum(books[kind] for books in self.books.values())


@asynccontextmanager
async def provided(provider: Provider) -> AsyncIterator[Provider]:
    app = web.Application()
    app.router.add_post("/v1/messages", provider.answer)
    async with on_loopback(app) as provider.url:
        yield provider


def session(agent_id: str) -> AgentSession:
    _, role, _ = agent_id.split(".")
    return AgentSession(agent_id=agent_id, execution="e1", role=role, type="claude", home=Path("/x"), tree=Path("/x"))


async def ask(http: aiohttp.ClientSession, door: ModelDoor, who: str, dice: random.Random) -> tuple[int, Any]:
    """One call as a CLI makes it."""
    body = {
        "model": "claude-sonnet-4-5", "max_tokens": dice.choice([50, 200, 1000]), "stream": dice.random() < 0.5,
        "metadata": {"user_id": who}, "system": [{"text": "x" * dice.randint(10, 4000), "cache_control": {}}],
    }  # fmt: skip
    headers = {"x-api-key": door.token.reveal()}
    async with http.post(f"{door.url}/model/anthropic/v1/messages", json=body, headers=headers) as reply:
        return reply.status, await reply.read()


@pytest.mark.parametrize("seed", [1, 2])
async def test_twenty_agents_never_spend_beyond_their_budgets_and_every_token_is_counted(
    tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    total = dice.randint(300_000, 700_000) * max(1, CALLS // 12)
    limits = {f"r{number}": Budget(cost=dice.randint(60_000, 300_000) * max(1, CALLS // 12)) for number in range(4)}
    refused = 0
    async with living(tmp_path / "parallax.db") as house, provided(Provider(seed)) as provider:
        await house.take_in("e1")
        meter = await house.open(Budget(cost=total))
        accounts = {"anthropic": [Account(base_url=provider.url, key=Secret("sk-the-providers-own-key"))]}
        gateway = Gateway(
            GatewaySettings(accounts=accounts), providers_of=lambda _: ("anthropic",), meter=house.budgets
        )
        await gateway.start()

        async def agent(number: int, http: aiohttp.ClientSession) -> None:
            nonlocal refused
            who = f"e1.r{number % 4}.{number}"
            door = await gateway.open_session(session(who))
            try:
                async with turn(meter, who, f"step {number}", role_limit=limits[f"r{number % 4}"]):
                    for _ in range(CALLS):
                        status, answer = await ask(http, door, f"r{number % 4}.{number}", dice)
                        if status == 400:
                            assert "is used up" in json.loads(answer)["error"]["message"]
                            refused += 1
                            return  # a CLI ends here
                        assert status == 200
            except BudgetExhausted:
                pass

        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            for number in range(AGENTS):
                group.create_task(agent(number, http))
        await gateway.close()
        spent = meter.spent
        assert provider.charged() <= total, "overspend"
        for role, limit in limits.items():
            assert provider.charged(f"{role}.") <= (limit.cost or 0), f"overspend of {role}"
        assert (spent.input_tokens, spent.output_tokens) == (
            provider.count("input_tokens"), provider.count("output_tokens"),
        )  # fmt: skip
        assert (spent.cached_tokens, spent.cache_write_tokens) == (
            provider.count("cache_read_input_tokens"), provider.count("cache_creation_input_tokens"),
        )  # fmt: skip
        rows = await house.store.spent(executions=["e1"], by=("role",))
        calls = sum(row["calls"] for row in rows)
        assert 0 <= spent.cost - provider.charged() <= calls  # each call is rounded up to the micro-dollar
        assert sum(row["cost"] for row in rows) == spent.cost
        assert refused > 0, "a budget that nobody reached shows nothing"
        assert provider.most_at_once > 1
    print(
        f"seed {seed}: {calls} calls by {AGENTS} agents, budget ${total / 1e6:.6f}, charged "
        f"${provider.charged() / 1e6:.6f}, counted ${spent.cost / 1e6:.6f}, refused {refused}, overspend 0"
    )
