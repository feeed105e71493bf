"""D1 and R12: a disk that fills up, and a backup that is taken while the server works."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tarfile
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import new_world
from tests.e2e.processes import World
from tests.faults.client import call, submit
from tests.faults.tier import ALLOWANCE, big, record

STEPS = """
org({worker: {workspace: "none", max: 4}})
for i in range(input.steps) { assign("worker", "step ${i}", {id: "s${i}"}) }
"""
SLOW = {"rules": [{"do": [{"wait": 1.0}, {"answer": {"value": "done " * 200, "confidence": 0.9}}]}]}


@pytest.fixture
def small_disk() -> Iterator[World]:
    """A world whose data directory is a file system of 64 MB."""
    with new_world(agents=SLOW) as world:
        world.data.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "none", str(world.data)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            if os.environ.get("PARALLAX_REQUIRE_MOUNT"):
                pytest.fail("mounting a small disk needs root")
            pytest.skip("mounting a small disk needs root")
        try:
            yield world
            world.close()
        finally:
            subprocess.run(["umount", "-l", str(world.data)], check=False)


def fill(directory: Path) -> Path:
    """A file that takes all that is left."""
    path = directory / "filler"
    with path.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 65_536)
                file.flush()
        except OSError:
            pass
    return path


@big
def test_d1_a_full_disk_refuses_new_work_and_keeps_what_runs(small_disk: World) -> None:
    world = small_disk
    pattern = world.place / "steps.prism"
    pattern.write_text(STEPS)
    with world.serving(PARALLAX_MIN_FREE_MB="24", PARALLAX_WORKSPACES_DIR=str(world.place / "ws")):
        running = [submit(world, str(pattern), f"d{number}", steps=4) for number in range(4)]
        world.wait_started(4)
        deadline = time.monotonic() + 30
        while not (world.data / "ballast").exists():
            assert time.monotonic() < deadline, "no ballast was taken up"
            time.sleep(0.1)
        filler = fill(world.data)
        with pytest.raises(urllib.error.HTTPError) as refused:
            submit(world, str(pattern), "late", steps=1)
        problem = refused.value.read().decode()
        assert refused.value.code == 507, problem
        assert "make room" in problem
        assert submit(world, str(pattern), "d0", steps=4) == running[0]  # an old key still has its answer
        finished = wait_results(world, running, 4)
        assert call(world, "GET", f"/api/executions/{running[0]}/events?follow=false", raw=True)
        call(world, "POST", f"/api/executions/{running[3]}/cancel")
        filler.unlink()
        freed = time.monotonic()
        for execution in running[:3]:
            wait_state(world, execution, "succeeded")
        resumed_s = time.monotonic() - freed
        wait_state(world, running[3], "cancelled")
        late = submit(world, str(pattern), "late", steps=1)
        wait_state(world, late, "succeeded")
    connection = sqlite3.connect(world.data / "parallax.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    record(
        "D1",
        "a data directory of 64 MB filled to the last byte while 4 agents work",
        f"new work refused with 507; reads, streams, old keys and cancel work; {finished} results found their place; "
        f"everything done {resumed_s:.1f} s after there was room, without a restart; integrity ok",
    )
    assert finished >= 4
    assert resumed_s <= 10 * ALLOWANCE


def wait_results(world: World, executions: list[str], wanted: int) -> int:
    """Results that were recorded while the disk was full; at least so many, or what came in 20 s."""
    deadline, found = time.monotonic() + 20, 0
    while time.monotonic() < deadline and found < wanted:
        shown = [call(world, "GET", f"/api/executions/{execution}/steps")["steps"] for execution in executions]
        found = sum(step["state"] == "succeeded" for steps in shown for step in steps)
        time.sleep(0.2)
    return found


def wait_state(world: World, execution: str, wanted: str) -> None:
    deadline = time.monotonic() + 90
    while (shown := call(world, "GET", f"/api/executions/{execution}"))["state"] != wanted:
        assert time.monotonic() < deadline, (shown["state"], shown["reason"])
        time.sleep(0.1)


@big
def test_r12_a_backup_during_load_is_whole_and_starts_a_server(world: World) -> None:
    pattern = world.place / "events.prism"
    pattern.write_text('for i in range(400) { emit("tick", range(400)) }')
    log, largest, ended = world.data / "parallax.db-wal", 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(0.02):
            if log.exists():
                largest = max(largest, log.stat().st_size)

    with world.serving():
        load = [submit(world, str(pattern), f"b{number}") for number in range(8)]
        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        done = world.inside("backup", str(world.place / "saved.tar"))
        assert done.code == 0, done.err
        again = world.inside("backup", str(world.place / "saved.tar"))
        assert again.code == 2
        assert "is there already" in again.sentence
        for execution in load:
            wait_state(world, execution, "succeeded")
        ended.set()
        watching.join()
    shutil.rmtree(world.data)
    world.data.mkdir(mode=0o700)
    with tarfile.open(world.place / "saved.tar") as tar:
        tar.extractall(world.data, filter="data")
    connection = sqlite3.connect(world.data / "parallax.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    gaps = connection.execute(
        "SELECT execution FROM events GROUP BY execution HAVING max(seq) <> count(*) OR min(seq) <> 1"
    ).fetchall()
    (kept,) = connection.execute("SELECT count(*) FROM events").fetchone()
    connection.close()
    assert gaps == []
    with world.serving():
        for execution in load:
            wait_state(world, execution, "succeeded")
    record(
        "R12",
        f"a backup while {len(load)} executions write, restored into an empty directory",
        f"{kept} events, a prefix of each execution; log at most {largest / 1024**2:.0f} MB meanwhile; a server on it "
        "ran everything to its end",
    )
    assert largest <= 64 * 1024**2
