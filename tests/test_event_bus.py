"""A stream joins the table and the live feed: every event once, in order, whatever the reader's speed."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from parallax.events import EVENT_TYPES, TERMINAL, Event, EventBus


class Table:
    """A table in memory."""

    def __init__(self) -> None:
        self.rows: list[Event] = []
        self.final = False

    async def events(self, execution: str, after: int, limit: int = 500) -> list[Event]:
        await asyncio.sleep(0)
        return [row for row in self.rows if row.execution == execution and row.seq > after][:limit]

    async def ended(self, execution: str) -> bool:
        await asyncio.sleep(0)
        return self.final

    def commit(self, type_: str = "log.printed", execution: str = "e") -> Event:
        seq = sum(row.execution == execution for row in self.rows) + 1
        event = replace(Event(execution=execution, type=type_), seq=seq)
        self.rows.append(event)
        self.final = self.final or type_ in TERMINAL
        return event


async def test_a_stream_has_no_gap_and_no_duplicate_while_events_pour_in() -> None:
    table = Table()
    bus = EventBus(table, buffer=7)  # so small that the reader overflows again and again

    async def pour() -> None:
        for number in range(500):
            bus.publish([table.commit()])
            if number % 3 == 0:
                await asyncio.sleep(0)
        bus.publish([table.commit("execution.succeeded")])

    async with asyncio.TaskGroup() as group:
        group.create_task(pour())
        seen = [event.seq async for event in bus.stream("e")]
    assert seen == list(range(1, 502))


async def test_commits_that_are_told_in_another_order_are_read_in_theirs() -> None:
    table = Table()
    bus = EventBus(table)
    reader = asyncio.create_task(_read(bus))
    await asyncio.sleep(0.01)
    first, second, last = table.commit(), table.commit(), table.commit("execution.failed")
    for event in (second, first, last):
        bus.publish([event])
    assert await reader == [1, 2, 3]


async def _read(bus: EventBus, after: int = 0) -> list[int]:
    return [event.seq async for event in bus.stream("e", after)]


async def test_a_stream_goes_on_after_the_event_that_was_seen_and_ends_with_the_execution() -> None:
    table = Table()
    for _ in range(10):
        table.commit()
    table.commit("execution.cancelled")
    table.commit("workspace.cleaned_up")
    assert await _read(EventBus(table), 7) == [8, 9, 10, 11, 12]
    assert await _read(EventBus(table), 12) == []


async def test_an_end_that_comes_between_asking_and_reading_ends_the_stream() -> None:
    class Late(Table):
        async def ended(self, execution: str) -> bool:
            answer = self.final
            if not answer:
                self.commit("execution.succeeded")  # committed after the answer, before the table is read
            return answer

    async with asyncio.timeout(5):
        assert await _read(EventBus(Late())) == [1]


async def test_other_executions_are_not_heard() -> None:
    table = Table()
    bus = EventBus(table)
    reader = asyncio.create_task(_read(bus))
    await asyncio.sleep(0.01)
    bus.publish([table.commit(execution="other")])
    bus.publish([table.commit("execution.succeeded")])
    assert await reader == [1]


async def test_a_reader_that_leaves_is_forgotten() -> None:
    table = Table()
    table.commit()
    bus = EventBus(table)
    stream = bus.stream("e")
    assert (await anext(stream)).seq == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert not bus._subscribers


def test_an_event_of_an_unknown_type_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"unknown event type 'step\.finishd'"):
        Event(execution="e", type="step.finishd")
    assert Event(execution="e", type="custom.anything").type not in EVENT_TYPES
