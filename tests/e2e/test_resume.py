"""A server that is stopped, a run that is interrupted, a watcher whose server is gone: the work goes on.

What ran is counted by the agents themselves, in a ledger outside of Parallax's data. Kills at chosen and at random
moments are in tests/faults.
"""

from __future__ import annotations

import signal

from tests.e2e.conftest import new_world
from tests.e2e.processes import World, finish
from tests.faults.duo import check_end, submit


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
