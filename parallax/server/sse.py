"""Server-sent events: replay after `Last-Event-ID`, then live, no gap, no duplicate.

The id of an event is its `seq` in the execution. The stream ends by itself after the execution's last event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
from sse_starlette import EventSourceResponse, ServerSentEvent

from parallax.errors import UsageError
from parallax.events import Event, EventLog
from parallax.failpoints import fp

HEARTBEAT_S = 15
SEND_TIMEOUT_S = 30


def event_json(event: Event) -> dict[str, Any]:
    """An event on the wire."""
    return {
        "execution": event.execution,
        "seq": event.seq,
        "type": event.type,
        "at": event.at,
        "step_key": event.step_key,
        "agent_id": event.agent_id,
        "data": event.data,
    }


def last_event_id(header: str | None, query: str | None) -> int:
    """Where a reader wants to go on; raises UsageError for what is no number."""
    given = header if header is not None else query
    if given is None or given == "":
        return 0
    if not given.isdigit() or len(given) > 15:
        raise UsageError(f"Last-Event-ID must be the id of an event of this stream, got '{given[:40]}'")
    return int(given)


async def so_far(log: EventLog, execution: str, after: int) -> AsyncIterator[Event]:
    """The events above `after` that there are now."""
    while page := await log.events(execution, after):
        for event in page:
            after = event.seq
            yield event


def response(events: AsyncIterator[Event]) -> EventSourceResponse:
    """A stream of events, on the wire."""

    async def source() -> AsyncIterator[ServerSentEvent]:
        async for event in events:
            fp("sse.mid_write")
            yield ServerSentEvent(data=orjson.dumps(event_json(event)).decode(), event=event.type, id=str(event.seq))

    return EventSourceResponse(source(), ping=HEARTBEAT_S, send_timeout=SEND_TIMEOUT_S)
