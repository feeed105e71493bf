"""One server's share, without a database: a stop is a stop, and news outlive a store that does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

from parallax.errors import StorageError
from parallax.execution import sharing
from parallax.execution.sharing import Share


class Leases:
    """Renews everything; or does not answer, for so many rounds."""

    def __init__(self, away: int = 0) -> None:
        self.away = away
        self.rounds = 0

    async def renew(self, ids: list[str]) -> set[str]:
        self.rounds += 1
        if self.rounds <= self.away:
            raise StorageError("the store is away")
        return set(ids)


def share(leases: Any, looked: list[str]) -> Share:
    async def look(execution: str) -> None:
        looked.append(execution)

    async def take() -> None:
        pass

    return Share(leases, held=lambda: ["held"], lost=looked.append, look=look, take=take)


async def test_a_stop_that_comes_with_news_is_not_lost() -> None:
    made = share(Leases(), [])
    running = asyncio.create_task(made.run())
    await asyncio.sleep(0.01)
    made.hear("held")
    running.cancel()
    await asyncio.wait([running], timeout=2.0)
    assert running.cancelled()


async def test_news_are_looked_at_when_the_store_answers_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(sharing, "LOOK_S", 0.05)
    monkeypatch.setattr(sharing, "PAUSE_S", 0.0)
    leases, looked = Leases(away=1), list[str]()
    made = share(leases, looked)
    made.hear("held")
    running = asyncio.create_task(made.run())
    async with asyncio.timeout(5):
        while not looked:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    assert looked == ["held"]
    assert leases.rounds >= 2
