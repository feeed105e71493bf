"""The client for CLIs without a protocol: one process a turn, its output read line by line by the CLI's `read`.

Nobody can be asked in such a run: what is not allowed is denied, and the denials are in the result. The session goes on
by the CLI's own id. The first thing believed is the result line, and only together with a clean exit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from typing import Final

from parallax.agents.clients.common import GRACE_S, MESSAGE_LIMIT, Pulse, addressed, cpu_s, inside, launch, prepare_home
from parallax.agents.clients.failures import failure
from parallax.agents.clients.report import read_report
from parallax.agents.clients.wire import CHUNK, Lines, Tail
from parallax.errors import AgentCrashed, AgentError, EmptyTurn, ProtocolViolation
from parallax.models import Progress, Question, Task, TaskResult, Usage
from parallax.ports import AgentProcess, AgentRuntime, AgentSession, HeadlessCLI, Vitals

LINE_LIMIT: Final = 50 * 1024 * 1024
CANCEL_GRACE_S: Final = 2.0


class HeadlessClient:
    """One agent of a CLI that does one turn per process."""

    def __init__(
        self,
        *,
        runtime: AgentRuntime,
        cli: HeadlessCLI,
        session: AgentSession,
        program: str,
        version: str | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        self._runtime = runtime
        self._cli = cli
        self._session = session
        self._program = program
        self.version = version
        self._grace_s = grace_s
        self._process: AgentProcess | None = None
        self._reading: _Reading | None = None
        self._task: Task | None = None
        self._started = 0.0
        self._pulse = Pulse()
        self._cancelled = False
        self._closed = False

    async def open(self) -> str | None:
        """Prepare the home; the process comes with the first turn. Returns the session's id, if one is continued."""
        prepare_home(self._cli, self._session, inside(self._runtime, self._cli, self._session))
        return self._session.cli_session

    async def turn(self, task: Task) -> AsyncGenerator[Progress | Question | TaskResult, None]:
        """One turn in a process of its own."""
        if self._process is not None:
            raise RuntimeError("an agent does one turn at a time")
        if self._closed:
            raise AgentCrashed("The agent was stopped")
        self._cancelled = False
        task = addressed(task, inside(self._runtime, self._cli, self._session))
        self._task, self._started = task, time.monotonic()
        arguments, data = self._cli.prompt(task)
        spec = launch(self._runtime, self._cli, self._session, self._program)
        process = self._process = await self._runtime.start(replace(spec, argv=(*spec.argv, *arguments)))
        self._pulse.heard()
        reading = self._reading = _Reading(self._cli, process, self._pulse)
        helpers = [asyncio.create_task(reading.errors()), asyncio.create_task(_feed(process, data))]
        try:
            async for item in reading.items():
                yield item
            code = await self._ended(process, reading)
        finally:
            # Shielded: a reader that goes away must not leave the process behind.
            await asyncio.shield(process.stop(CANCEL_GRACE_S if reading.result is None else self._grace_s))
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            self._process = None
        yield self._finished(task, reading, code, time.monotonic() - self._started)

    async def _ended(self, process: AgentProcess, reading: _Reading) -> int | None:
        """The exit code; None for a process that gave its result and then did not leave: the result counts."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s):
                code = reading.exit_code = await process.wait()
                await reading.errors_read.wait()
                return code
        return None

    def _finished(self, task: Task, reading: _Reading, code: int | None, wall_s: float) -> TaskResult:
        """What the turn comes to. A success that its exit code denies is none."""
        if reading.session is not None:
            self._session = replace(self._session, cli_session=reading.session)
        result = reading.result
        if self._cancelled:
            result = self._text_result(reading, "cancelled")
        elif result is None:
            if self._cli.quirks.protocol != "text" or code != 0 or not reading.message.strip():
                raise self._death(reading, code)
            result = self._text_result(reading, "end_turn")
        elif result.stop == "error":
            raise failure(result.message or reading.last_words.lines())
        elif code not in {0, None} and result.stop == "end_turn":
            raise self._death(reading, code)
        message = (result.message or reading.message)[-MESSAGE_LIMIT:]
        if result.stop == "end_turn" and not message.strip() and not reading.tools:
            raise EmptyTurn("The agent ended its turn without a word or a deed")
        report = read_report(message, task.schema if result.stop == "end_turn" else None)
        return replace(
            result,
            task_id=task.id,
            attempt=task.attempt,
            agent_id=self._session.agent_id,
            value=report.value,
            message=message,
            reported=report.confidence,
            session_ref=result.session_ref or self._session.cli_session,
            usage=replace(result.usage, turns=1, wall_s=round(wall_s, 3)),
        )

    def _text_result(self, reading: _Reading, stop: str) -> TaskResult:
        return TaskResult(
            task_id="", attempt=0, agent_id="", value=None, message=reading.message, stop=stop, usage=reading.usage
        )

    def _death(self, reading: _Reading, code: int | None) -> AgentError:
        words = reading.last_words.lines()
        said = f"; its last words: {words}" if words else ""
        if code is None:
            how = "closed its output"
        elif code < 0:
            how = f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        what = "without a result" if reading.result is None else "although its result says success"
        crash = AgentCrashed(f"The agent '{self._session.type}' {how} {what}{said}")
        known = failure(words)
        return crash if type(known) is AgentError else known

    async def answer(self, question_id: str, answer: str) -> None:
        """Nothing was asked."""

    async def cancel(self) -> None:
        """End the process of the running turn; the turn then ends with stop `cancelled`."""
        if self._process is not None:
            self._cancelled = True
            await asyncio.shield(self._process.stop(CANCEL_GRACE_S))

    async def close(self) -> None:
        """End the agent and leave no process behind."""
        self._closed = True
        await self.cancel()

    @property
    def alive(self) -> bool:
        """Whether another turn can be asked of it: always, until it is closed."""
        return not self._closed

    @property
    def resumable(self) -> str | None:
        """The session's id, once the CLI has named it: every turn is a process that goes on with it."""
        return self._session.cli_session

    def vitals(self) -> Vitals:
        """What is seen of the agent now."""
        reading = self._reading
        if reading is None:
            return self._pulse.vitals(Tail(), exit_code=None)
        done = reading.result is not None
        return self._pulse.vitals(reading.last_words, claimed=done, final=done, exit_code=reading.exit_code)

    def cpu_s(self) -> float:
        """Processor time of its process tree."""
        return cpu_s(self._process)

    def claim(self) -> TaskResult | None:
        """The result that the running process has given and not left after."""
        if self._task is None or self._reading is None or self._reading.result is None:
            return None
        try:
            return self._finished(self._task, self._reading, None, time.monotonic() - self._started)
        except AgentError:
            return None

    @property
    def pid(self) -> int | None:
        """The process of the running turn."""
        pid = self._process.handle.get("pid") if self._process is not None else None
        return int(pid) if pid else None


class _Reading:
    """One process's output: what it shows, and what of it counts for the result."""

    def __init__(self, cli: HeadlessCLI, process: AgentProcess, pulse: Pulse) -> None:
        self._cli = cli
        self._process = process
        self._pulse = pulse
        self.result: TaskResult | None = None
        self.session: str | None = None
        self.message = ""
        self.tools = 0
        self.exit_code: int | None = None
        self.usage = Usage()
        self.last_words = Tail()
        self.errors_read = asyncio.Event()
        self._titles: dict[str, str] = {}

    async def items(self) -> AsyncIterator[Progress]:
        """All that is shown, until the result or the end of output."""
        lines, ready = Lines(LINE_LIMIT), deque[bytes]()
        while self.result is None:
            if not ready:
                chunk = await self._process.read_out(CHUNK)
                if not chunk:
                    ready.append(lines.rest())
                else:
                    self._pulse.heard()
                    ready.extend(lines.feed(chunk))
                    if lines.overlong:
                        raise ProtocolViolation(f"The agent sent a line of more than {LINE_LIMIT >> 20} MiB")
            while ready and self.result is None:
                item = self._line(ready.popleft())
                if item is not None:
                    yield item
            if not chunk:
                return

    def _line(self, line: bytes) -> Progress | None:
        if not line.strip():
            return None
        item = self._cli.read(line)
        if isinstance(item, TaskResult):
            self.result = item
            return None
        if item is None:
            self.last_words.add(line[:200] + b"\n")
            return None
        match item.kind:
            case "session":
                self.session = item.text or None
                return None
            case "output" if self._cli.quirks.protocol == "text":
                self.message = (self.message + item.text)[-MESSAGE_LIMIT:]
                self.last_words.add(line[:200] + b"\n")  # a prompt for a terminal looks like any other text
            case "output":
                self.message = item.text
            case "usage":  # a text CLI's own word for the turn so far
                data: Mapping[str, int] = item.data
                self.usage += Usage(
                    input_tokens=data["input"],
                    output_tokens=data["output"],
                    cost=data.get("cost", 0),
                    priced="reported" if "cost" in data else "estimated",
                )
            case "tool":
                identifier = str(item.data.get("id"))
                self.tools += identifier not in self._titles
                title = item.text or self._titles.get(identifier, "")
                self._titles[identifier] = title
                return Progress(kind="tool", text=title, data=item.data)
        if item.kind == "thought" and item.data:
            self.last_words.add(item.text.encode() + b"\n")
        return item

    async def errors(self) -> None:
        """Keep standard error from filling up, and its end."""
        try:
            while chunk := await self._process.read_err(CHUNK):
                self.last_words.add(chunk)
                self._pulse.heard()
        finally:
            self.errors_read.set()


async def _feed(process: AgentProcess, data: bytes) -> None:
    """The prompt. A process that does not read it ends without a result, which is what gets reported."""
    with contextlib.suppress(AgentCrashed):
        await process.write(data)
    await process.close_input()
