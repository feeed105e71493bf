"""Frames of JSON-RPC on the streams of an agent's process, and the last words it wrote beside them.

`FrameTransport` is what the protocol package gets instead of its own stream transport, for three reasons: it reads
through our AgentProcess wherever that runs; whatever a broken program prints is skipped or named, in bounded memory,
where the package would log a traceback or lose its receive loop; and session updates, nearly all of the traffic, go
straight to the turn in order, without a model and a task for each.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

import orjson

from parallax.errors import AgentCrashed, ProtocolViolation
from parallax.ports import AgentProcess

CHUNK: Final = 65_536
NOISE_LIMIT: Final = 10_000_000  # bytes that are no frames before the agent is given up


class Lines:
    """Cuts chunks into lines. A line over the limit is thrown away while it comes; `overlong` counts those."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._partial = bytearray()
        self._skipping = False
        self.overlong = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes, without their ends."""
        *ends, rest = chunk.split(b"\n")
        lines = []
        for end in ends:
            if not self._skipping:
                lines.append(bytes(self._partial) + end if self._partial else end)
            self._partial.clear()
            self._skipping = False
        if not self._skipping:
            self._partial += rest
            if len(self._partial) > self._limit:
                self._partial = bytearray()
                self._skipping = True
                self.overlong += 1
        return lines

    def rest(self) -> bytes:
        """What came after the last end of a line: the half frame of a program that died."""
        return bytes(self._partial)


class Tail:
    """The last bytes of a stream, for the message that says how it died."""

    def __init__(self, limit: int = 8_192) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self.added_at = 0.0  # time.monotonic

    def add(self, data: bytes) -> None:
        """Keep the end of all that came."""
        self.added_at = time.monotonic()
        self._bytes += data[-self._limit :]
        del self._bytes[: -self._limit]

    def lines(self, count: int = 5) -> str:
        """The last lines that say something."""
        text = self._bytes.decode("utf-8", "replace").replace("\0", "")
        return "\n".join([line.rstrip() for line in text.splitlines() if line.strip()][-count:])


class FrameTransport:
    """The package's `Transport` on an AgentProcess. One reader; sending is safe from any task."""

    def __init__(
        self,
        process: AgentProcess,
        limit: int,
        on_update: Callable[[dict[str, Any]], Awaitable[None]],
        on_heard: Callable[[], None],
        on_violation: Callable[[ProtocolViolation], None],
        last_words: Tail,
    ) -> None:
        self._process = process
        self._lines = Lines(limit)
        self._limit = limit
        self._ready: deque[bytes] = deque()
        self._on_update = on_update
        self._on_heard = on_heard
        self._on_violation = on_violation
        self._last_words = last_words
        self._noise = 0

    async def send(self, message: dict[str, Any]) -> None:
        """One frame. An answer to a process that is gone is dropped: whoever reads learns of its death."""
        try:
            await self._process.write(orjson.dumps(message) + b"\n")
        except AgentCrashed:
            if "method" in message:
                raise

    async def receive(self) -> dict[str, Any] | None:
        """The next request or answer; None at the end. Updates are delivered on the way."""
        while True:
            while self._ready:
                message = self._frame(self._ready.popleft())
                if message is None:
                    continue
                if "id" in message:
                    return message
                # Of the notifications only updates mean something to us; the package would log the unknown ones.
                update = (message.get("params") or {}).get("update")
                if message["method"] == "session/update" and isinstance(update, dict):
                    await self._on_update(update)
            chunk = await self._process.read_out(CHUNK)
            if not chunk:
                self._last_words.add(self._lines.rest()[-200:])
                return None
            self._on_heard()
            self._ready.extend(self._lines.feed(chunk))
            if self._lines.overlong:
                self._lines.overlong = 0
                self._on_violation(ProtocolViolation(f"The agent sent a line of more than {self._limit >> 20} MiB"))

    async def close(self) -> None:
        """Nothing of its own to close: the client stops the process."""

    def _frame(self, line: bytes) -> dict[str, Any] | None:
        message = read_frame(line)
        if message is None and line.strip():
            self._last_words.add(line[:200] + b"\n")
            self._noise += len(line)
            if self._noise > NOISE_LIMIT:
                self._noise = 0
                self._on_violation(ProtocolViolation(f"The agent sends no frames but noise: {line[:80]!r}"))
        return message


def read_frame(line: bytes) -> dict[str, Any] | None:
    """A JSON-RPC message of a shape that the package can take, or None: banners, colours, NULs and halves are none."""
    start = line.find(b"{")
    if start < 0:
        return None
    if start > 0 and b'{"jsonrpc"' in line:  # a banner without an end of line before the frame
        start = line.index(b'{"jsonrpc"')
    message = _loads(line[start:])
    if not isinstance(message, dict):
        return None
    if "method" in message:
        fits = isinstance(message["method"], str) and isinstance(message.get("params") or {}, dict)
        return message if fits and isinstance(message.get("id", 0), int | str | None) else None
    if not isinstance(message.get("id"), int):
        return None
    if message.get("error") is not None:
        message["error"] = _error(message["error"])
        message.pop("result", None)
    elif "error" in message:
        del message["error"]
    return message


def _error(error: Any) -> dict[str, Any]:
    fields = error if isinstance(error, dict) else {"message": error}
    code = fields.get("code")
    return {
        "code": code if isinstance(code, int) else -32603,
        "message": str(fields.get("message") or "Error"),
        "data": fields.get("data"),
    }


def _loads(data: bytes) -> Any:
    """Strict first and fast; what a sloppy program writes (bad UTF-8, half surrogates, NUL) is mended, else None."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(data.decode("utf-8", "replace").replace("\0", ""), parse_constant=_no_constant)
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


def _no_constant(name: str) -> None:
    raise ValueError(name)
