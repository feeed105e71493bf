"""AgentSupervisor: starts agents, gives them turns, parks them, ends them. No silent wait.

The agent proxy in `execution` asks it for a turn and hands down how questions are answered. Each agent has one `Life`
(its state), each turn one `Turn` (its events, questions and stalls). An agent whose turn has failed has no process any
more: it is parked until a provider's limit is over, or it asks a person for help, or it has ended. There is no pool of
started agents that wait for work: a sandbox is built around one workspace and one home, and cannot be moved to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from parallax.agents.runtimes.local import AGENT_MEMORY_B
from parallax.agents.states import Life, Tell
from parallax.agents.turn import Ask, Silence, Turn
from parallax.errors import (
    AgentCrashed,
    AgentError,
    AgentUnavailable,
    HelpNeeded,
    NotFoundError,
    ParallaxError,
    ProviderLimited,
)
from parallax.failpoints import fp
from parallax.models import Agent, AgentState, Question, Task, TaskResult, new_id
from parallax.ports import AgentClient, AgentRegistry, AgentSession, Doors
from parallax.redaction import Redactor
from parallax.telemetry import logger

START_S: Final = 60.0
KEEP_S: Final = 1.0  # between two looks at the agents that wait for work
ROOM_S: Final = 60.0  # the longest that a start waits for memory: late is better than never
LOOK_S: Final = 30.0  # a parked agent looks at the clock so often: the host may have been asleep
LONGEST_PARK_S: Final = 8 * 86_400.0  # a weekly window and a day; what claims more is nonsense
GO_ON: Final = (
    "You were interrupted by something outside your work, which is over now. Your session and your working directory "
    "are as you left them. Go on with this task:\n\n"
)

_log = logger("supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lodging:
    """How long agents are kept. Seconds; a park without a known end begins with `park_s` and doubles to `park_cap_s`.

    `idle_s`: after so long without work, an agent whose session another process can go on with is let go.
    """

    idle_s: float = 300.0
    park_s: float = 15.0
    park_cap_s: float = 900.0


@dataclass(slots=True, eq=False)
class _Member:
    """An agent of ours. Without a client it has no process: it is parked, asks for help, or has not begun.

    `kept` is the CLI's session that its next process goes on with; `parks` counts since its last whole turn.
    """

    life: Life
    session: AgentSession
    client: AgentClient | None = None
    turn: Turn | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Task[None] | None = None
    wanted_at: float = field(default_factory=time.time)
    parks: int = 0
    kept: str | None = None
    interrupted: bool = False

    @property
    def id(self) -> str:
        return self.life.agent.id

    def leaving(self) -> bool:
        """Somebody is ending it, or has."""
        return self.ending is not None


class AgentSupervisor:
    """All agents of this server."""

    def __init__(
        self,
        *,
        open_client: Callable[[AgentSession], AgentClient],
        registry: AgentRegistry,
        doors: Doors,
        redact: Redactor,
        tell: Tell,
        silence: Silence,
        sandbox: str,
        lodging: Lodging | None = None,
        free_memory: Callable[[], int] | None = None,
    ) -> None:
        self._open_client = open_client
        self._registry = registry
        self._doors = doors
        self._redact = redact
        self._tell = tell
        self._silence = silence
        self._sandbox = sandbox
        self._lodging = lodging or Lodging()
        self._free_memory = free_memory
        self._members: dict[str, _Member] = {}
        self._starting: dict[str, asyncio.Lock] = {}
        self._sessions: dict[str, str] = {}  # of agents that were let go while idle: what to go on with
        self._keeper: asyncio.Task[None] | None = None

    # -- looking ---------------------------------------------------------------------------------------------------

    def agents(self, execution: str | None = None) -> list[Agent]:
        """The agents that have not ended."""
        return [m.life.agent for m in self._members.values() if execution in {None, m.life.agent.execution}]

    def agent(self, agent_id: str) -> Agent:
        """One of them; raises NotFoundError."""
        return self._member(agent_id).life.agent

    def _member(self, agent_id: str) -> _Member:
        if (member := self._members.get(agent_id)) is None:
            known = ", ".join(sorted(self._members)) or "none"
            raise NotFoundError(f"no agent '{agent_id}' is running (running: {known})")
        return member

    # -- starting --------------------------------------------------------------------------------------------------

    async def ensure(self, session: AgentSession, *, number: int) -> Agent:
        """The agent of this session, ready for a turn; started if it is not running. Raises AgentError."""
        async with self._starting.setdefault(session.agent_id, asyncio.Lock()):
            member = self._members.get(session.agent_id)
            if member is not None and not member.leaving() and member.client is not None and not member.client.alive:
                await self._end(member, _how_it_ended(member.client), state=AgentState.ERROR)
            if member is not None and member.ending is not None:
                await asyncio.wait({member.ending})
                member = None
            if member is None:
                member = self._new(session, number)
                await self._room(member)
            member.wanted_at, member.session = time.time(), session
            if member.life.state is AgentState.PARKED:
                _refuse_while_parked(member)
            if member.client is None:
                await self._start(member)
            elif member.life.state is AgentState.PARKED:
                await self._ready(member, member.client)
            return member.life.agent

    def _new(self, session: AgentSession, number: int) -> _Member:
        agent = Agent(
            id=session.agent_id,
            type=session.type,
            role=session.role,
            number=number,
            execution=session.execution,
            state=AgentState.PENDING,
            since=time.time(),
            workspace=str(session.tree),
        )
        member = _Member(Life(agent, self._tell, self._redact), session, kept=self._sessions.pop(agent.id, None))
        self._members[agent.id] = member
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="keeper of the agents")
        return member

    async def _start(self, member: _Member) -> None:
        agent = member.life.agent
        if member.leaving():
            raise AgentCrashed(f"agent {agent.id} was stopped before its start")
        try:
            await member.life.move(AgentState.STARTING, role=agent.role, type=agent.type, sandbox=self._sandbox)
            door = await self._doors.open_session(member.session)
            session = replace(member.session, door=door, cli_session=member.kept or member.session.cli_session)
            member.client = client = self._open_client(session)
            async with asyncio.timeout(START_S):
                await client.open()
        except (AgentError, TimeoutError) as error:
            cause = str(error) or f"it did not greet within {START_S:.0f} s"
            named = error if isinstance(error, AgentError) else AgentUnavailable(f"agent {agent.id}: {cause}")
            await self._failed(member, named)
            raise named from error
        except BaseException:
            await self._end(member, "its start was cancelled")
            raise
        if member.leaving():
            raise AgentCrashed(f"agent {agent.id} was stopped at its start")
        fp("spawned_before_pid_record")
        await self._ready(member, client)
        await self._registry.register(member.life.agent)
        fp("pid_recorded")

    async def _ready(self, member: _Member, client: AgentClient) -> None:
        agent = member.life.agent
        await member.life.move(
            AgentState.READY, pid=client.pid, role=agent.role, type=agent.type, version=client.version
        )

    async def _room(self, member: _Member) -> None:
        """Wait while memory is short and somebody's work may free some; idle agents are let go for it."""
        deadline = time.monotonic() + ROOM_S
        while self._free_memory is not None and time.monotonic() < deadline:
            if (free_b := self._free_memory()) >= AGENT_MEMORY_B or member.leaving():
                return
            others = [m for m in self._members.values() if m.client is not None and not m.leaving()]
            if idle := [m for m in others if self._may_go(m)]:
                await self._let_go(min(idle, key=lambda m: m.wanted_at), "memory was short")
            elif any(m.life.state is AgentState.BUSY for m in others):
                member.life.waits(f"waits for memory: {free_b / 1e9:.1f} GB free, {AGENT_MEMORY_B / 1e9:.1f} GB needed")
                await asyncio.sleep(KEEP_S)
            else:
                return

    # -- turns -----------------------------------------------------------------------------------------------------

    async def turn(self, agent_id: str, task: Task, ask: Ask) -> TaskResult:
        """One turn of one agent, one at a time. `ask` answers what it asks.

        Raises AgentError; the agent's process is then ended, so that the next attempt begins with a fresh one. After
        ProviderLimited the agent is parked (`rest` waits for it), after HelpNeeded it asks (`help` puts the question).
        """
        member = self._members.get(agent_id)
        if member is None:
            raise AgentCrashed(f"agent {agent_id} was stopped before its turn")
        async with member.lock:
            if member.life.state is AgentState.PARKED:
                _refuse_while_parked(member)
            if member.leaving() or (client := member.client) is None:
                raise AgentCrashed(f"agent {agent_id} was stopped before its turn")
            try:
                result = await self._turn(member, client, task, ask)
            except AgentError as error:
                await self._failed(member, error)
                raise
            except BaseException:
                await self._end(member, "cancelled in mid-turn")
                raise
            member.parks = 0
            if not client.alive:
                await self._end(member, "it has reported, but not ended its turn")
            elif not member.leaving():
                await self._ready(member, client)
            return result

    async def _turn(self, member: _Member, client: AgentClient, task: Task, ask: Ask) -> TaskResult:
        if member.interrupted:
            task = replace(task, text=GO_ON + task.text)
        member.interrupted, member.kept = False, None
        await member.life.move(AgentState.BUSY, task=task.id)
        member.turn = Turn(
            member.life,
            client,
            task,
            ask,
            traffic=lambda: self._doors.traffic(member.id),
            silence=self._silence,
            redact=self._redact,
        )
        try:
            return await member.turn.run()
        finally:
            member.turn = None

    @asynccontextmanager
    async def asking(self, agent_id: str, text: str) -> AsyncIterator[None]:
        """Around a wait in a team tool: the agent is asking, its turn's time and its silence stand still."""
        member = self._members.get(agent_id)
        if member is None or member.turn is None:
            yield
            return
        async with member.turn.asking(_question(member, "question", text)):
            yield

    # -- what keeps an agent from working ----------------------------------------------------------------------------

    async def _failed(self, member: _Member, error: AgentError) -> None:
        """End the process of an agent whose start or turn has failed; the agent stays where there is hope."""
        if member.leaving() or not isinstance(error, ProviderLimited | HelpNeeded):
            await self._end(member, str(error), state=AgentState.ERROR)
            return
        if member.client is not None and member.life.state is not AgentState.STARTING:
            member.kept, member.interrupted = member.client.resumable, member.client.resumable is not None
        await self._close(member)
        if member.leaving():
            return
        if isinstance(error, HelpNeeded):
            if member.life.state is AgentState.STARTING:
                await member.life.move(AgentState.AUTHENTICATING)
            await member.life.move(AgentState.ASKING, str(error), kind=error.kind)
            return
        until = self._until(member, error.resets_at)
        member.parks += 1
        member.woken.clear()
        await member.life.move(AgentState.PARKED, str(error), until=until)

    def _until(self, member: _Member, resets_at: float | None) -> float:
        """The named time; without one, or with one that has passed already, later each time."""
        now, lodging, doubled = time.time(), self._lodging, 2.0 ** min(member.parks, 20)
        if resets_at is not None and resets_at - now <= LONGEST_PARK_S:
            return max(resets_at, now + min(lodging.park_cap_s, doubled - 1))
        return now + min(lodging.park_cap_s, lodging.park_s * doubled)

    async def park(self, agent_id: str, until: float | None, cause: str) -> None:
        """The agent can use no model before `until` (a unix time): the gateway's `limits`. Unknown agents are no error.

        A running turn ends for it and goes on afterwards, with its session where the CLI can. Without a known end it is
        left to the CLI, which tries again: when that gets nowhere, it is a stall.
        """
        member = self._members.get(agent_id)
        if member is None or member.leaving() or until is None:
            return
        if member.turn is not None:
            member.turn.interrupt(ProviderLimited(cause, until))
        elif member.life.state is AgentState.READY:
            member.woken.clear()
            await member.life.move(AgentState.PARKED, cause, until=until)

    def wake(self, agent_id: str) -> None:
        """A parked agent goes on now, whatever the clock says. Raises NotFoundError."""
        self._member(agent_id).woken.set()

    async def rest(self, agent_id: str) -> bool:
        """Wait until a parked agent may go on; False when it was stopped meanwhile."""
        member = self._members.get(agent_id)
        while member is not None and not member.leaving() and member.life.state is AgentState.PARKED:
            left_s = (member.life.agent.until or 0.0) - time.time()
            if left_s <= 0 or member.woken.is_set():
                return True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(LOOK_S, left_s)):
                    await member.woken.wait()
        return False

    async def help(self, agent_id: str, task: Task, error: HelpNeeded, ask: Ask) -> bool:
        """Ask a person to put right what keeps the agent from working; whether it is to be tried again."""
        member = self._members.get(agent_id)
        if member is None or member.leaving():
            return False
        question = replace(
            _question(member, "help", f"{member.life.agent.type} cannot go on: {error}"),
            step_key=task.step_key,
            topic=error.kind,
            options=({"id": "retry", "label": "it is done: try again"}, {"id": "end", "label": "give this attempt up"}),
            default="end",
        )
        if await ask(question) == "retry" and not member.leaving():
            return True
        await self._end(member, str(error), state=AgentState.ERROR)
        return False

    def goes_on(self, agent_id: str) -> bool:
        """Whether its next turn continues the session of the last one: its working directory must not be reset."""
        member = self._members.get(agent_id)
        return member is not None and member.interrupted

    # -- ending ------------------------------------------------------------------------------------------------------

    async def stop(self, agent_id: str, reason: str) -> None:
        """End one agent. Raises NotFoundError."""
        await self._end(self._member(agent_id), reason)

    async def give_up(self, agent_id: str, reason: str) -> None:
        """End an agent that is parked or asks, because nobody waits for it any more; unknown agents are no error."""
        if (member := self._members.get(agent_id)) is not None:
            await self._end(member, reason, state=AgentState.ERROR)

    def interrupt(self, agent_id: str, error: AgentError) -> None:
        """End the turn of an agent with this error; without a turn there is nothing to end."""
        member = self._members.get(agent_id)
        if member is not None and member.turn is not None:
            member.turn.interrupt(error)

    async def renew(self, agent_id: str) -> None:
        """Its next turn begins a new session in a new process; unknown agents are no error."""
        if (member := self._members.get(agent_id)) is not None:
            await self._end(member, "its next task asks for a fresh session")
        self._sessions.pop(agent_id, None)

    async def release(self, execution: str, reason: str = "the execution has ended") -> None:
        """End every agent of an execution."""
        await self._end_all([m for m in self._members.values() if m.life.agent.execution == execution], reason)
        for agent_id in [id_ for id_ in self._starting if id_.startswith(f"{execution}.")]:
            del self._starting[agent_id]
            self._sessions.pop(agent_id, None)

    async def close(self) -> None:
        """End every agent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        await self._end_all(list(self._members.values()), "the server stops")

    async def _end_all(self, members: list[_Member], reason: str) -> None:
        """End them side by side, each to its end; only then the first failure is raised, as what it is."""
        ends = await asyncio.gather(*(self._end(member, reason) for member in members), return_exceptions=True)
        if failed := next((end for end in ends if end is not None), None):
            raise failed

    async def _end(self, member: _Member, reason: str, state: AgentState = AgentState.STOPPED) -> None:
        """End it once, whoever asks, and to the end: a caller that is cancelled leaves no half-ended agent behind."""
        if member.ending is None:
            member.ending = asyncio.create_task(self._ended(member, reason, state), name=f"end of {member.id}")
        await asyncio.shield(member.ending)

    async def _ended(self, member: _Member, reason: str, state: AgentState) -> None:
        member.woken.set()
        try:
            if state is AgentState.STOPPED:
                await member.life.move(AgentState.STOPPING, reason)
        finally:
            await self._close(member)
            if self._members.get(member.id) is member:
                del self._members[member.id]
        await self._registry.remove(member.id)
        await member.life.move(state, reason)

    async def _close(self, member: _Member) -> None:
        """Its process and its door."""
        client, member.client = member.client, None
        if client is not None:
            await client.close()
        member.life.bodiless()
        await self._doors.close_session(member.id)

    # -- keeping -----------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Look after the agents that wait for work: one that has died is told, one that is idle for long is let go."""
        while True:
            await asyncio.sleep(min(KEEP_S, self._lodging.idle_s / 4))
            for member in list(self._members.values()):
                try:
                    await self._look_after(member)
                except ParallaxError as error:
                    _log.error("the keeper could not look after an agent", agent=member.id, cause=str(error))

    async def _look_after(self, member: _Member) -> None:
        client = member.client
        if client is None or member.leaving() or member.life.state is not AgentState.READY:
            return
        if not client.alive:
            await self._end(member, _how_it_ended(client), state=AgentState.ERROR)
        elif (
            self._may_go(member)
            and time.time() - max(member.wanted_at, member.life.agent.since) >= self._lodging.idle_s
        ):
            await self._let_go(member, f"idle for {self._lodging.idle_s:.0f} s")

    def _may_go(self, member: _Member) -> bool:
        """Between two turns, and another process can go on with its session."""
        resumable = member.client is not None and member.client.pid is not None and member.client.resumable is not None
        return resumable and member.life.state is AgentState.READY and not member.lock.locked()

    async def _let_go(self, member: _Member, why: str) -> None:
        assert member.client is not None
        session = member.client.resumable
        await self._end(member, f"{why}; its session is kept")
        if session is not None:
            self._sessions[member.id] = session


def _refuse_while_parked(member: _Member) -> None:
    """Raise ProviderLimited until the time has come."""
    agent = member.life.agent
    if not member.woken.is_set() and (agent.until or 0.0) > time.time():
        raise ProviderLimited(agent.reason or "it is parked", agent.until)


def _how_it_ended(client: AgentClient) -> str:
    code = client.vitals().exit_code
    how = "it cannot take another turn" if code is None else f"its process had ended by itself (exit code {code})"
    words = client.vitals().words
    return f"{how}; its last words: {words}" if words else how


def _question(member: _Member, kind: str, text: str) -> Question:
    agent = member.life.agent
    return Question(id=new_id(), execution=agent.execution or "", step_key="", asker=agent.id, kind=kind, text=text)
