"""Events: what happened, in order, per execution. Written in the same commit as the change they tell.

A change is said once: whoever changes something hands the store its rows and its events in one transaction, the store
gives each event its `seq` in the commit, and only then `EventBus` tells the listeners. The doors read streams with
`EventBus.stream(execution, after)`, which joins the table and the live feed without gap or duplicate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from parallax.models import Json

# Every event type and what its data holds. The doors document streams from this table; a test holds the code to it.
EVENT_TYPES: Final[dict[str, tuple[str, ...]]] = {
    "execution.queued": ("pattern", "version", "hash"),
    "execution.forked": ("from", "step", "shared"),
    "execution.started": ("epoch",),
    "execution.resumed": ("epoch", "from", "finished"),
    "execution.paused": ("by",),
    "execution.cancelling": ("by",),
    "execution.needs_attention": ("cause",),
    "execution.succeeded": ("result", "result_blob", "confidence", "usage", "duration_s", "cause"),
    "execution.partial": ("result", "result_blob", "confidence", "usage", "duration_s", "cause"),
    "execution.failed": ("result", "result_blob", "confidence", "usage", "duration_s", "cause"),
    "execution.cancelled": ("result", "result_blob", "confidence", "usage", "duration_s", "cause"),
    "step.started": ("word", "role", "task", "attempt", "agent"),
    "step.verifying": ("oracles",),
    "step.retrying": ("attempt", "critique", "next_s"),
    "step.escalated": ("to", "cause"),
    "step.finished": ("word", "role", "action", "confidence", "source", "commit", "detail", "attempts"),
    "step.failed": ("error", "retryable"),
    "step.cancelled": ("cause",),
    "evidence.recorded": ("oracle", "passed", "score", "detail", "duration_s"),
    "agent.chosen": ("role", "type", "reason"),
    "agent.starting": ("role", "type", "sandbox"),
    "agent.authenticating": (),
    "agent.ready": ("role", "type", "pid", "version"),
    "agent.busy": ("task",),
    "agent.asking": ("text", "kind"),
    "agent.parked": ("until", "cause"),
    "agent.stalled": ("kind", "cause", "consequence", "silent_s"),
    "agent.stopping": ("reason",),
    "agent.stopped": ("reason",),
    "agent.error": ("cause",),
    "agent.output": ("stream", "text"),
    "agent.tool": ("name", "status"),
    "agent.usage": ("usage",),
    "agent.told": ("text", "by"),
    "question.asked": ("id", "kind", "text", "options"),
    "question.routed": ("id", "to", "text", "options"),
    "question.surfaced": ("id", "text", "options"),
    "question.answered": ("id", "text", "options", "answer", "by"),
    "question.defaulted": ("id", "text", "options", "answer", "by"),
    "question.failed": ("id", "text", "options"),
    "question.withdrawn": ("id", "text", "options"),
    "question.notified": ("id", "cause"),
    "note.posted": ("topic", "text"),
    "workspace.provisioning": ("role", "number"),
    "workspace.ready": ("workspace", "commit"),
    "workspace.finalising": ("workspace", "branch", "commit", "files", "left_out"),
    "workspace.snapshot": ("workspace", "commit", "left_out"),
    "workspace.merged": ("branch", "commit", "files", "into"),
    "workspace.conflict": ("branch", "files", "round", "workspace", "commit"),
    "workspace.error": ("workspace", "cause"),
    "workspace.cleaned_up": ("workspace",),
    "branch.published": ("branch", "commit"),
    "branch.pushed": ("branch", "commit", "url"),
    "pull_request.opened": ("url", "number", "new", "problems"),
    "credential.issued": ("id", "repo", "access", "source", "step"),
    "credential.revoked": ("id", "repo", "access", "source", "step"),
    "credential.expired": ("id", "repo", "access", "source", "step"),
    "budget.exhausted": ("scope", "spent", "limit"),
    "gateway.refused": ("door", "target", "status", "cause"),
    "gateway.connected": ("host", "port", "sent_b", "received_b"),
    "log.printed": ("line",),
}
CUSTOM_PREFIX: Final = "custom."
TERMINAL: Final = frozenset({"execution.succeeded", "execution.partial", "execution.failed", "execution.cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `seq` counts per execution from 1 and is 0 until the commit has given it."""

    execution: str
    type: str
    seq: int = 0
    at: float = field(default_factory=time.time)
    step_key: str | None = None
    agent_id: str | None = None
    data: Json = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.type not in EVENT_TYPES and not self.type.startswith(CUSTOM_PREFIX):
            raise ValueError(f"unknown event type {self.type!r}: add it to EVENT_TYPES")


class EventLog(Protocol):
    """What the bus reads from: the store."""

    async def events(self, execution: str, after: int, limit: int = 500) -> list[Event]:
        """Committed events of one execution with `seq` above `after`, in order."""
        ...

    async def ended(self, execution: str) -> bool:
        """Whether the execution is in a final state."""
        ...


@dataclass(slots=True, eq=False)
class _Subscriber:
    execution: str
    limit: int
    queue: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)
    overflowed: bool = False

    def offer(self, event: Event) -> None:
        if self.queue.qsize() >= self.limit:
            self.overflowed = True  # the reader goes back to the table: nothing is lost, nothing grows
        else:
            self.queue.put_nowait(event)

    def look(self) -> None:
        """There is more in the table than this process has told."""
        if not self.overflowed:
            self.overflowed = True
            self.queue.put_nowait(None)


class EventBus:
    """Fan-out after commit; bounded per subscriber. A slow reader is sent back to the table, never buffered for."""

    def __init__(self, log: EventLog, *, buffer: int = 1000) -> None:
        self._log = log
        self._buffer = buffer
        self._subscribers: set[_Subscriber] = set()

    def publish(self, events: Iterable[Event]) -> None:
        """Tell the listeners of committed events, in commit order. Called on the loop's thread only."""
        for event in events:
            for subscriber in self._subscribers:
                if subscriber.execution == event.execution:
                    subscriber.offer(event)

    def hear(self, execution: str | None) -> None:
        """Another server has told events of this execution (None: perhaps of any): the readers look into the table."""
        for subscriber in self._subscribers:
            if execution in (None, subscriber.execution):
                subscriber.look()

    async def stream(self, execution: str, after: int = 0) -> AsyncIterator[Event]:
        """Every event of the execution above `after`, from the table and then live, each once, in order.

        Ends after an execution's terminal event once the table has nothing more.
        """
        subscriber = _Subscriber(execution, self._buffer)
        self._subscribers.add(subscriber)  # live first, then the table: no gap
        try:
            while True:
                subscriber.overflowed = False
                ended = await self._log.ended(execution)  # asked before the table is read: what follows is all
                while page := await self._log.events(execution, after):
                    for event in page:
                        after = event.seq
                        ended = ended or event.type in TERMINAL  # it may have come between the two questions
                        yield event
                if ended:
                    return
                while not (subscriber.overflowed and subscriber.queue.empty()):
                    live = await subscriber.queue.get()
                    if live is None:
                        break
                    if live.seq <= after:
                        continue
                    if live.seq != after + 1:  # commits of two tasks were told in another order: read the table
                        break
                    after = live.seq
                    yield live
                    if live.type in TERMINAL:
                        break
        finally:
            self._subscribers.discard(subscriber)
