"""The life of one agent: one table of legal moves; every move is one event, anything else is refused.

The supervisor holds a `Life` for each agent and changes its state nowhere else, so that what the event stream tells,
what `parallax agents` shows and what the supervisor believes are the same thing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from parallax.errors import ConflictError
from parallax.events import Event
from parallax.models import Agent, AgentState
from parallax.redaction import Redactor

Tell: TypeAlias = Callable[[Event], Awaitable[None]]

_S = AgentState
FINAL: Final = frozenset({_S.STOPPED, _S.ERROR})
_FORWARD: Final[Mapping[AgentState, frozenset[AgentState]]] = {
    _S.PENDING: frozenset({_S.STARTING}),
    # Authenticating: its login was found wanting, and a person is about to be asked. A good login is no state.
    _S.STARTING: frozenset({_S.AUTHENTICATING, _S.READY, _S.PARKED}),
    _S.AUTHENTICATING: frozenset({_S.ASKING}),
    _S.READY: frozenset({_S.BUSY, _S.PARKED}),
    _S.BUSY: frozenset({_S.READY, _S.ASKING, _S.PARKED}),
    # To starting: a person has put right what kept it from working. To ready: the turn ended with the question open.
    # To asking: its turn failed with a question open, and now it needs help.
    _S.ASKING: frozenset({_S.BUSY, _S.READY, _S.STARTING, _S.PARKED, _S.ASKING}),
    # To starting: it has no process while it is parked, unless it was parked between two turns.
    _S.PARKED: frozenset({_S.READY, _S.STARTING}),
    _S.STOPPING: frozenset({_S.STOPPED}),
    _S.STOPPED: frozenset(),
    _S.ERROR: frozenset(),
}
# state -> the states that may follow. What has not ended may be stopped, or fail, at any time.
MOVES: Final[Mapping[AgentState, frozenset[AgentState]]] = {
    state: following | (frozenset() if state in FINAL else {_S.ERROR} | ({_S.STOPPING} - {state}))
    for state, following in _FORWARD.items()
}
# How the event of a state names the reason.
_REASON_KEYS: Final[Mapping[AgentState, str]] = {
    _S.ASKING: "text",
    _S.PARKED: "cause",
    _S.STOPPING: "reason",
    _S.STOPPED: "reason",
    _S.ERROR: "cause",
}


class Life:
    """One agent from pending to its end. `agent` is what others see of it now."""

    def __init__(self, agent: Agent, tell: Tell, redact: Redactor) -> None:
        if agent.execution is None:
            raise ValueError("only the agents of an execution have a life here")
        self.agent = agent
        self._execution = agent.execution
        self._tell = tell
        self._redact = redact

    @property
    def state(self) -> AgentState:
        """Where it is."""
        return self.agent.state

    async def move(
        self, state: AgentState, reason: str = "", *, until: float | None = None, pid: int | None = None, **data: Any
    ) -> None:
        """Go to another state and tell it once. `until` is a unix time, `data` goes into the event as it is.

        Raises ConflictError for a move that is not in the table; nothing has changed then.
        """
        if state not in MOVES[self.state]:
            raise ConflictError(f"agent '{self.agent.id}' is {self.state}: it cannot become {state}")
        reason = self._redact(reason)
        pid = pid or self.agent.pid
        self.agent = replace(
            self.agent, state=state, since=time.time(), reason=reason or None, until=until, stall=None, pid=pid
        )
        if (key := _REASON_KEYS.get(state)) is not None:
            data[key] = reason
        if state is AgentState.PARKED:
            data["until"] = until
        await self.say(f"agent.{state}", **data)

    async def stalled(self, kind: str | None, step_key: str, **data: Any) -> None:
        """Name a stall, which is no state: the agent may come back by itself. None: it has come back."""
        self.agent = replace(self.agent, stall=kind)
        if kind is not None:
            await self.say("agent.stalled", step_key, kind=kind, **data)

    def bodiless(self) -> None:
        """Its process has ended; its state says what becomes of it."""
        self.agent = replace(self.agent, pid=None)

    def waits(self, reason: str) -> None:
        """Why it does not start yet: seen by whoever looks, told by the start that follows."""
        self.agent = replace(self.agent, reason=reason)

    async def say(self, type_: str, step_key: str | None = None, **data: Any) -> None:
        """An event of this agent."""
        event = Event(execution=self._execution, type=type_, step_key=step_key, agent_id=self.agent.id, data=data)
        await self._tell(event)
