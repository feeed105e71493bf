"""How a task ends when it is cancelled: records and books are finished first. Used by whoever keeps one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_T = TypeVar("_T")


async def to_its_end(work: Awaitable[_T]) -> _T:
    """Await something whole, also when cancelled meanwhile.

    The cancellation is honoured once the outcome is there, whatever it is: a failure must not take its place.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved: who would hear of it is leaving
        raise
