"""Two terminals: one runs, the other looks, answers, tells, stops and cancels. The first owns the data directory."""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.e2e.conftest import edit, new_world, rule, script
from tests.e2e.processes import Done, World, finish

ASKING = """
org({engineer: {description: "asks"}})
const word = askHuman("Which word shall it be?", {id: "decide"})
const made = assign("engineer", "work", {id: "work"})
return "${word} ${made}"
"""
ASKER = {
    "roles": {
        "engineer": [
            {
                "when": "work",
                "do": [
                    {"ask": {"text": "Really?", "options": ["yes", "no"], "save": "sure"}},
                    {"answer": {"value": "{sure}", "confidence": 0.9}},
                ],
            }
        ]
    }
}


def eventually(world: World, *args: str, key: str) -> list[dict[str, Any]]:
    """What a listing command shows as soon as it shows something."""
    deadline = time.monotonic() + 30
    while True:
        done = world.inside(*args, "--json")
        if done.code == 0 and done.json[key]:
            return list(done.json[key])
        assert time.monotonic() < deadline, done.err
        time.sleep(0.05)


def test_a_question_is_answered_from_a_second_terminal() -> None:
    with new_world(agents=ASKER) as world:
        path = world.place / "asking.prism"
        path.write_text(ASKING)
        process = world.start("run", str(path), "--agent", "scripted", "--yes", "--json")
        (question,) = eventually(world, "questions", key="questions")
        shown = world.inside("questions").out
        assert f"{question['id']}  the program asks: Which word shall it be?" in shown
        assert f'parallax answer {question["id"]} "..."' in shown
        answered = world.inside("answer", question["id"], "blue")
        assert (answered.code, answered.err) == (0, f"{question['id']} is answered\n")

        while (question := eventually(world, "questions", key="questions")[0])["text"] != "Really?":
            time.sleep(0.05)
        wrong = world.inside("answer", question["id"], "perhaps")
        assert wrong.code == 2
        assert "yes" in wrong.sentence
        assert world.inside("answer", question["id"], "yes", "--json").json["answer"] == "yes"
        again = world.inside("answer", question["id"], "no")
        assert again.code == 2

        done = finish(process)
        assert (done.code, done.json["result"]) == (0, "blue yes")
        assert "it waits for you: parallax answer" in done.err
        assert "you answer: blue" in done.err


def test_tell_stop_and_logs_reach_the_agents_of_a_running_execution() -> None:
    agents = {
        "roles": {
            "engineer": [
                rule("Hurry up", edit("answer.txt", "42\n")),
                rule("work", {"say": "thinking\n"}, {"hang": True}),
            ]
        }
    }
    with new_world(agents=agents) as world:
        process = world.start("run", "fix", "work", "--agent", "scripted", "--yes")
        world.wait_started()
        logs = world.inside("logs")  # without -f: what there is now
        assert logs.code == 0
        told = world.inside("tell", "engineer.1", "Hurry up")
        assert (told.code, told.err) == (0, "engineer.1 hears it at its next turn\n")
        wrong = world.inside("tell", "engineer.9", "hello")
        assert wrong.code == 2
        assert "engineer.1" in wrong.sentence, "it says who is running"
        stopped = world.inside("stop", "engineer.1", "--json")
        assert stopped.code == 0
        assert stopped.json["id"].endswith(".engineer.1")
        assert finish(process, by=signal.SIGINT).code == 130


def test_cancel_ends_an_execution_that_another_terminal_runs() -> None:
    with new_world(wait=20) as world:
        process = world.start("run", "fix", "work", "--agent", "scripted", "--yes")
        world.wait_started()
        cancelled = world.inside("cancel")
        assert cancelled.code == 0
        assert "being cancelled" in cancelled.err or "is cancelled" in cancelled.err
        done = finish(process)
        assert done.code == 1
        assert "CANCELLED  fix" in done.out
        assert world.agents_alive() == []


def test_cancel_without_a_server_ends_what_was_interrupted() -> None:
    with new_world(wait=20) as world:
        process = world.start("run", "fix", "work", "--agent", "scripted", "--yes")
        world.wait_started()
        assert finish(process, by=signal.SIGTERM).code == 130
        cancelled = world.inside("cancel", "--json")
        assert cancelled.json["state"] == "cancelled"
        assert world.agents_alive() == []


def test_a_second_run_submits_to_the_first_which_waits_for_it() -> None:
    with new_world(agents=script(1.0)) as world:
        first = world.start("run", "fix", "work one", "--agent", "scripted", "--yes")
        world.wait_started()
        second: Done = world.run("run", str(world.place / "duo.yaml"), "go", "--agent", "scripted", "--yes", "--json")
        done = finish(first)
        assert done.code == 0, done.err
        assert second.code == 0, second.err
        assert second.json["state"] == "succeeded"
        assert f"waiting for what other commands started here: {second.json['id'][-6:]}" in done.err
        owners = {entry["pid"] for entry in world.ledger()}
        assert owners
        assert len(world.inside("executions", "--json").json["executions"]) == 2


def test_detach_leaves_it_to_the_server() -> None:
    with new_world() as world, world.serving():
        done = world.inside("run", "fix", "work", "--agent", "scripted", "--yes", "--detach", "--json")
        assert done.code == 0
        assert done.json["state"] in {"queued", "running"}
        assert world.inside("watch", done.json["id"]).code == 0


def test_ctrl_c_of_a_watcher_leaves_the_execution_running() -> None:
    with new_world(wait=8) as world, world.serving():
        started = world.inside("run", "fix", "work", "--agent", "scripted", "--yes", "--detach", "--json").json
        watching = world.start("watch", started["id"])
        assert watching.stderr is not None
        for line in watching.stderr:
            if "begins work" in line:
                break
        done = finish(watching, by=signal.SIGINT)
        assert done.code == 130
        assert "it goes on in the server" in done.err
        assert world.inside("watch", started["id"], "--json").json["state"] == "succeeded"
