"""A pattern's role can be filled by an agent that runs by itself: by its id, or as `http` with the role's capabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from parallax.config import LocalAgent
from parallax.errors import AgentUnavailable
from parallax.execution.intake import Submission
from parallax.models import ExecutionState
from tests.conftest import Team, TeamFactory, on_loopback

CHART = """
org({engineer: {agentType: "scripted"}, critic: {agentType: "TYPE", capabilities: ["review"], preset: "readonly"}})
assign("engineer", "make it 42", {id: "fix", verify: "quick"})
assign("critic", "judge it", {id: "judge"})
"""
SCRIPT = {"roles": {"engineer": [{"do": [{"edit": {"path": "answer.txt", "content": "42\n"}}, {"say": "done"}]}]}}


@pytest.fixture
async def critic() -> AsyncIterator[tuple[str, list[Any]]]:
    """An agent on loopback that judges, and what it was asked."""
    asked: list[Any] = []

    async def execute(request: web.Request) -> web.Response:
        asked.append(await request.json())
        result = {"taskId": asked[-1]["taskId"], "result": "it is right", "confidence": 0.9, "reasoning": "I looked."}
        return web.json_response(result)

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_post("/execute", execute)
    app.router.add_get("/health", health)
    async with on_loopback(app) as url:
        yield url, asked


def agents(endpoint: str) -> tuple[LocalAgent, ...]:
    return (
        LocalAgent(id="painter", endpoint="http://127.0.0.1:1", capabilities=("paint",)),
        LocalAgent(id="judge-bot", endpoint=endpoint, capabilities=("review", "docs")),
    )


async def submit(t: Team, type_: str) -> Any:
    execution, _ = await t.parallax.intake.submit(
        Submission(pattern=t.pattern(CHART.replace("TYPE", type_)), repo=str(t.repository))
    )
    return execution


@pytest.mark.parametrize("type_", ["judge-bot", "http"])
async def test_a_registered_agent_takes_a_role_of_a_team(
    team: TeamFactory, critic: tuple[str, list[Any]], type_: str
) -> None:
    endpoint, asked = critic
    async with team(SCRIPT, local_agents=agents(endpoint)) as t:
        done = await t.finish(await submit(t, type_))
        assert (done.state, done.result) == (ExecutionState.SUCCEEDED, "it is right")
        assert t.branch_file(done, "answer.txt") == "42\n"
        (request,) = asked
        assert request["taskId"] == f"{done.id}/judge/1"
        assert "judge it" in request["description"]
        assert request["data"]["role"] == "critic"
        assert {told["type"] for told in await t.told(done, "agent.ready") if "type" in told} == {"scripted", type_}


async def test_a_type_that_is_not_registered_is_refused_before_anything_starts(team: TeamFactory) -> None:
    async with team(SCRIPT) as t:
        with pytest.raises(AgentUnavailable, match="There is no agent type 'judge-bot'"):
            await submit(t, "judge-bot")
