"""Notifier: a person hears that a question waits. It runs the operator's own command, with the question on its input.

The desk rings it whenever a question reaches a person. `PARALLAX_NOTIFY_COMMAND` is split as a shell would split it but
never run by one; it gets one JSON document on standard input, with a link that answers this one question once. What the
command does, prints or fails at never touches the execution: it is one event.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import signal
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

import orjson

from parallax.errors import ParallaxError
from parallax.events import Event
from parallax.models import Json, Question
from parallax.redaction import Secret
from parallax.telemetry import logger

LIMIT_S: Final = 20.0
OUTPUT_B: Final = 4096
AT_ONCE: Final = 4
_log = logger("notify")


class AnswerLinks:
    """Signed links, each of which answers one question.

    The signature is over the question's id, which is never given twice; a question can be answered once and until its
    deadline, so a link works once and no longer.
    """

    def __init__(self, key: Secret) -> None:
        self._key = hashlib.sha256(b"parallax answer links\0" + key.reveal().encode()).digest()

    def token(self, question_id: str) -> str:
        """What opens the answer of a question."""
        signed = hmac.new(self._key, question_id.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(signed).rstrip(b"=").decode()

    def opens(self, question_id: str, token: str) -> bool:
        """Whether a token is this question's."""
        return hmac.compare_digest(self.token(question_id).encode(), token.encode(errors="replace"))

    def path(self, question_id: str) -> str:
        """The link, from the server's address on."""
        return f"/api/questions/{question_id}/answer?token={self.token(question_id)}"


class Notifier:
    """Runs the command. `async with` it: what still runs at the end is ended."""

    def __init__(
        self, command: tuple[str, ...], links: AnswerLinks, *, address: Callable[[], Awaitable[str]],
        tell: Callable[[Event], Awaitable[None]], limit_s: float = LIMIT_S,
    ) -> None:  # fmt: skip
        self._command = command
        self._links = links
        self._address = address
        self._tell = tell
        self._limit_s = limit_s
        self._group = asyncio.TaskGroup()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def ring(self, question: Question) -> None:
        """Tell a person of a question; returns at once and never fails."""
        task = self._group.create_task(self._told(question), name=f"notify of {question.id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _told(self, question: Question) -> None:
        async with self._places:
            try:
                cause = await self._run(orjson.dumps(await self._message(question)))
                if cause is not None:
                    _log.warning("PARALLAX_NOTIFY_COMMAND failed", question=question.id, cause=cause)
                data = {"id": question.id, "cause": cause}
                await self._tell(
                    Event(execution=question.execution, type="question.notified", step_key=question.step_key, data=data)
                )
            except ParallaxError as error:
                _log.error("a notification could not be recorded", question=question.id, cause=str(error))

    async def _message(self, question: Question) -> Json:
        return {
            "id": question.id,
            "execution": question.execution,
            "step": question.step_key,
            "asker": question.asker,
            "kind": question.kind,
            "topic": question.topic,
            "text": question.text,
            "options": [
                {"id": option["id"], "label": option.get("label") or option["id"]} for option in question.options
            ],
            "default": question.default,
            "deadline_at": question.deadline_at,
            "answer_url": await self._address() + self._links.path(question.id),
        }

    async def _run(self, message: bytes) -> str | None:
        """Run the command with the message; returns what went wrong."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return f"it cannot be started: {error.strerror or error}"
        output = bytearray()
        try:
            async with asyncio.timeout(self._limit_s):
                await _converse(process, message, output)
                code = await process.wait()
        except TimeoutError:
            return f"it did not end within {self._limit_s:g} s and was ended"
        finally:
            await _ended(process)
        said = output.decode("utf-8", "replace").strip()
        return None if code == 0 else f"it ended with exit code {code}{': ' + said if said else ''}"


async def _converse(process: asyncio.subprocess.Process, message: bytes, output: bytearray) -> None:
    """Write the message and read on to the end; of what the command prints, only the beginning is kept."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(ConnectionError):  # it need not read it
        process.stdin.write(message)
        await process.stdin.drain()
    process.stdin.close()
    while chunk := await process.stdout.read(OUTPUT_B):
        output += chunk[: max(0, OUTPUT_B - len(output))]


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Leave nothing behind: neither the command nor what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    waiting: asyncio.Future[Any] = asyncio.ensure_future(process.wait())
    await asyncio.shield(waiting)
