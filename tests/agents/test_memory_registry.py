"""The registry of a single server."""

from __future__ import annotations

import asyncio
import dataclasses

from parallax.agents.registries.memory import MemoryAgentRegistry
from parallax.models import Agent, AgentState

AGENT = Agent(
    id="a",
    type="scripted",
    role="engineer",
    number=1,
    execution="e",
    state=AgentState.READY,
    since=0.0,
    capabilities=("python", "rust"),
    labels={"zone": "a"},
)


async def test_agents_are_found_by_what_they_can() -> None:
    registry = MemoryAgentRegistry()
    other = dataclasses.replace(AGENT, id="0", capabilities=("python",), labels={})
    await registry.register(AGENT)
    await registry.register(other)
    assert await registry.find() == [other, AGENT]
    assert await registry.find(frozenset({"python"})) == [other, AGENT]
    assert await registry.find(frozenset({"python", "rust"}), {"zone": "a"}) == [AGENT]
    assert await registry.find(labels={"zone": "b"}) == []
    assert await registry.get("a") == AGENT
    busy = dataclasses.replace(AGENT, state=AgentState.BUSY)
    await registry.register(busy)
    assert await registry.get("a") == busy
    await registry.remove("a")
    await registry.remove("a")
    assert await registry.get("a") is None


async def test_a_lease_ends_unless_it_is_renewed() -> None:
    registry = MemoryAgentRegistry()
    await registry.register(AGENT, ttl_s=0.02)
    await registry.register(AGENT, ttl_s=10)
    await registry.register(dataclasses.replace(AGENT, id="b"), ttl_s=0.02)
    await asyncio.sleep(0.03)
    assert await registry.find() == [AGENT]
    assert await registry.get("b") is None
