"""RuntimeManager: the pool of PrismRuntimes. At most so many executions run at once; waiters get their turn in order.

Compiled programs are cached by the hash of their bundle: a resumed or repeated execution compiles nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from parallax import prism
from parallax.models import Execution, Json

CACHED_PROGRAMS: Final = 256


def _compiled(path: str, bundle: Mapping[str, str]) -> prism.Program:
    program = prism.compile(bundle[path], path=path, bundle=bundle)
    prism.prepare(program)
    return program


class RuntimeManager:
    """Hands out PrismRuntimes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._places = asyncio.Semaphore(limit)  # asyncio's semaphore wakes its waiters in order
        self._programs: OrderedDict[str, prism.Program] = OrderedDict()

    async def program(self, path: str, bundle: Mapping[str, str], bundle_hash: str) -> prism.Program:
        """The compiled program of a pinned bundle; the longest source takes seconds, so a thread compiles it."""
        if (known := self._programs.get(bundle_hash)) is not None:
            self._programs.move_to_end(bundle_hash)
            return known
        program = await asyncio.to_thread(_compiled, path, bundle)
        self._programs[bundle_hash] = program
        while len(self._programs) > CACHED_PROGRAMS:
            self._programs.popitem(last=False)
        return program

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place in the pool for one execution, from its claim to its end; waits for a free one, in order."""
        async with self._places:
            yield

    def runtime(self, program: prism.Program, host: prism.Host, names: Mapping[str, Any]) -> prism.PrismRuntime:
        """A runtime for whoever holds a place."""
        return prism.PrismRuntime(program, host, globals=dict(names), limits=prism.Limits.hosted())


def names_of(execution: Execution) -> dict[str, Json]:
    """The names that a program finds: the same in every life of an execution, and in its replay."""
    context = {
        "executionId": execution.id, "pattern": execution.pattern, "version": execution.version,
        "attempt": execution.attempt,
    }  # fmt: skip
    return {"input": execution.input, "context": context}
