"""Housekeeping: what has outlived its use goes, what protects against a full disk comes back.

`app` enters it beside the engine. Workspaces and homes of an ended execution stay for some days (twice as long when it
failed), its rows until it is too old or too many came after it; branches in the user's repository are never touched.
Pages that were freed go back to the file system a few at a time, so that no commit waits long for them.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from parallax.models import EXECUTION_ID, ExecutionState
from parallax.storage.space import Space
from parallax.storage.store import Store
from parallax.telemetry import logger
from parallax.workspaces.service import WorkspaceService

FIRST_S: Final = 5.0
BALLAST_S: Final = 10.0
ROUND_S: Final = 3600.0
AT_ONCE: Final = 50  # executions that are forgotten in one commit
PAGES: Final = 1000  # that go back to the file system in one commit
DAY_S: Final = 86_400.0
_log = logger("housekeeping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How long things are kept: `days` and `count` for executions, `workspace_days` for what they worked in."""

    days: float = 90.0
    count: int = 10_000
    workspace_days: float = 7.0


class Housekeeping:
    """Goes round each hour, and looks after the ballast every few seconds. `async with` owns its task."""

    def __init__(self, *, store: Store, workspaces: WorkspaceService, homes: Path, space: Space, keep: Keep) -> None:
        self._store = store
        self._workspaces = workspaces
        self._homes = homes
        self._space = space
        self._keep = keep
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._live(), name="housekeeping")
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _live(self) -> None:
        due = time.monotonic() + FIRST_S
        while True:
            try:
                await asyncio.to_thread(self._space.hold)
                if time.monotonic() >= due:
                    due = time.monotonic() + ROUND_S
                    await self.round()
            except Exception as error:  # noqa: BLE001 - whatever it was, the ballast and the next round must come
                _log.warning("a round was cut short", cause=f"{type(error).__name__}: {error}")
            await asyncio.sleep(min(BALLAST_S, max(0.0, due - time.monotonic())))

    async def round(self) -> None:
        """Once through everything that may go."""
        now = time.time()
        for name in await asyncio.to_thread(self._left_behind):
            if await self._is_over(name, now):
                await self._clear(name)
        while names := await self._store.outlived(now - self._keep.days * DAY_S, self._keep.count, AT_ONCE):
            for name in names:
                await self._clear(name)
            await self._store.forget(names)
        await self._store.collect_blobs()
        more = True
        while more:
            more = await self._store.vacuum(PAGES)

    def _left_behind(self) -> list[str]:
        """Executions that have a directory of workspaces or of homes."""
        found: set[str] = set()
        for root in (self._workspaces.root, self._homes):
            if root.is_dir():
                found |= {path.name for path in root.iterdir() if EXECUTION_ID.fullmatch(path.name)}
        return sorted(found)

    async def _is_over(self, name: str, now: float) -> bool:
        rows = await self._store.rows("executions", id=name)  # without its result, which may be large or damaged
        if not rows:
            return True
        if rows[0]["ended_at"] is None:
            return False
        factor = 2 if rows[0]["state"] == ExecutionState.FAILED else 1
        return bool(now - rows[0]["ended_at"] >= self._keep.workspace_days * DAY_S * factor)

    async def _clear(self, name: str) -> None:
        """Its workspaces, snapshots and homes."""
        if await asyncio.to_thread((self._workspaces.root / name).is_dir):
            await self._workspaces.cleanup(name)
        await asyncio.to_thread(shutil.rmtree, self._homes / name, ignore_errors=True)
