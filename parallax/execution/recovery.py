"""Recovery: how executions come back after a crash without bringing the next one.

`running` asks for a turn before it claims an execution of an earlier life. At most 16 are claimed at once, a little
apart from each other. An execution counts its recoveries that brought no result; on its last ones it is a suspect: it
may be what kills the server. A suspect is brought back after a pause that doubles, and alone: while it has the floor no
other suspect is begun, so that a poisonous one is parked by its own count and takes no neighbour along.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from parallax.models import Execution

PARALLEL: Final = 16
JITTER_S: Final = 0.3
SUSPECT: Final = 2  # the last so many of the allowed recoveries are done alone
BACKOFF_S: Final = 0.5  # before the first of them; doubled for the next
ALONE_S: Final = 5.0  # how long a suspect that does not end has the floor


class Recovery:
    """Turns for coming back. `allowed` recoveries without a new result are made before a person is asked."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self._places = asyncio.Semaphore(PARALLEL)
        self._floor = asyncio.Lock()

    def spent(self, execution: Execution) -> bool:
        """Whether it came back often enough without finishing anything."""
        return execution.recoveries >= self.allowed

    def _suspicion(self, execution: Execution) -> int:
        return 0 if self.spent(execution) else max(0, execution.recoveries - (self.allowed - SUSPECT) + 1)

    @asynccontextmanager
    async def turn(self, execution: Execution) -> AsyncIterator[Callable[[], None]]:
        """The time in which an execution is claimed. Yields what gives the floor back, for when the execution ends."""
        release = _nothing
        if suspicion := self._suspicion(execution):
            await asyncio.sleep(BACKOFF_S * 2 ** (suspicion - 1))
            release = await self._alone()
        else:
            await asyncio.sleep(random.uniform(0.0, JITTER_S))  # noqa: S311 - jitter
        try:
            async with self._places:
                yield release
        except BaseException:
            release()
            raise

    async def _alone(self) -> Callable[[], None]:
        await self._floor.acquire()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._floor.release()

        asyncio.get_running_loop().call_later(ALONE_S, release)
        return release


def _nothing() -> None:
    """No floor was taken."""
