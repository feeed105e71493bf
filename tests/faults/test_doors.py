"""R4 and F7: a second server on the same data, and one key for many requests."""

from __future__ import annotations

import json
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.e2e.processes import World, finish
from tests.faults.client import call
from tests.faults.tier import ALLOWANCE, big, record

ONE = 'org({worker: {workspace: "none"}})\nassign("worker", "work", {id: "w"})'


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
