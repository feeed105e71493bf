"""How work comes together: conflicts find somebody, a red merge finds the one who broke it, nothing is dropped unsaid."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from parallax.models import ExecutionState
from tests.conftest import make_repository

CHART = """
name: three
roles:
  lead: {{description: You lead.}}
  engineer: {{reportsTo: lead, minInstances: 3, maxInstances: 3}}
steps:
  - id: all
    type: parallel
    steps:
      - {{id: one, type: assign, role: engineer, task: "do ONE"}}
      - {{id: two, type: assign, role: engineer, task: "do TWO"}}
      - {{id: three, type: assign, role: engineer, task: "do THREE"}}
  - {{id: whole, type: integrate, verify: full{more}}}
"""


def does(when: str, **files: str) -> dict[str, object]:
    edits = [{"edit": {"path": path.replace("_", "."), "content": text}} for path, text in files.items()]
    return {"when": when.split("|"), "do": [*edits, {"answer": {"value": "done", "confidence": 0.9}}]}


@pytest.fixture
def sums(place: Path) -> Path:
    profile = "version: 1\nchecks:\n  full: test $(cat *.txt | grep -c bad) -lt 2\n"
    return make_repository(place / "sums", {"a.txt": "good\n", ".parallax.yaml": profile})


async def value_of(t, execution, step):
    for entry in await t.parallax.store.journal(execution.id):
        if entry.kind == "result" and entry.step_key == step:
            return entry.body["outcome"]["value"]
    raise AssertionError(step)


async def test_a_red_merge_is_bisected_and_the_guilty_work_sent_back(team, sums):
    """Each alone is green; one and three together are red: three is the one with which it became so."""
    script = {"roles": {"engineer": [
        does("merged tree fails|do THREE", c_txt="good now\n"),
        does("do ONE", b_txt="bad\n"), does("do TWO", d_txt="good\n"), does("do THREE", c_txt="bad\n"),
    ]}}  # fmt: skip
    async with team(script, repository=sums) as t:
        execution = await t.run(CHART.format(more=""))
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        value = await value_of(t, execution, "whole")
        assert value["merged"] == ["one", "two", "three"]
        (conflict,) = value["conflicts"]
        assert (conflict["step"], conflict["files"]) == ("three", [])
        assert conflict["resolvedBy"].startswith(f"{execution.id}.engineer.")
        assert "merged tree is red" in conflict["cause"]
        assert [check["passed"] for check in value["checks"]] == [True]
        assert [t.branch_file(execution, f"{n}.txt") for n in "bdc"] == ["bad\n", "good\n", "good now\n"]
        sent = [turn for turn in t.ledger() if turn["event"] == "start"]
        assert len(sent) == 4


async def test_guilty_work_that_stays_red_is_left_out_by_name(team, sums):
    script = {"roles": {"engineer": [
        does("do ONE", b_txt="good\n"), does("do TWO", d_txt="bad\nbad\n"), does("do THREE", c_txt="good\n"),
    ]}}  # fmt: skip
    async with team(script, repository=sums) as t:
        execution = await t.run(CHART.format(more=""))
        value = await value_of(t, execution, "whole")
        assert value["merged"] == ["one", "three"]
        (conflict,) = value["conflicts"]
        assert (conflict["step"], conflict["resolvedBy"]) == ("two", None)
        assert [check["passed"] for check in value["checks"]] == [True]
        assert t.branch_file(execution, "d.txt") is None
        assert t.branch_file(execution, "d.txt", "engineer/two") == "bad\nbad\n", "the work is kept on its branch"


async def test_a_base_that_is_red_blames_nobody(team, place):
    profile = "version: 1\nchecks:\n  full: 'false'\n"
    red = make_repository(place / "red", {"a.txt": "x\n", ".parallax.yaml": profile})
    script = {"roles": {"engineer": [does("ONE", b_txt="1"), does("TWO", c_txt="2"), does("THREE", d_txt="3")]}}
    async with team(script, repository=red) as t:
        execution = await t.run(CHART.format(more=""))
        value = await value_of(t, execution, "whole")
        assert value["merged"] == ["one", "two", "three"]
        assert value["conflicts"] == []
        assert [check["passed"] for check in value["checks"]] == [False]


async def leads(t, execution):
    """How often the lead was called in."""
    return len([told for told in await t.told(execution, "step.escalated") if told["to"] == "lead"])


PROGRAM = """
org({lead: {}, engineer: {reportsTo: "lead", max: 2}})
let cands = fanout("engineer", "pick a word", {id: "words"})
return integrate(cands, {id: "whole", onConflict: %s})
"""
CLASH = [{"when": ["conflicts with work"], "do": [{"answer": {"value": "no idea"}}]},
         {"do": [{"run": ["sh", "-c", "od -An -N8 -tx1 /dev/urandom > a.txt"]}, {"answer": {"value": "x"}}]}]  # fmt: skip
SETTLES = [does("conflicts with work", a_txt="both\n")]


async def test_the_lead_gets_a_conflict_at_once_where_the_program_says_so(team, sums):
    async with team({"roles": {"engineer": CLASH, "lead": SETTLES}}, repository=sums) as t:
        execution = await t.run(PROGRAM % json.dumps("lead"))
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        (conflict,) = execution.result["conflicts"]
        assert conflict["resolvedBy"] == f"{execution.id}.lead.1"
        assert await leads(t, execution) == 1
        assert t.branch_file(execution, "a.txt") == "both\n"


@pytest.mark.parametrize("answer", ["leave", "again"])
async def test_what_nobody_resolves_goes_to_a_person(team, sums, answer):
    async with team({"roles": {"engineer": CLASH, "lead": CLASH}}, repository=sums) as t:
        execution = await t.start(PROGRAM % json.dumps("owner"))
        given = [answer, "leave"] if answer == "again" else ["leave"]
        seen: set[str] = set()
        for word in given:
            async with asyncio.timeout(15):
                while not (asked := [
                    q for q in await t.parallax.store.questions(execution=execution.id, states=("with_person",))
                    if q.id not in seen
                ]):  # fmt: skip
                    await asyncio.sleep(0.02)
            assert "cannot be merged" in asked[0].text
            seen.add(asked[0].id)
            await t.parallax.desk.answer(asked[0].id, word)
        execution = await t.finish(execution)
        (conflict,) = execution.result["conflicts"]
        assert conflict["resolvedBy"] is None
        assert conflict["files"] == ["a.txt"]
        assert "left out of the result (person)" in conflict["cause"]
        assert await leads(t, execution) == (2 if answer == "again" else 1)
