"""Replay: the same program takes the same course and calls nobody, a changed one is found out at the right step.
Fork: what comes before the step is shared and not run again."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from parallax.errors import NotFoundError, UsageError
from parallax.events import Event
from parallax.execution.history import Fork
from parallax.execution.intake import Submission
from parallax.execution.replay import on_course, recorded_effects
from parallax.models import Execution, ExecutionState
from parallax.storage.statements import Change
from tests.conftest import Team, TeamFactory
from tests.execution.histories import Maker, all_statements, changed, mutations, rendered
from tests.execution.test_recovery import THREE, until
from tests.execution.test_team import ORG, answer, edit, script

HISTORIES = int(os.environ.get("PARALLAX_HISTORIES", "30"))  # `make faults` takes 200
QUICK = script(
    engineer=[
        ("first", [edit("1\n", "one.txt"), answer("one")]),
        ("second", [edit("2\n", "two.txt"), answer("two")]),
        ("third", [edit("3\n", "three.txt"), answer("three")]),
        ("other", [edit("o\n", "other.txt"), answer("other")]),
    ]
)
BESIDE = ORG + (
    'const before = assign("engineer", "first", {id: "a"})\n'
    'const both = parallel([() => assign("engineer", "second", {id: "b"}), () => assign("engineer", "third", {id: "c"})])\n'
    'return "${before} ${both[0]} ${both[1]}"'
)


def starts(t: Team, execution: Execution) -> list[str]:
    tasks = [entry["task"].split("/") for entry in t.ledger() if entry["event"] == "start"]
    return sorted(key for of, key, _ in tasks if of == execution.id)


async def everything(t: Team, execution: Execution) -> list[Any]:
    store = t.parallax.store
    return [await store.execution(execution.id), await store.journal(execution.id), await t.events(execution)]


async def recorded(t: Team, text: str, place: Path, name: str) -> Execution:
    path = place / f"{name}.prism"
    path.write_text(text)
    execution, _ = await t.parallax.intake.submit(Submission(pattern=str(path)))
    return await t.finish(execution)


async def test_recorded_histories_replay_the_same_and_every_mutant_is_found_at_its_step(
    place: Path, team: TeamFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutants, wrong = 0, []
    changes: list[Change] = []  # the writer's own count has what housekeeping does, too
    async with team({"roles": {}}, repository=None) as t:
        database: Any = t.parallax.store._database
        commit = database.commit

        async def counted(change: Change) -> list[Event]:
            changes.append(change)
            told: list[Event] = await commit(change)
            return told

        monkeypatch.setattr(database, "commit", counted)
        for seed in range(HISTORIES):
            program = Maker(seed).program()
            text, where = rendered(program)
            done = await recorded(t, text, place, f"h{seed}")
            assert done.state is ExecutionState.SUCCEEDED, (seed, done.reason, text)
            before, commits = await everything(t, done), len(changes)
            replayed = await t.parallax.history.replay(done.id)
            assert (replayed.same, replayed.end) == (True, "ended"), (seed, replayed.divergence, text)
            for label, how, mutant, expected in mutants_of(seed, program, where, before[1]):
                path = place / "mutant.prism"
                path.write_text(mutant)
                found = (await t.parallax.history.replay(done.id, pattern=str(path))).divergence
                mutants += 1
                if found is None or found.step_key != expected:
                    wrong.append((seed, label, how, expected, str(found), mutant))
            assert len(changes) == commits, "a replay writes nothing"
            assert await everything(t, done) == before
    assert wrong == [], f"{len(wrong)} of {mutants}, the first: {wrong[0]}"
    assert mutants >= 2 * HISTORIES


def mutants_of(
    seed: int, program: Any, where: dict[int, int], entries: list[Any]
) -> list[tuple[int, str, str, str | None]]:
    """Label, what was done, the text, and the step at which the replay must find it; for what the run came by."""
    effects = recorded_effects(entries)
    first: dict[int, str] = {}  # line of the program -> the first effect on the course that was asked there
    for entry in entries:
        effect = effects.get(entry.step_key)
        if effect is not None and entry.kind == "result" and on_course(effect, effects):
            first.setdefault(entry.body["span"]["line"], entry.step_key)
    found: list[tuple[int, str, str, str | None]] = [(0, "end", rendered(program, "total + 1")[0], None)]
    for s in all_statements(program):
        if (step := first.get(where.get(s.label, -1))) is not None:
            found += [(s.label, how, rendered(changed(program, s.label, how))[0], step) for how in mutations(s)]
    return random.Random(seed).sample(found, min(6, len(found)))


async def test_an_execution_of_agents_replays_without_calling_one(team: TeamFactory) -> None:
    async with team(QUICK) as t:
        done = await t.run(BESIDE)
        assert done.result == "one two three"
        ledger = t.ledger()
        replayed = await t.parallax.history.replay(done.id)
        assert (replayed.same, replayed.end) == (True, "ended")
        assert set(replayed.effects) == {"a", "b", "c", "org#1", "parallel#1"}
        changed = t.pattern(BESIDE.replace('"third"', '"another third"'))
        found = (await t.parallax.history.replay(done.id, pattern=changed)).divergence
        assert found is not None
        assert found.step_key == "c"
        assert "another third" in found.how
        assert t.ledger() == ledger


async def test_an_execution_in_flight_replays_to_where_its_journal_stops(team: TeamFactory) -> None:
    waiting = script(engineer=[("first", [answer("one")]), ("second", [{"wait": 30}, answer("two")])])
    async with team(waiting) as t:
        execution = await t.start(THREE)
        await until(t, execution, "step.started", "b")
        replayed = await t.parallax.history.replay(execution.id)
        assert (replayed.same, replayed.end, replayed.effects) == (True, "waiting", ("org#1", "a"))
        skips = t.pattern(THREE.replace('"first"', '"something else"'))
        found = (await t.parallax.history.replay(execution.id, pattern=skips)).divergence
        assert found is not None
        assert found.step_key == "a"
        await t.parallax.engine.cancel(execution.id, "a test")


async def test_a_failed_execution_fails_in_its_replay_and_a_repaired_program_is_a_difference(
    team: TeamFactory,
) -> None:
    async with team({"roles": {}}, repository=None) as t:
        done = await t.run('const x = now()\nthrow "no good"')
        assert done.state is ExecutionState.FAILED
        assert (await t.parallax.history.replay(done.id)).same
        found = (await t.parallax.history.replay(done.id, pattern=t.pattern("const x = now()\nreturn 1"))).divergence
        assert found is not None
        assert (found.step_key, found.how) == (None, "the program comes to a result now, it had failed")


async def test_a_fork_shares_what_came_before_and_does_the_rest_anew(team: TeamFactory) -> None:
    async with team(QUICK) as t:
        old = await t.run(THREE)
        new, fresh = await t.parallax.history.fork(Fork(execution=old.id, at="b"))
        assert fresh
        done = await t.finish(new)
        assert (done.state, done.result) == (ExecutionState.SUCCEEDED, "one two three")
        assert starts(t, done) == ["b", "c"]
        assert [t.branch_file(done, f"{name}.txt") for name in ("one", "two", "three")] == ["1\n", "2\n", "3\n"]
        assert (await t.told(done, "execution.forked")) == [{"from": old.id, "step": "b", "shared": ["org#1", "a"]}]
        assert (await t.parallax.history.replay(done.id)).same
        assert (await t.parallax.store.execution(old.id)) == old


async def test_a_fork_in_a_branch_keeps_what_the_branch_beside_it_has_finished(team: TeamFactory) -> None:
    async with team(QUICK) as t:
        old = await t.run(BESIDE)
        new, _ = await t.parallax.history.fork(Fork(execution=old.id, at="b"))
        done = await t.finish(new)
        assert (done.state, done.result) == (ExecutionState.SUCCEEDED, "one two three")
        assert starts(t, done) == ["b"]
        assert [t.branch_file(done, f"{name}.txt") for name in ("one", "two", "three")] == ["1\n", "2\n", "3\n"]


async def test_an_edited_pattern_is_forked_at_its_first_difference(team: TeamFactory) -> None:
    async with team(QUICK) as t:
        old = await t.run(THREE)
        edited = t.pattern(THREE.replace('"second"', '"other"'))
        new, _ = await t.parallax.history.fork(Fork(execution=old.id, pattern=edited))
        done = await t.finish(new)
        assert done.result == "one other three"
        assert starts(t, done) == ["b", "c"]
        assert done.options["forked_from"] == {"execution": old.id, "step": "b"}
        assert [t.branch_file(done, f"{name}.txt") for name in ("one", "two", "other")] == ["1\n", None, "o\n"]


async def test_an_execution_that_failed_is_forked_at_the_step_that_failed(team: TeamFactory) -> None:
    failing = script(engineer=[("first", [edit("1\n", "one.txt"), answer("one")]), ("second", [{"crash": 3}])])
    async with team(failing, agent_retries=0) as t:
        old = await t.run(THREE)
        assert old.state is ExecutionState.FAILED
    async with team(QUICK) as t:
        new, _ = await t.parallax.history.fork(Fork(execution=old.id, at="b"))
        done = await t.finish(new)
        assert done.result == "one two three"
        assert starts(t, done) == ["b", "c"]


async def test_other_input_is_checked_and_goes_as_far_as_the_recorded_course(team: TeamFactory) -> None:
    program = (
        '/* @name greet\n   @input {"who": "string", "end": {"type": "string", "default": "!"}}\n*/\n'
        'emit("hello", {who: input.who})\nconst at = now()\nemit("bye", {who: input.end})\nreturn "${at} ${input.end}"'
    )
    async with team({"roles": {}}, repository=None) as t:
        old = await t.run(program, {"who": "you"})
        new, _ = await t.parallax.history.fork(Fork(execution=old.id, input={"end": "?"}))
        done = await t.finish(new)
        assert done.result == str(old.result).replace("!", "?"), "now() is shared"
        with pytest.raises(UsageError, match=r"before 'emit#2' would differ at 'emit#1'.*fork at 'emit#1' instead"):
            await t.parallax.history.fork(Fork(execution=old.id, at="emit#2", input={"who": "me"}))
        with pytest.raises(UsageError, match="input 'who' must be of type string"):
            await t.parallax.history.fork(Fork(execution=old.id, at="emit#2", input={"who": 1}))
        with pytest.raises(UsageError, match="takes the same course"):
            await t.parallax.history.fork(Fork(execution=old.id, input={"end": "!"}))
        with pytest.raises(UsageError, match="name the step to fork at with --at"):
            await t.parallax.history.fork(Fork(execution=old.id))
        with pytest.raises(NotFoundError, match=r"no step 'nope' \(steps: emit#1, now#1, emit#2"):
            await t.parallax.history.fork(Fork(execution=old.id, at="nope"))
        assert len(await t.parallax.store.executions()) == 2, "what was refused left nothing"


async def test_one_key_is_one_fork(team: TeamFactory) -> None:
    async with team({"roles": {}}, repository=None) as t:
        old = await t.run("return now()")
        fork = Fork(execution=old.id, at="now#1")
        first, again = await t.parallax.history.fork(fork, key="k"), await t.parallax.history.fork(fork, key="k")
        assert (first[0].id, first[1], again[1]) == (again[0].id, True, False)
        with pytest.raises(UsageError, match="used with another request"):
            await t.parallax.history.fork(Fork(execution=old.id, at="now#1", input={"x": 1}), key="k")
        await t.finish(first[0])
