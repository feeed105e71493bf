"""R1 and R5: the server is killed at random moments, while it works and while it comes back.

Agents are real processes that keep a ledger of their own; the oracle compares it with the database after every kill.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.error
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish
from tests.faults.client import GONE, call, submit
from tests.faults.oracle import Oracle
from tests.faults.tier import ALLOWANCE, big, record, rng, size

AGENTS = 16
READY_S, MOVING_S = 2.5, 5.0
PLAIN = """
org({worker: {workspace: "none", max: 4}})
for i in range(input.steps) { assign("worker", "step ${i}", {id: "s${i}"}) }
"""
BRANCHED = """
org({worker: {workspace: "none", max: 4}})
for part in range(input.steps / 4) {
    parallel(range(4), i => assign("worker", "step ${part * 4 + i}", {id: "s${part * 4 + i}"}))
}
"""
QUICK = {"rules": [{"do": [{"wait": 0.05}, {"answer": {"value": "done", "confidence": 0.9}}]}]}


@dataclass
class Campaign:
    """Many executions on one server that is killed and started again."""

    world: World
    executions: int
    steps: int
    recoveries: int = 50
    ready_s: list[float] = field(default_factory=list)
    ready_cpu_s: list[float] = field(default_factory=list)
    ids: dict[int, str] = field(default_factory=dict)
    begun_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.world.place / "plain.prism").write_text(PLAIN)
        (self.world.place / "branched.prism").write_text(BRANCHED)
        self.oracle = Oracle(self.world.data / "parallax.db", self.world.ledger_file)

    def start(self, **env: str) -> subprocess.Popen[str]:
        """Start the server and wait until it is ready."""
        begun = time.monotonic()
        self.begun_at.append(time.time())
        process = self.world.start(
            "serve", "--port", "0",
            PARALLAX_MAX_AGENTS=str(AGENTS), PARALLAX_MAX_RECOVERIES=str(self.recoveries), **env,
        )  # fmt: skip
        self.world.wait_ready(process)
        self.ready_s.append(time.monotonic() - begun)
        used = psutil.Process(process.pid).cpu_times()
        self.ready_cpu_s.append(used.user + used.system)
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9, then the judge looks."""
        process.kill()
        process.communicate()
        self.oracle.after_kill()

    def submit_all(self) -> None:
        """Hand everything over to a server that takes in and runs nothing, and kill it."""
        process = self.start(PARALLAX_EXECUTION_ENGINE="off")
        for number in range(self.executions):
            pattern = str(self.world.place / f"{'plain' if number % 5 else 'branched'}.prism")
            self.ids[number] = submit(self.world, pattern, f"k{number}", steps=self.steps)
        self.kill(process)

    def wait_turn(self, limit_s: float) -> None:
        """Until an agent has begun a turn in this life of the server, or time is up."""
        begun, deadline = self.begun_at[-1], time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if any(line.event == "start" and line.at > begun for line in self.oracle.lines()[-50:]):
                return
            time.sleep(0.02)

    def wait_ended(self, process: subprocess.Popen[str], limit_s: float) -> None:
        """Until every execution has ended, or time is up."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            live = call(self.world, "GET", "/api/executions?state=queued&state=running&limit=1")["executions"]
            if not live:
                return
            time.sleep(0.25)
        raise AssertionError("executions are still running")

    def moved_s(self) -> float:
        """From the last start to the moment when the last live execution had been taken up."""
        epoch = int(str(self.oracle.column("SELECT value FROM meta WHERE key = 'epoch'")[0][0]))
        told = self.oracle.column(
            "SELECT max(at), count(*) FROM events WHERE type = 'execution.resumed' "
            f"AND json_extract(data, '$.epoch') = {epoch}"
        )
        at, count = told[0]
        assert isinstance(at, float), "nothing was resumed"
        assert isinstance(count, int)
        self.resumed = count
        return at - self.begun_at[-1]

    def finish(self, process: subprocess.Popen[str]) -> None:
        """Stop in good order."""
        assert finish(process, by=signal.SIGTERM).code == 0
        self.oracle.after_kill()
        assert self.world.agents_alive() == []


def test_r1_killed_at_random_nothing_finished_is_lost_or_run_again() -> None:
    executions, steps, kills = size((10, 4, 3), (100, 20, 20), (100, 20, 20))
    chance = rng("R1")
    with new_world(agents=QUICK) as world:
        campaign = Campaign(world, executions, steps)
        campaign.submit_all()
        for _ in range(kills):
            process = campaign.start()
            time.sleep(chance.uniform(0.25, 0.6))
            campaign.wait_turn(5)  # on a slow machine nothing may have begun by then, and nothing would be tested
            campaign.kill(process)
        begun = time.monotonic()
        process = campaign.start()
        campaign.wait_ended(process, 1200)
        took = time.monotonic() - begun
        campaign.finish(process)
        check_campaign(campaign, executions * steps, kills, took)


def check_campaign(campaign: Campaign, wanted: int, kills: int, took: float) -> None:
    """R1's reach."""
    oracle = campaign.oracle
    done = {step for step in oracle.results if step.partition("/")[2].startswith("s")}
    states = dict(oracle.column("SELECT state, count(*) FROM executions GROUP BY state"))
    again, ready, moved = oracle.again(), max(campaign.ready_s), campaign.moved_s()
    in_flight = oracle.in_flight[1 : kills + 1]
    ready_cpu = max(campaign.ready_cpu_s)
    slow = max(1.0, campaign.ready_s[-1] / campaign.ready_cpu_s[-1])  # how much of the machine others had
    record(
        "R1",
        f"{len(campaign.ids)} executions, {wanted} steps, {AGENTS} agents at once, {kills} times kill -9",
        f"{len(done)} of {wanted} results, {len(oracle.faults)} lost, changed or run again after their result; "
        f"{again} turns in flight at a kill begun again ({sum(in_flight)} were in flight, "
        f"most at one kill {max(in_flight)}); ready after {ready:.2f} s at worst "
        f"({ready_cpu:.2f} s of processor time); "
        f"{campaign.resumed} live executions moving {moved:.2f} s after the last start, done after {took:.0f} s; "
        "0 agents left",
    )
    assert oracle.faults == []
    assert len(done) == wanted
    assert states == {"succeeded": len(campaign.ids)}
    assert 0 < again <= sum(in_flight) <= AGENTS * kills
    assert ready_cpu <= READY_S * ALLOWANCE
    assert moved <= MOVING_S * ALLOWANCE * slow


@big
def test_r5_killed_while_coming_back_and_a_poisonous_step_is_parked() -> None:
    """Kills during recovery with the default allowance (full tier: ten); then a step whose beginning kills the server."""
    executions, kills = size((6, 3), (6, 3), (20, 10))
    chance = rng("R5")
    agents: dict[str, Any] = {
        "rules": [{"when": "poison", "do": [{"wait": 30}, {"answer": {"value": "x"}}]}, *QUICK["rules"]]
    }
    with new_world(agents=agents) as world:
        campaign = Campaign(world, executions, 12, recoveries=5)
        campaign.submit_all()
        process = campaign.start()
        world.wait_started(executions)
        campaign.kill(process)
        for number in range(kills):
            point = ("recovery.scan.mid=kill@1", f"recovery.epoch_bumped=kill@{chance.randint(1, executions)}")
            strike_while_recovering(world, point[number % 2])
            campaign.oracle.after_kill()
        (world.place / "poison.prism").write_text(
            'org({worker: {workspace: "none"}})\nassign("worker", "poison", {id: "poison"})'
        )
        process = campaign.start()
        poison = submit(world, str(world.place / "poison.prism"), "poison")
        deaths = 0
        while (state := poisoned(world, process, poison)) == "killed":
            deaths += 1
            assert deaths <= 8, "the poison was never parked"
            campaign.kill(process)
            process = campaign.start()
        assert state == "needs_attention"
        reason = call(world, "GET", f"/api/executions/{poison}")["reason"]
        campaign.wait_ended(process, 300)
        call(world, "POST", f"/api/executions/{poison}/cancel")
        campaign.finish(process)
        states = dict(campaign.oracle.column("SELECT state, count(*) FROM executions GROUP BY state"))
        done = {step for step in campaign.oracle.results if step.partition("/")[2].startswith("s")}
        record(
            "R5",
            f"{kills} kills while {executions} executions came back; a step that kills the server",
            f"{len(done)} of {12 * executions} results, {len(campaign.oracle.faults)} lost or run again; the poison "
            f"is parked after {deaths} deaths ({reason}); its neighbours ended well",
        )
        assert campaign.oracle.faults == []
        assert states == {"succeeded": executions, "cancelled": 1}
        assert len(done) == 12 * executions


def strike_while_recovering(world: World, plan: str) -> None:
    """A start that dies at a failpoint of the recovery, or, if it never comes there, right after it is ready."""
    process = world.start("serve", "--port", "0", "--test-hooks", PARALLAX_FAILPOINTS=plan)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
    process.communicate()


def poisoned(world: World, process: subprocess.Popen[str], execution: str) -> str:
    """Kill the server as soon as the poisonous step begins again: `killed`; or the state that it came to rest in."""
    seen = sum(execution in entry["task"] for entry in world.ledger() if entry["event"] == "start")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if sum(execution in entry["task"] for entry in world.ledger() if entry["event"] == "start") > seen:
            os.kill(process.pid, signal.SIGKILL)
            return "killed"
        try:
            state = str(call(world, "GET", f"/api/executions/{execution}")["state"])
        except (*GONE, urllib.error.HTTPError):
            state = "starting"
        if state == "needs_attention":
            return state
        time.sleep(0.05)
    raise AssertionError("the poisonous step was neither begun nor parked")
