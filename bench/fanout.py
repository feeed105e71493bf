"""What durable fan-out and a durable sequence cost through the whole machine, beside asyncio and a bare SQLite thread.

Parallax runs a Prism program: 1,000 journaled effects, 100 at once, or one after another. The limit is a task group
whose tasks each wait for one durable event. Rounds are interleaved, the best of each is compared; with
`--peers` LangGraph with its SQLite checkpoints runs beside them, in a virtual environment of its own.
`python bench/fanout.py [--record] [--peers]`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from floor import Floor
from page import HEAD, row, tell

from parallax.app import Parallax
from parallax.config import Settings
from parallax.execution.intake import Submission

ROUNDS, COUNT, WIDE = 5, 1000, 100
FAN = f'parallel(range({COUNT}), i => emit("done", {{i: i}}), {{limit: {WIDE}}})\nreturn 1'
LINE = f'for i in range({COUNT}) {{ emit("done", {{i: i}}) }}\nreturn 1'
PEER = """
import asyncio, operator, sys, time
from typing import Annotated, TypedDict
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

class State(TypedDict):
    done: Annotated[list, operator.add]

async def one(state):
    return {"done": [1]}

async def main(path, count, wide):
    graph = StateGraph(State)
    graph.add_node("one", one)
    graph.add_conditional_edges(START, lambda state: [Send("one", {"done": []}) for _ in range(count)], ["one"])
    graph.add_edge("one", END)
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        app = graph.compile(checkpointer=saver)
        begun = time.perf_counter()
        await app.ainvoke({"done": []}, {"configurable": {"thread_id": "t"}, "max_concurrency": wide})
        print((time.perf_counter() - begun) / count * 1e6)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


async def floors(place: Path) -> tuple[float, float]:
    """Microseconds for each task: fan-out with group commit, and a sequence with a commit for each."""
    async with Floor(place / "group.db") as floor, Floor(place / "each.db", group=False) as each:
        gate = asyncio.Semaphore(WIDE)

        async def one() -> None:
            async with gate:
                await floor.keep()

        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(COUNT):
                group.create_task(one())
        fan = (time.perf_counter() - begun) / COUNT * 1e6
        begun = time.perf_counter()
        for _ in range(COUNT):
            await each.keep()
        return fan, (time.perf_counter() - begun) / COUNT * 1e6


async def ours(place: Path) -> tuple[float, float]:
    """The same through a program, its journal and its events: from the first effect's record to the last one's."""
    settings = Settings(_env_file=None, data_dir=place / "data", patterns_dir=place)  # type: ignore[call-arg]
    found = []
    async with Parallax(settings) as parallax:
        for name, text in (("fan", FAN), ("line", LINE)):
            path = place / f"{name}.prism"
            path.write_text(text)
            execution, _ = await parallax.intake.submit(Submission(pattern=str(path)))
            async for _ in parallax.bus.stream(execution.id):
                pass
            entries = [entry for entry in await parallax.store.journal(execution.id) if entry.kind == "result"]
            assert len(entries) == COUNT, (await parallax.store.execution(execution.id)).reason
            done = await parallax.store.execution(execution.id)
            assert done.started_at is not None
            assert done.ended_at is not None
            found.append((done.ended_at - done.started_at) / COUNT * 1e6)
    return found[0], found[1]


def peer(place: Path) -> float:
    """LangGraph's fan-out with AsyncSqliteSaver, in microseconds for each task."""
    python = place / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    wanted = ["langgraph==1.2.22", "langgraph-checkpoint-sqlite==3.1.2"]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    command = [str(python), "-c", PEER, str(place / "peer.db"), str(COUNT), str(WIDE)]
    return min(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2))


def main() -> None:
    fans, lines = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=Path.home()) as place:
            floor = asyncio.run(floors(Path(place)))
            mine = asyncio.run(ours(Path(place)))
            fans.append((mine[0], floor[0]))
            lines.append((mine[1], floor[1]))
    (fan, fan_floor), (line, line_floor) = [
        (min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)) for pairs in (fans, lines)
    ]
    told = [
        *HEAD,
        row("durable fan-out, 100 at once", fan, fan_floor, "us each", "<= 3x", fan / fan_floor),
        row("durable sequence", line, line_floor, "us each", "<= 1.5x", line / line_floor),
    ]
    if "--peers" in sys.argv:
        with tempfile.TemporaryDirectory(dir=Path.home()) as place:
            other = peer(Path(place))
        told.append(row("LangGraph + AsyncSqliteSaver, fan-out", other, fan, "us each", ">= 15x ours", other / fan))
    tell("fanout", told)


if __name__ == "__main__":
    main()
