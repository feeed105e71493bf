"""What a repository's profile says, seen from a whole run: ports of agents and checks, tests that are known to be red."""

from __future__ import annotations

import time

import pytest

from parallax.models import ExecutionState
from tests.conftest import make_repository
from tests.execution.test_finalising import PATTERN

WRITES = {"rules": [{"do": [{"run": ["sh", "-c", "echo $PORT > answer.txt"]}, {"answer": {"value": "done"}}]}]}


async def test_an_agent_and_its_checks_have_ports(team, place):
    profile = 'version: 1\nports: [PORT]\nchecks:\n  quick: \'test "$PORT" -gt 0 && test "$(cat answer.txt)" -gt 0\'\n'
    repository = make_repository(place / "ports", {"answer.txt": "none\n", ".parallax.yaml": profile})
    async with team(WRITES, repository=repository) as t:
        execution = await t.run(PATTERN, {"goal": "x"})
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        port = int(t.branch_file(execution, "answer.txt"))
        leases = t.parallax.workspaces.root / "ports"
        assert [p.name for p in leases.iterdir()] == [str(port)]
        await t.parallax.workspaces.cleanup(execution.id)
        assert not list(leases.iterdir())


async def test_known_red_tests_do_not_send_work_back(team, place):
    red = "echo 'FAILED t.py::test_old - no'; echo '1 failed, 4 passed in 0.1s'; exit 1"
    for known, told in (("[test_old]", [True]), ("[]", [False])):
        profile = f'version: 1\nknown_red: {known}\nchecks:\n  quick: "{red}"\n'
        repository = make_repository(place / f"red-{len(known)}", {"answer.txt": "41\n", ".parallax.yaml": profile})
        async with team(WRITES, repository=repository) as t:
            execution = await t.run(PATTERN, {"goal": "x"})
            found = await t.told(execution, "evidence.recorded")
            assert [e["passed"] for e in found][:1] == told
            assert (execution.state is ExecutionState.SUCCEEDED) is told[0]


async def test_an_agent_has_what_the_set_up_built_and_does_not_commit_it(team, place):
    profile = "version: 1\nsetup: ['mkdir deps; echo 42 > deps/a']\nchecks:\n  quick: diff deps/a answer.txt\n"
    repository = make_repository(place / "set-up", {"answer.txt": "41\n", ".parallax.yaml": profile})
    copies = {"rules": [{"do": [{"run": ["sh", "-c", "cp deps/a answer.txt"]}, {"answer": {"value": "done"}}]}]}
    async with team(copies, repository=repository) as t:
        execution = await t.run(PATTERN, {"goal": "x"})
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        assert t.branch_file(execution, "answer.txt") == "42\n"
        assert t.branch_file(execution, "deps/a") is None
        assert len(list((t.parallax.workspaces.root / "setups").iterdir())) == 1


async def test_a_set_up_that_fails_is_told_before_any_agent_is_asked(team, place):
    profile = "version: 1\nsetup: ['echo no network >&2; exit 7']\nchecks:\n  quick: 'true'\n"
    repository = make_repository(place / "broken", {"answer.txt": "41\n", ".parallax.yaml": profile})
    async with team(WRITES, repository=repository) as t:
        execution = await t.run(PATTERN, {"goal": "x"})
        assert execution.state is ExecutionState.FAILED
        assert "set-up does not work" in execution.reason
        assert "no network" in execution.reason
        assert t.ledger() == []


@pytest.mark.parametrize(("session", "ended", "starts"), [("fresh", 1, 2), ("keep", 0, 1)])
async def test_a_task_may_ask_for_a_fresh_session(team, session, ended, starts):
    script = f"""
assign("engineer", "one", {{id: "a"}})
assign("engineer", "two", {{id: "b", session: "{session}"}})
"""
    async with team({"rules": [{"do": [{"answer": {"value": "done"}}]}]}) as t:
        execution = await t.run(script)
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        events = await t.events(execution)
        assert len([e for e in events if e.type == "agent.starting"]) == starts
        assert len([e for e in events if "fresh session" in str(e.data) and e.type == "agent.stopping"]) == ended


async def test_an_agent_that_fills_its_workspace_is_ended_with_the_cause(team):
    fills = ["sh", "-c", "head -c 30000000 /dev/zero > big; sleep 60"]
    async with team({"rules": [{"do": [{"run": fills}, {"answer": {"value": "x"}}]}]}, workspace_max_gb=0.02) as t:
        begun = time.monotonic()
        execution = await t.run(PATTERN, {"goal": "x"})
        assert execution.state is ExecutionState.FAILED
        assert "PARALLAX_WORKSPACE_MAX_GB" in execution.reason
        assert time.monotonic() - begun < 15
