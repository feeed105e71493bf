"""Sharing: several servers on one database, each running its part of the executions.

`engine` runs one `Share` where the store is shared. An execution belongs to the server that holds its lease; the store
refuses the writes of every other one. A server that dies renews nothing, and whoever looks next takes its executions
over; one that was only asleep finds on waking that they are lost, and stops their agents. News of other servers wake
it: a new execution that nobody runs, or that a person has cancelled one that runs here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

from parallax.errors import StorageError
from parallax.storage.store import Store
from parallax.telemetry import logger

LOOK_S: Final = 2.0  # a lease lasts 10 s: it is renewed in time though a round or two is lost
PAUSE_S: Final = 0.1  # news that come one upon the other are looked at together
_log = logger("sharing")


class Share:
    """This server's share. `held` names what runs here; `lost` stops one; `look` asks what happened to one."""

    def __init__(
        self,
        store: Store,
        *,
        held: Callable[[], Collection[str]],
        lost: Callable[[str], None],
        look: Callable[[str], Awaitable[None]],
        take: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._held = held
        self._lost = lost
        self._look = look
        self._take = take
        self._news: set[str] = set()
        self._woken = asyncio.Event()

    def hear(self, execution: str | None) -> None:
        """Another server has changed this execution (None: perhaps any), or there is a new one here."""
        self._news |= set(self._held()) if execution is None else {execution}
        self._woken.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # `wait_for` would lose a cancellation that comes with news
                    await self._woken.wait()
            self._woken.clear()
            news, self._news = self._news, set()
            try:
                await self._round(news)
            except StorageError as error:
                self._news |= news
                _log.error("the store does not answer", cause=str(error))
            await asyncio.sleep(PAUSE_S)

    async def _round(self, news: set[str]) -> None:
        asked = list(self._held())
        kept = await self._store.renew(asked)
        for execution in asked:
            if execution not in kept:
                _log.warning("another server has taken it over", execution=execution)
                self._lost(execution)
        for execution in news & kept:
            await self._look(execution)
        await self._take()
