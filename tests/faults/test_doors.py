"""R4, R8, R9, F7, S2: a second server, a stop in good order, orphans, one key for many requests, streams over kills."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import psutil
import pytest

from parallax.datadir import read_lock
from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish
from tests.faults.client import call, submit
from tests.faults.tier import ALLOWANCE, big, record, rng, size

ONE = 'org({worker: {workspace: "none"}})\nassign("worker", "work", {id: "w"})'
LONG = {"rules": [{"do": [{"wait": 60}, {"answer": {"value": "x"}}]}]}


def pattern(world: World, text: str, name: str = "one") -> str:
    path = world.place / f"{name}.prism"
    path.write_text(text)
    return str(path)


def test_r4_a_second_server_refuses_at_once_and_names_the_first(world: World) -> None:
    with world.serving() as first:
        begun = time.monotonic()
        second = world.start("serve", "--port", "0")
        watched, used = psutil.Process(second.pid), 0.0
        while second.poll() is None:
            try:
                times = watched.cpu_times()
            except psutil.Error:
                break
            used = max(used, times.user + times.system)
            time.sleep(0.01)
        done = finish(second)
        took = time.monotonic() - begun
        assert done.code == 2
        assert f"process {first.pid}" in done.sentence
        assert "PARALLAX_DATA_DIR" in done.sentence
    record(
        "R4",
        "a second server on the same data directory",
        f"refused after {took:.2f} s ({used:.2f} s of processor time), exit code 2, names process and remedy",
    )
    assert used <= 1.0 * ALLOWANCE


@big
def test_f7_one_key_is_one_execution_with_one_answer_also_after_a_kill(world: World) -> None:
    requests = 100
    body = {"pattern": pattern(world, ONE), "agent": "scripted"}

    def post(_: int) -> Any:
        return call(world, "POST", "/api/executions", body, timeout=60, **{"Idempotency-Key": "f7"})

    with world.serving() as process:
        with ThreadPoolExecutor(requests) as pool:
            answers = list(pool.map(post, range(requests)))
        process.kill()
        process.communicate()
    with world.serving():
        answers.append(post(0))
        with pytest.raises(urllib.error.HTTPError) as refused:
            call(world, "POST", "/api/executions", body | {"budget": 3}, **{"Idempotency-Key": "f7"})
        assert refused.value.code == 422
        executions = call(world, "GET", "/api/executions")["executions"]
    different = {json.dumps(answer, sort_keys=True) for answer in answers}
    record(
        "F7",
        f"{requests} requests at once under one Idempotency-Key, one more after a kill, one with another body",
        f"{len(executions)} execution, {len(different)} different answers, the other body refused with 422",
    )
    assert (len(executions), len(different)) == (1, 1)


@big
def test_r8_a_stop_in_good_order_ends_agents_and_streams_and_is_resumed() -> None:
    agents, streams = size((2, 5), (6, 50), (20, 50))
    with new_world(agents=LONG) as world:
        with world.serving(PARALLAX_MAX_AGENTS=str(agents)) as process:
            running = [submit(world, pattern(world, ONE), f"r8-{number}") for number in range(agents)]
            world.wait_started(agents)
            took, closed = asyncio.run(stopped(world, process, running, streams))
            done = finish(process)
            assert done.code == 0, done.err
            assert f"{agents} executions can be resumed" in done.err
            assert world.agents_alive(wait_s=0) == []
        with world.serving(PARALLAX_MAX_AGENTS=str(agents)):
            world.wait_started(2 * agents)
    record(
        "R8",
        f"SIGTERM with {agents} agents at work and {streams} open streams",
        f"{closed} of {streams} streams told and closed; exit code 0 after {took:.1f} s; no agent left; all resumed",
    )
    assert closed == streams
    assert took <= 30


async def stopped(world: World, process: Any, running: list[str], streams: int) -> tuple[float, int]:
    """Open the streams, send the signal; seconds until the process has ended, and streams that ended properly."""
    url, key = read_lock(world.data / "lock")["url"], (world.data / "key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    opened = asyncio.Semaphore(0)

    async def follow(execution: str) -> bool:
        try:
            async with session.get(f"{url}/api/executions/{execution}/events", headers=headers) as answer:
                opened.release()
                async for _ in answer.content:
                    pass
        except aiohttp.ClientError:
            return False
        return True

    limits = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0)) as session:
        following = [asyncio.create_task(follow(running[number % len(running)])) for number in range(streams)]
        for _ in range(streams):
            await opened.acquire()
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        ended = await asyncio.gather(*following)
        await asyncio.to_thread(process.wait, 60)
        return time.monotonic() - begun, sum(ended)


ESCAPING = {
    "rules": [
        {
            "do": [
                {"run": ["sh", "-c", "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 61' & sleep 0.1"]},
                {"daemon": 61},
                {"hang": "deaf"},
            ]
        }
    ]
}


@big
def test_r9_a_killed_server_leaves_no_process_behind() -> None:
    with new_world(agents=ESCAPING) as world:
        with world.serving() as process:
            execution = submit(world, pattern(world, ONE), "r9")
            world.wait_started()
            time.sleep(1.5)
            shut_in = "bubblewrap" in json.dumps(call(world, "GET", "/api/agents"))
            before = len(world.agents_alive(wait_s=0))
            process.kill()
            process.communicate()
        killed = time.monotonic()
        left = len(world.agents_alive(wait_s=2))
        gone_s = time.monotonic() - killed
        with world.serving() as process:
            after = len(
                [pid for pid in world.agents_alive(wait_s=0) if psutil.Process(pid).create_time() < time.time() - 15]
            )
            call(world, "POST", f"/api/executions/{execution}/cancel")
            finish(process, by=signal.SIGTERM)
        assert world.agents_alive() == []
    record(
        "R9",
        "kill -9 of the server; its agent ignores SIGTERM and left a daemon and a process in a session of its own",
        f"{before} processes before, {left} left after {gone_s:.1f} s, {after} of them after the next start",
    )
    assert before >= 1
    assert after == 0
    if shut_in:
        assert left == 0


TICKS = 'for i in range(input.count) { emit("tick", i); sleep(20) }'


@big
def test_s2_streams_have_no_gap_and_no_duplicate_over_disconnects_and_kills(world: World) -> None:
    clients, cuts, kills, executions, count = size((5, 3, 1, 2, 50), (60, 12, 3, 6, 250), (200, 50, 5, 20, 800))
    chance = rng("S2")
    text = pattern(world, TICKS, "ticks")
    with world.serving() as process:
        ids = [submit(world, text, f"s2-{number}", count=count) for number in range(executions)]
        process.kill()
        process.communicate()
    seen: list[list[int]] = [[] for _ in range(clients)]

    async def campaign() -> None:
        ended = asyncio.Event()
        following = [
            asyncio.create_task(reader(world, ids[number % executions], seen[number], cuts, chance.random(), ended))
            for number in range(clients)
        ]
        for _ in range(kills):
            process = world.start("serve", "--port", "0")
            await asyncio.to_thread(world.wait_ready, process)
            await asyncio.sleep(chance.uniform(1.0, 2.5))
            process.kill()
            process.communicate()
        process = world.start("serve", "--port", "0")
        await asyncio.to_thread(world.wait_ready, process)
        await asyncio.wait_for(asyncio.gather(*following), 600)
        finish(process, by=signal.SIGTERM)

    asyncio.run(campaign())
    wrong = sum(numbers != list(range(1, len(numbers) + 1)) for numbers in seen)
    short = sum(len(numbers) < count for numbers in seen)
    record(
        "S2",
        f"{clients} readers, {cuts} disconnects each, {kills} kills of the server",
        f"{sum(map(len, seen))} events, {wrong} readers with a gap or a duplicate, {short} that did not come to the end",
    )
    assert wrong == 0
    assert short == 0


async def reader(world: World, execution: str, seen: list[int], cuts: int, luck: float, ended: asyncio.Event) -> None:
    """Follow one execution to its end; hang up now and then, come back with the last number, and outlive the server."""
    key = (world.data / "key").read_text()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_read=20)) as session:
        while True:
            url = read_lock(world.data / "lock").get("url")
            headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": str(seen[-1] if seen else 0)}
            hang_up = int(5 + 40 * luck) if cuts > 0 else None
            try:
                if url is None:
                    raise aiohttp.ClientConnectionError
                async with session.get(f"{url}/api/executions/{execution}/events", headers=headers) as answer:
                    if answer.status != 200:
                        raise aiohttp.ClientConnectionError
                    async for line in answer.content:
                        if line.startswith(b"id:"):
                            seen.append(int(line[3:]))
                        elif line.startswith(b"event: execution.succeeded"):
                            return
                        if hang_up is not None and line == b"\r\n" and (hang_up := hang_up - 1) == 0:
                            cuts -= 1
                            break
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                await asyncio.sleep(0.1 + 0.2 * luck)
