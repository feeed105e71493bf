"""After a run: executions, show, logs, diff, land. One finished execution, looked at from all sides."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import git
from tests.e2e.conftest import new_world
from tests.e2e.processes import Done, World


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[World, Done]]:
    """A world with one finished run."""
    with new_world() as world:
        yield world, world.inside("run", str(world.place / "duo.yaml"), "go", "--agent", "scripted", "--yes", "--json")


def test_run_with_json_prints_the_execution_and_ends_with_0(finished: tuple[World, Done]) -> None:
    _, run = finished
    assert run.code == 0
    assert run.json["state"] == "succeeded"
    assert "accepted" in run.err, "the story goes to standard error"


def test_what_a_run_prints_stands_on_the_right_channel() -> None:
    with new_world() as world:
        done = world.inside("run", "fix", "work", "--agent", "scripted", "--yes")
        assert done.code == 0
        assert done.out.lstrip().startswith("SUCCEEDED  fix  ")
        assert "main is untouched at" in done.out
        assert "parallax show --why" in done.out
        for line in ("bounds", "begins work", "✓ work accepted", "✓ whole accepted at 1.00"):
            assert line in done.err
            assert line not in done.out


def test_executions_lists_it(finished: tuple[World, Done]) -> None:
    world, run = finished
    done = world.inside("executions")
    assert done.code == 0
    header, row = done.out.splitlines()
    assert header.split() == ["execution", "state", "pattern", "confidence", "started", "goal"]
    assert row.startswith(run.json["id"])
    assert row.endswith("go")
    (listed,) = world.inside("executions", "--json").json["executions"]
    assert listed["id"] == run.json["id"]


def test_show_why_names_the_evidence_of_each_step(finished: tuple[World, Done]) -> None:
    world, run = finished
    done = world.inside("show", "--why", run.json["id"][-6:])
    assert done.code == 0
    for step in ("first", "left", "right", "whole"):
        assert re.search(rf"^✓ {step}", done.out, re.MULTILINE)
    assert "evidence   answer passed" in done.out
    assert "it claimed 0.90" in done.out
    assert "untouched" not in done.out, "it may have been landed since"
    assert world.inside("show", "--why", "--json").json["steps"] == run.json["steps"]


def test_show_journal(finished: tuple[World, Done]) -> None:
    world, _ = finished
    document = world.inside("show", "--journal", "--json").json
    kinds = [entry["kind"] for entry in document["journal"]]
    assert kinds.count("intent") >= 3
    assert world.inside("show", "--journal").out.count("\n") == len(kinds)


def test_the_journal_for_people_has_a_line_for_each_entry_with_its_word_and_what_came(
    finished: tuple[World, Done],
) -> None:
    world, _ = finished
    lines = world.inside("show", "--journal").out.splitlines()
    (begun,) = [line for line in lines if re.search(r"▸ first +assign +engineer.1 begins", line)]
    (ended,) = [line for line in lines if re.search(r"✓ first +assign +", line)]
    assert lines.index(begun) < lines.index(ended)
    assert any(re.search(r"▸   left ", line) for line in lines), "a branch is indented"


def test_replay_calls_nobody_and_says_that_it_is_the_same(finished: tuple[World, Done]) -> None:
    world, run = finished
    done = world.inside("replay")
    assert (done.code, done.out.split()[0]) == (0, "SAME"), done.err
    assert "to its end; nothing was run" in done.out
    document = world.inside("replay", run.json["id"], "--json").json
    assert (document["same"], document["end"], document["divergence"]) == (True, "ended", None)


def test_replay_of_an_edited_pattern_names_the_first_difference_and_ends_with_1(finished: tuple[World, Done]) -> None:
    world, _ = finished
    text = (world.place / "duo.yaml").read_text()
    edited = world.place / "edited.yaml"
    edited.write_text(text.replace("id: left", "id: links"))
    assert edited.read_text() != text
    done = world.inside("replay", "--pattern", str(edited))
    assert (done.code, done.out.split()[0]) == (1, "DIFFERS"), done.err
    assert "at step 'left'" in done.out
    assert "nothing was run" in done.out


def test_fork_does_a_step_anew_and_shares_what_was_before() -> None:
    with new_world() as world:
        run = world.inside("run", str(world.place / "duo.yaml"), "go", "--agent", "scripted", "--yes", "--json")
        done = world.inside("fork", run.json["id"], "--at", "whole", "--json")
        assert done.code == 0, done.err
        assert f"forked {run.json['id'][-6:]} at 'whole'" in done.err
        assert done.json["forked_from"] == {"execution": run.json["id"], "step": "whole"}
        assert (done.json["state"], done.json["result"]["merged"]) == ("succeeded", ["first", "left", "right"])
        bad = world.inside("fork", run.json["id"], "--at", "nothing")
        assert bad.code == 2
        assert "the journal has no step 'nothing'" in bad.err


def test_logs_tell_what_agents_said(finished: tuple[World, Done]) -> None:
    world, _ = finished
    done = world.inside("logs")
    assert done.code == 0
    assert "first: is done" in done.out
    ours = world.inside("logs", "engineer.1", "--json").json["logs"]
    assert {entry["agent"] for entry in ours} == {"engineer.1"}


def test_diff_is_what_git_says(finished: tuple[World, Done]) -> None:
    world, run = finished
    done = world.inside("diff")
    assert done.code == 0
    assert "+42" in done.out
    stat = world.inside("diff", "--stat").out
    assert stat.endswith("3 files changed, 3 insertions(+), 1 deletion(-)\n")
    assert world.inside("diff", "--json").json == {"execution": run.json["id"], "diff": done.out}
    wrong = world.inside("diff", "--branch", "nope")
    assert wrong.code == 2
    assert "has no branch 'nope'" in wrong.sentence


def test_watch_of_an_ended_execution_tells_its_story_and_returns(finished: tuple[World, Done]) -> None:
    world, _ = finished
    done = world.inside("watch")
    assert done.code == 0
    assert "✓ whole accepted" in done.err
    assert world.inside("watch", "--json").json["state"] == "succeeded"


def test_cancel_of_an_ended_execution_is_refused(finished: tuple[World, Done]) -> None:
    world, _ = finished
    done = world.inside("cancel")
    assert done.code == 2
    assert "has ended already (succeeded)" in done.sentence


def test_nothing_waits(finished: tuple[World, Done]) -> None:
    world, _ = finished
    assert world.inside("questions").out == "nothing waits for you\n"
    assert world.inside("questions", "--json").json == {"questions": []}


def test_land_refuses_to_write_over_own_changes_and_offers_a_branch(finished: tuple[World, Done]) -> None:
    world, run = finished
    result = git(world.repo, "rev-parse", f"parallax/{run.json['id']}/result")
    (world.repo / "answer.txt").write_text("mine\n")
    before = git(world.repo, "rev-parse", "HEAD")
    refused = world.inside("land", "--yes")
    assert refused.code == 2
    assert "answer.txt" in refused.sentence
    assert "--branch" in refused.sentence
    assert (world.repo / "answer.txt").read_text() == "mine\n"
    assert git(world.repo, "rev-parse", "HEAD") == before

    landed = world.inside("land", "--yes", "--branch", "tested")
    assert landed.code == 0, landed.err
    assert landed.out.startswith("landed: the new branch tested is at")
    assert "confidence 1.00" in landed.err
    assert git(world.repo, "rev-parse", "tested") == result
    assert git(world.repo, "rev-parse", "HEAD") == before

    git(world.repo, "checkout", "-q", "answer.txt")
    landed = world.inside("land", "--yes", "--json")
    assert landed.json == {"branch": "main", "sha": result, "how": "fast_forward", "files": 3}
    assert git(world.repo, "status", "--porcelain") == ""
    assert (world.repo / "answer.txt").read_text() == "42\n"
    assert "nothing to land: main has it already" in world.inside("land", "--yes").out


def test_a_failed_execution_ends_with_1_and_its_reason() -> None:
    wrong = {"roles": {"engineer": [{"when": "work", "do": [{"answer": {"value": "done", "confidence": 0.9}}]}]}}
    with new_world(agents=wrong) as world:
        chart = world.place / "strict.yaml"
        chart.write_text(
            "roles: {engineer: {confidence: {maxRounds: 0}}}\n"
            "steps:\n  - {id: work, type: assign, role: engineer, task: work, verify: answer}\noutput: work\n"
        )
        done = world.inside("run", str(chart), "--agent", "scripted", "--yes")
        assert done.code == 1, done.err
        assert done.out.lstrip().startswith("FAILED  strict")
        assert "work" in done.out.splitlines()[2]
        assert "engineer.1 says it is done; the check answer fails" in done.err
        assert world.inside("watch", "--json").code == 1


def test_what_was_spent_is_summed_up_as_asked(finished: tuple[World, Done]) -> None:
    world, run = finished
    by_step = world.inside("spent", run.json["id"])
    assert by_step.code == 0
    assert by_step.out.split()[:5] == ["step", "agent", "model", "cost", "estimated"]
    rows = world.inside("spent", "--by", "role", "--by", "day", "--json").json["usage"]
    assert {row["role"] for row in rows} >= {"engineer"}
    assert sum(row["turns"] for row in rows) == sum(s["turns"] for s in run.json["steps"] if s["word"] == "assign") > 0
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", row["day"]) for row in rows)
