"""Journal: what an execution has done, read before every effect and written before and after it.

`host` asks `result(key)` first: what is recorded is never run again. Otherwise it writes an intent (one durable
commit), acts, and writes the result (one durable commit with the events that tell it). Every commit is guarded by the
epoch of the owner, and a result is unique per step: whoever loses that race gets FencedError and stops.

Keys are call paths or ids of the program; `<key>/...` below a step's key belongs to parts of that step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final, Self

import orjson

from parallax.errors import JournalError, ReplayDivergence
from parallax.events import Event, EventBus
from parallax.failpoints import fp
from parallax.models import Action, Evidence, Json, Source, StepResult, Usage
from parallax.storage.statements import Change, JournalEntry, Write, append, guard
from parallax.storage.store import Store

MAX_ENTRIES: Final = 50_000
MAX_B: Final = 50_000_000


def input_hash(kind: str, request: Json) -> str:
    """SHA-256 of the canonical JSON (sorted keys, no spaces) of {kind, request}."""
    return hashlib.sha256(orjson.dumps({"kind": kind, "request": request}, option=orjson.OPT_SORT_KEYS)).hexdigest()


def step_to_json(step: StepResult) -> Json:
    """A step's result as the journal keeps it."""
    return asdict(step)


def step_from_json(value: Json) -> StepResult:
    """The reverse of `step_to_json`."""
    return StepResult(
        **(
            value
            | {
                "source": Source(value["source"]),
                "action": Action(value["action"]),
                "evidence": tuple(Evidence(**entry) for entry in value["evidence"]),
                "usage": Usage(**value["usage"]),
                "artifacts": tuple(value.get("artifacts", ())),
            }
        )
    )


class Journal:
    """The journal of one execution, held by its one owner."""

    def __init__(
        self, store: Store, bus: EventBus, execution: str, epoch: int, entries: Iterable[JournalEntry]
    ) -> None:
        self._store = store
        self._bus = bus
        self.execution = execution
        self.epoch = epoch
        self._results: dict[str, JournalEntry] = {}
        self._intents: dict[str, JournalEntry] = {}
        self._timers: dict[str, JournalEntry] = {}
        self._signals: dict[str, list[Json]] = {}
        self._count = 0
        self._size_b = 0
        self.resumed = False
        for entry in entries:
            self.resumed |= entry.epoch < epoch
            self._remember(entry)

    @classmethod
    async def load(cls, store: Store, bus: EventBus, execution: str, epoch: int) -> Self:
        """Read everything that is recorded of the execution."""
        return cls(store, bus, execution, epoch, await store.journal(execution))

    def _remember(self, entry: JournalEntry) -> None:
        self._count += 1
        self._size_b += entry.size_b
        match entry.kind:
            case "result" | "join":
                self._results[entry.step_key] = entry
            case "intent":
                self._intents[entry.step_key] = entry
            case "timer":
                self._timers[entry.step_key] = entry
            case "signal":
                self._signals.setdefault(entry.body["name"], []).append(entry.body["data"])
            case _:
                pass

    # -- reading ---------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> tuple[str, ...]:
        """Keys of the steps that have a result, in the order in which they finished."""
        return tuple(
            key for key, entry in self._results.items() if entry.body.get("step") is not None and "/" not in key
        )

    def result(self, key: str, asked_hash: str | None = None) -> Json | None:
        """The recorded body, or None. Raises ReplayDivergence when it was recorded for another request."""
        entry = self._results.get(key)
        if entry is None:
            return None
        if asked_hash is not None and entry.input_hash is not None and entry.input_hash != asked_hash:
            raise ReplayDivergence(
                key, f"it was recorded with another request ({entry.input_hash[:12]}, asked {asked_hash[:12]})"
            )
        return entry.body

    def intent(self, key: str) -> Json | None:
        """The body of the newest intent of a step that has begun, or None."""
        entry = self._intents.get(key)
        return entry.body if entry else None

    def attempts(self, key: str) -> int:
        """How often the step was begun."""
        entry = self._intents.get(key)
        return entry.attempt if entry else 0

    def timer(self, key: str) -> Json | None:
        """The recorded timer of a sleeping step, or None."""
        entry = self._timers.get(key)
        return entry.body if entry else None

    def signals(self, name: str) -> tuple[Json, ...]:
        """What came from outside under a name (tell, heard, note ...), in order."""
        return tuple(self._signals.get(name, ()))

    # -- writing ---------------------------------------------------------------------------------------------------

    async def write(
        self, kind: str, key: str, body: Json, *, asked_hash: str | None = None, events: Iterable[Event] = ()
    ) -> int:
        """Append one entry and its events in one durable commit; returns the attempt it belongs to.

        Raises JournalError when the entry or the journal becomes too large; nothing is written then.
        """
        if self._count >= MAX_ENTRIES:
            raise JournalError(f"the journal of {self.execution} has {MAX_ENTRIES} entries, its limit: split the work")
        blob, size_b = await self._store.keep_if_large(body, f"the {kind} of step '{key}'")
        if self._size_b + size_b > MAX_B:
            raise JournalError(
                f"the journal of {self.execution} would be larger than {MAX_B // 1_000_000} MB with the {kind} of step "
                f"'{key}': leave large things in files of the workspace, or split the work"
            )
        attempt = self.attempts(key) + 1 if kind == "intent" else max(1, self.attempts(key))
        entry = JournalEntry(
            execution=self.execution,
            step_key=key,
            kind=kind,
            attempt=attempt,
            epoch=self.epoch,
            input_hash=asked_hash,
            body=body,
            blob=blob,
            size_b=size_b,
        )
        await self.commit([append(entry)], events)
        self._remember(entry)
        return attempt

    async def signal(self, name: str, key: str, data: Json, events: Iterable[Event] = ()) -> None:
        """Record something that came from outside the program, with its events."""
        await self.write("signal", key, {"name": name, "data": data}, events=events)

    async def tell(self, *events: Event) -> None:
        """Events alone."""
        await self.commit([], events)

    async def commit(self, writes: Iterable[Write], events: Iterable[Event]) -> None:
        """One durable transaction in the name of this execution's owner; then, and only then, the listeners hear."""
        change = Change([guard(self.execution, self.epoch), *writes], list(events))
        committed = await self._store.commit(change)
        fp("events.committed_before_publish")
        self._bus.publish(committed)

    def event(self, type_: str, *, step_key: str | None = None, agent_id: str | None = None, **data: Any) -> Event:
        """An event of this execution."""
        return Event(execution=self.execution, type=type_, step_key=step_key, agent_id=agent_id, data=data)
