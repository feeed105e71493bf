"""The story of a question: an engineer asks by tool, its lead answers; the lead is silent, and a person answers.

Everything is real but the model: the server, the agents' processes, the tools over MCP, the API over HTTP.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from parallax.datadir import read_lock
from tests.conftest import git
from tests.e2e.conftest import new_world
from tests.e2e.processes import WAIT_S, World, finish

TEAM = """
name: shop
roles:
  lead: {description: You decide what the product does.}
  engineer: {description: You build it., reportsTo: lead}
escalation: {timeoutMs: 2000}
input: {goal: {type: string}}
steps:
  - {id: price, type: assign, role: engineer, task: "${input.goal}"}
output: price
"""
QUESTION = {"topic": "rounding", "question": "How is the price rounded?", "options": ["up", "down"]}
ENGINEER = [
    {"tool": {"name": "ask", "arguments": QUESTION, "save": "way"}},
    {"edit": {"path": "price.txt", "content": "round {way}\n"}},
    {"tool": {"name": "report_result", "arguments": {"result": "rounded {way}", "confidence": 0.9}}},
    {"say": "Done."},
]
ANSWERING_LEAD = [{"when": "How is the price rounded?", "do": [{"answer": {"value": "down"}}]}]
SILENT_LEAD = [{"when": "How is the price rounded?", "do": [{"hang": True}]}]


@contextmanager
def the_team(lead: list[dict[str, Any]]) -> Iterator[World]:
    """A shop whose lead is like this."""
    with new_world(agents={"roles": {"engineer": [{"do": ENGINEER}], "lead": lead}}) as world:
        (world.place / "shop.yaml").write_text(TEAM)
        yield world


class Person:
    """Somebody with a browser's view of the API and the key."""

    def __init__(self, world: World) -> None:
        self.key = (world.data / "key").read_text()
        url = read_lock(world.data / "lock")["url"]
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False)

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def asks_for_a_price(self, world: World) -> str:
        """Start the work; returns the execution."""
        body = {"pattern": str(world.place / "shop.yaml"), "input": {"goal": "Compute the price"},
                "repo": str(world.repo), "agent": "scripted"}  # fmt: skip
        started = self.http.post("/api/executions", json=body)
        assert started.status_code == 202, started.text
        return str(started.json()["id"])

    def waits_for(self, path: str, ready: Any) -> Any:
        """What a GET says as soon as it is so."""
        deadline = time.monotonic() + WAIT_S
        while not ready(found := self.http.get(path).json()):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found

    def sees_the_end(self, execution: str) -> dict[str, Any]:
        """The execution when it has ended."""
        ended: dict[str, Any] = self.waits_for(f"/api/executions/{execution}", lambda e: e.get("final"))
        return ended

    def sees_a_question(self) -> dict[str, Any]:
        """The first question that waits for a person."""
        found: dict[str, Any] = self.waits_for("/api/questions", lambda f: f["questions"])["questions"][0]
        return found

    def has_seen(self, execution: str) -> list[dict[str, Any]]:
        """Every event about questions, in order."""
        text = self.http.get(f"/api/executions/{execution}/events", params={"follow": "false"}).text
        events = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
        return [event for event in events if event["type"].startswith("question.")]


def test_the_lead_answers_its_engineer() -> None:
    with the_team(ANSWERING_LEAD) as world, world.serving(), Person(world) as person:
        # A person asks for a price, and goes to lunch.
        execution = person.asks_for_a_price(world)

        # The engineer does not know how to round, so it asks; its lead knows.
        done = person.sees_the_end(execution)
        moves = [
            (move["type"], move["data"].get("to") or move["data"].get("by")) for move in person.has_seen(execution)
        ]
        assert moves == [("question.asked", None), ("question.routed", "lead"), ("question.answered", "lead")]

        # The engineer rounds as it was told, and what it reported by tool is the result, not its last word.
        assert (done["state"], done["result"], done["confidence"]) == ("succeeded", "rounded down", 0.9)
        assert git(world.repo, "show", f"parallax/{execution}/result:price.txt") == "round down"

        # Nobody had to be called back from lunch.
        assert person.http.get("/api/questions").json() == {"questions": []}


def test_the_lead_is_silent_and_a_person_answers_over_the_api() -> None:
    with the_team(SILENT_LEAD) as world, world.serving(), Person(world) as person:
        execution = person.asks_for_a_price(world)

        # The engineer asks its lead, who says nothing for two seconds; so the question reaches a person.
        question = person.sees_a_question()
        assert question["text"] == "How is the price rounded?"
        assert question["asker"].endswith(".engineer.1")
        assert [option["id"] for option in question["options"]] == ["up", "down"]
        assert question["deadline_at"] > time.time() + 23 * 3600, "a person has a day"

        # Words that are no answer change nothing.
        address = f"/api/questions/{question['id']}/answer"
        wrong = person.http.post(address, json={"answer": "sideways"})
        assert (wrong.status_code, "up, down" in wrong.json()["detail"]) == (422, True)

        # The person answers, once: the second answer comes too late.
        assert person.http.post(address, json={"answer": "up"}).json()["state"] == "answered"
        assert person.http.post(address, json={"answer": "down"}).status_code == 409

        # The engineer has its answer, and finishes.
        done = person.sees_the_end(execution)
        assert (done["state"], done["result"]) == ("succeeded", "rounded up")
        assert git(world.repo, "show", f"parallax/{execution}/result:price.txt") == "round up"
        moves = [
            (move["type"], move["data"].get("to") or move["data"].get("by")) for move in person.has_seen(execution)
        ]
        assert moves == [
            ("question.asked", None), ("question.routed", "lead"), ("question.surfaced", None),
            ("question.answered", "person"),
        ]  # fmt: skip


def test_the_server_is_killed_and_the_answer_still_reaches_the_engineer() -> None:
    with the_team(SILENT_LEAD) as world:
        # The question waits for a person, and the server dies.
        with world.serving() as server, Person(world) as person:
            execution = person.asks_for_a_price(world)
            question = person.sees_a_question()
            finish(server, by=signal.SIGKILL)
        turns_before = len(world.ledger())

        # The server comes back; the question is still there, and answered before or while the engineer asks again.
        with world.serving(), Person(world) as person:
            assert person.sees_a_question()["id"] == question["id"]
            assert person.http.post(f"/api/questions/{question['id']}/answer", json={"answer": "up"}).status_code == 200

            # The engineer runs again, asks again, and is answered at once: nobody is asked a second time.
            done = person.sees_the_end(execution)
            assert (done["state"], done["result"]) == ("succeeded", "rounded up")
            assert [move["type"] for move in person.has_seen(execution)] == [
                "question.asked", "question.routed", "question.surfaced", "question.answered",
            ]  # fmt: skip
        assert len(world.ledger()) == turns_before + 2, "the engineer's turn alone was run again"
