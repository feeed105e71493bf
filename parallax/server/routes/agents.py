"""Agents that run now: look, say something, stop."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from parallax.models import Agent
from parallax.server import views
from parallax.server.parts import Part, json_response

router = APIRouter(prefix="/api/agents", tags=["agents"])


class Tell(BaseModel):
    """Words for an agent."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1, max_length=20_000)


@router.get("")
async def index(parallax: Part, execution: str | None = None) -> Response:
    """The agents that run now."""
    return json_response({"agents": [views.agent(a) for a in parallax.supervisor.agents(execution)]})


@router.get("/{agent_id}")
async def show(agent_id: str, parallax: Part) -> Response:
    """One agent."""
    return json_response(views.agent(parallax.supervisor.agent(parallax.agent_id(agent_id))))


@router.post("/{agent_id}/tell", status_code=202)
async def tell(agent_id: str, body: Tell, parallax: Part) -> Response:
    """Delivered at the agent's next turn."""
    agent: Agent = parallax.supervisor.agent(parallax.agent_id(agent_id))
    await parallax.engine.tell(str(agent.execution), agent.id, body.text, by="person")
    return json_response(views.agent(agent), status=202)


@router.post("/{agent_id}/stop", status_code=202)
async def stop(agent_id: str, parallax: Part) -> Response:
    """End the agent's process; its step is tried again or fails, by policy."""
    agent = parallax.supervisor.agent(parallax.agent_id(agent_id))
    await parallax.supervisor.stop(agent.id, "stopped by a person")
    return json_response(views.agent(agent), status=202)
