"""Whole executions with scripted agents: what the words do when real processes answer them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from parallax.errors import UsageError
from parallax.events import EVENT_TYPES
from parallax.models import ExecutionState
from tests.conftest import Team, TeamFactory, git

ORG = 'org({lead: {}, engineer: {reportsTo: "lead", max: 3}, reviewer: {reportsTo: "lead", preset: "readonly"}})\n'


def edit(text: str, path: str = "answer.txt") -> dict[str, Any]:
    return {"edit": {"path": path, "content": text}}


def answer(value: Any = "done", **more: Any) -> dict[str, Any]:
    return {"answer": {"value": value} | more}


RIGHT = [edit("42\n"), answer("it says 42")]
WRONG = [edit("43\n"), answer("it says 42", confidence=0.99)]


def script(**roles: Any) -> dict[str, Any]:
    """Each role: one list of actions, or a list of (texts, actions)."""
    rules = {}
    for role, what in roles.items():
        if what and isinstance(what[0], dict):
            rules[role] = [{"do": what}]
        else:
            rules[role] = [{"when": when, "do": do} for when, do in what]
    return {"roles": rules}


async def test_accepted_work_is_merged_at_once_and_the_users_branch_is_untouched(team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT)) as t:
        before = (git(t.repository, "rev-parse", "HEAD"), git(t.repository, "status", "--porcelain"))
        done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})')
        assert (done.state, done.result, done.confidence) == (ExecutionState.SUCCEEDED, "it says 42", 1.0)
        assert t.branch_file(done, "answer.txt") == "42\n"
        assert t.branch_file(done, "answer.txt", "engineer/fix") == "42\n"
        assert (git(t.repository, "rev-parse", "HEAD"), git(t.repository, "status", "--porcelain")) == before
        message = git(t.repository, "log", "-1", "--format=%an%n%B", f"parallax/{done.id}/engineer/fix")
        assert message.startswith("engineer\nmake it 42")
        assert f"Parallax-Execution: {done.id}" in message
        assert "Parallax-Step: fix" in message


async def test_a_false_claim_is_caught_by_the_check_and_sent_back_with_the_finding(team: TeamFactory) -> None:
    async with team(script(engineer=[("sent back", RIGHT), ("make it", WRONG)])) as t:
        done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})')
        assert done.confidence == 1.0
        assert [e["passed"] for e in await t.told(done, "evidence.recorded")] == [False, True]
        (sent,) = await t.told(done, "step.retrying")
        assert "quick failed" in sent["critique"]
        assert "You had reported: it says 42" in sent["critique"]


async def test_work_that_never_passes_goes_to_the_lead_and_is_merged_when_the_lead_gets_it_right(
    team: TeamFactory,
) -> None:
    async with team(script(engineer=WRONG, lead=RIGHT)) as t:
        done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})')
        assert done.state == ExecutionState.SUCCEEDED
        (up,) = await t.told(done, "step.escalated")
        assert up["to"] == "lead"
        assert t.branch_file(done, "answer.txt") == "42\n"
        (finished,) = [e for e in await t.events(done) if e.type == "step.finished"]
        assert finished.agent_id.endswith(".lead.1")
        assert finished.data["attempts"] == 4  # three of the engineer's, one of the lead's


async def test_work_that_nobody_gets_right_fails_with_the_evidence_and_is_not_merged(team: TeamFactory) -> None:
    async with team(script(engineer=WRONG, lead=WRONG)) as t:
        done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})')
        assert done.state == ExecutionState.FAILED
        assert "'fix' was not accepted after 4 turns: quick failed" in (done.reason or "")
        assert t.branch_file(done, "answer.txt") is None


async def test_a_program_can_catch_a_failed_step_and_go_on(team: TeamFactory) -> None:
    async with team(script(engineer=WRONG, lead=WRONG)) as t:
        done = await t.run(
            ORG + 'try { assign("engineer", "make it 42", {id: "fix", verify: "quick"}) } catch (e) { return e }'
        )
        assert done.state == ExecutionState.SUCCEEDED
        assert str(done.result).startswith("'fix' was not accepted")


async def test_a_review_sends_work_back_with_its_feedback_and_its_last_verdict_counts(team: TeamFactory) -> None:
    reviewer = [
        ("42", [answer("good", verdict="approve", confidence=0.9)]),
        ("41", [answer("write 42, not 41", verdict="revise", confidence=0.4)]),
    ]
    engineer = [("write 42, not 41", RIGHT), ("make", [edit("41!\n"), answer("it says 41 now")])]
    async with team(script(engineer=engineer, reviewer=reviewer)) as t:
        done = await t.run(ORG + 'assign("engineer", "make it", {id: "fix", review: {role: "reviewer"}})')
        assert done.result == {"report": "it says 42", "rounds": 2, "approved": True}
        assert done.confidence == pytest.approx(0.9)


async def test_a_review_as_a_word_judges_its_subject(team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT, reviewer=[answer("wrong approach", verdict="reject", confidence=0.9)])) as t:
        done = await t.run(
            ORG + 'const work = assign("engineer", "make it 42", {id: "fix"})\n'
            'const seen = review("reviewer", work, {id: "look"})\n'
            "uncertain if (seen) { high { return 1 } low { return seen } }"
        )
        assert done.result == {"approved": False, "verdict": "reject", "feedback": "wrong approach"}
        assert done.confidence == pytest.approx(0.3)


async def test_parallel_work_is_merged_at_the_join_in_submission_order(team: TeamFactory) -> None:
    engineer = [
        ("slow", [{"wait": 0.6}, edit("a", "a.txt"), answer()]),
        ("fast", [edit("b", "b.txt"), answer()]),
    ]
    async with team(script(engineer=engineer)) as t:
        done = await t.run(
            ORG + 'parallel(["slow", "fast"], (task, i) => assign("engineer", task, {id: "part ${i}"}), {id: "both"})'
        )
        assert done.state == ExecutionState.SUCCEEDED
        order = [(e.type, e.step_key) for e in await t.events(done) if e.type in {"step.finished", "workspace.merged"}]
        assert order == [
            ("step.finished", "part 1"),
            ("step.finished", "part 0"),
            ("workspace.merged", "part 0"),
            ("workspace.merged", "part 1"),
        ]
        assert (t.branch_file(done, "a.txt"), t.branch_file(done, "b.txt")) == ("a", "b")
        agents = {e.agent_id.rpartition(".")[2] for e in await t.events(done) if e.type == "step.started"}
        assert agents == {"1", "2"}


async def test_a_conflict_goes_back_to_its_owner_with_both_intents(team: TeamFactory) -> None:
    engineer = [
        ("conflicts with work", [edit("ONE\nTWO\nthree\n", "notes.txt"), answer("both hold")]),
        ("first", [edit("ONE\ntwo\nthree\n", "notes.txt"), answer()]),
        ("second", [edit("one!\nTWO\nthree\n", "notes.txt"), answer()]),
    ]
    async with team(script(engineer=engineer)) as t:
        done = await t.run(
            ORG + 'parallel(["first", "second"], (task, i) => assign("engineer", task, {id: "part ${i}"}))'
        )
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        conflicts = [c for c in await t.told(done, "workspace.conflict") if "round" in c]
        assert [(c["files"], c["round"]) for c in conflicts] == [(["notes.txt"], 1)]
        assert t.branch_file(done, "notes.txt") == "ONE\nTWO\nthree\n"


async def test_a_conflict_that_its_owner_leaves_in_place_is_never_merged_nor_dropped(team: TeamFactory) -> None:
    engineer = [
        ("conflicts with work", [answer("cannot")]),
        ("first", [edit("ONE\n", "notes.txt"), answer()]),
        ("second", [edit("TWO\n", "notes.txt"), answer()]),
    ]
    async with team(script(engineer=engineer)) as t:
        begun = await t.start(
            ORG + 'parallel(["first", "second"], (task, i) => assign("engineer", task, {id: "part ${i}"}))'
        )
        async with asyncio.timeout(60):  # the owner could not, the lead could not: a person decides
            while not (asked := await t.parallax.store.questions(execution=begun.id, states=("with_person",))):
                await asyncio.sleep(0.05)
        await t.parallax.desk.answer(asked[0].id, "leave")
        done = await t.finish(begun)
        assert done.state == ExecutionState.FAILED
        assert "part 1" in (done.reason or "")
        assert t.branch_file(done, "notes.txt") == "ONE\n"
        branch = git(
            t.repository, "branch", "--list", f"parallax/{done.id}/engineer/part-1*", "--format=%(refname:short)"
        )
        assert branch.count("\n") == 0
        assert branch


async def test_of_a_race_only_the_winner_is_merged_and_the_losers_are_ended(team: TeamFactory) -> None:
    engineer = [
        ("slow", [{"wait": 30}, edit("slow", "w.txt"), answer()]),
        ("fast", [edit("fast", "w.txt"), answer(confidence=0.9)]),
    ]
    async with team(script(engineer=engineer)) as t:
        async with asyncio.timeout(20):
            done = await t.run(
                ORG + 'race([() => assign("engineer", "slow", {id: "s"}), () => assign("engineer", "fast", {id: "f"})])'
            )
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        assert t.branch_file(done, "w.txt") == "fast"
        assert t.parallax.supervisor.agents() == []


async def test_candidates_of_a_fanout_are_merged_only_by_integrate(team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT)) as t:
        done = await t.run(
            ORG + 'const tries = fanout({role: "engineer", max: 2}, "make it 42", {id: "try", verify: "quick"})\n'
            'const whole = integrate([best(tries)], {id: "whole", verify: "full"})\nreturn whole'
        )
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        assert done.result["merged"] == ["try/candidate[0]"]
        assert done.result["checks"][0]["passed"] is True
        assert done.confidence == 1.0


async def test_integrate_without_any_check_is_believed_at_half_at_most(place: Any, team: TeamFactory) -> None:
    from tests.conftest import make_repository

    bare = make_repository(place / "bare", {"a.txt": "1\n"})
    async with team(script(engineer=[edit("2\n", "a.txt"), answer(confidence=0.99)]), repository=bare) as t:
        done = await t.run(
            ORG + 'assign("engineer", "x", {id: "w"})\nconst all = integrate(null, {id: "i"})\nreturn all'
        )
        assert done.confidence == 0.5
        assert done.result["checks"] == []


async def test_an_agent_that_crashes_is_tried_again_from_where_the_step_began(team: TeamFactory) -> None:
    flag = {"run": ["sh", "-c", "test -e ~/crashed || { touch ~/crashed debris; kill -9 $PPID; }"]}
    async with team(script(engineer=[flag, *RIGHT]), agent_retries=1) as t:
        done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})')
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        assert len(await t.told(done, "agent.error")) == 1
        assert t.branch_file(done, "debris") is None


async def test_an_agent_that_always_crashes_fails_its_step_after_the_retries(team: TeamFactory) -> None:
    async with team(script(engineer=[{"crash": 3}]), agent_retries=1) as t:
        done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix"})')
        assert done.state == ExecutionState.FAILED
        assert len(await t.told(done, "agent.error")) == 2
        assert t.parallax.supervisor.agents() == []


async def test_an_agent_without_a_sign_of_life_is_named_and_ended(team: TeamFactory) -> None:
    quick = {"agent_timeout_ms": 300, "agent_silence_ms": 1200, "agent_retries": 0}
    async with team(script(engineer=[{"hang": True}]), **quick) as t:
        async with asyncio.timeout(20):
            done = await t.run(ORG + 'assign("engineer", "make it 42", {id: "fix"})')
        assert done.state == ExecutionState.FAILED
        assert "no sign of life" in (done.reason or "")
        assert [s["kind"] for s in await t.told(done, "agent.stalled")] == ["silent"]


async def test_a_question_is_answered_by_the_lead_and_reaches_the_asker(team: TeamFactory) -> None:
    engineer = [
        {"ask": {"text": "Which number?", "save": "n"}},
        {"edit": {"path": "answer.txt", "content": "{n}\n"}},
        answer(),
    ]
    lead = [("Which number?", [answer("42")])]
    async with team(script(engineer=engineer, lead=lead)) as t:
        done = await t.run(ORG + 'assign("engineer", "make it right", {id: "fix", verify: "quick"})')
        assert done.confidence == 1.0
        assert [q["by"] for q in await t.told(done, "question.answered")] == ["lead"]


async def test_a_question_that_no_agent_can_answer_waits_for_a_person(team: TeamFactory) -> None:
    engineer = [{"ask": {"text": "Left or right?", "options": ["left", "right"], "save": "way"}}, answer("{way}")]
    lead = [answer("I cannot tell")]
    async with team(script(engineer=engineer, lead=lead)) as t:
        execution = await t.start(ORG + 'assign("engineer", "go", {id: "go"})')
        question = await _waiting(t)
        with pytest.raises(UsageError, match="not one of the answers"):
            await t.parallax.desk.answer(question.id, "up")
        await t.parallax.desk.answer(question.id, "right")
        done = await t.finish(execution)
        assert done.result == "right"


async def _waiting(t: Team) -> Any:
    async with asyncio.timeout(20):
        while not (found := await t.parallax.store.questions(states=("with_person",))):
            await asyncio.sleep(0.05)
    return found[0]


async def test_ask_human_pauses_until_somebody_answers(team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT)) as t:
        execution = await t.start('askHuman("Ship it?", {id: "ship"})')
        question = await _waiting(t)
        await t.parallax.desk.answer(question.id, "yes, on Monday")
        done = await t.finish(execution)
        assert (done.result, done.confidence) == ("yes, on Monday", 1.0)


async def test_a_permission_is_granted_or_refused_by_the_roles_preset(team: TeamFactory) -> None:
    ask = [{"permission": {"title": "rm -rf /", "kind": "execute", "denied": "then not"}}, answer("ran it")]
    async with team(script(engineer=ask, reviewer=ask)) as t:
        granted = await t.run(ORG + 'assign("engineer", "x", {id: "w"})')
        refused = await t.run(ORG + 'assign("reviewer", "x", {id: "w"})')
        said = [await t.told(execution, "agent.output") for execution in (granted, refused)]
        assert ["then not" in str(lines) for lines in said] == [False, True]


async def test_a_report_that_does_not_fit_its_schema_goes_back(team: TeamFactory) -> None:
    lead = [("sent back", [answer({"tasks": ["a"]})]), ("plan", [answer({"todo": ["a"]})])]
    async with team(script(lead=lead)) as t:
        done = await t.run(ORG + 'assign("lead", "plan", {id: "p", schema: {type: "object", required: ["tasks"]}})')
        assert done.result == {"tasks": ["a"]}
        assert done.confidence == 0.5  # its form is right; nothing speaks for its content


async def test_cancel_ends_the_execution_and_everything_of_it(team: TeamFactory) -> None:
    async with team(script(engineer=[{"wait": 60}, answer()])) as t:
        execution = await t.start(ORG + 'assign("engineer", "x", {id: "w"})')
        async with asyncio.timeout(20):
            while not any(a.state == "busy" for a in t.parallax.supervisor.agents()):
                await asyncio.sleep(0.02)
            await t.parallax.engine.cancel(execution.id, "a test")
            done = await t.finish(execution)
        assert done.state == ExecutionState.CANCELLED
        assert done.reason == "cancelled by a test"
        assert t.parallax.supervisor.agents() == []
        assert t.parallax.engine.running == ()


async def test_a_run_out_of_budget_is_partial_and_keeps_what_it_has(team: TeamFactory) -> None:
    engineer = [{"usage": {"input": 10, "output": 5, "cost": 0.6}}, *RIGHT]
    async with team(script(engineer=engineer)) as t:
        steps = [f'assign("engineer", "{name}", {{id: "{name}"}})' for name in "abc"]
        done = await t.run(ORG + "\n".join(steps), budget=1_000_000)
        assert done.state == ExecutionState.PARTIAL
        assert "budget of $1.00 is used up" in (done.reason or "")
        assert t.branch_file(done, "answer.txt") == "42\n"
        assert done.usage.cost == 1_200_000


async def test_small_words_are_journaled_and_printed_lines_are_told(team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT)) as t:
        done = await t.run(
            'print("hello", 1)\nemit("mark", {a: 1}, {id: "m"})\nsleep(10)\n'
            "const r = random()\nreturn {r: r, u: uuid(), n: now() > 0, me: context.executionId}"
        )
        assert done.result["me"] == done.id
        assert 0 <= done.result["r"] < 1
        assert [p["line"] for p in await t.told(done, "log.printed")] == ["hello 1"]
        assert [e.data for e in await t.events(done) if e.type == "custom.mark"] == [{"a": 1}]


async def test_an_unknown_role_in_a_program_is_named_with_those_that_exist(team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT)) as t:
        done = await t.run(ORG + 'assign("enginer", "x", {id: "w"})')
        assert done.state == ExecutionState.FAILED
        assert "no role fits 'enginer' (roles: lead, engineer, reviewer)" in (done.reason or "")


async def test_every_event_tells_what_the_table_of_events_says(team: TeamFactory) -> None:
    engineer = [
        ("conflicts with work", [edit("ONE\nTWO\n", "notes.txt"), answer()]),
        ("sent back", RIGHT),
        (
            "first",
            [{"ask": {"text": "Sure?"}}, edit("ONE\n", "notes.txt"), {"usage": {"input": 1, "output": 1}}, answer()],
        ),
        ("second", [edit("TWO\n", "notes.txt"), {"run": ["true"]}, answer()]),
        ("make it", WRONG),
    ]
    roles = script(engineer=engineer, lead=[answer("yes")], reviewer=[answer("good", verdict="approve")])
    async with team(roles) as t:
        done = await t.run(
            ORG + 'parallel(["first", "second"], (task, i) => assign("engineer", task, {id: "part ${i}"}))\n'
            'const work = assign("engineer", "make it 42", {id: "fix", verify: "quick", review: {role: "reviewer"}})\n'
            'print("x")\nreturn integrate(null, {id: "all", verify: "full"})'
        )
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        seen = set()
        for event in await t.events(done):
            seen.add(event.type)
            assert set(event.data) <= set(EVENT_TYPES[event.type]), event
        assert len(seen) >= 24, sorted(seen)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ('assign("engineer", "x", {id: "w", budget: "3"})', "step 'w': a budget is a number of dollars"),
        ('assign("engineer", "x", {id: "w", workspace: "role"})', "assign() workspace 'role' is not served"),
        ('select("engineer", {id: "w", criteria: "best"})', "select() criteria 'best' is not served"),
    ],
)
async def test_an_option_that_would_change_nothing_is_refused_by_name(call: str, words: str, team: TeamFactory) -> None:
    async with team(script(engineer=RIGHT)) as t:
        done = await t.run(ORG + call)
        assert done.state == ExecutionState.FAILED
        assert words in (done.reason or "")


async def test_a_steps_own_retries_count(team: TeamFactory) -> None:
    async with team(script(engineer=[{"crash": 3}]), agent_retries=5) as t:
        done = await t.run(ORG + 'assign("engineer", "x", {id: "w", retries: 0})')
        assert done.state == ExecutionState.FAILED
        assert len(await t.told(done, "agent.error")) == 1


async def test_integrate_with_on_conflict_fail_asks_nobody_to_reconcile(team: TeamFactory) -> None:
    engineer = [
        ("first", [edit("ONE\n", "notes.txt"), answer()]),
        ("second", [edit("TWO\n", "notes.txt"), answer()]),
    ]
    async with team(script(engineer=engineer)) as t:
        done = await t.run(
            ORG + 'const a = fanout({role: "engineer", max: 1}, "first", {id: "a"})\n'
            'const b = fanout({role: "engineer", max: 1}, "second", {id: "b"})\n'
            'return integrate([a[0], b[0]], {id: "all", onConflict: "fail"})'
        )
        assert done.state == ExecutionState.FAILED
        assert "conflicts with what was merged before it, in notes.txt" in (done.reason or "")
        assert len([entry for entry in t.ledger() if entry["event"] == "start"]) == 2


async def test_the_budget_of_the_repository_holds(team: TeamFactory, place: Any) -> None:
    from tests.conftest import make_repository

    poor = make_repository(place / "poor", {"a.txt": "1\n", ".parallax.yaml": "version: 1\nbudget: 0.5\n"})
    engineer = [{"usage": {"input": 1, "output": 1, "cost": 0.6}}, answer()]
    async with team(script(engineer=engineer), repository=poor) as t:
        steps = [f'assign("engineer", "{name}", {{id: "{name}"}})' for name in "ab"]
        done = await t.run(ORG + "\n".join(steps), budget=100_000_000)
        assert done.state == ExecutionState.PARTIAL
        assert "budget of $0.50 is used up" in (done.reason or "")


async def test_nothing_is_built_on_a_candidate_that_was_not_chosen(team: TeamFactory) -> None:
    engineer = [
        ("try it", [edit("unchosen\n", "candidate.txt"), answer()]),
        ("make it", RIGHT),
    ]
    async with team(script(engineer=engineer)) as t:
        done = await t.run(
            ORG + 'fanout({role: "engineer", max: 1}, "try it", {id: "try"})\n'
            'assign("engineer", "make it 42", {id: "fix", verify: "quick"})'
        )
        assert done.state == ExecutionState.SUCCEEDED, done.reason
        assert t.branch_file(done, "answer.txt") == "42\n"
        assert t.branch_file(done, "candidate.txt") is None
