"""Whole executions whose agents ask a model through the gateway: budgets, usage windows, records, planted keys."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from parallax.agents.gateway import passing
from parallax.models import Execution
from tests.conftest import Team, TeamFactory, on_loopback

COST = 3 * 20 + 15 * 90  # micro-dollars of one call: 20 tokens in, 90 out, at the prices below
ORG = 'org({engineer: {agentType: ["scripted"], max: 4}});\n'


class Provider:
    """Anthropic's dialect. `windows`: after so many calls each, it is closed for `closed_s` seconds."""

    def __init__(self, *windows: int, closed_s: float = 2.0) -> None:
        self.windows = list(windows)
        self.closed_s = closed_s
        self.closed_until = 0.0
        self.calls = self.refused = self.in_window = 0
        self.says = "Yes.\n\nCONFIDENCE: 0.7"
        self.asked: list[Any] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        now = time.time()
        if self.windows and self.in_window >= self.windows[0]:
            self.windows.pop(0)
            self.in_window, self.closed_until = 0, float(int(now + self.closed_s) + 1)
        if now < self.closed_until:
            self.refused += 1
            error = {"type": "error", "error": {"type": "rate_limit_error", "message": "window used up"}}
            reset = str(int(self.closed_until))
            return web.json_response(error, status=429, headers={"anthropic-ratelimit-unified-reset": reset})
        self.in_window += 1
        self.calls += 1
        if not body.get("stream"):
            told = {
                "content": [{"type": "text", "text": self.says}],
                "usage": {"input_tokens": 20, "output_tokens": 90},
            }
            return web.json_response({"type": "message", **told})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        usage = {"input_tokens": 20, "output_tokens": 1}
        for event in (
            {"type": "message_start", "message": {"usage": usage}},
            {"type": "message_delta", "usage": {"output_tokens": 90}},
        ):
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        return response


@asynccontextmanager
async def provided(provider: Provider) -> AsyncIterator[Provider]:
    app = web.Application()
    app.router.add_post("/v1/messages", provider.answer)
    async with on_loopback(app) as provider.url:
        yield provider


@asynccontextmanager
async def team_of(
    team: TeamFactory, provider: Provider, place: Path, *actions: Any, **settings: Any
) -> AsyncIterator[Team]:
    """A team whose scripted agents reach the provider, at the prices of claude-sonnet-4-5."""
    prices = place / "prices.json"
    prices.write_text(json.dumps({"scripted": {"input": 3, "output": 15}}))
    report = [] if END in actions else [{"answer": {"value": "done", "confidence": 0.9}}]
    script = {"roles": {"engineer": [{"do": [*actions, *report]}]}}
    given = {"anthropic_api_key": "sk-ant-the-servers-own-key", "anthropic_base_url": provider.url, "prices": prices}
    async with team(script, **(given | settings)) as made:
        made.parallax.gateway._providers_of = lambda _: ("anthropic",)  # scripted agents need none otherwise
        yield made


def steps(count: int) -> str:
    """A program of independent steps, four at a time."""
    branches = ", ".join(f'() => assign("engineer", "do {n}", {{id: "s{n}"}})' for n in range(count))
    return f"{ORG}parallel([{branches}]);"


WRITE = {"edit": {"path": "work.txt", "content": "half of it\n"}}
CALL = {"model": {}}
INSIST = {"model": {"retry": 0.2}}  # as most CLIs do: a refused call is tried again
END = {"say": "I have done what I could."}  # as some do after a refusal: a normal end, and no report


async def test_a_run_that_its_budget_ends_is_partial_keeps_its_work_and_says_so(team: TeamFactory, place: Path) -> None:
    async with provided(Provider()) as provider, team_of(team, provider, place, WRITE, *[CALL] * 8) as t:
        done = await t.run(ORG + 'assign("engineer", "write", {id: "w"});', budget=5 * COST)
        assert done.state == "partial"
        assert re.search(
            r"the budget of \$0\.0\d+ is used up \(\$0\.0\d+ spent, and the next call may use", done.reason or ""
        )
        assert provider.calls * COST == done.usage.cost <= 5 * COST
        assert done.usage.priced == "table"
        assert provider.calls == 4  # of the fifth only what it might use did not fit
        assert t.branch_file(done, "work.txt", "engineer/w") == "half of it\n"
        [told] = await t.told(done, "budget.exhausted")
        assert told["scope"] == "execution"
        rows = await t.parallax.store.spent(executions=[done.id], by=("step_key", "model", "account"))
        assert [(row["step_key"], row["model"], row["calls"]) for row in rows if row["calls"]] == [
            ("w", "scripted", provider.calls)
        ]


async def test_a_roles_and_a_steps_budget_end_a_run_too(team: TeamFactory, place: Path) -> None:
    async with provided(Provider()) as provider, team_of(team, provider, place, *[CALL] * 8) as t:
        poor = 'org({engineer: {agentType: ["scripted"], budget: {tokens: 400}}});\n'
        done = await t.run(poor + 'assign("engineer", "x", {id: "w"});')
        assert done.state == "partial"
        assert "the budget of role 'engineer' of 400 tokens is used up" in (done.reason or "")
        done = await t.run(ORG + 'assign("engineer", "x", {id: "w", budget: {money: 0.004}});')
        assert "the budget of step 'w' of $0.0040 is used up" in (done.reason or "")
        done = await t.run(ORG + 'assign("engineer", "x", {id: "w"}); assign("engineer", "y");', budget_turns=1)
        assert "the budget of 1 turn is used up" in (done.reason or "")
        assert done.state == "partial"


async def test_the_time_of_a_run_is_a_budget(team: TeamFactory, place: Path) -> None:
    async with provided(Provider()) as provider, team_of(team, provider, place, {"wait": 60}) as t:
        done = await t.run(ORG + 'assign("engineer", "x", {id: "w"});', budget_time_s=2.0)
        assert (done.state, done.reason) == (
            "partial",
            "the time that this run may take is up; what is finished is kept",
        )


@pytest.mark.parametrize("actions", [[INSIST] * 3, [*[CALL] * 3, END]], ids=["it insists", "it ends its turn"])
async def test_two_usage_windows_of_a_night_lose_no_work(
    team: TeamFactory, place: Path, monkeypatch: pytest.MonkeyPatch, actions: list[Any]
) -> None:
    """An account is used up twice, for seconds instead of hours: agents are parked until the reset and go on."""
    monkeypatch.setattr(passing, "HELD_S", 0.2)
    async with provided(Provider(3, 3)) as provider, team_of(team, provider, place, *actions) as t:
        done = await t.run(steps(8))
        assert done.state == "succeeded", done.reason
        assert provider.windows == [], "both windows were used up"
        assert provider.refused >= 2
        assert provider.calls >= 8  # no turn is believed to be over whose last call was refused
        shown = [event for event in await t.events(done) if event.type == "agent.parked"]
        assert len(shown) >= 2
        assert all(event.data["until"] is not None for event in shown)
        finished = [event for event in await t.events(done) if event.type == "step.finished"]
        assert sorted(event.step_key for event in finished) == sorted(f"s{n}" for n in range(8))
        assert await t.told(done, "step.failed") == []
        assert await t.told(done, "step.retrying") == []  # a limit uses up no attempt
        assert done.usage.cost == provider.calls * COST
        assert done.usage.turns == 8  # a parked turn goes on: it is no second one


async def test_without_auto_resume_a_person_says_when_it_goes_on(
    team: TeamFactory, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passing, "HELD_S", 0.2)
    async with provided(Provider(1)) as provider, team_of(team, provider, place, INSIST, INSIST) as t:
        execution = await t.start(ORG + 'assign("engineer", "x", {id: "w"});', auto_resume=False)
        waiting = await until(t, execution, "needs_attention")
        assert re.search(
            r"engineer \(scripted\) is limited until \d\d:\d\d and shall not go on by itself", waiting.reason or ""
        )
        await asyncio.sleep(max(0.0, provider.closed_until - time.time()))
        await t.parallax.engine.release(execution.id)
        done = await t.finish(execution)
        assert done.state == "succeeded"


async def until(t: Team, execution: Execution, state: str) -> Execution:
    async with asyncio.timeout(30):
        while (now := await t.parallax.store.execution(execution.id)).state != state:
            await asyncio.sleep(0.05)
    return now


async def test_a_recorded_run_is_replayed_without_a_network(team: TeamFactory, place: Path) -> None:
    program = ORG + 'assign("engineer", "a", {id: "a"}); assign("engineer", "b", {id: "b"});'
    async with provided(Provider()) as provider, team_of(team, provider, place, CALL, CALL, record=True) as t:
        first = await t.run(program)
        assert first.state == "succeeded"
        assert provider.calls == 4
    records = place / "data" / "records" / first.id
    files = sorted(records.rglob("*.json"))
    assert len(files) == 4
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
    assert "sk-ant-the-servers-own-key" not in "".join(path.read_text() for path in files)
    nowhere = Provider()
    nowhere.url = "http://127.0.0.1:1"
    async with team_of(team, nowhere, place, CALL, CALL, replay=records) as t:
        second = await t.run(program)
        assert second.state == "succeeded"
        assert (second.usage.cost, second.usage.input_tokens) == (first.usage.cost, first.usage.input_tokens)
        third = await t.run(ORG + 'assign("engineer", "c", {id: "c"});')  # what was not recorded is not asked
        assert third.usage.cost == 0
        assert {data["status"] for data in await t.told(third, "gateway.refused")} == {404}


async def test_the_word_llm_asks_a_model_at_the_same_prices_and_under_the_same_budget(
    team: TeamFactory, place: Path
) -> None:
    async with provided(Provider()) as provider, team_of(team, provider, place) as t:
        ask = 'llm("Is it?", {id: "q", model: "scripted", maxTokens: 100, temperature: 0})'
        done = await t.run(ask)
        assert done.reason is None
        assert (done.state, done.result, done.confidence) == ("succeeded", "Yes.\n\nCONFIDENCE: 0.7", 0.7)
        assert (done.usage.cost, done.usage.turns) == (COST, 1)
        [asked] = provider.asked
        assert (asked["max_tokens"], asked["temperature"], asked["messages"][0]["content"]) == (100, 0, "Is it?")
        poor = await t.run("\n".join(ask.replace('"q"', f'"q{n}"') for n in range(9)), budget=3 * COST)
        assert poor.state == "partial"
        assert poor.usage.cost <= 3 * COST
        provider.says = '```json\n{"a": [1]}\n```'
        found = await t.run('llm("x", {id: "j", model: "scripted", structuredOutput: true}).a')
        assert found.result == [1]
        for call, words in (
            ('llm("x", {provider: "openai"})', "LLM provider 'openai' not found"),
            ('llm("x", {includeReasoning: true})', "llm() includeReasoning True is not served"),
        ):
            failed = await t.run(call)
            assert failed.state == "failed"
            assert words in (failed.reason or "")
    async with team({"roles": {}}) as t:
        failed = await t.run('llm("x")')
        assert "No LLM provider configured" in (failed.reason or "")


CANARIES = {
    "ANTHROPIC_API_KEY": "sk-ant-canary-000000000000000000000001",
    "OPENAI_API_KEY": "sk-canary-openai-0000000000000000002",
    "GEMINI_API_KEY": "AIzaCanary0000000000000000000000000000003",
    "GITHUB_TOKEN": "ghp_canary00000000000000000000000000000004",
    "AWS_SECRET_ACCESS_KEY": "canary/aws/0000000000000000000000000005",
    "DATABASE_PASSWORD": "canary-database-00000000000000000006",
    "SLACK_BOT_TOKEN": "xoxb-canary-000000000000000000000007",
    "WEBHOOK_SECRET": "canary-webhook-00000000000000000008",
    "PARALLAX_API_KEY": "plx_canary0000000000000000000000000000009",
    "NPM_TOKEN": "npm_canary000000000000000000000000000010",
}


async def test_planted_keys_are_found_nowhere(
    team: TeamFactory, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve keys lie in the server's environment and settings; the agents look for them, and so do we."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    spare = [f"sk-ant-canary-of-a-spare-account-{number}" for number in (11, 12)]
    accounts = [{"name": f"spare-{n}", "provider": "anthropic", "key": key} for n, key in enumerate(spare)]
    planted = [*CANARIES.values(), *spare]
    assert len(planted) == 12
    snoop = {
        "run": [
            "sh",
            "-c",
            "env; cat /proc/self/environ /proc/$PPID/environ 2>/dev/null | tr '\\0' '\\n'; ps axeww || true",
        ]
    }
    own = {"anthropic_api_key": CANARIES["ANTHROPIC_API_KEY"], "accounts": accounts, "record": True}
    seen: set[str] = set()
    async with provided(Provider()) as provider, team_of(team, provider, place, CALL, snoop, {"wait": 1}, **own) as t:
        execution = await t.start(ORG + 'assign("engineer", "x", {id: "w"});')
        watching = asyncio.create_task(watch(seen, planted))
        done = await t.finish(execution)
        watching.cancel()
        assert done.state == "succeeded", done.reason
        assert provider.calls == 1
        events = json.dumps([event.data for event in await t.events(done)])
    assert seen == set(), "in the environment or arguments of an agent's process"
    assert [key for key in planted if key in events] == []
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10
    hits = [(path, key) for path in files for key in planted if key.encode() in path.read_bytes()]
    assert hits == []
    assert [key for key in planted if key in caplog.text] == []


async def watch(seen: set[str], planted: list[str]) -> None:
    """Look at the environment and the arguments of every process below this one."""
    while True:
        for child in psutil.Process().children(recursive=True):
            try:
                told = " ".join([*child.cmdline(), *child.environ().values()])
            except psutil.Error:
                continue
            seen |= {f"{key} in {child.pid}" for key in planted if key in told}
        await asyncio.sleep(0.02)
