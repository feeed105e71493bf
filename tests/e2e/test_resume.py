"""The server is killed at the worst moments, and stopped at any: the work goes on, and finished steps stay finished.

What ran is counted by the agents themselves, in a ledger outside of Parallax's data.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from parallax.datadir import read_lock
from tests.conftest import git
from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish

# Each line is one execution: the server is started with the first point, dies there, is started with the second ...
# At most four in a row before a step is finished: five recoveries without a result would park the execution.
CHAINS = [
    ["api.create.before_commit@1", "api.create.committed_before_reply@1", "claim.committed@1", "clone.mid@1"],
    ["clone.done_before_record@1", "recovery.epoch_bumped@1", "snapshot.before_step@1", "intent.before_commit@1"],
    ["intent.committed_before_spawn@1", "agent_exited_before_snapshot@1", "snapshot_done_before_result@1"],
    ["result.before_commit@2", "result.committed_before_continue@1", "result.committed_before_continue@2"],
    ["result.before_commit@4", "recovery.scan.mid@1", "final.before_commit@1", "final.committed_before_cleanup@1"],
]


def call(world: World, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """One request to the server that runs now."""
    url = read_lock(world.data / "lock")["url"]
    sent = {"Authorization": f"Bearer {(world.data / 'key').read_text()}", "Content-Type": "application/json"} | headers
    request = urllib.request.Request(
        url + path, method=method, headers=sent, data=None if body is None else json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def submit(world: World) -> str:
    """Start the duo; the answer may be lost with the server, the key makes a second try harmless."""
    body = {"pattern": str(world.place / "duo.yaml"), "input": {"goal": "go"}, "repo": str(world.repo),
            "agent": "scripted"}  # fmt: skip
    return str(call(world, "POST", "/api/executions", body, **{"Idempotency-Key": "once"})["id"])


@contextmanager
def armed(world: World, point: str) -> Iterator[subprocess.Popen[str]]:
    """A server that kills itself at a failpoint; the block ends when it has, and fails when it never came there."""
    process = world.start("serve", "--port", "0", "--test-hooks", PARALLAX_FAILPOINTS=point.replace("@", "=kill@"))
    try:
        yield process
        code = finish(process).code
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert code == -signal.SIGKILL, f"{point} was never reached"


def check_end(world: World, execution_id: str) -> None:
    """The result is the undisturbed one, and no finished step began again."""
    shown = world.inside("show", execution_id, "--json").json
    assert shown["state"] == "succeeded", shown["reason"]
    branch = f"parallax/{execution_id}/result"
    wanted = {"answer.txt": "42", "left.txt": "left", "right.txt": "right", "notes.txt": "one\ntwo\nthree"}
    assert {name: git(world.repo, "show", f"{branch}:{name}") for name in wanted} == wanted
    names = set(git(world.repo, "ls-tree", "-r", "--name-only", branch).splitlines())
    assert names == {*wanted, ".parallax.yaml"}
    check_ledger(world, shown)
    assert world.agents_alive() == []
    assert git(world.repo, "status", "--porcelain") == ""


def check_ledger(world: World, shown: dict[str, Any]) -> None:
    """By the agents' own ledger: each step was worked on, and never after its result was recorded."""
    finished = {f"{shown['id']}/{step['step']}": step["at"] for step in shown["steps"] if step["state"] == "succeeded"}
    begun: dict[str, list[float]] = {}
    for entry in world.ledger():
        if entry["event"] == "start":
            begun.setdefault(entry["task"].rpartition("/")[0], []).append(entry["at"])
    late = {task: at for task, starts in begun.items() for at in starts if task in finished and at > finished[task]}
    assert late == {}
    assert {task.partition("/")[2].rpartition("/")[2] for task in begun} == {"first", "left", "right"}


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: " ".join(point.partition("@")[0] for point in chain))
def test_killed_again_and_again_it_ends_with_the_same_result(world: World, chain: list[str]) -> None:
    execution_id = None
    for number, point in enumerate(chain):
        with armed(world, point) as process:
            if number == 0 or point.startswith("api.create"):
                world.wait_ready(process)
                try:
                    execution_id = submit(world)
                except (OSError, http.client.HTTPException):
                    assert point.startswith("api.create")
    with world.serving():
        again = submit(world)  # the same key: the same execution, whatever became of the first answer
        assert execution_id in {None, again}
        assert world.inside("watch", again).code == 0
        check_end(world, again)


def test_after_sigterm_the_server_says_what_can_be_resumed_and_a_restart_resumes_it(world: World) -> None:
    with world.serving() as process:
        execution_id = submit(world)
        world.wait_started(2)
        done = finish(process, by=signal.SIGTERM)
    assert done.code == 0
    assert "1 execution can be resumed" in done.err
    assert "parallax serve" in done.err
    assert world.agents_alive() == []
    with world.serving() as process:
        assert world.inside("watch", execution_id).code == 0
        check_end(world, execution_id)
        done = finish(process, by=signal.SIGTERM)
    assert "; 1 execution resumed" in done.err
    assert "can be resumed" not in done.err


def test_ctrl_c_of_an_embedded_run_keeps_finished_steps_and_says_how_to_go_on() -> None:
    with new_world(wait=0.6) as world:
        process = world.start("run", str(world.place / "duo.yaml"), "go", "--agent", "scripted", "--yes")
        world.wait_started(2)
        done = finish(process, by=signal.SIGINT)
        assert done.code == 130
        (told,) = [line for line in done.err.splitlines() if line.startswith("interrupted: ")]
        assert "the agents are stopped, finished steps are kept" in told
        assert world.agents_alive(wait_s=0) == [], "it said that they are stopped"
        assert "Traceback" not in done.err
        name = told.partition("parallax watch ")[2].partition("`")[0]
        watched = world.inside("watch", name)
        assert watched.code == 0, watched.err
        assert "1 finished step is kept: first" in watched.err
        (execution,) = world.inside("executions", "--json").json["executions"]
        check_end(world, execution["id"])


def test_a_watcher_whose_server_is_killed_is_told_how_to_go_on() -> None:
    with new_world(wait=1.0) as world, world.serving() as server:
        execution_id = submit(world)
        watching = world.start("watch", execution_id)
        world.wait_started(1)
        assert watching.stderr is not None
        for line in watching.stderr:  # it has begun to watch
            if "begins first" in line:
                break
        server.kill()
        done = finish(watching)
        assert done.code == 130
        assert f"go on with `parallax watch {execution_id[-6:]}`" in done.err
