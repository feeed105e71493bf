"""Agents that stop getting anywhere, and agents that are only slow: the first are named in time, the second never.

Real processes, a real gateway and a scripted model. The small tier runs with the suite; `make stalls` runs 200 stalls
and 50 slow runs, 16 at once, once with a short limit and once with the default one, and writes the table into the
documents.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from agent_helpers import marked, task

from parallax.agents.clients.acp import AcpClient
from parallax.agents.clis.scripted import ScriptedCLI
from parallax.agents.gateway.providers import Account
from parallax.agents.gateway.service import Gateway, GatewaySettings
from parallax.agents.registries.memory import MemoryAgentRegistry
from parallax.agents.runtimes.local import LocalRuntime
from parallax.agents.stalls import KINDS
from parallax.agents.supervisor import AgentSupervisor
from parallax.agents.turn import Silence
from parallax.errors import AgentError
from parallax.events import Event
from parallax.models import Question
from parallax.ports import AgentSession
from parallax.redaction import Redactor, Secret
from tests.modelserver.model_server import ModelServer

ROOT = Path(__file__).parent.parent.parent
SEED = int(os.environ.get("PARALLAX_SEED", "1"))
FULL = os.environ.get("PARALLAX_STALLS")  # how many stalls; the small tier without it
LIMITS = [float(text) for text in os.environ.get("PARALLAX_STALL_LIMITS", "3").split(",")]
AT_ONCE = 16
QUIET = "none"  # no model is asked

PROMPT = {"hang": True}


def printed(text: str) -> dict[str, Any]:
    """A line beside the protocol, as a program prints it that believes it has a terminal."""
    return {"garbage": text}


# kind -> ways to play it: the scenario of the model, the actions
STALLS: Mapping[str, list[tuple[str, list[dict[str, Any]]]]] = {
    "permission": [
        (QUIET, [{"permission": {"title": "Run rm -rf build", "kind": "execute"}}, {"say": "over"}]),
        (QUIET, [printed("Allow this edit to src/a.py? (y/n)"), PROMPT]),
    ],
    "trust": [
        (QUIET, [printed("Do you trust the files in this folder?"), PROMPT]),
        (QUIET, [{"permission": {"title": "Trust this workspace?"}}, {"say": "over"}]),
    ],
    "question": [
        (QUIET, [{"ask": {"text": "Which database shall I take?"}}, {"say": "over"}]),
        (QUIET, [printed("? Which database shall I take (Use arrow keys)"), PROMPT]),
    ],
    "login": [
        (QUIET, [{"fail": {"message": "Authentication required", "code": -32000}}]),
        (QUIET, [printed("Invalid API key · Please run /login"), PROMPT]),
    ],
    "hung_tool": [
        (QUIET, [{"run": ["sleep", "3600"]}]),
        (QUIET, [{"say": "I install it."}, {"begin": {"title": "npm install", "kind": "execute"}}, PROMPT]),
    ],
    "hung_mcp": [
        (QUIET, [{"begin": {"title": "mcp__database__query"}}, PROMPT]),
        (QUIET, [{"think": "I look it up."}, {"begin": {"title": "query (database MCP Server)"}}, PROMPT]),
    ],
    "limit": [
        ("ratealways", [{"model": {}}, {"say": "All done."}]),
        ("ratealways", [{"model": {}}]),
        (QUIET, [{"fail": {"message": "slow down", "kind": "rate_limit"}}]),
    ],
    "full_context": [(QUIET, [{"usage": {"input": 195_000, "output": 100}}, {"wait": 0}])],
    "never_ends": [(QUIET, [{"answer": {"value": "It is done.", "confidence": 0.9}}, PROMPT])],
    "nothing": [(QUIET, [{"crash": 0}]), (QUIET, [{"wait": 0.1}])],
    "silent_retry": [
        ("err500", [{"model": {"seconds": 3600, "retry": 0.3}}]),
        ("ratealways", [{"model": {"seconds": 3600, "retry": 0.3}}]),
    ],
    "dead_peer": [("hang", [{"model": {}}]), (QUIET, [{"say": "I begin."}, {"close": True}])],
}

BUSY = "import time\nend = time.time() + {seconds}\nwhile time.time() < end: pass"
HALF = """import time
end = time.time() + {seconds}
while time.time() < end:
    turn = time.process_time() + 0.1
    while time.process_time() < turn: pass
    time.sleep(0.2)"""


def living(seconds: float) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """Ways to be slow for so many seconds and alive."""
    whole, ticks = round(seconds), round(seconds)

    def python(code: str) -> list[str]:
        return [sys.executable, "-S", "-c", code.format(seconds=seconds)]

    beneath = f"{sys.executable} -S -c '{HALF.format(seconds=seconds)}' & wait"
    many = f"end=$(($(date +%s) + {whole})); while [ $(date +%s) -lt $end ]; do true; done"
    return {
        "slow model stream": ("slow", [{"model": {"seconds": seconds}}, {"say": "over"}]),
        "quiet tool that computes": (QUIET, [{"run": python(BUSY)}, {"say": "over"}]),
        "quiet tool, a third of a processor, in a grandchild": (QUIET, [{"run": ["sh", "-c", beneath]}, {"say": "over"}]),
        "quiet tool of many short processes": (QUIET, [{"run": ["sh", "-c", many]}, {"say": "over"}]),
        "thinking aloud": (QUIET, [*[{"think": "hm"}, {"wait": 1}] * ticks, {"say": "over"}]),
        "thinking with traffic at the gateway": (
            "slow", [{"think": "hm"}, {"model": {"seconds": seconds}}, {"answer": {"value": "x", "confidence": 0.9}}],
        ),
        "a question that waits long": (QUIET, [{"ask": {"text": "Well?"}}, {"say": "over"}]),
    }  # fmt: skip


@dataclass
class Run:
    """One agent's play and what came of it."""

    expected: str | None  # None: it lives
    name: str
    scenario: str
    actions: list[dict[str, Any]]
    number: int = 0
    begun: float = 0.0
    named: list[tuple[str, float, float]] = field(default_factory=list)  # kind, moment, silence that it was named after
    took_s: float | None = None
    end: str = ""

    @property
    def after_s(self) -> float | None:
        """Seconds of silence after which it had its right name; from the turn's begin for what is no silence."""
        for kind, at, silent_s in self.named:
            if kind == self.expected:
                return silent_s or at - self.begun
        return None


class Plays:
    """A supervisor with a gateway for each scenario, and the ear for all their events."""

    def __init__(self, place: Path, limit_s: float, owner: str) -> None:
        self.place = place
        self.limit_s = limit_s
        self.runtime = LocalRuntime(owner, wish="off")
        self.runs: dict[str, Run] = {}
        self.supervisors: dict[str, AgentSupervisor] = {}

    async def tell(self, event: Event) -> None:
        run, data = self.runs[str(event.agent_id)], event.data
        match event.type:
            case "agent.busy" if not run.begun:
                run.begun = time.monotonic()
            case "agent.stalled":
                run.named.append((data["kind"], time.monotonic(), data["silent_s"]))
            case "agent.asking" if run.expected is not None:
                run.named.append((data["kind"], time.monotonic(), 0.0))

    async def begin(self, stack: AsyncExitStack, model: str, scenario: str) -> None:
        account = Account(base_url=f"{model}/{scenario}", key=Secret("test-key"))
        gateway = Gateway(
            GatewaySettings(accounts={"anthropic": [account]}),
            providers_of=lambda _: ("anthropic",),
            redactor=Redactor(),
        )
        stack.push_async_callback(gateway.close)
        await gateway.start()
        supervisor = self.supervisors[scenario] = AgentSupervisor(
            open_client=self._client, registry=MemoryAgentRegistry(), doors=gateway, redact=Redactor(), tell=self.tell,
            silence=Silence(stall_s=self.limit_s, end_s=2 * self.limit_s), sandbox="off",
        )  # fmt: skip
        stack.push_async_callback(supervisor.close)

    def _client(self, session: AgentSession) -> AcpClient:
        script = self.place / f"{session.agent_id}.json"
        script.write_text(json.dumps({"rules": [{"do": self.runs[session.agent_id].actions}]}))
        return AcpClient(
            runtime=self.runtime, cli=ScriptedCLI(script), session=session, program=sys.executable, grace_s=2.0
        )

    async def play(self, run: Run) -> None:
        """One turn of one agent to its end."""
        agent_id = f"e1.engineer.{run.number}"
        self.runs[agent_id] = run
        supervisor = self.supervisors[run.scenario]
        tree = self.place / agent_id / "tree"
        tree.mkdir(parents=True)
        session = AgentSession(
            agent_id=agent_id, execution="e1", role="engineer", type="scripted", home=tree.parent / "home", tree=tree
        )

        async def ask(question: Question) -> str:
            await asyncio.sleep(self.limit_s * 2.5)
            return question.default or "yes"

        await supervisor.ensure(session, number=run.number)
        began = time.monotonic()
        try:
            await supervisor.turn(agent_id, replace(task(), id=f"e1/s/{run.number}"), ask)
            run.end = "result"
        except AgentError as error:
            run.end = type(error).__name__
        run.took_s = time.monotonic() - began
        await supervisor.give_up(agent_id, "the play is over")


@asynccontextmanager
async def plays(place: Path, limit_s: float, owner: str) -> AsyncIterator[Plays]:
    async with ModelServer() as model, AsyncExitStack() as stack:
        made = Plays(place, limit_s, owner)
        for scenario in (QUIET, "slow", "ratealways", "err500", "hang"):
            await made.begin(stack, model.url, scenario)
        yield made
    assert marked(owner) == []


def programme(stalls: int, slow: int, limit_s: float) -> list[Run]:
    """So many stalls of all kinds and ways in turn, so many slow runs, in the order of the seed."""
    rng = random.Random(SEED)
    alive = list(living(limit_s * 2.5).items())
    runs = []
    for number in range(stalls):
        kind = list(STALLS)[number % len(STALLS)]
        scenario, actions = STALLS[kind][number // len(STALLS) % len(STALLS[kind])]
        runs.append(Run(kind, kind, scenario, actions))
    for number in range(slow):
        name, (scenario, actions) = alive[number % len(alive)]
        runs.append(Run(None, name, scenario, actions))
    rng.shuffle(runs)
    for number, run in enumerate(runs, 1):
        run.number = number
    return runs


async def perform(place: Path, runs: list[Run], limit_s: float, owner: str) -> None:
    print(f"seed {SEED}: {len(runs)} runs, limit {limit_s:g} s")
    gate = asyncio.Semaphore(AT_ONCE)
    async with plays(place, limit_s, owner) as made:

        async def one(run: Run) -> None:
            async with gate:
                await made.play(run)

        await asyncio.gather(*map(one, runs))


def report(runs: list[Run], limit_s: float) -> list[str]:
    """The table of one performance."""
    lines = [
        "| kind | runs | named so | named after (s): median, longest | ended after (s): longest |",
        "|---|---|---|---|---|",
    ]
    for kind in KINDS:
        mine = [run for run in runs if run.expected == kind]
        right = [run for run in mine if right_of(run, limit_s)]
        after = sorted(run.after_s for run in mine if run.after_s is not None) or [float("nan")]
        ended = max(run.took_s or float("inf") for run in mine)
        lines.append(
            f"| {kind} | {len(mine)} | {len(right)} | {statistics.median(after):.1f}, {after[-1]:.1f} | {ended:.1f} |"
        )
    slow = [run for run in runs if run.expected is None]
    alarmed = [run for run in slow if run.named or run.end != "result"]
    lines.append(f"| slow but living | {len(slow)} | {len(alarmed)} false alarms | | |")
    return lines


def right_of(run: Run, limit_s: float) -> bool:
    """Named as what it is when the limit is reached: with one more second for looks and a busy machine."""
    return run.after_s is not None and run.after_s <= limit_s + max(1.0, limit_s / 10)


def judge(runs: list[Run], limit_s: float) -> None:
    for run in runs:
        told = [(kind, round(at - run.begun, 1), silent_s) for kind, at, silent_s in run.named]
        if run.expected is None and (told or run.end != "result"):
            print("FALSE ALARM", run.number, run.name, told, run.end)
        elif run.expected is not None and not right_of(run, limit_s):
            print("NOT NAMED", run.number, run.name, run.actions, told, run.end)


def held(runs: list[Run], limit_s: float) -> tuple[float, int, int]:
    """Share of stalls named right, runs without an end, false alarms."""
    stalled = [run for run in runs if run.expected is not None]
    right = sum(right_of(run, limit_s) for run in stalled)
    endless = sum(run.took_s is None or run.took_s > 4 * limit_s + 10 for run in runs)
    return right / len(stalled), endless, sum(run.expected is None and bool(run.named) for run in runs)


@pytest.mark.skipif(FULL is not None, reason="the full run takes its place")
async def test_stalls_of_all_kinds_are_named_and_slow_runs_are_left_alone(place: Path, owner: str) -> None:
    """The small tier: each way of each kind once, each way of being slow once."""
    limit_s = 2.0
    runs = programme(24, 7, limit_s)
    await perform(place, runs, limit_s, owner)
    print("\n".join(report(runs, limit_s)))
    judge(runs, 3 * limit_s)
    share, endless, alarms = held(runs, 3 * limit_s)  # three times the limit: other tests run beside this one
    assert (share, endless, alarms) == (1.0, 0, 0)


@pytest.mark.skipif(FULL is None, reason="`make stalls` runs it")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("limit_s", LIMITS)
async def test_the_full_run(place: Path, owner: str, limit_s: float) -> None:
    runs = programme(int(FULL or 0), int(FULL or 0) // 4, limit_s)
    await perform(place, runs, limit_s, owner)
    table = report(runs, limit_s)
    print("\n".join(table))
    judge(runs, limit_s)
    share, endless, alarms = held(runs, limit_s)
    slow = sum(run.expected is None for run in runs)
    told = (
        f"{len(runs) - slow} stalls and {slow} slow runs, {AT_ONCE} at once, a silence limit of {limit_s:g} s, seed {SEED}: "
        f"{share:.1%} named as what they are in time, {endless} without an end, {alarms} false alarms."
    )
    print(told)
    write(limit_s, [told, "", *table])
    assert share >= 0.99
    assert (endless, alarms) == (0, 0)


def write(limit_s: float, lines: list[str]) -> None:
    """Into the document, between the marks of this limit."""
    document = ROOT / "docs" / "agents.md"
    text = document.read_text()
    begin, end = f"<!-- stalls {limit_s:g} s -->", f"<!-- end of stalls {limit_s:g} s -->"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    if rest:
        document.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{after}")
