"""The client for every agent that speaks the Agent Client Protocol, on the package `agent-client-protocol`.

One client is one process with one session; the supervisor opens it, asks turns of it and closes it. The package does
requests and answers; framing, updates and the process are ours (see `wire`). File-system and terminal capabilities are
not advertised: the sandbox is the only boundary.

An end of turn is what the agent claims, never a success: a turn without a word or a deed is an error, and where a CLI
is known to hide a rate limit in a normal end, its quirks say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, Final, TypeVar, cast

from acp import PROTOCOL_VERSION, RequestError, connect_to_agent, text_block
from acp.client.connection import ClientSideConnection
from acp.core import DEFAULT_STDIO_BUFFER_LIMIT_BYTES
from acp.interfaces import Client
from acp.schema import (
    AgentCapabilities,
    ClientCapabilities,
    ElicitationCapabilities,
    ElicitationFormCapabilities,
    FileSystemCapabilities,
    HttpHeader,
    HttpMcpServer,
    Implementation,
    InitializeResponse,
    PromptResponse,
)
from pydantic import ValidationError

from parallax._version import __version__
from parallax.agents.clients import acp_shapes as shapes
from parallax.agents.clients.common import (
    GRACE_S,
    MESSAGE_LIMIT,
    START_S,
    HasMeta,
    Pulse,
    addressed,
    cpu_s,
    inside,
    launch,
    prepare_home,
)
from parallax.agents.clients.failures import AUTH_REQUIRED, failure, hidden_in
from parallax.agents.clients.report import has_marks, read_report
from parallax.agents.clients.wire import CHUNK, FrameTransport, Tail
from parallax.errors import AgentCrashed, AgentError, AgentStalled, EmptyTurn, ProtocolViolation, ProviderLimited
from parallax.models import Progress, Question, Task, TaskResult, Usage, new_id
from parallax.ports import TOOLS_NAME, AgentCLI, AgentProcess, AgentRuntime, AgentSession, ToolsDoor, Vitals

WAITING: Final = 1_000  # shown items that wait for the reader of a turn before the agent is read no further
JOINED: Final = 8_192  # characters up to which streamed pieces of text are joined while they wait

T = TypeVar("T")


class _Turn:
    """What a running turn has shown and asked. Read by `turn`, fed by the connection."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.started = time.monotonic()
        self.failure: AgentError | None = None
        self.message = ""
        self.tools = 0
        self.cost: int | None = None
        self.tokens: shapes.Tokens = (0, 0, 0)  # of agents that tell them call by call
        self.denied: list[str] = []
        self._items: deque[Progress | Question] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._message_id: object = None
        self._fresh = True
        self._titles: dict[str, str] = {}

    def show(self, item: Progress | Question) -> None:
        """Take an item in; streamed text is joined to the piece before it."""
        last = self._items[-1] if self._items else None
        if (
            isinstance(item, Progress)
            and isinstance(last, Progress)
            and item.kind == last.kind in {"output", "thought"}
            and item.data == last.data
            and len(last.text) < JOINED
        ):
            self._items[-1] = Progress(kind=item.kind, text=last.text + item.text, data=item.data)
        else:
            self._items.append(item)
        if len(self._items) >= WAITING:
            self._room.clear()
        self._filled.set()

    def progress(self, item: Progress) -> None:
        """Note what counts for the result, then show it."""
        match item.kind:
            case "output" | "thought" if not item.text:
                return
            case "output":
                self._hear(item)
            case "tool":
                item = self._name_tool(item)
                self._fresh = True  # text after a tool is a new message, whatever its id
            case "usage":
                self.cost = item.data.get("cost", self.cost)
            case _:
                self._fresh = True
        self.show(item)

    def _hear(self, item: Progress) -> None:
        message_id = item.data["message"]
        if self._fresh or (message_id is not None and message_id != self._message_id):
            self.message = ""
        self._fresh = False
        self._message_id = message_id
        self.message = (self.message + item.text)[-MESSAGE_LIMIT:]

    def _name_tool(self, item: Progress) -> Progress:
        identifier = item.data["id"]
        if identifier not in self._titles:
            self.tools += 1
        if item.text:
            self._titles[identifier] = item.text[:200]
        return Progress(kind="tool", text=item.text or self._titles.get(identifier, ""), data=item.data)

    def fail(self, error: AgentError) -> None:
        """End the turn with an error."""
        self.failure = self.failure or error
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        self._filled.set()

    def take(self) -> Progress | Question | None:
        """The next item for the reader."""
        self._filled.clear()
        self._room.set()
        return self._items.popleft() if self._items else None

    async def filled(self) -> None:
        """Wait for an item or the end."""
        await self._filled.wait()

    def end(self) -> None:
        """Nobody reads any more: do not hold the agent back."""
        self._room.set()

    async def room(self) -> None:
        """Wait until the reader has caught up: the agent's own pipe then holds it back."""
        await self._room.wait()


class AcpClient:
    """One agent process that speaks ACP, with one session."""

    def __init__(
        self,
        *,
        runtime: AgentRuntime,
        cli: AgentCLI,
        session: AgentSession,
        program: str,
        version: str | None = None,
        start_s: float = START_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._runtime = runtime
        self._cli = cli
        self._session = session
        self._inside = inside(runtime, cli, session)
        self._program = program
        self.version = version
        self._start_s = start_s
        self._grace_s = grace_s
        self._process: AgentProcess | None = None
        self._connection: ClientSideConnection | None = None
        self._session_id: str | None = None
        self._exit: asyncio.Task[int] | None = None
        self._errors: asyncio.Task[None] | None = None
        self._turn: _Turn | None = None
        self._questions: dict[str, asyncio.Future[str | None]] = {}
        self._pulse = Pulse()
        self._last_words = Tail()
        self._cost = 0
        self._unfit: AgentError | None = None
        self._closed = False

    # --- open and close -----------------------------------------------------------------------------------------------

    async def open(self) -> str | None:
        """Start the process, greet it, begin or continue a session; returns the session's id."""
        prepare_home(self._cli, self._session, self._inside)
        spec = launch(self._runtime, self._cli, self._session, self._program)
        self._process = process = await self._runtime.start(spec)
        self._exit = asyncio.create_task(process.wait(), name=f"exit of {self._session.agent_id}")
        self._errors = asyncio.create_task(self._read_errors(process), name=f"stderr of {self._session.agent_id}")
        transport = FrameTransport(
            process,
            DEFAULT_STDIO_BUFFER_LIMIT_BYTES,
            self._on_update,
            self._pulse.heard,
            self._on_violation,
            self._last_words,
        )
        # Unstable is what the package still calls elicitation, which the protocol has declared stable.
        self._connection = connect_to_agent(cast(Client, _Callbacks(self)), transport, use_unstable_protocol=True)
        try:
            async with asyncio.timeout(self._start_s):
                greeting = await self._asked(self._greet())
                self._session_id = await self._asked(self._begin(greeting))
                if self._cli.quirks.mode:
                    mode = self._connection.set_session_mode(session_id=self._session_id, mode_id=self._cli.quirks.mode)
                    await self._asked(mode)
        except TimeoutError:
            await self.close()
            raise AgentStalled(
                f"The agent '{self._session.type}' did not answer within {self._start_s:g} s of its start{self._says()}"
            ) from None
        except BaseException:
            await self.close()
            raise
        return self._session_id

    async def _greet(self) -> InitializeResponse:
        assert self._connection is not None
        greeting = await self._connection.initialize(
            protocol_version=PROTOCOL_VERSION,
            client_capabilities=ClientCapabilities(
                fs=FileSystemCapabilities(read_text_file=False, write_text_file=False),
                terminal=False,
                elicitation=ElicitationCapabilities(form=ElicitationFormCapabilities()),
            ),
            client_info=Implementation(name="parallax", title="Parallax", version=__version__),
        )
        if greeting.protocol_version != PROTOCOL_VERSION:
            raise ProtocolViolation(
                f"The agent '{self._session.type}' speaks version {greeting.protocol_version} of the Agent Client "
                f"Protocol, Parallax speaks {PROTOCOL_VERSION}"
            )
        if self._cli.quirks.auth is not None:
            await self._connection.authenticate(method_id=self._cli.quirks.auth)
        if greeting.agent_info is not None:
            self.version = self.version or greeting.agent_info.version
        return greeting

    async def _begin(self, greeting: InitializeResponse) -> str:
        """Continue the known session where the CLI can, else begin one: the id that comes back tells which it was."""
        assert self._connection is not None
        cwd, known = str(self._inside.tree), self._session.cli_session
        meta: dict[str, Any] = dict(self._cli.meta(self._inside)) if isinstance(self._cli, HasMeta) else {}
        can, resume = greeting.agent_capabilities, self._cli.quirks.resume
        servers = [] if self._cli.quirks.own_tools else _tool_servers(self._inside.tools, can)
        try:
            if known and can and resume == "load" and can.load_session:
                await self._connection.load_session(cwd=cwd, session_id=known, mcp_servers=servers, **meta)
                return known
            if known and can and resume == "resume" and can.session_capabilities and can.session_capabilities.resume:
                await self._connection.resume_session(cwd=cwd, session_id=known, mcp_servers=servers, **meta)
                return known
        except RequestError as error:
            if error.code == AUTH_REQUIRED:
                raise
            # It forgot the session; the work begins anew rather than never.
        return (await self._connection.new_session(cwd=cwd, mcp_servers=servers, **meta)).session_id

    async def close(self) -> None:
        """End the agent and leave no process behind. Safe to call at any time and twice."""
        self._closed = True
        self._withdraw_questions()
        if self._process is not None:
            grace = self._grace_s if self._cli.quirks.exits_on_eof else min(self._grace_s, 1.0)
            await asyncio.shield(self._process.stop(grace))
        if self._connection is not None:
            await self._connection.close()
        for task in (self._errors, self._exit):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # --- turns --------------------------------------------------------------------------------------------------------

    async def turn(self, task: Task) -> AsyncGenerator[Progress | Question | TaskResult, None]:
        """One turn; the last item is the TaskResult."""
        if self._turn is not None:
            raise RuntimeError("an agent does one turn at a time")
        if not self.alive:
            raise self._unfit or await self._death("before its turn")
        turn = self._turn = _Turn(addressed(task, self._inside))
        self._pulse.heard()
        prompt = asyncio.create_task(self._prompt(turn.task), name=f"turn of {self._session.agent_id}")
        prompt.add_done_callback(lambda _: turn.wake())
        try:
            while turn.failure is None:
                item = turn.take()
                if item is not None:
                    yield item
                elif prompt.done():
                    break
                else:
                    await turn.filled()
            if turn.failure is not None:
                raise turn.failure
            result = self._result(turn, await prompt)
        finally:
            self._turn = None
            turn.end()
            self._withdraw_questions()
            if not prompt.done():
                # The agent still works on it, so its next words would be taken for the next turn's.
                self._unfit = self._unfit or turn.failure or AgentError("The agent's last turn was abandoned")
                prompt.cancel()
            await asyncio.gather(prompt, return_exceptions=True)
        yield result  # after the turn is over: a reader that stops here leaves nothing open

    async def _prompt(self, task: Task) -> PromptResponse:
        assert self._connection is not None
        assert self._session_id is not None
        meta = {"parallax.task": task.id}
        prompt = self._connection.prompt(session_id=self._session_id, prompt=[text_block(task.text)], **meta)
        return await self._asked(prompt)

    def _result(self, turn: _Turn, response: PromptResponse) -> TaskResult:
        stop, tokens = str(response.stop_reason), response.usage
        silent = not turn.message.strip() and not turn.tools
        if stop == "end_turn" and self._cli.quirks.end_turn_hides_limit:
            if hidden := hidden_in(turn.message):
                raise hidden
            if tokens is None and silent:
                raise ProviderLimited(
                    "The agent ended its turn at once and used nothing: a rate limit shows so with it"
                )
            if tokens is None and not turn.tools and not has_marks(turn.message):
                raise failure(turn.message)
        if stop == "end_turn" and silent:
            raise EmptyTurn("The agent ended its turn without a word or a deed")
        report = read_report(turn.message, turn.task.schema if stop == "end_turn" else None)
        spent = 0 if turn.cost is None else max(0, turn.cost - self._cost)
        self._cost = self._cost if turn.cost is None else turn.cost
        input_tokens, output_tokens, cached_tokens = shapes.tokens_of(tokens, response.field_meta) or turn.tokens
        usage = Usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_tokens=cached_tokens,
            cost=spent,
            turns=1,
            wall_s=round(time.monotonic() - turn.started, 3),
            priced="estimated" if turn.cost is None else "reported",
        )
        return TaskResult(
            task_id=turn.task.id,
            attempt=turn.task.attempt,
            agent_id=self._session.agent_id,
            value=report.value,
            message=turn.message,
            stop=stop,
            reported=report.confidence,
            session_ref=self._session_id,
            usage=usage,
            denied=tuple(turn.denied),
        )

    async def cancel(self) -> None:
        """Ask the agent to end the running turn: it then ends with stop `cancelled`."""
        self._withdraw_questions()
        if self._connection is not None and self._session_id is not None and self.alive:
            with contextlib.suppress(ConnectionError, AgentCrashed):
                await self._connection.cancel(session_id=self._session_id)

    # --- questions ----------------------------------------------------------------------------------------------------

    async def answer(self, question_id: str, answer: str) -> None:
        """Answer a question of the running turn; one that was withdrawn meanwhile is no error."""
        waiting = self._questions.get(question_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def ask(
        self,
        kind: str,
        text: str,
        options: tuple[dict[str, str], ...] | tuple[Any, ...] = (),
        topic: str | None = None,
        default: str | None = None,
    ) -> str | None:
        """Put a question of the agent into the turn and wait; None when it was withdrawn, or nobody reads the turn."""
        if (turn := self._turn) is None:
            return None
        question = Question(
            id=new_id(),
            execution=turn.task.execution,
            step_key=turn.task.step_key,
            asker=self._session.agent_id,
            kind=kind,
            text=text,
            topic=topic,
            options=options,
            default=default,
        )
        waiting: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._questions[question.id] = waiting
        turn.show(question)
        try:
            return await waiting
        finally:
            self._questions.pop(question.id, None)
            self._pulse.heard()  # the time it waited for us is not its silence

    def deny(self, title: str) -> None:
        """Note a permission that was refused in this turn."""
        if self._turn is not None:
            self._turn.denied.append(title)

    def _withdraw_questions(self) -> None:
        for waiting in self._questions.values():
            if not waiting.done():
                waiting.set_result(None)

    # --- signs of life ------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether another turn can be asked of it."""
        running = self._session_id is not None and self._exit is not None and not self._exit.done()
        return running and not self._closed and self._unfit is None

    @property
    def resumable(self) -> str | None:
        """The session's id, where the CLI can go on with it in another process."""
        return self._session_id if self._cli.quirks.resume != "none" else None

    def vitals(self) -> Vitals:
        """What is seen of the agent now."""
        ended = self._exit is not None and self._exit.done() and not self._exit.cancelled()
        return self._pulse.vitals(
            self._last_words,
            claimed=self._turn is not None and has_marks(self._turn.message),
            exit_code=self._exit.result() if self._exit is not None and ended else None,
        )

    def cpu_s(self) -> float:
        """Processor time of its process tree."""
        return cpu_s(self._process)

    def claim(self) -> TaskResult | None:
        """The result of a turn whose last message is a whole report, as if the agent had ended it."""
        turn = self._turn
        if turn is None or not has_marks(turn.message):
            return None
        try:
            return self._result(turn, PromptResponse(stop_reason="end_turn"))
        except AgentError:
            return None

    @property
    def pid(self) -> int | None:
        """The process, for people who look."""
        pid = self._process.handle.get("pid") if self._process is not None else None
        return int(pid) if pid else None

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _asked(self, request: Awaitable[T]) -> T:
        """Wait for an answer; everything that can go wrong becomes one of our errors."""
        try:
            return await request
        except RequestError as error:
            raise failure(str(error), error.data, error.code) from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ProtocolViolation(
                f"The agent's answer does not fit the protocol at {place}: {first['msg']}"
            ) from None
        except (ConnectionError, AgentCrashed):
            raise await self._death("in mid-turn" if self._turn else "at its start") from None

    async def _death(self, when: str) -> AgentCrashed:
        """Its end in words: exit code or signal, and the last it said."""
        if self._closed:
            return AgentCrashed("The agent was stopped")
        assert self._exit is not None
        assert self._errors is not None
        await asyncio.wait({self._exit, self._errors}, timeout=2.0)
        if not self._exit.done():
            how = "closed its output"
        elif (code := self._exit.result()) < 0:
            how = f"was killed by signal {-code}"
        else:
            how = f"ended with exit code {code}"
        return AgentCrashed(f"The agent '{self._session.type}' {how} {when}{self._says()}")

    def _says(self) -> str:
        words = self._last_words.lines()
        return f"; its last words: {words}" if words else ""

    async def _read_errors(self, process: AgentProcess) -> None:
        while chunk := await process.read_err(CHUNK):
            self._last_words.add(chunk)
            self._pulse.heard()

    async def _on_update(self, update: dict[str, Any]) -> None:
        if (turn := self._turn) is None:
            return  # the replay of a loaded session, or what comes after a turn
        if (told := shapes.call_tokens(update)) is not None:
            turn.tokens = shapes.added(turn.tokens, told)
        if (item := shapes.progress_of(update)) is not None:
            turn.progress(item)
            await turn.room()

    def _on_violation(self, error: ProtocolViolation) -> None:
        self._unfit = self._unfit or error
        if self._turn is not None:
            self._turn.fail(error)


class _Callbacks:
    """What the package calls: the agent's requests. Only those of advertised capabilities exist."""

    def __init__(self, client: AcpClient) -> None:
        self._client = client

    async def request_permission(self, session_id: str, tool_call: Any, options: list[Any], **_: Any) -> dict[str, Any]:
        """Ask whoever reads the turn; no answer leaves the tool call undone."""
        del session_id
        offered = [(option.option_id, option.name, str(option.kind)) for option in options]
        text = shapes.permission_text(tool_call.title, tool_call.raw_input)
        reject = next((identifier for identifier, _, kind in offered if kind.startswith("reject")), None)
        answer = await self._client.ask(
            "permission",
            text,
            tuple({"id": identifier, "label": label, "kind": kind} for identifier, label, kind in offered),
            topic=str(tool_call.kind) if tool_call.kind else None,
            default=reject,
        )
        chosen = None if answer is None else shapes.chosen_option(offered, answer)
        kind = next((kind for identifier, _, kind in offered if identifier == chosen), "")
        if not kind.startswith("allow"):
            self._client.deny(text)
        if chosen is None:
            return {"outcome": {"outcome": "cancelled"}}
        return {"outcome": {"outcome": "selected", "optionId": chosen}}

    async def create_elicitation(self, message: str, mode: Any, **meta: Any) -> dict[str, Any]:
        """A structured question. Only forms are advertised; a link to click is declined."""
        requested = getattr(mode, "requested_schema", None)
        if requested is None:
            return {"action": "decline"}
        schema = requested.model_dump(mode="json", by_alias=True, exclude_none=True)
        topic = meta.get("parallax.topic")
        answer = await self._client.ask(
            "question",
            shapes.form_text(message, schema),
            shapes.form_options(schema),
            topic=str(topic) if topic else None,
        )
        if answer is None:
            return {"action": "cancel"}
        return {"action": "accept", "content": shapes.form_content(schema, answer)}

    async def complete_elicitation(self, elicitation_id: str, **_: Any) -> None:
        """Belongs to links, which are declined."""

    async def ext_method(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Extensions of single vendors: none is known."""
        del params
        raise RequestError.method_not_found(f"_{method}")

    async def ext_notification(self, method: str, params: dict[str, Any]) -> None:
        """Unknown extensions are ignored."""


def _tool_servers(door: ToolsDoor | None, can: AgentCapabilities | None) -> list[Any]:
    """The team tools as the protocol names MCP servers; none for an agent that does not speak MCP over HTTP."""
    if door is None or can is None or can.mcp_capabilities is None or not can.mcp_capabilities.http:
        return []
    key = HttpHeader(name="Authorization", value=f"Bearer {door.token.reveal()}")
    return [HttpMcpServer(type="http", name=TOOLS_NAME, url=door.url, headers=[key])]
