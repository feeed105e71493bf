"""The story: two engineers conflict, the lead reconciles, checks pass on the merge, one pull request with evidence.

Real processes throughout: the server, the agents, git, the remote behind its token check and the GitHub beside it. The
server is killed once in the middle of opening the pull request.
"""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import make_repository
from tests.e2e.processes import World
from tests.forge.forge import APP_ID, Forge

FILES = {
    "greeting.txt": "hello\n",
    "count.txt": "0\n",
    ".parallax.yaml": (
        "version: 1\n"
        "checks:\n  has-words: test -s greeting.txt\n"
        "  both: \"grep -q Ada greeting.txt && grep -q Grace greeting.txt && ! grep -q '<<<<' greeting.txt\"\n"
        "defaults: {quick: [has-words], full: [has-words, both]}\n"
    ),
}
CHART = """
name: pair
roles:
  lead: {description: You bring work together.}
  engineer: {reportsTo: lead, minInstances: 2, maxInstances: 2}
input:
  goal: {type: string}
steps:
  - id: both
    type: parallel
    steps:
      - {id: ada, type: assign, role: engineer, task: "Greet Ada: ${input.goal}", verify: quick}
      - {id: grace, type: assign, role: engineer, task: "Greet Grace: ${input.goal}", verify: quick}
  - {id: whole, type: integrate, verify: full}
"""
# The owner cannot bring the two together: they leave the markers in. The lead can.
SCRIPT = {
    "roles": {
        "engineer": [
            {"when": ["conflicts with work that was merged"], "do": [{"say": "I do not know."}, {"answer": {"value": "no idea"}}]},
            {"when": ["Greet Ada"], "do": [{"edit": {"path": "greeting.txt", "content": "hello Ada\n"}},
                                           {"answer": {"value": "greeted Ada", "confidence": 0.9}}]},
            {"when": ["Greet Grace"], "do": [{"edit": {"path": "greeting.txt", "content": "hello Grace\n"}},
                                             {"answer": {"value": "greeted Grace", "confidence": 0.9}}]},
        ],
        "lead": [
            {"when": ["conflicts with work that was merged", "Greet Ada", "Greet Grace", "greeting.txt"],
             "do": [{"edit": {"path": "greeting.txt", "content": "hello Ada and Grace\n"}},
                    {"answer": {"value": "both are greeted", "confidence": 0.9}}]},
        ],
    }
}  # fmt: skip


@pytest.fixture
def world(place: Path) -> Iterator[World]:
    made = World(place, make_repository(place / "repo", FILES), SCRIPT)
    try:
        yield made
    finally:
        made.close()


def test_two_engineers_conflict_and_one_pull_request_tells_why_the_merge_is_good(world: World, forge: Forge) -> None:
    url = forge.repository("shop", world.repo)
    subprocess.run(["git", "remote", "add", "origin", url], cwd=world.repo, check=True)
    pattern = world.place / "pair.yaml"
    pattern.write_text(CHART)
    github = {
        "PARALLAX_GITHUB_API_URL": forge.api_url, "PARALLAX_GITHUB_APP_ID": APP_ID,
        "PARALLAX_GITHUB_PRIVATE_KEY": forge.key,
    }  # fmt: skip
    server = world.start(
        "serve", "--port", "0", "--test-hooks", PARALLAX_FAILPOINTS="pr.created_before_record=kill", **github
    )
    world.wait_ready(server)
    started = world.run(
        "run", str(pattern), "be kind", "--agent", "scripted", "--pr", "--label", "team", "--reviewer", "ada",
        "--yes", "--detach", "--json", **github,
    )  # fmt: skip
    assert started.code == 0, started.err
    execution = started.json["id"]
    server.wait(timeout=90)
    assert server.returncode == -9, "the server died between the pull request and its record"
    assert len(forge.pulls["shop"]) == 1
    done = world.run("watch", execution, "--json", **github)
    assert done.code == 0, done.err
    shown = done.json
    assert shown["state"] == "succeeded", shown["reason"]

    (pull,) = forge.pulls["shop"]
    assert (pull.head, pull.base, pull.labels, pull.reviewers) == (
        f"parallax/{execution}/result", "main", ["team"], ["ada"],
    )  # fmt: skip
    for told in ("be kind", "`both` passed on `whole`", "`has-words` passed on `whole`", "exit code 0"):
        assert told in pull.body, pull.body
    assert forge.git("shop", "show", f"{pull.head}:greeting.txt") == "hello Ada and Grace"
    steps = {step["step"]: step for step in shown["steps"]}
    (conflict,) = steps["whole"]["value"]["conflicts"] or [None]
    assert conflict["files"] == ["greeting.txt"]
    assert conflict["resolvedBy"].endswith(".lead.1")
    assert all(check["passed"] for check in steps["whole"]["value"]["checks"])
    with sqlite3.connect(world.data / "parallax.db") as database:
        rows = database.execute("SELECT type FROM events WHERE execution = ? ORDER BY seq", (execution,))
        types = [row[0] for row in rows]
    assert types.count("pull_request.opened") == types.count("branch.pushed") == 1
    assert types.count("step.escalated") == 1
    assert "workspace.conflict" in types
    assert forge.alive == [], "no token outlives the run, the killed server's included"
    begun = [turn["task"] for turn in world.ledger() if turn["event"] == "start"]
    assert len(begun) == 4, "two engineers, the owner's try, the lead; no turn was run again after the crash"
    again = world.run("land", execution, "--pr", "--yes", "--json", **github)
    assert again.code == 0, again.err
    assert (again.json["pushed"]["new"], again.json["opened"]["new"]) == (False, False)
    assert len(forge.pulls["shop"]) == 1
