"""The duo of tests/e2e: two engineers on a repository, whose undisturbed result is known."""

from __future__ import annotations

from typing import Any

from tests.conftest import git
from tests.e2e.processes import World
from tests.faults.client import call


def submit(world: World) -> str:
    """Start the duo; the answer may be lost with the server, the key makes a second try harmless."""
    body = {"pattern": str(world.place / "duo.yaml"), "input": {"goal": "go"}, "repo": str(world.repo),
            "agent": "scripted"}  # fmt: skip
    return str(call(world, "POST", "/api/executions", body, **{"Idempotency-Key": "once"})["id"])


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
