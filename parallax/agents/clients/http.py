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
from typing import Any, Final, TypeAlias

import aiohttp
import orjson

from parallax.agents.clients.common import MESSAGE_LIMIT, START_S, Pulse
from parallax.agents.clients.failures import short
from parallax.agents.clients.wire import CHUNK, Lines, Tail
from parallax.agents.gateway.accounts import LONGEST_S, reset_of
from parallax.agents.gateway.egress import is_public
from parallax.errors import (
    AgentCrashed,
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
WAITING: Final = 100  # shown pieces that wait for the reader of a turn before the agent is read no further
NDJSON: Final = "application/x-ndjson"

Shown: TypeAlias = asyncio.Queue[Progress | None]  # None: the request has ended


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
        self._asking: asyncio.Task[TaskResult] | None = None
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
        self._pulse.heard()
        started = time.monotonic()
        shown: Shown = asyncio.Queue()
        asking = asyncio.create_task(self._ask(self._http, task, shown), name=f"turn of {self._session.agent_id}")
        asking.add_done_callback(lambda _: shown.put_nowait(None))  # whatever it ended by
        self._asking = asking
        try:
            while (item := await shown.get()) is not None:
                yield item
                shown.task_done()
            cancelled = asking.cancelled()
            result = self._result(task, None, "", None, "cancelled") if cancelled else asking.result()
        finally:
            self._asking = None
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        yield replace(result, usage=Usage(turns=1, wall_s=round(time.monotonic() - started, 3)))

    async def _ask(self, http: aiohttp.ClientSession, task: Task, shown: Shown) -> TaskResult:
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
                    return await self._stream(response, task, shown)
                return self._answer(task, _document(await self._whole(response)))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AgentCrashed(f"{self._named} broke off in mid-turn: {_cause(error)}") from None

    async def _stream(self, response: aiohttp.ClientResponse, task: Task, shown: Shown) -> TaskResult:
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
                    return self._answer(task, document)
                shown.put_nowait(Progress(kind="output", text=text, data={"message": None}))
                if shown.qsize() >= WAITING:
                    await shown.join()
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
            raise ProviderLimited(said, _reset(response.headers.get("Retry-After", "")))
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


def _reset(after: str) -> float | None:
    """The unix time that Retry-After names; None without one that can be believed."""
    now = time.time()
    at = reset_of({"retry-after": after}, b"", now)
    return at if at is not None and at - now <= LONGEST_S else None


def _cause(error: BaseException) -> str:
    return short(str(error)) or type(error).__name__
