"""The registry of a single server: a dictionary. What expired is forgotten when somebody looks."""

from __future__ import annotations

import time
from collections.abc import Mapping

from parallax.models import Agent


class MemoryAgentRegistry:
    """Knows the agents of this process, and those that registered with it."""

    def __init__(self) -> None:
        self._agents: dict[str, tuple[Agent, float | None]] = {}

    async def register(self, agent: Agent, ttl_s: float | None = None) -> None:
        """Add or replace; registering again is how a lease is renewed."""
        self._agents[agent.id] = (agent, None if ttl_s is None else time.monotonic() + ttl_s)

    async def remove(self, agent_id: str) -> None:
        """Forget it; unknown ids are no error."""
        self._agents.pop(agent_id, None)

    async def get(self, agent_id: str) -> Agent | None:
        """One agent, or None."""
        self._expire()
        known = self._agents.get(agent_id)
        return known[0] if known else None

    async def find(
        self, capabilities: frozenset[str] = frozenset(), labels: Mapping[str, str] | None = None
    ) -> list[Agent]:
        """All that have every capability and label, in the order of their ids."""
        self._expire()
        wanted = dict(labels or {})
        fitting = [
            agent
            for agent, _ in self._agents.values()
            if capabilities <= frozenset(agent.capabilities) and wanted.items() <= dict(agent.labels).items()
        ]
        return sorted(fitting, key=lambda agent: agent.id)

    def _expire(self) -> None:
        now = time.monotonic()
        for agent_id in [key for key, (_, until) in self._agents.items() if until is not None and until <= now]:
            del self._agents[agent_id]
