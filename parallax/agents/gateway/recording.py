"""Recording: what was asked of a model and what it answered, a file per call, so that a run can be replayed.

Off unless a person turns it on (PARALLAX_RECORD). A call is addressed by its step and its number within it, what is
written is redacted, and an execution's records never grow beyond a size. `Replayed` is a provider made of records: with
PARALLAX_REPLAY the gateway asks it instead of the network.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from parallax.models import hash12
from parallax.telemetry import logger

CALL_B: Final = 8 * 1024 * 1024
_log = logger("recording")


def place_of(call_id: str) -> tuple[str, str, str]:
    """Execution, step and number of a call, from its id `<execution>/<step key>/<number>`."""
    execution, _, rest = call_id.partition("/")
    step, _, number = rest.rpartition("/")
    return execution, step, number


@dataclass(slots=True)
class Recording:
    """One call while it is under way."""

    recorder: Recorder
    call_id: str
    facts: dict[str, Any]
    request: bytes
    _answer: bytearray = field(default_factory=bytearray)
    _ended: bool = False

    def feed(self, chunk: bytes) -> None:
        """A piece of the answer."""
        if len(self._answer) <= CALL_B:
            self._answer += chunk

    def end(self, status: int, content_type: str) -> None:
        """The answer came to its end."""
        self.facts |= {"status": status, "content_type": content_type}
        self._ended = True

    async def keep(self) -> None:
        """Write it. A half answer is not kept: it could not be replayed. What cannot be written is only missed."""
        if not self._ended or max(len(self.request), len(self._answer)) > CALL_B:
            return
        try:
            await asyncio.to_thread(self.recorder.write, self.call_id, self.facts, self.request, bytes(self._answer))
        except OSError as error:
            _log.warning("a call could not be recorded", call=self.call_id, cause=str(error))


class Recorder:
    """Writes records below one directory; `limit_b` bounds those of one execution."""

    def __init__(self, root: Path, redact: Callable[[str], str], limit_b: int) -> None:
        self._root = root
        self._redact = redact
        self._limit_b = limit_b
        self._written: dict[str, int] = {}
        self._counting = threading.Lock()  # calls end side by side, each in a thread

    def begin(self, call_id: str, provider: str, path: str, body: bytes) -> Recording:
        """A call that has its id."""
        return Recording(self, call_id, {"call": call_id, "provider": provider, "path": path}, body)

    def write(self, call_id: str, facts: dict[str, Any], request: bytes, answer: bytes) -> None:
        """Blocking; called off the loop. Over the limit nothing more is written of an execution, and a line says so."""
        execution, step, number = place_of(call_id)
        told = facts | {name: self._redact(data.decode("utf-8", "replace")) for name, data in
                        (("request", request), ("answer", answer))}  # fmt: skip
        data = orjson.dumps(told)
        if not self._fits(execution, len(data)):
            return
        directory = self._root / execution / hash12(step)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / f"{number}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)

    def _fits(self, execution: str, size: int) -> bool:
        """Count a record in; what an earlier server wrote is counted as well."""
        with self._counting:
            written = self._written.get(execution)
            if written is None:
                written = sum(path.stat().st_size for path in (self._root / execution).rglob("*.json"))
            fits = written + size <= self._limit_b
            if not fits and written <= self._limit_b:
                _log.warning("records are full", execution=execution, limit_mb=self._limit_b >> 20)
            self._written[execution] = written + size if fits else self._limit_b + 1
            return fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An answer that was recorded."""

    status: int
    content_type: str
    answer: bytes


class Replayed:
    """The records of one execution as a provider."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def answer(self, call_id: str, provider: str) -> Record | None:
        """What the same call of the recorded run was answered: by step and number, whatever the execution's id."""
        _, step, number = place_of(call_id)
        try:
            found = orjson.loads((self._directory / hash12(step) / f"{number}.json").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return None
        if found.get("provider") != provider:
            return None
        return Record(
            status=found["status"], content_type=found["content_type"], answer=found["answer"].encode("utf-8")
        )
