"""R2: the server is killed, or fails, or stalls at every failpoint; the work ends with the same result each time."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from parallax.datadir import read_lock
from parallax.failpoints import POINTS
from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish
from tests.faults import duo
from tests.faults.client import GONE, call
from tests.faults.points import CANCEL, DUO, ELSEWHERE, KILLED, WAITS, placed
from tests.faults.tier import STRUCK, TIER, big, size


def plan(point: str, kind: str = "kill") -> str:
    """PARALLAX_FAILPOINTS for a point such as FP17@2."""
    name, _, at = point.partition("@")
    return f"{POINTS[name]}={kind}@{at or 1}"


@contextmanager
def armed(world: World, point: str, kind: str = "kill") -> Iterator[subprocess.Popen[str]]:
    """A server with a failpoint. With `kill`, the block ends when it has died there, and fails when it never came."""
    process = world.start("serve", "--port", "0", "--test-hooks", PARALLAX_FAILPOINTS=plan(point, kind))
    try:
        yield process
        done = finish(process, by=None if kind == "kill" else signal.SIGTERM)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    name = point.partition("@")[0]
    assert f"failpoint {POINTS[name]} {kind}" in done.err, f"{point} was never reached: {done.err}"
    assert done.code == (-signal.SIGKILL if kind == "kill" else 0), done.err
    STRUCK.append((name, kind))


def survive(act: Callable[[], Any]) -> Any:
    """Do it; None when the server dies under it."""
    try:
        return act()
    except GONE:
        return None


@pytest.mark.parametrize("chain", size(DUO[-1:], DUO, DUO), ids=lambda chain: " ".join(chain))
def test_r2_killed_again_and_again_it_ends_with_the_same_result(world: World, chain: list[str]) -> None:
    execution_id = None
    for number, point in enumerate(chain):
        with armed(world, point) as process:
            if number == 0 or point in {"FP01", "FP02"}:
                world.wait_ready(process)
                execution_id = survive(lambda: duo.submit(world)) or execution_id
    with world.serving():
        again = duo.submit(world)  # the same key: the same execution, whatever became of the first answer
        assert execution_id in {None, again}
        assert world.inside("watch", again).code == 0
        duo.check_end(world, again)


NAP_AND_ASK = """
sleep(300, {id: "nap"})
const answer = askHuman("Go on?", {id: "go"})
return answer
"""


def waiting(world: World) -> str:
    """Start a program that sleeps and asks."""
    (world.place / "waits.prism").write_text(NAP_AND_ASK)
    body = {"pattern": str(world.place / "waits.prism")}
    return str(call(world, "POST", "/api/executions", body, **{"Idempotency-Key": "waits"})["id"])


def open_question(world: World) -> str:
    """The question that waits for a person, as soon as there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(*GONE, urllib.error.HTTPError):
            if found := call(world, "GET", "/api/questions")["questions"]:
                return str(found[0]["id"])
        time.sleep(0.05)
    raise AssertionError("nothing was asked")


def answer(world: World, question: str) -> None:
    """Answer it; right after a restart it is not open again before its program has come there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            call(world, "POST", f"/api/questions/{question}/answer", {"answer": "yes"})
            return
        except urllib.error.HTTPError as error:
            assert error.code == 409, error.read()
        time.sleep(0.1)
    raise AssertionError("the question did not open again")


def read_stream(world: World, execution_id: str, after: int = 0) -> list[int]:
    """The numbers of the events that arrive, until the stream ends or the server dies."""
    url = read_lock(world.data / "lock")["url"]
    key = (world.data / "key").read_text()
    request = urllib.request.Request(
        f"{url}/api/executions/{execution_id}/events",
        headers={"Authorization": f"Bearer {key}", "Last-Event-ID": str(after)},
    )
    seen: list[int] = []
    with suppress(*GONE), urllib.request.urlopen(request, timeout=30) as stream:
        for line in stream:
            if line.startswith(b"id:"):
                seen.append(int(line[3:]))
    return seen


@big
def test_r2_a_timer_an_answer_and_a_stream_outlive_kills(world: World) -> None:
    with armed(world, WAITS[0]) as process:
        world.wait_ready(process)
        execution_id = waiting(world)
    with armed(world, WAITS[1]) as process:
        world.wait_ready(process)
        question = open_question(world)
        survive(lambda: answer(world, question))
    with armed(world, WAITS[2]) as process:
        world.wait_ready(process)
        seen = read_stream(world, execution_id)
    with world.serving():
        question = open_question(world)
        answer(world, question)
        seen += read_stream(world, execution_id, seen[-1] if seen else 0)
        shown = call(world, "GET", f"/api/executions/{execution_id}")
        assert (shown["state"], shown["result"]) == ("succeeded", "yes")
        assert seen == list(range(1, len(seen) + 1))


@big
def test_r2_a_cancelled_execution_ends_cancelled_whenever_the_server_dies() -> None:
    for point in CANCEL:
        with new_world(wait=20) as world:
            with armed(world, point) as process:
                world.wait_ready(process)
                execution_id = duo.submit(world)
                world.wait_started()
                survive(lambda: call(world, "POST", f"/api/executions/{execution_id}/cancel"))  # noqa: B023
            with world.serving():
                deadline = time.monotonic() + 30
                while (state := call(world, "GET", f"/api/executions/{execution_id}")["state"]) != "cancelled":
                    assert time.monotonic() < deadline, state
                    time.sleep(0.1)
                assert world.agents_alive() == []


@pytest.mark.skipif(TIER != "full", reason="a part of `make faults FULL=1`")
@pytest.mark.parametrize("kind", ["raise", "stall"])
@pytest.mark.parametrize("point", sorted({point.partition("@")[0] for chain in DUO for point in chain}))
def test_r2_a_failure_or_a_stall_at_a_failpoint_costs_no_result(world: World, point: str, kind: str) -> None:
    """What fails inside is parked with its cause, a person releases it, and it ends as if nothing had been."""
    if point in {"FP33", "FP34"}:
        with world.serving() as process:
            duo.submit(world)
            world.wait_started()
            process.kill()
    with armed(world, point, kind) as process:
        if (point, kind) == ("FP33", "raise"):  # a server that cannot read what lives does not pretend to serve
            assert process.wait(60) == 1
            STRUCK.append((point, kind))
            pytest.skip("the start fails, as it must; the kill is the other test's")
        world.wait_ready(process)
        with suppress(urllib.error.HTTPError):
            duo.submit(world)
        execution_id = duo.submit(world)
        settle(world, execution_id)
        duo.check_end(world, execution_id)


@pytest.mark.skipif(TIER != "full", reason="a part of `make faults FULL=1`")
@pytest.mark.parametrize("kind", ["raise", "stall"])
@pytest.mark.parametrize("point", WAITS)
def test_r2_a_failure_or_a_stall_loses_no_timer_answer_or_event(world: World, point: str, kind: str) -> None:
    with armed(world, point, kind) as process:
        world.wait_ready(process)
        execution_id = waiting(world)
        deadline = time.monotonic() + 60
        while (shown := call(world, "GET", f"/api/executions/{execution_id}"))["state"] != "succeeded":
            assert time.monotonic() < deadline, shown
            with suppress(urllib.error.HTTPError):
                if shown["state"] == "needs_attention":
                    call(world, "POST", f"/api/executions/{execution_id}/resume")
                for question in call(world, "GET", "/api/questions")["questions"]:
                    call(world, "POST", f"/api/questions/{question['id']}/answer", {"answer": "yes"})
            time.sleep(0.1)
        assert shown["result"] == "yes"
        seen = read_stream(world, execution_id)
        seen += read_stream(world, execution_id, seen[-1] if seen else 0)
        events = call(world, "GET", f"/api/executions/{execution_id}/events?follow=false", raw=True)
        assert seen == list(range(1, events.count(b"id:") + 1))


@pytest.mark.skipif(TIER != "full", reason="a part of `make faults FULL=1`")
@pytest.mark.parametrize("kind", ["raise", "stall"])
@pytest.mark.parametrize("point", CANCEL)
def test_r2_a_cancel_that_fails_or_stalls_can_be_asked_again(point: str, kind: str) -> None:
    with new_world(wait=20) as world, armed(world, point, kind) as process:
        world.wait_ready(process)
        execution_id = duo.submit(world)
        world.wait_started()
        deadline = time.monotonic() + 60
        while (shown := call(world, "GET", f"/api/executions/{execution_id}"))["state"] != "cancelled":
            assert time.monotonic() < deadline, shown
            with suppress(urllib.error.HTTPError):
                call(world, "POST", f"/api/executions/{execution_id}/cancel")
            time.sleep(1)
        assert world.agents_alive() == []


def settle(world: World, execution_id: str) -> None:
    """Until it has ended; what needs attention is released, once."""
    deadline, released = time.monotonic() + 60, 0
    while time.monotonic() < deadline:
        state = call(world, "GET", f"/api/executions/{execution_id}")["state"]
        if state == "needs_attention":
            released += 1
            assert released == 1, "it was parked again"
            call(world, "POST", f"/api/executions/{execution_id}/resume")
        elif state not in {"queued", "running"}:
            return
        time.sleep(0.1)
    raise AssertionError("it did not end")


def test_r2_strikes_every_failpoint_with_a_place() -> None:
    """A new failpoint that nothing strikes fails here; one that is listed and never reached fails where it is armed."""
    assert placed() == POINTS.keys()
    assert placed() == KILLED | ELSEWHERE.keys()
    for number, file in ELSEWHERE.items():
        assert POINTS[number] in (Path(__file__).parents[1] / file).read_text()
