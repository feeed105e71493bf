"""R8, R9 and S2: a stop in order, agents that nothing ends, readers that come and go while the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import psutil
import pytest

from parallax.datadir import read_lock
from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish
from tests.faults.client import GONE, call, submit
from tests.faults.tier import ALLOWANCE, big, record, rng, size

ONE = 'org({worker: {workspace: "none"}})\nassign("worker", input.task, {id: "s"})'


def pattern(world: World, text: str) -> str:
    path = world.place / "one.prism"
    path.write_text(text)
    return str(path)


@dataclass
class Reader:
    """One reader of an event stream, which goes on where it was cut off."""

    world: World
    execution: str
    seen: list[int] = field(default_factory=list)
    last: str = ""
    ended_at: float = 0.0
    cuts: int = 0

    async def read(self, at_most: int | None = None) -> None:
        """Read until the stream ends, the server dies, or so many events have come."""
        url, key = read_lock(self.world.data / "lock").get("url"), (self.world.data / "key").read_text()
        if url is None:
            return
        host, _, port = str(url).removeprefix("http://").rpartition(":")
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return
        try:
            last = self.seen[-1] if self.seen else 0
            writer.write(
                f"GET /api/executions/{self.execution}/events HTTP/1.1\r\nHost: {host}:{port}\r\n"
                f"Authorization: Bearer {key}\r\nLast-Event-ID: {last}\r\nConnection: close\r\n\r\n".encode()
            )
            await writer.drain()
            number = None
            while (at_most is None or at_most > 0) and (line := await reader.readline()).endswith(b"\n"):
                if line.startswith(b"id:"):
                    number = int(line[3:])
                elif line.startswith(b"event:"):
                    self.last = line[6:].strip().decode()
                elif not line.strip() and number is not None:  # whole only now; what was cut short comes again
                    self.seen.append(number)
                    number = None
                    at_most = None if at_most is None else at_most - 1
        except OSError:
            pass
        finally:
            self.cuts += 1
            self.ended_at = time.monotonic()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@big
def test_r8_a_stop_in_order_refuses_new_work_ends_streams_and_resumes() -> None:
    """One agent in two hears nothing; while the server waits for it, new work is refused."""
    agents, streams = size((6, 20), (6, 20), (20, 50))
    deaf = {"when": "deaf", "do": [{"hang": "deaf"}]}
    with new_world(agents={"rules": [deaf, {"do": [{"wait": 60}, {"answer": {"value": "x"}}]}]}) as world:
        process = world.start("serve", "--port", "0", PARALLAX_MAX_AGENTS=str(agents))
        url = world.wait_ready(process)
        path = pattern(world, ONE)
        ids = [submit(world, path, f"k{n}", task="slow" if n % 2 else "deaf") for n in range(agents)]
        world.wait_started(agents)
        readers = [Reader(world, ids[number % agents]) for number in range(streams)]
        signalled, refused, answered_s, code = asyncio.run(stop_under(world, process, url, readers))
        took = time.monotonic() - signalled
        streams_s = max(reader.ended_at for reader in readers) - signalled
        assert world.agents_alive() == []
        (world.place / "agents.json").write_text(json.dumps({"rules": [{"do": [{"answer": {"value": "done"}}]}]}))
        with world.serving(PARALLAX_MAX_AGENTS=str(agents)):
            for execution in ids:
                wait_succeeded(world, execution)
    record(
        "R8",
        f"SIGTERM while {agents} agents work, half of them deaf, and {streams} streams are open",
        f"new work refused with {refused} after {answered_s * 1000:.0f} ms; all streams closed after {streams_s:.1f} s; "
        f"exit code {code} after {took:.1f} s, 0 agents left; the next start ended all {agents} executions",
    )
    assert refused == "503 and Retry-After"
    assert code == 0
    assert took <= 30
    assert answered_s <= 0.1 * ALLOWANCE
    assert streams_s <= 1.0 * ALLOWANCE


async def stop_under(
    world: World, process: subprocess.Popen[str], url: str, readers: list[Reader]
) -> tuple[float, str, float, int]:
    """SIGTERM under open streams: when that was, how new work was answered, after how long, and the exit code."""
    reading = [asyncio.create_task(reader.read()) for reader in readers]
    async with asyncio.timeout(60):
        while not all(reader.seen for reader in readers):
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    await asyncio.sleep(0.2)  # a signal is taken up between two rounds of the loop
    asked = time.monotonic()
    refused = await asyncio.to_thread(refusal, world, url)
    answered_s = time.monotonic() - asked
    done = await asyncio.to_thread(finish, process)
    await asyncio.gather(*reading)
    return signalled, refused, answered_s, done.code


def refusal(world: World, url: str) -> str:
    """How the server answers new work, in words."""
    key = (world.data / "key").read_text()
    request = urllib.request.Request(
        f"{url}/api/executions", data=b"{}", headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "late"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        with error:  # it is the answer, and holds the connection
            return f"{error.code}{' and Retry-After' if error.headers['Retry-After'] else ''}"
    except GONE as error:
        return str(error)


def wait_succeeded(world: World, execution: str) -> None:
    deadline = time.monotonic() + 120
    while (shown := call(world, "GET", f"/api/executions/{execution}"))["state"] != "succeeded":
        assert shown["state"] in {"queued", "running"}, shown["reason"]
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.1)


FLEE = """
import os, signal, subprocess, sys, time
sleep = [sys.executable, "-S", "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"]
subprocess.Popen(sleep, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3):
            os.close(number)
        os.execve(sleep[0], sleep, {})
    os._exit(0)
"""


@big
def test_r9_nothing_outlives_a_killed_server() -> None:
    """Agents that ignore SIGTERM, and what fled from them: sessions of their own, orphans without a mark."""
    if shutil.which("bwrap") is None:
        assert not os.environ.get("PARALLAX_REQUIRE_SANDBOX"), "PARALLAX_REQUIRE_SANDBOX is set, but there is no bwrap"
        pytest.skip("bubblewrap is not installed")
    agents = size(4, 4, 16)
    flee = {"do": [{"run": ["python3", "-c", FLEE]}, {"hang": "deaf"}]}
    with new_world(agents={"rules": [flee]}) as world:
        process = world.start("serve", "--port", "0", PARALLAX_MAX_AGENTS=str(agents), PARALLAX_SANDBOX="require")
        world.wait_ready(process)
        for number in range(agents):
            submit(world, pattern(world, ONE), f"k{number}", task="flee")
        server, deadline = psutil.Process(process.pid), time.monotonic() + 60
        while (
            sum("time.sleep(600)" in " ".join(cmdline(child)) for child in server.children(recursive=True)) < 2 * agents
        ):
            assert time.monotonic() < deadline, "nothing fled"
            time.sleep(0.1)
        lives = server.children(recursive=True)
        process.kill()
        killed = time.monotonic()
        while (left := [child for child in lives if alive(child)]) and time.monotonic() < killed + 2 * ALLOWANCE:
            time.sleep(0.01)
        took = time.monotonic() - killed
        process.communicate()
        record(
            "R9",
            f"kill -9 under {agents} agents that ignore SIGTERM, each with two children that fled (setsid, double fork)",
            f"{len(lives)} processes, {len(left)} survivors after {took:.2f} s",
        )
        assert left == []


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def alive(process: psutil.Process) -> bool:
    """Not a zombie, which only waits for whoever collects it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


TICKS = """
for i in range(input.ticks) {
    emit("tick", i)
    sleep(20)
}
"""


@big
def test_s2_readers_that_come_and_go_over_kills_see_each_event_once() -> None:
    clients, cuts, kills = size((40, 10, 3), (40, 10, 3), (200, 50, 5))
    chance = rng("S2")
    with new_world() as world:
        process = world.start("serve", "--port", "0")
        world.wait_ready(process)
        execution = submit(world, pattern(world, TICKS), "s2", ticks=12 * cuts)
        readers = [Reader(world, execution) for _ in range(clients)]
        process = asyncio.run(read_over_kills(world, process, readers, kills, chance))
        wait_succeeded(world, execution)
        assert finish(process, by=signal.SIGTERM).code == 0
        with contextlib.closing(sqlite3.connect(world.data / "parallax.db")) as database:
            (events,) = database.execute("SELECT count(*) FROM events WHERE execution = ?", (execution,)).fetchone()
    whole = sum(reader.seen == list(range(1, events + 1)) for reader in readers)
    fewest = min(reader.cuts for reader in readers)
    record(
        "S2",
        f"{clients} readers of one stream of {events} events, each cut off at least {fewest} times, {kills} kills",
        f"{whole} of {clients} saw every event once and in order",
    )
    assert whole == clients
    assert fewest >= cuts


async def read_over_kills(
    world: World, process: subprocess.Popen[str], readers: list[Reader], kills: int, chance: random.Random
) -> subprocess.Popen[str]:
    """Every reader comes and goes until the last event; meanwhile the server is killed. Returns the last server."""

    async def come_and_go(reader: Reader) -> None:
        while not reader.last.startswith("execution.succeeded"):
            await reader.read(at_most=chance.randint(1, 12))
            await asyncio.sleep(chance.uniform(0, 0.1))

    reading = [asyncio.create_task(come_and_go(reader)) for reader in readers]
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.5, 1.5))
        process.kill()
        process.communicate()
        process = world.start("serve", "--port", "0")
        await asyncio.to_thread(world.wait_ready, process)
    async with asyncio.timeout(300):
        await asyncio.gather(*reading)
    return process
