"""Two servers share a PostgreSQL, one is killed: the other takes over, nothing is lost, nothing finished runs again."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from parallax.datadir import read_lock
from tests.e2e.conftest import new_world
from tests.e2e.processes import World
from tests.faults.oracle import Oracle
from tests.faults.test_kills import BRANCHED, PLAIN, QUICK
from tests.faults.tier import ALLOWANCE, record, size
from tests.postgres import Cluster, cluster

LEASE_S, BEYOND_S, AGENTS = 10.0, 5.0, 8


@pytest.fixture
def durable() -> Iterator[Cluster]:
    with cluster(durable=True) as running:
        yield running


class Server:
    """One of the servers of a world: a data directory of its own, everything else shared."""

    def __init__(self, world: World, name: str, url: str) -> None:
        self.data = world.place / name
        self.process = world.start(
            "serve", "--port", "0",
            PARALLAX_DATA_DIR=str(self.data), PARALLAX_WORKSPACES_DIR=str(world.place / "ws"),
            PARALLAX_DATABASE_URL=url, PARALLAX_MAX_AGENTS=str(AGENTS), PARALLAX_MAX_RECOVERIES="50",
        )  # fmt: skip

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            try:
                if self.call("GET", "/readyz")["ready"]:
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server is not ready")

    def call(self, method: str, path: str, body: Any = None) -> Any:
        content = read_lock(self.data / "lock")
        if "url" not in content or not (self.data / "key").exists():
            raise ConnectionError("not announced yet")
        headers = {"Authorization": f"Bearer {(self.data / 'key').read_text()}", "Content-Type": "application/json"}
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(content["url"] + path, method=method, headers=headers, data=sent)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def submit(self, pattern: Path, steps: int) -> str:
        body = {"pattern": str(pattern), "input": {"steps": steps}, "agent": "scripted"}
        return str(self.call("POST", "/api/executions", body)["id"])


def query(durable: Cluster, url: str, sql: str) -> list[tuple[Any, ...]]:
    return asyncio.run(durable.query(url, sql))


def wait_ended(server: Server, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while server.call("GET", "/api/executions?state=queued&state=running&limit=1")["executions"]:
        assert time.monotonic() < deadline, "executions are still running"
        time.sleep(0.25)


def test_a_killed_servers_executions_are_taken_over_within_the_lease(durable: Cluster) -> None:
    executions, steps = size((8, 8), (40, 12), (100, 20))
    with new_world(agents=QUICK) as world:
        url = asyncio.run(durable.database())
        (world.place / "plain.prism").write_text(PLAIN)
        (world.place / "branched.prism").write_text(BRANCHED)
        a, b = Server(world, "a", url), Server(world, "b", url)
        a.wait_ready()
        b.wait_ready()
        for number in range(executions):
            pattern = world.place / f"{'plain' if number % 5 else 'branched'}.prism"
            (a, b)[number % 2].submit(pattern, steps)
        oracle = Oracle(world.place / "none.db", world.ledger_file)
        deadline = time.monotonic() + 60
        while len(oracle.lines()) < executions * steps // 3:
            assert time.monotonic() < deadline, "nothing moves"
            time.sleep(0.05)
        a.process.kill()
        a.process.communicate()
        killed = time.time()
        lost = query(durable, url, f"SELECT id FROM executions WHERE owner = '{(a.data / 'owner').read_text()}'"
                     " AND state IN ('queued', 'running')")  # fmt: skip
        assert lost, "the killed server ran nothing"
        wait_ended(b, 240)
        ids = ", ".join(f"'{row[0]}'" for row in lost)
        takeover = query(
            durable, url,
            "SELECT max(first) FROM (SELECT min(at) AS first FROM events WHERE type IN "
            f"('execution.resumed', 'execution.started') AND at > {killed} AND execution IN ({ids}) "
            "GROUP BY execution) AS taken",
        )[0][0] - killed  # fmt: skip
        assert takeover <= LEASE_S + ALLOWANCE * BEYOND_S
        judge(durable, url, oracle, executions * steps)
        b.process.terminate()
        assert b.process.wait(timeout=60) == 0, b.process.communicate()
        record(
            "R1p",
            f"{executions} executions of {steps} steps on two servers and PostgreSQL, one killed",
            f"{executions * steps} results, 0 lost, 0 finished steps run again, {oracle.again()} in flight run again, "
            f"{len(lost)} executions taken over in {takeover:.1f} s (lease {LEASE_S:.0f} s)",
        )


def judge(durable: Cluster, url: str, oracle: Oracle, wanted: int) -> None:
    """Every result once, no step begun after its result, no more run again than were in flight at the kill."""
    states = dict(query(durable, url, "SELECT state, count(*) FROM executions GROUP BY state"))
    assert set(states) == {"succeeded"}, states
    results = query(
        durable, url, "SELECT execution || '/' || step_key, at, count(*) OVER (PARTITION BY execution, step_key) "
        "FROM journal WHERE kind = 'result' AND step_key LIKE 's%'",
    )  # fmt: skip
    assert len(results) == wanted
    assert {row[2] for row in results} == {1}
    recorded = {row[0]: row[1] for row in results}
    late = [line for line in oracle.lines() if line.event == "start" and line.at > recorded[line.step]]
    assert late == [], "a finished step was run again"
    assert oracle.again() <= AGENTS
    gaps = query(durable, url, "SELECT execution FROM events GROUP BY execution HAVING count(*) <> max(seq)")
    assert gaps == []
