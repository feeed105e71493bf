"""One running turn: what the agent shows becomes events, what it asks is answered, and its stalls are named.

Owned by the supervisor, which gives it the agent's life and takes back a result or an AgentError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from parallax.agents.output import Ring, cut
from parallax.agents.stalls import Consequence, Stall, detect
from parallax.agents.states import Life
from parallax.agents.watch import Watch
from parallax.errors import AgentCrashed, AgentError, AgentStalled, leaf
from parallax.failpoints import fp
from parallax.models import AgentState, Progress, Question, Task, TaskResult
from parallax.ports import AgentClient, Traffic
from parallax.redaction import Redactor

Ask: TypeAlias = Callable[[Question], Awaitable[str]]

OUTPUT_BATCH_S: Final = 0.1
WATCH_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Seconds without a sign of life: `stall_s` names a stall, `end_s` ends the attempt."""

    stall_s: float = 30.0
    end_s: float = 600.0


class _Claimed(Exception):
    """The agent has reported and will not end its turn: its report is taken."""

    def __init__(self, result: TaskResult) -> None:
        super().__init__("the report is taken")
        self.result = result


class Turn:
    """A turn of an agent that is busy with it."""

    def __init__(
        self,
        life: Life,
        client: AgentClient,
        task: Task,
        ask: Ask,
        *,
        traffic: Callable[[], Traffic | None],
        silence: Silence,
        redact: Redactor,
    ) -> None:
        self._life = life
        self._client = client
        self._task = task
        self._ask = ask
        self._silence = silence
        self._redact = redact
        self._masking = redact.stream()
        self._watch = Watch(client, traffic, silence.stall_s)
        self._limit: asyncio.Timeout
        self._left_s = 0.0
        self._output: list[str] = []
        self._ring = Ring()
        self._open: list[Question] = []
        self._named: str | None = None
        self._interrupted: AgentError | None = None
        self._verdict: AgentError | None = None  # of a stall that was named while the turn ran
        self._over = False

    async def run(self) -> TaskResult:
        """To its end. Raises an AgentError; every stall among them has been named before."""
        try:
            async with asyncio.timeout(self._task.timeout_s) as self._limit:
                return await self._watched()
        except TimeoutError as error:
            limit = f"its limit of {self._task.timeout_s:.0f} s"
            raise AgentStalled(f"{self._life.agent.id}: the turn took longer than {limit} and was ended") from error
        finally:
            self._over = True

    def interrupt(self, error: AgentError) -> None:
        """End the turn with this error."""
        self._interrupted = self._interrupted or error

    @asynccontextmanager
    async def asking(self, question: Question) -> AsyncIterator[None]:
        """The agent waits for an answer: the turn's time and its silence stand still."""
        self._pause(question)
        if self._life.state is AgentState.BUSY:
            stall = detect(self._watch.look(question=question))
            kind = "question" if stall is None else stall.kind
            await self._life.move(AgentState.ASKING, question.text, kind=kind)
        try:
            yield
        finally:
            self._go_on(question)
        if not self._open and not self._over and self._life.state is AgentState.ASKING:
            await self._life.move(AgentState.BUSY, task=self._task.id)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _watched(self) -> TaskResult:
        try:
            result = await self._played()
        except AgentError as error:
            await self._flush(last=True)
            ours = self._life.state not in {AgentState.BUSY, AgentState.ASKING}  # it is being stopped
            if ours or error is self._verdict or (stall := detect(self._watch.look(error=error))) is None:
                raise
            await self._name(stall)
            raise stall.error(self._life.agent.id) from error
        stall = detect(self._watch.look(result=result))
        if stall is not None:
            await self._name(stall)
            raise stall.error(self._life.agent.id)
        return result

    async def _played(self) -> TaskResult:
        """The turn with its helpers; whoever fails first ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                helpers = [group.create_task(self._name_stalls()), group.create_task(self._flush_output())]
                result = await self._read(group, helpers)
                for helper in helpers:
                    helper.cancel()
        except BaseExceptionGroup as failed:
            if (turn := asyncio.current_task()) is not None and turn.cancelling():
                raise asyncio.CancelledError from failed  # a task group that is failing loses a cancellation
            cause = leaf(failed)
            if not isinstance(cause, _Claimed):
                raise cause from failed
            result = cause.result
        await self._flush(last=True)
        return result

    async def _read(self, group: asyncio.TaskGroup, helpers: list[asyncio.Task[None]]) -> TaskResult:
        async with aclosing(self._client.turn(self._task)) as items:
            async for item in items:
                match item:
                    case TaskResult():
                        return item
                    case Question():
                        helpers.append(group.create_task(self._answer(item)))
                    case Progress():
                        self._watch.saw(item)
                        await self._show(item)
        raise AgentCrashed(f"{self._life.agent.id} ended its turn without a result")

    async def _answer(self, question: Question) -> None:
        async with self.asking(question):
            answer = await self._ask(question)
            await self._client.answer(question.id, answer)

    def _pause(self, question: Question) -> None:
        if not self._open and (when := self._limit.when()) is not None:
            self._left_s = when - asyncio.get_running_loop().time()
            self._limit.reschedule(None)
        self._open.append(question)

    def _go_on(self, question: Question) -> None:
        self._open.remove(question)
        self._watch.answered()
        if not self._open and not self._over:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._left_s)

    # -- stalls --------------------------------------------------------------------------------------------------------

    async def _name_stalls(self) -> None:
        """Look again and again: name a stall, act on it when it is certain or when the silence has lasted."""
        while True:
            await asyncio.sleep(min(WATCH_S, self._silence.stall_s / 6))
            if self._interrupted is not None:
                raise self._interrupted
            signals = self._watch.look(question=self._open[-1] if self._open else None)
            stall = None if self._open else detect(signals)
            if stall is None:
                if self._named is not None:
                    self._named = None
                    await self._life.stalled(None, self._task.step_key)
                continue
            await self._name(stall, signals.silent_s if signals.silent else signals.output_s)
            if stall.certain or signals.output_s >= self._silence.end_s:
                if stall.consequence is Consequence.END and (claim := self._client.claim()) is not None:
                    raise _Claimed(claim)
                self._verdict = stall.error(self._life.agent.id)
                raise self._verdict

    async def _name(self, stall: Stall, silent_s: float = 0.0) -> None:
        """Tell a stall once, however often it is seen."""
        if self._named == stall.kind:
            return
        self._named = stall.kind
        await self._life.stalled(
            stall.kind,
            self._task.step_key,
            cause=self._redact(stall.cause),
            consequence=str(stall.consequence),
            silent_s=round(silent_s, 1),
        )

    # -- what it shows -------------------------------------------------------------------------------------------------

    async def _show(self, progress: Progress) -> None:
        key = self._task.step_key
        match progress.kind:
            case "output":
                self._output.append(progress.text)
            case "tool":
                data: Mapping[str, Any] = progress.data or {}
                name = self._redact(progress.text)
                await self._life.say("agent.tool", key, name=name, status=str(data.get("status", "")))

    async def _flush_output(self) -> None:
        """Output goes out in batches, so that a flood is a few events."""
        while True:
            await asyncio.sleep(OUTPUT_BATCH_S)
            await self._flush()

    async def _flush(self, *, last: bool = False) -> None:
        """Tell what came since. Of a flood the head of the turn is told at once, and with the `last` words the tail."""
        came = self._masking.feed("".join(self._output)) + (self._masking.close() if last else "")
        self._output.clear()
        told = [self._ring.take(cut(came))]
        for text in (told + self._ring.rest()) if last else told:
            if text:
                fp("output.mid_batch")
                await self._life.say("agent.output", self._task.step_key, stream="out", text=text)
