"""What the gateway adds to a call: the same streams straight to a provider and through the gateway, in one run.

The provider and the agents are processes of their own; the gateway has a store on disk and sets every call's most
aside in a durable commit, as in a server. Each event carries the moment at which it was sent, each request the moment
at which the agent sent it, on the system's one monotonic clock. Printed are the differences of the percentiles.

    python bench/gateway.py [STREAMS] [ROUNDS]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

EVENTS, PACE_S = 20, 0.05
PROMPT = "x" * 20_000  # a short conversation


# -- the provider, a process ---------------------------------------------------------------------------------------


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    took = time.monotonic_ns() - body["metadata"]["sent_ns"]
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    usage = {"input_tokens": 5000, "output_tokens": 1}
    await response.write(_event({"type": "message_start", "there_ns": took, "message": {"usage": usage}}))
    for _ in range(EVENTS):
        await asyncio.sleep(PACE_S)
        await response.write(_event({"type": "content_block_delta", "sent_ns": time.monotonic_ns()}))
    await response.write(_event({"type": "message_delta", "usage": {"output_tokens": 60}}))
    return response


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


async def _provider() -> None:
    app = web.Application()
    app.router.add_post("/v1/messages", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


# -- the agents, a process -----------------------------------------------------------------------------------------


async def _stream(http: aiohttp.ClientSession, url: str, token: str, there: list[int], back: list[int]) -> None:
    body = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": PROMPT}
    body["metadata"] = {"sent_ns": time.monotonic_ns()}
    async with http.post(url, data=json.dumps(body), headers={"x-api-key": token}) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            now = time.monotonic_ns()
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if "sent_ns" in event:
                    back.append(now - event["sent_ns"])
                there += [event["there_ns"]] if "there_ns" in event else []


async def _agents(doors: list[tuple[str, str]], stagger_s: float) -> None:
    there: list[int] = []
    back: list[int] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
        for url, token in doors:
            group.create_task(_stream(http, url, token, there, back))
            await asyncio.sleep(stagger_s)
    print(json.dumps({"there": there, "back": back}), flush=True)


# -- the gateway, this process -------------------------------------------------------------------------------------


async def measure(streams: int, rounds: int) -> dict[str, Any]:
    """Run it; milliseconds, and what was counted."""
    from parallax.agents.gateway.providers import Account
    from parallax.agents.gateway.service import Gateway, GatewaySettings
    from parallax.events import EventBus
    from parallax.execution.budget import Budgets
    from parallax.execution.journal import Journal
    from parallax.models import Budget, Execution, ExecutionState
    from parallax.ports import AgentSession
    from parallax.redaction import Secret
    from parallax.storage.statements import Change, execution_row, insert_row
    from parallax.storage.store import Store

    async with AsyncExitStack() as stack:
        provider = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "provider", stdout=subprocess.PIPE, limit=1 << 26
        )
        stack.callback(provider.kill)
        assert provider.stdout is not None
        direct = f"http://127.0.0.1:{int(await provider.stdout.readline())}"
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        store = await stack.enter_async_context(Store(place / "bench.db"))
        execution = Execution(
            id="e1", pattern="p", version="1", hash="h", input={}, repo=None, base=None,
            state=ExecutionState.RUNNING, created_at=time.time(), options={},
        )  # fmt: skip
        bundle = insert_row("bundles", {"hash": "h", "path": "p", "bundle": "{}"})
        await store.commit(Change([bundle, insert_row("executions", execution_row(execution))]))
        budgets = Budgets()
        journal = await Journal.load(store, EventBus(store), "e1", 0)
        meter = await budgets.open(journal, store, Budget(cost=10**12))
        accounts = {"anthropic": [Account(base_url=direct, key=Secret("sk-the-providers-own-key"))]}
        gateway = Gateway(GatewaySettings(accounts=accounts), providers_of=lambda _: ("anthropic",), meter=budgets)
        await gateway.start()
        stack.push_async_callback(gateway.close)
        doors = []
        for number in range(streams):
            who = f"e1.r.{number}"
            session = AgentSession(agent_id=who, execution="e1", role="r", type="t", home=place, tree=place)
            door = await gateway.open_session(session)
            doors.append((f"{door.url}/model/anthropic/v1/messages", door.token.reveal()))
            await stack.enter_async_context(meter.turn(agent_id=who, role="r", step_key=f"s{number}", task="t"))
        found: dict[str, dict[str, list[int]]] = {"direct": {}, "gateway": {}}
        for _ in range(rounds):
            for way in ("direct", "gateway"):
                used = doors if way == "gateway" else [(f"{direct}/v1/messages", token) for _, token in doors]
                for name, values in (await _load(used)).items():
                    found[way].setdefault(name, []).extend(values)
        spent = meter.spent
        return _report(found, streams, rounds) | {
            "counted": {"input_tokens": spent.input_tokens, "output_tokens": spent.output_tokens},
            "sent": {"input_tokens": 5000 * streams * rounds, "output_tokens": 60 * streams * rounds},
        }


async def _load(doors: list[tuple[str, str]]) -> dict[str, list[int]]:
    agents = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "agents", stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 26
    )
    told, _ = await agents.communicate(json.dumps(doors).encode())
    result: dict[str, list[int]] = json.loads(told)
    return result


def _report(found: dict[str, dict[str, list[int]]], streams: int, rounds: int) -> dict[str, Any]:
    def at(values: list[int], share: float) -> float:
        return sorted(values)[min(len(values) - 1, int(len(values) * share))] / 1e6

    report: dict[str, Any] = {"streams": streams, "rounds": rounds}
    for name, label in (("there", "request"), ("back", "event")):
        for percent in (50, 99):
            direct, through = (at(found[way][name], percent / 100) for way in ("direct", "gateway"))
            report[f"{label}_p{percent}"] = {
                "direct_ms": round(direct, 2), "gateway_ms": round(through, 2), "added_ms": round(through - direct, 2)
            }  # fmt: skip
    return report


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["provider"]:
            asyncio.run(_provider())
        case ["agents"]:
            given = json.loads(sys.stdin.read())
            asyncio.run(_agents(given, 1.0 / len(given)))
        case numbers:
            count, times = [*map(int, numbers), *(200, 3)[len(numbers) :]]
            print(json.dumps(asyncio.run(measure(count, times)), indent=2))
