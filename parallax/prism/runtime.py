"""Runs compiled programs: `evaluate` without a host, `PrismRuntime` with one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from .effects import Branch
from .errors import PrismCancelled, PrismError, PrismLimitError
from .host import Host
from .limits import Limits
from .machine import Evaluation, Machine, Trace
from .modules import Program, checked_tree, make_program
from .values import (
    Value,
)


def evaluate(
    source: str,
    *,
    globals: Mapping[str, Any] | None = None,  # noqa: A002
    limits: Limits | None = None,
    path: str = "<source>",
    trace: Trace | None = None,
    explain: bool = False,
) -> Evaluation:
    """Run a program at once, without a host: effects fail, everything else works."""
    limits = limits or Limits()
    tree = checked_tree(source, path, limits)
    program = make_program(source, path=path, tree=tree)
    return run_sync(program, globals=globals or {}, limits=limits, trace=trace, explain=explain)


def run_sync(
    program: Program,
    *,
    globals: Mapping[str, Any],  # noqa: A002
    limits: Limits,
    trace: Trace | None = None,
    explain: bool = False,
) -> Evaluation:
    machine = Machine(program, limits, None, globals, trace=trace, explain=explain)
    try:
        return machine.result(machine.main(program.path)(0))
    except PrismError as error:
        raise _with_output(machine.placed(error), machine) from None
    except (RecursionError, MemoryError):
        raise _with_output(
            machine.placed(PrismLimitError("call depth", limits.call_depth, limits.call_depth + 1)), machine
        ) from None


def _with_output(error: PrismError, machine: Machine) -> PrismError:
    """What was printed before the error belongs to it."""
    error.output = machine.output
    return error


def prepare(program: Program) -> None:
    """Generate the code of a hosted run now, so that the run's event loop need not wait for it."""
    Machine(program, Limits.hosted(), None, {}).code(program.path, hosted=True)


class PrismRuntime:
    """One hosted run of a program. `run` may be called once."""

    def __init__(
        self,
        program: Program,
        host: Host,
        *,
        globals: Mapping[str, Any] | None = None,  # noqa: A002
        limits: Limits | None = None,
        trace: Trace | None = None,
        explain: bool = False,
    ) -> None:
        self.program = program
        self.limits = limits or Limits.hosted()
        self.machine = Machine(program, self.limits, host, globals or {}, trace=trace, explain=explain)
        self._task: asyncio.Task[Value] | None = None
        self._cancelled = False

    @property
    def output(self) -> list[str]:
        return self.machine.output

    def cancel(self) -> None:
        """Stop the run: it ends with PrismCancelled after its `finally` blocks."""
        self._cancelled = True
        self.machine.words.stopped = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> Evaluation:
        """The result, or a PrismError. When the caller is cancelled, so is the run, and CancelledError passes."""
        machine = self.machine
        limit = self.limits.wall_time_s
        try:
            async with asyncio.timeout(limit):
                self._task = asyncio.create_task(self._main())
                try:
                    value = await self._task
                except asyncio.CancelledError:
                    machine.words.stopped = True
                    if not self._task.done():
                        self._task.cancel()
                        await asyncio.wait([self._task])
                    if self._cancelled:
                        raise PrismCancelled("The run was cancelled by its host") from None
                    raise
            return machine.result(value)
        except TimeoutError:
            error: PrismError = PrismLimitError("total wall time", limit, time.monotonic() - machine.started)
        except PrismError as raised:
            error = raised
        except (RecursionError, MemoryError):
            error = PrismLimitError("call depth", self.limits.call_depth, self.limits.call_depth + 1)
        raise _with_output(machine.placed(error), machine) from None

    async def _main(self) -> Value:
        if self._cancelled:
            raise asyncio.CancelledError
        machine = self.machine
        machine.words.enter(Branch())
        machine.enter(asyncio.get_running_loop())
        return await machine.main(self.program.path)(0)
