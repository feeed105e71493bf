"""The client for agents that run by themselves and are asked over HTTP: registered ones, whoever runs them.

`GET /health` says that one is there; `POST /execute` with `{taskId, description, data, timeout}` (milliseconds) is a
turn, answered with `{taskId, result, confidence, reasoning}`. An agent that wants to show what it does answers with
`application/x-ndjson` instead: lines of `{"output": text}`, the last of them the answer. A byte is its sign of life.

Nothing it sends is trusted: no redirect is followed, a size is never believed, and where no operator registered the
endpoint, an address of this host or its networks is not connected to, whatever its name resolved to.
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Final

import aiohttp
import orjson

from parallax.agents.clients.common import MESSAGE_LIMIT, START_S, Pulse
from parallax.agents.clients.failures import short
from parallax.agents.clients.wire import CHUNK, Lines, Tail
from parallax.agents.gateway.egress import is_public
from parallax.errors import (
    AgentCrashed,
    AgentError,
    AgentUnavailable,
    EmptyTurn,
    LoginNeeded,
    ProtocolViolation,
    ProviderLimited,
)
from parallax.models import Progress, Question, Task, TaskResult, Usage
from parallax.ports import AgentSession, Vitals

BODY_LIMIT: Final = 8 * 1024 * 1024  # bytes of an answer, and of one line of a stream
STREAM_LIMIT: Final = 256 * 1024 * 1024  # bytes of all lines of a stream
CONNECT_S: Final = 10.0
NDJSON: Final = "application/x-ndjson"


class NotPublic(OSError):
    """The endpoint's name stands for an address of this host or its networks."""


class HttpClient:
    """One registered agent. `private` allows addresses that are not public: an operator named the endpoint."""

    def __init__(self, *, endpoint: str, session: AgentSession, private: bool, start_s: float = START_S) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._session = session
        self._start_s = start_s
        self._private = private
        self._http: aiohttp.ClientSession | None = None
        self._pulse = Pulse()
        self._asking: asyncio.Task[None] | None = None
        self._cancelled = False
        self._closed = False
        self.version: str | None = None

    async def open(self) -> str | None:
        """Ask for its health. There is no session of its own to go on with."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "parallax"},
        )
        try:
            async with asyncio.timeout(self._start_s), self._http.get(self._url("health"), allow_redirects=False) as r:
                status = r.status
        except TimeoutError:
            await self.close()
            raise AgentUnavailable(f"{self._named} did not answer /health within {self._start_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            await self.close()
            raise AgentUnavailable(f"{self._named} cannot be reached: {_cause(error)}") from None
        if status != 200:
            await self.close()
            raise AgentUnavailable(f"{self._named} is not well: /health answers {status}")
        return None

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The address is judged here, where it is connected to: a name may resolve to another one each time."""
        family, kind, protocol, _, address = info
        if not self._private and not is_public(str(address[0])):
            raise NotPublic(f"{address[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    # --- turns --------------------------------------------------------------------------------------------------------

    async def turn(self, task: Task) -> AsyncGenerator[Progress | Question | TaskResult, None]:
        """One turn; the last item is the TaskResult."""
        if self._asking is not None:
            raise RuntimeError("an agent does one turn at a time")
        if self._http is None or self._closed:
            raise AgentCrashed("The agent was stopped")
        self._cancelled = False
        self._pulse.heard()
        started = time.monotonic()
        shown: asyncio.Queue[Progress | TaskResult | AgentError | None] = asyncio.Queue(maxsize=100)
        self._asking = asyncio.create_task(self._ask(self._http, task, shown), name=f"turn of {self._session.agent_id}")
        try:
            while (item := await shown.get()) is not None:
                if isinstance(item, AgentError):
                    raise item
                if isinstance(item, Progress):
                    yield item
                else:
                    result = item
                    break
            else:
                result = self._result(task, None, "", None, "cancelled")
        finally:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
            self._asking = None
        yield replace(result, usage=Usage(turns=1, wall_s=round(time.monotonic() - started, 3)))

    async def _ask(
        self, http: aiohttp.ClientSession, task: Task, shown: asyncio.Queue[Progress | TaskResult | AgentError | None]
    ) -> None:
        """The request, in a task of its own so that it can be given up; what it shows goes into the queue."""
        body = {
            "taskId": task.id,
            "description": task.text,
            "data": {
                "execution": task.execution,
                "step": task.step_key,
                "role": task.role,
                "attempt": task.attempt,
                "schema": task.schema,
            },
            "timeout": round(task.timeout_s * 1000),
        }
        try:
            async with http.post(
                self._url("execute"),
                data=orjson.dumps(body),
                headers={"Content-Type": "application/json", "Accept": f"application/json, {NDJSON}"},
                allow_redirects=False,
            ) as response:
                self._pulse.heard()
                await self._refuse(response)
                if response.content_type == NDJSON:
                    await self._stream(response, task, shown)
                else:
                    await shown.put(self._answer(task, _document(await self._whole(response))))
        except asyncio.CancelledError:
            if not self._cancelled:
                raise
            await shown.put(None)
        except AgentError as error:
            await shown.put(error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await shown.put(AgentCrashed(f"{self._named} broke off in mid-turn: {_cause(error)}"))

    async def _stream(
        self,
        response: aiohttp.ClientResponse,
        task: Task,
        shown: asyncio.Queue[Progress | TaskResult | AgentError | None],
    ) -> None:
        lines, total, ready = Lines(BODY_LIMIT), 0, list[bytes]()
        async for chunk in response.content.iter_chunked(CHUNK):
            self._pulse.heard()
            total += len(chunk)
            ready = lines.feed(chunk)
            if lines.overlong or total > STREAM_LIMIT:
                raise ProtocolViolation(f"{self._named} sends without end: {total} bytes, and no answer")
            for line in filter(bytes.strip, ready):
                document = _document(line)
                if not isinstance(text := document.get("output"), str):
                    return await shown.put(self._answer(task, document))
                await shown.put(Progress(kind="output", text=text, data={"message": None}))
        raise AgentCrashed(f"{self._named} ended its answer without a result")

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK):
            self._pulse.heard()
            body += chunk
            if len(body) > BODY_LIMIT:
                raise ProtocolViolation(f"{self._named} sent an answer of more than {BODY_LIMIT >> 20} MiB")
        return bytes(body)

    async def _refuse(self, response: aiohttp.ClientResponse) -> None:
        """Raise what a status that is not 200 means."""
        status = response.status
        if status == 200:
            return
        said = f"{self._named} answers {status}"
        if 300 <= status < 400:
            raise ProtocolViolation(f"{said}, a redirect, and none is followed: register the endpoint itself")
        try:
            async with asyncio.timeout(CONNECT_S):
                said += f": {short((await response.content.read(2_000)).decode('utf-8', 'replace'))}"
        except (aiohttp.ClientError, OSError, TimeoutError):
            pass  # its status is enough
        if status in {401, 403}:
            raise LoginNeeded(said)
        if status in {429, 503}:
            after = response.headers.get("Retry-After", "")
            raise ProviderLimited(said, time.time() + int(after) if after.isascii() and after.isdigit() else None)
        raise AgentUnavailable(said) if status < 500 else AgentCrashed(said)

    def _answer(self, task: Task, document: dict[str, Any]) -> TaskResult:
        if document.get("taskId") != task.id:
            raise ProtocolViolation(f"{self._named} answers for the task {short(str(document.get('taskId')))!r}")
        value, reasoning = document.get("result"), str(document.get("reasoning") or "")
        if value is None and not reasoning.strip():
            raise EmptyTurn(f"{self._named} ended its turn without a result or a word")
        confidence = document.get("confidence")
        if confidence is not None and not _is_share(confidence):
            raise ProtocolViolation(f"{self._named} reported the confidence {confidence!r}; it must be from 0 to 1")
        said = [part for part in (reasoning, value if isinstance(value, str) else "") if part]
        message = "\n\n".join(said)[-MESSAGE_LIMIT:]
        return self._result(task, value, message, None if confidence is None else float(confidence), "end_turn")

    def _result(self, task: Task, value: Any, message: str, reported: float | None, stop: str) -> TaskResult:
        return TaskResult(
            task_id=task.id,
            attempt=task.attempt,
            agent_id=self._session.agent_id,
            value=value,
            message=message,
            stop=stop,
            reported=reported,
        )

    # --- the rest of a client -----------------------------------------------------------------------------------------

    async def answer(self, question_id: str, answer: str) -> None:
        """Nothing was asked."""

    async def cancel(self) -> None:
        """Break the request off; the turn then ends with stop `cancelled`."""
        if self._asking is not None:
            self._cancelled = True
            self._asking.cancel()

    async def close(self) -> None:
        """Let it be: it runs by itself."""
        self._closed = True
        await self.cancel()
        if self._http is not None:
            await self._http.close()

    @property
    def alive(self) -> bool:
        """Whether another turn can be asked of it."""
        return self._http is not None and not self._closed

    @property
    def resumable(self) -> str | None:
        """It keeps no session for us."""
        return None

    def vitals(self) -> Vitals:
        """A byte is all that is seen of it."""
        return self._pulse.vitals(Tail(), exit_code=None)

    def cpu_s(self) -> float:
        """It is no process of ours."""
        return 0.0

    def claim(self) -> TaskResult | None:
        """Its answer ends its turn."""
        return None

    @property
    def pid(self) -> int | None:
        """It is no process of ours."""
        return None

    @property
    def _named(self) -> str:
        return f"The agent '{self._session.type}' at {self._endpoint}"

    def _url(self, path: str) -> str:
        return f"{self._endpoint}/{path}"


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(data)  # strict: NaN is none of its numbers
    except orjson.JSONDecodeError as error:
        raise ProtocolViolation(f"The agent's answer is not JSON: {error} in {data[:80]!r}") from None
    if not isinstance(document, dict):
        raise ProtocolViolation(f"The agent's answer is no JSON object: {data[:80]!r}")
    return document


def _is_share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1


def _cause(error: BaseException) -> str:
    return short(str(error)) or type(error).__name__
