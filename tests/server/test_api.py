"""The API over real HTTP: what it promises, and whom it does not let in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from parallax.cli.connection import doors
from parallax.server.app import create_app
from tests.conftest import Team, TeamFactory
from tests.execution.test_team import ORG, answer, edit, script

WORK = script(engineer=[edit("42\n"), answer("it says 42", confidence=0.9)])
PROGRAM = ORG + 'assign("engineer", "make it 42", {id: "fix", verify: "quick"})'


class Api:
    """A team behind its doors."""

    def __init__(self, team: Team, url: str) -> None:
        self.team = team
        self.url = url
        self.key = team.parallax.key.reveal()
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=30
        )

    def body(self, program: str = PROGRAM, **more: Any) -> dict[str, Any]:
        return {
            "pattern": self.team.pattern(program), "repo": str(self.team.repository), "agent": "scripted", **more
        }  # fmt: skip

    async def start(self, program: str = PROGRAM, **more: Any) -> str:
        made = await self.http.post("/api/executions", json=self.body(program, **more))
        assert made.status_code == 202, made.text
        return str(made.json()["id"])

    async def events(self, execution: str, **headers: str) -> list[tuple[int, str]]:
        """(id, type) of the stream until it closes."""
        found: list[tuple[int, str]] = []
        number = 0
        async with self.http.stream("GET", f"/api/executions/{execution}/events", headers=headers) as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if line.startswith("id:"):
                    number = int(line[3:])
                elif line.startswith("data:"):
                    event = json.loads(line[5:])
                    assert event["seq"] == number
                    found.append((number, event["type"]))
        return found


@asynccontextmanager
async def serving(team: Any) -> AsyncIterator[Api]:
    async with team as t, doors(t.parallax, "127.0.0.1", 0) as url:
        api = Api(t, url)
        try:
            yield api
        finally:
            await api.http.aclose()


def is_problem(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    for word in words:
        assert word in problem["detail"], problem["detail"]


# -- executions ------------------------------------------------------------------------------------------------------


async def test_an_execution_is_taken_in_followed_and_shown_with_its_evidence(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        made = await api.http.post("/api/executions", json=api.body())
        assert (made.status_code, made.headers["location"]) == (202, f"/api/executions/{made.json()['id']}")
        execution = made.json()["id"]
        stream = await api.events(execution)
        assert [number for number, _ in stream] == list(range(1, len(stream) + 1))
        assert stream[0][1] == "execution.queued"
        assert stream[-1][1] == "execution.succeeded"
        shown = (await api.http.get(f"/api/executions/{execution}")).json()
        assert (shown["state"], shown["confidence"]) == ("succeeded", 1.0)
        (step,) = [s for s in shown["steps"] if s["step"] == "fix"]
        assert step["evidence"][0]["oracle"] == "quick"
        assert {b["branch"].rpartition("/")[2] for b in shown["branches"]} == {"result", "fix"}
        diff = await api.http.get(f"/api/executions/{execution}/diff")
        assert "+42" in diff.text
        journal = (await api.http.get(f"/api/executions/{execution}/journal")).json()["journal"]
        assert [e["kind"] for e in journal if e["step_key"] == "fix"] == ["intent", "result"]


async def test_a_stream_goes_on_exactly_after_the_last_event_that_was_seen(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        execution = await api.start()
        whole = await api.events(execution)
        again = await api.events(execution, **{"Last-Event-ID": "5"})
        assert again == whole[5:]
        assert await api.events(execution, **{"Last-Event-ID": str(len(whole))}) == []
        readers = await asyncio.gather(*(api.events(execution) for _ in range(10)))
        assert all(reader == whole for reader in readers)
        for bad in ("x", "-1", "9" * 30):
            is_problem(
                await api.http.get(f"/api/executions/{execution}/events", headers={"Last-Event-ID": bad}),
                422,
                "Last-Event-ID",
            )


async def test_ten_requests_with_one_key_are_one_execution_and_another_body_is_refused(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        body, headers = api.body(), {"Idempotency-Key": "evening-1"}
        made = await asyncio.gather(*(api.http.post("/api/executions", json=body, headers=headers) for _ in range(10)))
        assert {r.status_code for r in made} == {202}
        assert len({r.json()["id"] for r in made}) == 1
        assert sorted(r.headers["idempotency-replayed"] for r in made).count("false") == 1
        other = await api.http.post("/api/executions", json=body | {"budget": 1.0}, headers=headers)
        is_problem(other, 422, "evening-1", "another request")
        listed = (await api.http.get("/api/executions")).json()["executions"]
        assert len(listed) == 1
        await api.events(listed[0]["id"])


async def test_a_cancelled_execution_ends_with_nothing_running(team: TeamFactory) -> None:
    async with serving(team(script(engineer=[{"wait": 60}, answer()]))) as api:
        execution = await api.start()
        async with asyncio.timeout(20):
            while not any(a["state"] == "busy" for a in (await api.http.get("/api/agents")).json()["agents"]):
                await asyncio.sleep(0.02)
        cancelled = await api.http.post(f"/api/executions/{execution}/cancel")
        assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelling")
        assert (await api.events(execution))[-1][1] == "execution.cancelled"
        assert (await api.http.get("/api/agents")).json()["agents"] == []
        is_problem(await api.http.post(f"/api/executions/{execution}/cancel"), 409, "has ended already")


async def test_executions_are_listed_newest_first_in_pages(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        made = [await api.start("return 1", repo=None) for _ in range(5)]
        for execution in made:
            await api.events(execution)
        first = (await api.http.get("/api/executions", params={"limit": 3})).json()
        rest = (await api.http.get("/api/executions", params={"limit": 3, "before": first["next"]})).json()
        assert [e["id"] for e in first["executions"] + rest["executions"]] == sorted(made, reverse=True)
        assert rest["next"] is None
        none = (await api.http.get("/api/executions", params={"state": "failed"})).json()
        assert none["executions"] == []


async def test_landing_waits_for_the_end_and_then_makes_the_branch(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        execution = await api.start()
        await api.events(execution)
        landed = await api.http.post(f"/api/executions/{execution}/land", json={"branch": "tested"})
        assert (landed.status_code, landed.json()["how"]) == (200, "created")
        is_problem(await api.http.post(f"/api/executions/{execution}/land", json={"brunch": "x"}), 422, "brunch")


async def test_a_question_is_listed_and_answered(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        execution = await api.start('approve("human", "the plan", {id: "ok"})')
        async with asyncio.timeout(20):
            while not (found := (await api.http.get("/api/questions")).json()["questions"]):
                await asyncio.sleep(0.02)
        (question,) = found
        assert [option["id"] for option in question["options"]] == ["approve", "revise", "reject"]
        path = f"/api/questions/{question['id']}"
        is_problem(await api.http.post(f"{path}/answer", json={"answer": "perhaps"}), 422, "approve, revise, reject")
        answered = await api.http.post(f"{path}/answer", json={"answer": "approve"})
        assert answered.json()["state"] == "answered"
        await api.events(execution)
        shown = (await api.http.get(f"/api/executions/{execution}")).json()
        assert shown["result"]["approved"] is True
        is_problem(await api.http.post(f"{path}/answer", json={"answer": "reject"}), 409, "answered")


async def test_patterns_are_listed_planned_and_shown_as_prism(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        names = {p["name"] for p in (await api.http.get("/api/patterns")).json()["patterns"]}
        assert names >= {"startup-team", "fix"}
        shown = (await api.http.get("/api/patterns/fix")).json()
        assert shown["prism"] == (await api.http.get("/api/patterns/fix/prism")).text
        body = api.body() | {"pattern": "fix", "input": {"goal": "x"}}
        plan = (await api.http.post("/api/patterns/fix/plan", json=body)).json()
        assert (plan["agents"]["engineer"], plan["repository"]["dirty"]) == ("scripted", 0)
        assert [s["word"] for s in plan["steps"]] == ["assign", "integrate"]
        is_problem(await api.http.get("/api/patterns/fixx"), 404, "did you mean 'fix'?")


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"pattern": "nope"}, 404, ["there is no pattern 'nope'"]),
        ({"agent": "hal"}, 422, ["hal"]),
        ({"repo": "/nonexistent"}, 422, ["/nonexistent"]),
        ({"base": "no-such-branch"}, 422, ["no-such-branch"]),
        ({"budget": -1}, 422, ["budget"]),
        ({"colour": "red"}, 422, ["colour"]),
        ({"input": []}, 422, ["input"]),
    ],
)
async def test_what_cannot_be_run_is_said_and_leaves_nothing(
    change: dict[str, Any], status: int, words: list[str], team: TeamFactory
) -> None:
    async with serving(team(WORK)) as api:
        is_problem(await api.http.post("/api/executions", json=api.body() | change), status, *words)
        assert (await api.http.get("/api/executions")).json()["executions"] == []


async def test_what_does_not_exist_is_a_problem_that_names_it(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        for path in ("", "/steps", "/journal", "/events", "/diff"):
            is_problem(await api.http.get(f"/api/executions/none{path}"), 404, "none")
        is_problem(await api.http.get("/api/questions/q1"), 404, "q1")
        is_problem(await api.http.get("/api/agents/a.1"), 404, "a.1")
        is_problem(await api.http.get("/api/nothing"), 404)
        is_problem(await api.http.delete("/api/executions"), 405)


# -- the gate --------------------------------------------------------------------------------------------------------


async def test_nobody_comes_in_without_the_key_but_for_health(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api, httpx.AsyncClient(base_url=api.url, trust_env=False) as stranger:
        schema = create_app(api.team.parallax).openapi()
        for path, methods in schema["paths"].items():
            for method in methods:
                response = await stranger.request(method.upper(), path.replace("{", "").replace("}", ""))
                open_to_all = path in {"/healthz", "/readyz"}
                assert (response.status_code == 200) is open_to_all, (method, path, response.status_code)
                if not open_to_all:
                    is_problem(response, 401, "Authorization")
        for wrong in ("Bearer x", "Basic " + api.key, api.key, f"Bearer {api.key}x"):
            is_problem(await stranger.get("/api/executions", headers={"Authorization": wrong}), 401)


async def test_foreign_pages_hosts_and_bodies_are_refused_before_anything_is_read(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        get, post = api.http.get, api.http.post
        is_problem(await get("/api/executions", headers={"Host": "evil.example"}), 421, "evil.example")
        is_problem(await get("/healthz", headers={"Origin": "https://evil.example"}), 403)
        assert (await get("/api/executions", headers={"Origin": api.url})).status_code == 200
        text = {"Content-Type": "text/plain"}
        is_problem(await post("/api/executions", content=b'{"pattern": "fix"}', headers=text), 415)
        big = {"Content-Type": "application/json"}
        is_problem(await post("/api/executions", content=b" " * (1024 * 1024 + 1), headers=big), 413)
        is_problem(await post("/api/executions", content=b"{", headers=big), 422)

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b" " * 65536

        try:
            cut = await post("/api/executions", content=endless(), headers=big)
        except httpx.TransportError:
            return  # the connection was cut, which is as good
        assert 400 <= cut.status_code < 500


async def test_the_document_of_the_api_lists_every_route(team: TeamFactory) -> None:
    async with serving(team(WORK)) as api:
        paths = (await api.http.get("/api/openapi.json")).json()["paths"]
        assert {"/api/executions", "/api/executions/{execution_id}/events", "/healthz", "/readyz"} <= set(paths)
        ready = await api.http.get("/readyz")
        assert ready.json() == {"ready": True, "reason": None}
