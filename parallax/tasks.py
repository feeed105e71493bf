"""How a task ends when it is cancelled: records and books are finished first. Used by whoever keeps one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Await cleaning-up whole, also when cancelled meanwhile; the cancellation is honoured afterwards."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
