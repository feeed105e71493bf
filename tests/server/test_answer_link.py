"""A person is called, opens the link on a phone, and answers: once, and nothing that a question says can do anything."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from parallax.datadir import read_lock
from tests.e2e.conftest import new_world
from tests.e2e.processes import WAIT_S, World

HOSTILE = "Ship it?\n<script>document.title = 'run'</script><img src=x onerror=alert(1)> \"&amp;\" " + "long" * 60


class Called:
    """A server that calls a person: what it said to the command, and a browser without any key."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.url = read_lock(world.data / "lock")["url"]
        self.key = {"Authorization": f"Bearer {(world.data / 'key').read_text()}"}
        self.http = httpx.Client(trust_env=False)
        self.told = world.place / "told.json"

    def asks(self, program: str, **given: Any) -> dict[str, Any]:
        """Run a program that asks; returns what the command was told."""
        self.told.unlink(missing_ok=True)
        path = self.world.place / "asking.prism"
        path.write_text(program)
        body = {"pattern": str(path), "input": given, "agent": "scripted"}
        started = self.http.post(f"{self.url}/api/executions", json=body, headers=self.key)
        assert started.status_code == 202, started.text
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                told: dict[str, Any] = json.loads(self.told.read_text())
            except (OSError, ValueError):
                assert time.monotonic() < deadline, "nobody was called"
                time.sleep(0.05)
            else:
                assert told["execution"] == started.json()["id"]
                return told

    def question(self, told: dict[str, Any]) -> dict[str, Any]:
        """The question as the API shows it."""
        shown: dict[str, Any] = self.http.get(f"{self.url}/api/questions/{told['id']}", headers=self.key).json()
        return shown

    def answered_in_time(self, told: dict[str, Any]) -> Any:
        """The result of the execution that asked."""
        deadline = time.monotonic() + WAIT_S
        while not (done := self.http.get(f"{self.url}/api/executions/{told['execution']}", headers=self.key).json())[
            "final"
        ]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return done["result"]


@pytest.fixture(scope="module")
def called() -> Iterator[Called]:
    with new_world() as world:
        command = f"tee '{world.place / 'told.json'}'"
        with world.serving(PARALLAX_NOTIFY_COMMAND=command):
            made = Called(world)
            yield made
            made.http.close()


def test_the_command_gets_the_question_and_its_link_answers_once(called: Called) -> None:
    told = called.asks('return askHuman(input.text, {id: "ship"})', text=HOSTILE)
    assert {name: told[name] for name in ("kind", "asker", "step", "text", "options", "default")} == {
        "kind": "question", "asker": "program", "step": "ship", "text": HOSTILE, "options": [], "default": None,
    }  # fmt: skip
    assert told["deadline_at"] > time.time()
    link = told["answer_url"]
    assert link.startswith(f"{called.url}/api/questions/{told['id']}/answer?token=")

    for _ in range(2):  # a mail program opens links by itself: that changes nothing
        page = called.http.get(link)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert called.question(told)["state"] == "with_person"
    assert "<script>" not in page.text
    assert "&lt;script&gt;" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "form-action 'self'" in policy

    empty = called.http.post(link, data={"answer": " "})
    assert "<textarea" in empty.text, "without words it is asked again"
    done = called.http.post(link, data={"answer": "yes, on Monday"}, headers={"Origin": called.url})
    assert "Your answer is “yes, on Monday”" in done.text
    assert called.answered_in_time(told) == "yes, on Monday"
    again = called.http.post(link, data={"answer": "no"})
    assert "It is answered" in again.text
    assert called.question(told)["answer"] == "yes, on Monday"
    assert "It is answered" in called.http.get(link).text

    events = called.world.inside("show", told["execution"], "--json")
    assert events.code == 0


def test_an_approval_has_its_answers_as_buttons_and_a_program_may_answer_by_link_too(called: Called) -> None:
    told = called.asks('return approve("human", "the release", {id: "release"})')
    assert [option["id"] for option in told["options"]] == ["approve", "revise", "reject"]
    page = called.http.get(told["answer_url"]).text
    assert '<button name="answer" value="approve">take it</button>' in page
    assert called.http.post(told["answer_url"], json={"answer": "perhaps"}).status_code == 422
    assert called.http.post(told["answer_url"], json={"answer": "approve"}).json()["state"] == "answered"
    assert called.answered_in_time(told)["approved"] is True


def test_a_link_opens_its_own_question_and_nothing_else(called: Called) -> None:
    told = called.asks('return askHuman("Go?", {id: "go"})')
    link = told["answer_url"]
    other = called.asks('return askHuman("Go on?", {id: "go"})')
    token = link.partition("token=")[2]
    wrong = [
        link[:-2], link + "A", link.partition("=")[0] + "=", other["answer_url"].partition("token=")[0] + f"token={token}",
        f"{called.url}/api/questions/q000000/answer?token={token}", f"{called.url}/api/questions/%2e%2e/answer?token=é",
    ]  # fmt: skip
    for address in wrong:
        assert called.http.get(address).status_code == 403, address
        assert called.http.post(address, data={"answer": "x"}).status_code == 403, address
        assert called.http.post(address, json={"answer": "x"}).status_code == 403, address
    for address in (f"/api/questions?token={token}", f"/api/questions/{told['id']}?token={token}", "/api/executions"):
        assert called.http.get(called.url + address).status_code == 401, address
    assert called.http.get(link.partition("?")[0]).status_code == 401
    assert called.http.get(link.partition("?")[0], headers=called.key).status_code == 403
    assert called.http.post(link.partition("?")[0], headers=called.key, data={"answer": "x"}).status_code == 415
    assert called.http.post(link, data={"answer": "x"}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert called.http.post(link, data={"answer": "x"}, headers={"Host": "evil.example"}).status_code == 421
    assert called.http.post(link, content=b"x" * 2**21, headers={"Content-Type": "text/plain"}).status_code == 413
    assert called.question(told)["state"] == "with_person"
    for question in (told, other):
        assert called.http.post(question["answer_url"], data={"answer": "go"}).status_code == 200


def test_a_link_expires_with_its_question(called: Called) -> None:
    told = called.asks('try { askHuman("Quick!", {id: "quick", timeout: 300}) } catch (e) { return e }')
    assert "nobody answered" in called.answered_in_time(told)
    late = called.http.post(told["answer_url"], data={"answer": "here"})
    assert "Too late" in late.text
    assert called.question(told)["state"] == "failed"
