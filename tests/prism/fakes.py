"""A host for tests: answers from a table, keeps a journal, and can replay it."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Any

from parallax.prism import Effect, Evaluation, Limits, Outcome, PrismRuntime
from parallax.prism import compile as compile_prism


class FakeHost:
    """Performs effects by `answer`; with a journal of an earlier run it performs nothing that is in it."""

    def __init__(
        self, answer: Callable[[Effect], Any] | None = None, journal: dict[str, Outcome] | None = None
    ) -> None:
        self.answer = answer or (lambda effect: None)
        self.journal = dict(journal or {})
        self.effects: list[Effect] = []
        self.fresh: list[str] = []
        self.lines: list[str] = []

    async def perform(self, effect: Effect) -> Outcome:
        self.effects.append(effect)
        if effect.key in self.journal:
            return self.journal[effect.key]
        self.fresh.append(effect.key)
        if effect.kind == "sleep":
            await asyncio.sleep(effect.request["ms"] / 1000)
        result = self.answer(effect)
        outcome = result if isinstance(result, Outcome) else Outcome(value=result)
        if effect.kind == "join":
            course = {k: v for k, v in effect.request.items() if k in ("winner", "failed") and v is not None}
            outcome = Outcome(value=course or ({"winner": None} if effect.request["word"] == "race" else {}))
        self.journal[effect.key] = outcome
        return outcome

    def recall(self, key: str) -> Outcome | None:
        return self.journal.get(key)

    def print(self, line: str) -> None:
        self.lines.append(line)

    def keys(self, kind: str | None = None) -> list[str]:
        return [e.key for e in self.effects if kind is None or e.kind == kind]


async def run(
    source: str,
    host: FakeHost | None = None,
    *,
    bundle: dict[str, str] | None = None,
    limits: Limits | None = None,
    **given: Any,
) -> Evaluation:
    """Run a program and see that no task stays behind."""
    runtime = PrismRuntime(compile_prism(source, bundle=bundle), host or FakeHost(), globals=given, limits=limits)
    try:
        return await runtime.run()
    finally:
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def longest_turn(source: str, limits: Limits) -> tuple[Any, float]:
    """The run's value, and the most processor time (s) that the loop's own thread used between two turns of the loop."""
    turns = [0.0]

    async def watch() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            turns.append(now - last)
            last = now

    runtime = PrismRuntime(compile_prism(source), FakeHost(), limits=limits)
    gc.collect()
    gc.disable()  # a collection comes when it comes, and would be told as the program's time
    watcher = asyncio.create_task(watch())
    try:
        result = await runtime.run()
    finally:
        gc.enable()
        watcher.cancel()
    return result.value, max(turns)
