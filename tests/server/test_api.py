"""The API over real HTTP: taking work in, errors as problems, the gate, cancelling, the document of all routes."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import socket
import time
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from parallax.server import routes
from tests.server.conftest import Server

ROUTES = [
    (method, route.path)
    for module in pkgutil.iter_modules(routes.__path__)
    for route in importlib.import_module(f"{routes.__name__}.{module.name}").router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
]


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """A problem document of that status, with a sentence in it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert "Traceback" not in answer.text
    return document


async def until_final(api: httpx.AsyncClient, execution_id: str) -> dict[str, Any]:
    """The execution once it has ended."""
    async with asyncio.timeout(30):
        while True:
            shown: dict[str, Any] = (await api.get(f"/api/executions/{execution_id}")).json()
            if shown["final"]:
                return shown
            await asyncio.sleep(0.05)


class TestTakingIn:
    """POST /api/executions."""

    async def test_202_with_a_location_that_answers(self, api: httpx.AsyncClient, server: Server) -> None:
        answer = await api.post("/api/executions", json=server.body())
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/api/executions/{answer.json()['id']}"
        assert (await api.get(answer.headers["location"])).json()["id"] == answer.json()["id"]
        ended = await until_final(api, answer.json()["id"])
        assert ended["state"] == "succeeded"
        assert [step["step"] for step in ended["steps"] if step.get("commit")] == ["first", "left", "right", "whole"]

    async def test_the_same_key_is_the_same_execution(self, api: httpx.AsyncClient, server: Server) -> None:
        first, second = [
            await api.post("/api/executions", json=server.body(), headers={"Idempotency-Key": "again"}) for _ in "12"
        ]
        assert first.json()["id"] == second.json()["id"]
        assert (first.headers["idempotency-replayed"], second.headers["idempotency-replayed"]) == ("false", "true")
        other = await api.post(
            "/api/executions", json=server.body(input={"goal": "other"}), headers={"Idempotency-Key": "again"}
        )
        assert "idempotency key 'again'" in problem(other, 422)["detail"]

    async def test_ten_posts_at_once_with_one_key_are_one_execution(
        self, api: httpx.AsyncClient, server: Server
    ) -> None:
        before = len((await api.get("/api/executions?limit=500")).json()["executions"])
        answers = await asyncio.gather(
            *(api.post("/api/executions", json=server.body(), headers={"Idempotency-Key": "ten"}) for _ in range(10))
        )
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert [answer.headers["idempotency-replayed"] for answer in answers].count("false") == 1
        after = len((await api.get("/api/executions?limit=500")).json()["executions"])
        assert after == before + 1
        await until_final(api, answers[0].json()["id"])

    async def test_pages_of_executions_join_without_gap(self, api: httpx.AsyncClient, server: Server) -> None:
        for goal in ("page one", "page two", "page three"):
            await until_final(
                api, (await api.post("/api/executions", json=server.body(input={"goal": goal}))).json()["id"]
            )
        whole = [e["id"] for e in (await api.get("/api/executions?limit=500")).json()["executions"]]
        assert len(whole) >= 3
        paged, before = [], None
        while True:
            page = (
                await api.get("/api/executions", params={"limit": 1} | ({"before": before} if before else {}))
            ).json()
            paged += [e["id"] for e in page["executions"]]
            if (before := page["next"]) is None:
                break
        assert paged == whole == sorted(whole, reverse=True)


class TestProblems:
    """Every error is a problem document."""

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "word"),
        [
            ("GET", "/nowhere", None, 404, "nothing at this address"),
            ("GET", "/api/executions/none", None, 404, "no execution 'none'"),
            ("GET", "/api/executions/none/events", None, 404, "no execution 'none'"),
            ("POST", "/api/executions/none/cancel", None, 404, "no execution 'none'"),
            ("GET", "/api/patterns/none", None, 404, "no pattern 'none'"),
            ("GET", "/api/agents/none", None, 404, "no agent 'none'"),
            ("POST", "/api/questions/none/answer", {"answer": "x"}, 404, "no question 'none'"),
            ("DELETE", "/api/executions", None, 405, "no DELETE at this address"),
            ("POST", "/api/executions", {"pattern": "none"}, 404, "no pattern 'none'"),
            ("POST", "/api/executions", {"pattern": "fix"}, 422, "missing input 'goal'"),
            ("POST", "/api/executions", {}, 422, "body.pattern"),
            ("POST", "/api/executions", {"pattern": "fix", "colour": 1}, 422, "body.colour"),
            ("POST", "/api/executions", [], 422, "body"),
            ("POST", "/api/executions", {"pattern": "fix", "budget": -1}, 422, "body.budget"),
            ("POST", "/api/executions", {"pattern": "fix", "budget_tokens": 0}, 422, "body.budget_tokens"),
            ("GET", "/api/usage?by=nothing", None, 422, "query.by.0"),
            ("GET", "/api/usage?execution=nobody", None, 404, "nobody"),
            ("POST", "/api/executions", {"pattern": "fix", "input": {"goal": "g"}, "agent": "scripted"}, 422, "--repo"),
            ("POST", "/api/executions", {"pattern": "fix", "input": {"goal": "g"}, "agent": "hal"}, 422, "'hal'"),
            ("GET", "/api/executions?limit=0", None, 422, "query.limit"),
            ("GET", "/api/executions?state=asleep", None, 422, "query.state"),
        ],
    )
    async def test_of_a_request(
        self, api: httpx.AsyncClient, method: str, path: str, body: Any, status: int, word: str
    ) -> None:
        answer = await api.request(method, path, json=body) if body is not None else await api.request(method, path)
        assert word in problem(answer, status)["detail"]

    async def test_of_what_is_no_json(self, api: httpx.AsyncClient) -> None:
        answer = await api.post("/api/executions", content=b"{", headers={"Content-Type": "application/json"})
        problem(answer, 422)

    async def test_of_a_body_that_is_no_text(self, api: httpx.AsyncClient) -> None:
        answer = await api.post("/api/executions", content=b'{"\xff', headers={"Content-Type": "application/json"})
        assert "send JSON, as UTF-8" in problem(answer, 400)["detail"]

    async def test_of_another_content_type(self, api: httpx.AsyncClient) -> None:
        problem(await api.post("/api/executions", content=b"x", headers={"Content-Type": "text/plain"}), 415)

    async def test_of_a_body_that_is_too_large(self, api: httpx.AsyncClient, server: Server) -> None:
        too_large = b'{"pattern": "' + b"x" * (1024 * 1024) + b'"}'
        sent = {"Content-Type": "application/json"}
        problem(await api.post("/api/executions", content=too_large, headers=sent), 413)

        async def pieces() -> Any:
            for start in range(0, len(too_large), 65536):
                yield too_large[start : start + 65536]

        problem(await api.post("/api/executions", content=pieces(), headers=sent), 413)

    async def test_of_a_pattern_with_mistakes_names_their_places(self, api: httpx.AsyncClient, server: Server) -> None:
        path = server.world.place / "bad.prism"
        path.write_text("const x = 1\ny = \n")
        document = problem(await api.post("/api/executions", json=server.body(pattern=str(path))), 422)
        assert document["mistakes"][0]["line"] == 3
        assert document["mistakes"][0]["message"] == "Expected expression"


class TestGate:
    """Who may come in."""

    @pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if not route[1].endswith("z")])
    async def test_no_route_answers_without_the_key(self, server: Server, method: str, path: str) -> None:
        for key in ("", "plx_wrong"):
            async with server.client(key=key) as client:
                answer = await client.request(method, path.replace("{", "").replace("}", ""))
                assert "key" in problem(answer, 401)["detail"]

    async def test_health_and_readiness_need_none(self, server: Server) -> None:
        async with server.client(key="") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert (await client.get("/readyz")).json() == {"ready": True, "reason": None}
            problem(await client.get("/api/openapi.json"), 401)

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
    async def test_another_host_is_refused(self, api: httpx.AsyncClient, host: str) -> None:
        problem(await api.get("/healthz", headers={"Host": host}), 421)

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
    async def test_another_origin_is_refused(self, api: httpx.AsyncClient, server: Server, origin: str) -> None:
        problem(await api.post("/api/executions", json=server.body(), headers={"Origin": origin}), 403)

    async def test_our_own_origin_is_let_in(self, api: httpx.AsyncClient, server: Server) -> None:
        assert (await api.get("/api/executions", headers={"Origin": server.url})).status_code == 200

    async def test_the_server_does_not_name_its_software(self, api: httpx.AsyncClient) -> None:
        assert "server" not in (await api.get("/healthz")).headers


class TestCancelling:
    """POST /api/executions/{id}/cancel."""

    async def test_it_ends_cancelled_with_nothing_running(self, api: httpx.AsyncClient, server: Server) -> None:
        started = await api.post("/api/executions", json=server.body(pattern="fix", input={"goal": "forever"}))
        path = f"/api/executions/{started.json()['id']}"
        async with asyncio.timeout(20):
            while not any(a["state"] == "busy" for a in (await api.get("/api/agents")).json()["agents"]):
                await asyncio.sleep(0.05)
        answer = await api.post(f"{path}/cancel")
        assert answer.status_code == 202
        assert answer.json()["state"] == "cancelling"
        ended = await until_final(api, started.json()["id"])
        assert (ended["state"], ended["reason"]) == ("cancelled", "cancelled by a person")
        assert (await api.get("/api/agents")).json()["agents"] == []
        assert server.world.agents_alive() == []
        assert "has ended already" in problem(await api.post(f"{path}/cancel"), 409)["detail"]
        assert (
            "is cancelled; what is paused or needs attention"
            in problem(await api.post(f"{path}/resume"), 409)["detail"]
        )


class TestPatterns:
    """GET /api/patterns, and plans."""

    async def test_a_pattern_comes_with_its_prism(self, api: httpx.AsyncClient) -> None:
        listed = (await api.get("/api/patterns")).json()
        assert {"fix", "second-opinion", "startup-team"} <= {p["name"] for p in listed["patterns"]}
        shown = (await api.get("/api/patterns/startup-team")).json()
        prism = await api.get("/api/patterns/startup-team/prism")
        assert prism.headers["content-type"].startswith("text/plain")
        assert prism.text == shown["prism"]
        assert "org({" in prism.text

    async def test_a_plan_writes_nothing(self, api: httpx.AsyncClient, server: Server) -> None:
        before = (await api.get("/api/executions?limit=500")).json()
        plan = await api.post("/api/patterns/fix/plan", json=server.body(pattern="fix"))
        assert plan.json()["repository"]["base_branch"] == "main"
        assert (await api.get("/api/executions?limit=500")).json() == before


async def test_the_openapi_document_lists_every_route(api: httpx.AsyncClient) -> None:
    document = (await api.get("/api/openapi.json")).json()
    listed = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert listed == {(method, path.replace(":path", "")) for method, path in ROUTES}
    assert all(operation["summary"] for methods in document["paths"].values() for operation in methods.values())


async def test_land_before_the_end_and_branches_that_are_not_there(api: httpx.AsyncClient, server: Server) -> None:
    started = (await api.post("/api/executions", json=server.body(pattern="fix", input={"goal": "forever"}))).json()
    path = f"/api/executions/{started['id']}"
    assert "when it has ended" in problem(await api.post(f"{path}/land", json={}), 409)["detail"]
    assert "has no branch" in problem(await api.get(f"{path}/diff?branch=x"), 409)["detail"]
    await api.post(f"{path}/cancel")
    await until_final(api, started["id"])


def test_a_broken_request_does_not_take_the_server_down(server: Server) -> None:
    for sent in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /api/executions HTTP/1.1\r\nContent-Length: 9\r\n\r\n",
    ):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(sent)
    time.sleep(0.1)
    assert httpx.get(f"{server.url}/readyz").status_code == 200


class TestHistory:
    """Replay and fork over HTTP."""

    async def test_replay_and_fork_of_a_finished_execution(self, api: httpx.AsyncClient, server: Server) -> None:
        old = (await api.post("/api/executions", json=server.body())).json()["id"]
        ended = await until_final(api, old)
        replayed = (await api.post(f"/api/executions/{old}/replay", json={})).json()
        assert (replayed["same"], replayed["end"], replayed["divergence"]) == (True, "ended", None)
        assert "whole" in replayed["effects"]
        headers = {"Idempotency-Key": "fork"}
        answers = [
            await api.post(f"/api/executions/{old}/fork", json={"at": "whole"}, headers=headers) for _ in range(2)
        ]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json()["id"] == answers[1].json()["id"] != old
        forked = await until_final(api, answers[0].json()["id"])
        assert (forked["state"], forked["result"]["merged"]) == ("succeeded", ended["result"]["merged"])
        assert forked["forked_from"] == {"execution": old, "step": "whole"}
        entries = (await api.get(f"/api/executions/{forked['id']}/journal")).json()["journal"]
        assert {entry["step_key"] for entry in entries} >= {"first", "left", "right", "whole"}

    async def test_what_cannot_be_replayed_or_forked_is_a_problem(self, api: httpx.AsyncClient, server: Server) -> None:
        assert "no execution 'nope'" in problem(await api.post("/api/executions/nope/replay", json={}), 404)["detail"]
        assert "no execution 'nope'" in problem(await api.post("/api/executions/nope/fork", json={}), 404)["detail"]
        old = (await api.post("/api/executions", json=server.body())).json()["id"]
        await until_final(api, old)
        path = f"/api/executions/{old}/fork"
        assert "no step 'nope'" in problem(await api.post(path, json={"at": "nope"}), 404)["detail"]
        assert "--at" in problem(await api.post(path, json={}), 422)["detail"]
        problem(await api.post(path, json={"att": "whole"}), 422)
