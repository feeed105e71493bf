"""What the journal costs beside a bare SQLite thread, in one run: many writers at once, and one after another.

The limit does one INSERT of 200 bytes and nothing else. Parallax's event is numbered in its execution; its step is an
intent or result of the journal with the event that tells it, guarded by the owner's epoch. Rounds are interleaved, the
best of each is compared. `python bench/journal.py [--record]`.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from floor import EVENT, Floor
from page import HEAD, row, tell

from parallax.events import Event, EventBus
from parallax.execution.journal import Journal
from parallax.models import Execution, ExecutionState, new_id
from parallax.storage.statements import Change, execution_row, insert_row
from parallax.storage.store import Store

ROUNDS, WRITERS, EACH, ALONE = 5, 256, 40, 400


async def begun(store: Store) -> Journal:
    made = Execution(
        id=new_id(), pattern="p", version="1", hash="h", input={}, repo=None, base=None, options={},
        state=ExecutionState.RUNNING, created_at=0.0, epoch=1,
    )  # fmt: skip
    bundle = insert_row("bundles", {"hash": "h", "path": "m", "bundle": "{}"}, replace_row=True)
    await store.commit(Change([bundle, insert_row("executions", execution_row(made))]))
    return Journal(store, EventBus(store), made.id, 1, ())


async def many(keep: Callable[[int, int], Awaitable[object]]) -> float:
    """Kept per second, by so many writers that each wait for their own."""

    async def one(writer: int) -> None:
        for number in range(EACH):
            await keep(writer, number)

    begun_at = time.perf_counter()
    await asyncio.gather(*(one(writer) for writer in range(WRITERS)))
    return WRITERS * EACH / (time.perf_counter() - begun_at)


async def alone(keep: Callable[[int, int], Awaitable[object]]) -> float:
    """Microseconds for each, one after another."""
    begun_at = time.perf_counter()
    for number in range(ALONE):
        await keep(0, number)
    return (time.perf_counter() - begun_at) / ALONE * 1e6


async def round_of(place: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    async with (
        Floor(place / "floor.db") as floor,
        Floor(place / "each.db", group=False) as each,
        Store(place / "parallax.db") as store,
    ):
        journals = [await begun(store) for _ in range(WRITERS)]
        single = await begun(store)

        async def event(writer: int, _number: int) -> object:
            told = Event(execution=journals[writer].execution, type="log.printed", data={"line": EVENT[:140]})
            return await store.commit(Change(events=[told]))

        async def step(writer: int, number: int) -> object:
            journal = journals[writer]
            told = journal.event("log.printed", line=EVENT[:140])
            return await journal.write("result", f"s{number}", {"outcome": {"value": EVENT}}, events=[told])

        async def one_step(_writer: int, number: int) -> object:
            told = single.event("log.printed", line=EVENT[:140])
            return await single.write("result", f"s{number}", {"outcome": {"value": EVENT}}, events=[told])

        found["bare group"] = await many(lambda *_: floor.keep())
        found["event"] = await many(event)
        found["step"] = await many(step)
        found["bare alone"] = await alone(lambda *_: each.keep())
        found["step alone"] = await alone(one_step)
    return found


def main() -> None:
    rounds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=Path.home()) as place:
            rounds.append(asyncio.run(round_of(Path(place))))
    best = {name: max(found[name] for found in rounds) for name in ("bare group", "event", "step")}
    best |= {name: min(found[name] for found in rounds) for name in ("bare alone", "step alone")}
    group, solo = best["bare group"], best["bare alone"]
    tell(
        "journal",
        [
            *HEAD,
            row("events, 256 writers", best["event"], group, "a second", ">= 0.5x", best["event"] / group),
            row("journaled steps, 256 writers", best["step"], group, "a second", "-", best["step"] / group),
            row(
                "journaled steps, one by one", best["step alone"], solo, "us each", "<= 1.5x", best["step alone"] / solo
            ),
        ],
    )


if __name__ == "__main__":
    main()
