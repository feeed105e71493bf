"""AgentSupervisor: starts agents, watches them, ends them. No silent wait.

The agent proxy in `execution` asks it for a turn and hands down how questions are answered. Each agent has one state
machine; every change is an event. Silence is measured, not guessed: no output and no processor time used by the whole
process tree. Beyond the first limit a stall is named, beyond the second the attempt ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

from parallax.errors import AgentCrashed, AgentError, AgentStalled, AgentUnavailable, NotFoundError, leaf
from parallax.events import Event
from parallax.failpoints import fp
from parallax.models import Agent, AgentState, Progress, Question, Task, TaskResult
from parallax.ports import AgentClient, AgentRegistry, AgentSession, Doors
from parallax.redaction import Redactor

Ask: TypeAlias = Callable[[Question], Awaitable[str]]
Tell: TypeAlias = Callable[[Event], Awaitable[None]]

OUTPUT_BATCH_S: Final = 0.1
OUTPUT_KEPT_B: Final = 64 * 1024  # of one batch; the whole stream is bounded by the client's ring
START_S: Final = 60.0
WATCH_S: Final = 0.25


@dataclass(slots=True)
class _Managed:
    agent: Agent
    session: AgentSession
    client: AgentClient
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turn: _Turn | None = None
    inbox: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Seconds without a sign of life: `stall_s` names a stall, `end_s` ends the attempt."""

    stall_s: float = 30.0
    end_s: float = 600.0


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
    ) -> None:
        self._open_client = open_client
        self._registry = registry
        self._doors = doors
        self._redact = redact
        self._tell = tell
        self._silence = silence
        self._sandbox = sandbox
        self._agents: dict[str, _Managed] = {}
        self._starting: dict[str, asyncio.Lock] = {}

    # -- looking ---------------------------------------------------------------------------------------------------

    def agents(self, execution: str | None = None) -> list[Agent]:
        """The agents that run now."""
        return [m.agent for m in self._agents.values() if execution is None or m.agent.execution == execution]

    def agent(self, agent_id: str) -> Agent:
        """One running agent; raises NotFoundError."""
        return self._managed(agent_id).agent

    def _managed(self, agent_id: str) -> _Managed:
        if (managed := self._agents.get(agent_id)) is None:
            known = ", ".join(sorted(self._agents)) or "none"
            raise NotFoundError(f"no agent '{agent_id}' is running (running: {known})")
        return managed

    # -- living ----------------------------------------------------------------------------------------------------

    async def ensure(self, session: AgentSession, *, number: int) -> Agent:
        """The agent of this session, started if it is not running. Raises AgentError."""
        lock = self._starting.setdefault(session.agent_id, asyncio.Lock())
        async with lock:
            managed = self._agents.get(session.agent_id)
            if managed is not None and managed.client.alive:
                return managed.agent
            if managed is not None:
                await self._end(managed, "its process had ended")
            return await self._start(session, number)

    async def _start(self, session: AgentSession, number: int) -> Agent:
        agent = Agent(
            id=session.agent_id,
            type=session.type,
            role=session.role,
            number=number,
            execution=session.execution,
            state=AgentState.STARTING,
            since=time.time(),
            workspace=str(session.tree),
        )
        await self._say(agent, "agent.starting", role=agent.role, type=agent.type, sandbox=self._sandbox)
        door = await self._doors.open_session(session)
        client = self._open_client(replace(session, door=door))
        managed = _Managed(agent, session, client)
        self._agents[agent.id] = managed
        try:
            async with asyncio.timeout(START_S):
                await client.open()
        except (AgentError, TimeoutError) as error:
            cause = str(error) or f"it did not greet within {START_S:.0f} s"
            await self._end(managed, cause, state=AgentState.ERROR)
            if isinstance(error, AgentError):
                raise
            raise AgentUnavailable(f"agent {agent.id} ({agent.type}): {cause}") from error
        except BaseException:
            await self._end(managed, "start cancelled")
            raise
        fp("spawned_before_pid_record")
        managed.agent = replace(agent, state=AgentState.READY, since=time.time(), pid=client.pid)
        await self._registry.register(managed.agent)
        await self._say(managed.agent, "agent.ready", role=agent.role, type=agent.type, pid=client.pid)
        fp("pid_recorded")
        return managed.agent

    async def turn(self, agent_id: str, task: Task, ask: Ask) -> TaskResult:
        """One turn of one agent, one at a time. `ask` answers what it asks.

        Raises AgentStalled, AgentCrashed, ProviderLimited, ProtocolViolation; the agent is then ended, so that the
        next attempt begins with a fresh process.
        """
        managed = self._managed(agent_id)
        async with managed.lock:
            if managed.inbox:
                told = "\n".join(managed.inbox)
                managed.inbox.clear()
                task = replace(task, text=f"{task.text}\n\nA person adds: {told}")
            await self._change(managed, AgentState.BUSY, "agent.busy", task=task.id)
            try:
                async with asyncio.timeout(task.timeout_s) as limit:
                    result = await self._watched_turn(managed, task, ask, limit)
            except TimeoutError as error:
                await self._end(managed, "turn too long", state=AgentState.ERROR)
                raise AgentStalled(
                    f"{agent_id}: the turn took longer than its limit of {task.timeout_s:.0f} s and was ended"
                ) from error
            except AgentError as error:
                await self._end(managed, str(error), state=AgentState.ERROR)
                raise
            except BaseException:
                await self._end(managed, "cancelled in mid-turn")
                raise
            if managed.client.alive:
                await self._change(managed, AgentState.READY, "agent.ready", role=managed.agent.role)
            return result

    async def _watched_turn(self, managed: _Managed, task: Task, ask: Ask, limit: asyncio.Timeout) -> TaskResult:
        turn = managed.turn = _Turn(self, managed, task, ask, limit)
        try:
            async with asyncio.TaskGroup() as group:
                watchers = [
                    group.create_task(turn.watch_silence(self._silence)),
                    group.create_task(turn.flush_output()),
                ]
                result = await turn.run(group)
                for task_ in (*watchers, *turn.answers):
                    task_.cancel()
        except BaseExceptionGroup as failed:
            raise leaf(failed) from failed
        finally:
            managed.turn = None
        return result

    @asynccontextmanager
    async def asking(self, agent_id: str, text: str) -> AsyncIterator[None]:
        """Around a wait in a team tool: the agent is asking, its turn's time and its silence stand still."""
        managed = self._agents.get(agent_id)
        if managed is None or managed.turn is None:
            yield
            return
        async with managed.turn.asking(text):
            yield

    def tell(self, agent_id: str, text: str) -> None:
        """A person's words, delivered at the agent's next turn."""
        self._managed(agent_id).inbox.append(text)

    async def stop(self, agent_id: str, reason: str) -> None:
        """End one agent."""
        await self._end(self._managed(agent_id), reason)

    async def release(self, execution: str, reason: str = "the execution has ended") -> None:
        """End every agent of an execution."""
        async with asyncio.TaskGroup() as group:
            for managed in [m for m in self._agents.values() if m.agent.execution == execution]:
                group.create_task(self._end(managed, reason))

    async def close(self) -> None:
        """End every agent."""
        async with asyncio.TaskGroup() as group:
            for managed in list(self._agents.values()):
                group.create_task(self._end(managed, "the server stops"))

    # -- one state machine -------------------------------------------------------------------------------------------

    async def _end(self, managed: _Managed, reason: str, state: AgentState = AgentState.STOPPED) -> None:
        agent_id = managed.agent.id
        if self._agents.pop(agent_id, None) is None:
            return  # somebody else is ending it
        await managed.client.close()
        await self._doors.close_session(agent_id)
        await self._registry.remove(agent_id)
        managed.agent = replace(managed.agent, state=state, reason=reason, since=time.time())
        if state is AgentState.ERROR:
            await self._say(managed.agent, "agent.error", cause=self._redact(reason))
        else:
            await self._say(managed.agent, "agent.stopped", reason=self._redact(reason))

    async def _change(self, managed: _Managed, state: AgentState, type_: str, **data: Any) -> None:
        managed.agent = replace(managed.agent, state=state, since=time.time())
        await self._say(managed.agent, type_, **data)

    async def _say(self, agent: Agent, type_: str, step_key: str | None = None, **data: Any) -> None:
        assert agent.execution is not None
        await self._tell(Event(execution=agent.execution, type=type_, step_key=step_key, agent_id=agent.id, data=data))


class _Turn:
    """One running turn: what it shows becomes events, what it asks is answered, its silence is watched."""

    def __init__(
        self, supervisor: AgentSupervisor, managed: _Managed, task: Task, ask: Ask, limit: asyncio.Timeout
    ) -> None:
        self._supervisor = supervisor
        self._managed = managed
        self._task = task
        self._ask = ask
        self._output: list[str] = []
        self._limit = limit
        self._left_s = 0.0
        self._open_questions = 0
        self.answers: list[asyncio.Task[None]] = []

    async def run(self, group: asyncio.TaskGroup) -> TaskResult:
        client = self._managed.client
        async for item in client.turn(self._task):
            match item:
                case TaskResult():
                    await self._flush()
                    if not item.message.strip() and item.value is None and item.stop == "end_turn":
                        raise AgentCrashed(f"{self._managed.agent.id} ended its turn without saying or doing anything")
                    return item
                case Question():
                    self.answers.append(group.create_task(self._answer(item)))
                case Progress():
                    await self._show(item)
        raise AgentCrashed(f"{self._managed.agent.id} ended its turn without a result")

    def _pause(self) -> None:
        """The turn's own time stands still while it waits for an answer."""
        if self._open_questions == 0 and (when := self._limit.when()) is not None:
            self._left_s = when - asyncio.get_running_loop().time()
            self._limit.reschedule(None)
        self._open_questions += 1

    def _go_on(self) -> None:
        self._open_questions -= 1
        if self._open_questions == 0 and self._managed.turn is self:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._left_s)

    @asynccontextmanager
    async def asking(self, text: str) -> AsyncIterator[None]:
        """The agent waits for an answer."""
        self._pause()
        await self._supervisor._change(self._managed, AgentState.ASKING, "agent.asking", text=self._redacted(text))
        try:
            yield
        finally:
            self._go_on()
        if not self._open_questions:
            await self._supervisor._change(self._managed, AgentState.BUSY, "agent.busy", task=self._task.id)

    async def _answer(self, question: Question) -> None:
        async with self.asking(question.text):
            answer = await self._ask(question)
            await self._managed.client.answer(question.id, answer)

    async def _show(self, progress: Progress) -> None:
        say, agent, key = self._supervisor._say, self._managed.agent, self._task.step_key
        match progress.kind:
            case "output":
                self._output.append(progress.text)
            case "tool":
                data: Mapping[str, Any] = progress.data or {}
                await say(
                    agent, "agent.tool", key, name=self._redacted(progress.text), status=str(data.get("status", ""))
                )
            case "usage":
                await say(agent, "agent.usage", key, usage=progress.data)
            case _:
                pass

    async def flush_output(self) -> None:
        """Output goes out in batches, so that a flood is a few events."""
        while True:
            await asyncio.sleep(OUTPUT_BATCH_S)
            await self._flush()

    async def _flush(self) -> None:
        if not self._output:
            return
        text = "".join(self._output)
        self._output.clear()
        if len(text) > OUTPUT_KEPT_B:
            half = OUTPUT_KEPT_B // 2
            text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
        fp("output.mid_batch")
        await self._supervisor._say(
            self._managed.agent, "agent.output", self._task.step_key, stream="out", text=self._redacted(text)
        )

    async def watch_silence(self, silence: Silence) -> None:
        """Name a stall at the first limit, end the attempt at the second. An open question is no silence."""
        named = False
        while True:
            await asyncio.sleep(min(WATCH_S, silence.stall_s / 4))
            quiet_s = 0.0 if self._open_questions else self._managed.client.last_heard_s()
            if quiet_s < silence.stall_s:
                named = False
            elif not named:
                named = True
                await self._supervisor._say(
                    self._managed.agent,
                    "agent.stalled",
                    self._task.step_key,
                    kind="silent",
                    silent_s=round(quiet_s, 1),
                )
            if quiet_s >= silence.end_s:
                raise AgentStalled(f"{self._managed.agent.id} showed no sign of life for {quiet_s:.0f} s and was ended")

    def _redacted(self, text: str) -> str:
        return self._supervisor._redact(text)
