"""Clocks that stand still: what waits for a person uses up no time of a budget.

`questions` says here what is with a person; `host` and `budget` say what acts, and bound a run and a turn by a clock.
A turn's clock stands still while a question of its step, or of a part of it, is with a person; a run's clock while that
is so for everything that acts in it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field


class Clock:
    """The time of one thing, without the time in which it stood still. Its `limit` ends what takes longer."""

    def __init__(self, still: Callable[[], bool], limit_s: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._still = still
        self._limit_s = limit_s
        self._began = self._loop.time()
        self._stands_since: float | None = None
        self._stood_s = self._told_s = 0.0
        self.limit = asyncio.timeout(limit_s)

    @property
    def stood_s(self) -> float:
        """Seconds in which it stood still."""
        return self._stood_s + (0.0 if self._stands_since is None else self._loop.time() - self._stands_since)

    @property
    def ran_s(self) -> float:
        """Seconds in which it ran."""
        return self._loop.time() - self._began - self.stood_s

    def untold_s(self) -> float:
        """Seconds in which it stood still, without those that were asked for before."""
        stood_s = self.stood_s
        untold_s, self._told_s = stood_s - self._told_s, stood_s
        return untold_s

    def look(self) -> None:
        """Something has begun or ended: stand still, or go on."""
        if self._still():
            if self._stands_since is None:
                self._stands_since = self._loop.time()
                self._end_at(None)
        elif self._stands_since is not None:
            self._stood_s, self._stands_since = self.stood_s, None
            self._end_at(None if self._limit_s is None else self._began + self._limit_s + self._stood_s)

    def _end_at(self, when: float | None) -> None:
        if not self.limit.expired():
            self.limit.reschedule(when)


@dataclass(slots=True)
class _Execution:
    """What goes on in one execution, by the keys of steps and of their parts."""

    asked: Counter[str] = field(default_factory=Counter)
    acting: Counter[str] = field(default_factory=Counter)
    clocks: list[Clock] = field(default_factory=list)

    def waits(self, key: str) -> bool:
        """Whether a question of the step, or of a part of it, is with a person."""
        return any(f"{asked}/".startswith(f"{key}/") for asked in self.asked)

    def stands(self) -> bool:
        """Whether everything that acts waits for a person."""
        return bool(self.asked) and all(self.waits(key) for key in self.acting)

    @contextmanager
    def counted(self, things: Counter[str], key: str) -> Iterator[None]:
        things[key] += 1
        self._look()
        try:
            yield
        finally:
            things[key] -= 1
            if not things[key]:
                del things[key]
            self._look()

    def _look(self) -> None:
        for clock in self.clocks:
            clock.look()


class Waits:
    """Who acts and who waits for a person, in all executions that run here."""

    def __init__(self) -> None:
        self._executions: defaultdict[str, _Execution] = defaultdict(_Execution)

    def close(self, execution: str) -> None:
        """The execution does not run here any more."""
        self._executions.pop(execution, None)

    @contextmanager
    def asked(self, execution: str, key: str) -> Iterator[None]:
        """Around the time in which a question of a step is with a person."""
        here = self._executions[execution]
        with here.counted(here.asked, key):
            yield

    @contextmanager
    def acting(self, execution: str, key: str) -> Iterator[None]:
        """Around an effect or a turn."""
        here = self._executions[execution]
        with here.counted(here.acting, key):
            yield

    @asynccontextmanager
    async def run(self, execution: str, limit_s: float | None) -> AsyncIterator[Clock]:
        """Around a program. Raises TimeoutError when its clock has run for longer."""
        here = self._executions[execution]
        async with _clocked(here, Clock(here.stands, limit_s)) as clock:
            yield clock

    @asynccontextmanager
    async def turn(self, execution: str, key: str, limit_s: float | None) -> AsyncIterator[Clock]:
        """Around a turn of a step. Raises TimeoutError when its clock has run for longer."""
        here = self._executions[execution]
        with self.acting(execution, key):
            async with _clocked(here, Clock(lambda: here.waits(key), limit_s)) as clock:
                yield clock


@asynccontextmanager
async def _clocked(here: _Execution, clock: Clock) -> AsyncIterator[Clock]:
    here.clocks.append(clock)
    try:
        async with clock.limit:
            clock.look()
            yield clock
    finally:
        here.clocks.remove(clock)
