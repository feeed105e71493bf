"""Paths that the repository's owner protects, the states of workspaces, and the doors to them."""

from __future__ import annotations

import httpx

from parallax.models import ExecutionState
from parallax.server.app import create_app
from tests.conftest import make_repository
from tests.execution.test_finalising import FIX, PATTERN

PROFILE = "version: 1\nchecks:\n  quick: grep -q 42 answer.txt\nprotected: ['locked/**']\n"
TOUCHES = {"rules": [
    {"when": ["sent back"], "do": [{"run": ["git", "checkout", "--", "locked"]}, {"edit": {"path": "locked/a", "content": "a\n"}},
                                   {"answer": {"value": "put back"}}]},
    {"do": [{"edit": {"path": "answer.txt", "content": "42\n"}}, {"edit": {"path": "locked/a", "content": "b\n"}},
            {"answer": {"value": "done"}}]},
]}  # fmt: skip


async def test_work_that_touches_protected_paths_is_sent_back(team, place):
    files = {"answer.txt": "41\n", "locked/a": "a\n", ".parallax.yaml": PROFILE}
    async with team(TOUCHES, repository=make_repository(place / "locked", files)) as t:
        execution = await t.run(PATTERN, {"goal": "x"})
        assert execution.state is ExecutionState.SUCCEEDED, execution.reason
        told = [e for e in await t.told(execution, "evidence.recorded") if e["oracle"] == "protected"]
        assert [e["detail"] for e in told] == ["it changes protected paths: locked/a; leave them as they were"]
        assert t.branch_file(execution, "locked/a") == "a\n"
        assert t.branch_file(execution, "answer.txt") == "42\n"


async def test_workspaces_and_grants_are_seen_and_ended_through_the_doors(team, forge, repository):
    url = forge.repository("shop", repository)
    mine = forge.person("shop")
    async with team(FIX, github_api_url=forge.api_url) as t:
        execution = await t.run(PATTERN, {"goal": "x"})
        headers = {"Authorization": f"Bearer {t.parallax.key.reveal()}", "Host": "localhost"}
        transport = httpx.ASGITransport(app=create_app(t.parallax))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            (shown,) = (await client.get("/api/workspaces", params={"execution": execution.id})).json()["workspaces"]
            assert (shown["id"], shown["state"]) == (f"{execution.id}.engineer.1", "ready")
            assert shown["size_b"] > 0
            there = f"/api/workspaces/{shown['id']}"
            assert "+42" in (await client.get(f"{there}/diff")).text
            listed = (await client.get(f"{there}/files")).json()["files"]
            assert "answer.txt" in {entry["path"] for entry in listed}
            body = {"repo": url, "execution": execution.id, "token": mine}
            refused = await client.post("/api/credentials/git", json=body)
            assert refused.status_code == 409
            assert mine not in refused.text
            assert (await client.delete(there)).status_code == 204
            assert (await client.get(there)).json()["state"] == "cleaned_up"
            gone = await client.get(f"{there}/diff")
            assert (gone.status_code, "its files are gone" in gone.json()["detail"]) == (409, True)
            assert (await client.get("/api/workspaces/nothing")).status_code == 404
            assert (await client.delete("/api/credentials/nothing")).status_code == 404
            assert t.branch_file(execution, "answer.txt") == "42\n"
