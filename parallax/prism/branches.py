"""`parallel` and `race`: branches that run at once, and the join that a journal keeps (section 11).

A branch is a task in a TaskGroup; the first error, or the winner, ends the others, and no task outlives the word. The
course is recorded before the program goes on, so a replay runs only the branches that the course needs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from .effects import Branch, Effects, FatalHostError, Options, enter_branch
from .errors import PrismError, PrismHostError, PrismRuntimeError, PrismThrow
from .limits import exceeded
from .values import (
    Array,
    Function,
    Meter,
    Object,
    Value,
    confidence_of,
    fail,
    peel,
    tag,
    text_of,
)

Call = tuple[Function, tuple[Value, ...]]


class Branches(Effects):
    """The words with branches."""

    def branches(self, word: str, args: tuple[Value, ...]) -> tuple[list[Call], Options]:
        source = peel(args[0]) if args else None
        if type(source) is not Array:
            raise fail(f"{word}() requires an array, got {tag(source)}")
        function = args[1] if len(args) > 1 and word == "parallel" and type(peel(args[1])) is Function else None
        place = 2 if function is not None else 1
        if len(args) > place + 1:
            raise fail(f"{word}() requires an array and optional options")
        options = self.options(word, args, place)
        if function is not None:
            most = peel(function).most
            return [
                (function, (x, float(i))[: 2 if most is None else most] if not peel(function).builtin else (x,))
                for i, x in enumerate(source)
            ], options
        for index, item in enumerate(source):
            if type(peel(item)) is not Function:
                raise fail(f"{word}() branch {index} must be a function, got {tag(peel(item))}")
        return [(item, ()) for item in source], options

    def parallel(self, depth: int, *args: Value) -> Value:
        branches, options = self.branches("parallel", args)
        limit = options.get("limit")
        if limit is not None and (
            type(limit) is not float or not math.isfinite(limit) or limit < 1 or limit != int(limit)
        ):
            raise fail("parallel() limit must be an integer of at least 1")
        on_error = options.get("onError", "fail")
        if on_error not in ("fail", "collect"):
            raise fail('parallel() onError must be one of "fail", "collect"')
        self.check_id("parallel", options)
        key = self.take_id("parallel", options)
        most = self.meter.limits.concurrent
        return self.run_parallel(depth, key, branches, min(most, int(limit or most)), collect=on_error == "collect")

    def race(self, depth: int, *args: Value) -> Value:
        branches, options = self.branches("race", args)
        least = options.get("minConfidence", 0.0)
        if type(least) is not float or not 0 <= least <= 1:
            raise fail("race() minConfidence must be a number between 0 and 1")
        self.check_id("race", options)
        return self.run_race(depth, self.take_id("race", options), branches, least)

    def recall(self, key: str) -> dict[str, Any] | None:
        """The course that a journal holds for a join."""
        assert self.host is not None
        outcome = self.host.recall(key)
        return outcome.value or {} if outcome is not None else None

    async def run_branch(self, depth: int, branch: Call, mine: Branch) -> Value:
        """Run one branch, in a task of its own, as the line `mine`."""
        enter_branch(mine)
        function, args = branch
        return await self.settle(self.call(function, depth, *args))

    async def run_parallel(self, depth: int, key: str, branches: list[Call], limit: int, *, collect: bool) -> Value:
        span = self.place()
        course = self.recall(key)
        only = None if course is None else course.get("failed")
        indexes = range(len(branches)) if only is None else [int(only)]
        results: list[Value] = [None] * len(branches)
        errors: dict[int, PrismError] = {}
        gate = asyncio.Semaphore(limit)

        async def one(index: int, mine: Branch) -> bool:
            async with gate:
                try:
                    results[index] = await self.run_branch(depth, branches[index], mine)
                    return False
                except PrismError as error:
                    errors[index] = error
                    if (
                        collect
                        and isinstance(error, PrismRuntimeError | PrismHostError)
                        and not isinstance(error, FatalHostError)
                    ):
                        results[index] = self.failed_record(error)
                        return False
                    return True

        stopped = await self.together(key, list(indexes), one)
        failed = stopped[0] if stopped else None
        self.raise_fatal(errors)
        if course is None:
            request = {"word": "parallel", "branches": len(branches), "winner": None, "failed": failed}
            await self.perform("join", key, request, span)
        if failed is not None:
            raise errors[failed]
        return self.meter.array(results)

    def failed_record(self, error: PrismError) -> Object:
        return self.meter.object(
            {"agent": None, "value": None, "confidence": 0.0, "error": error_text(error, self.meter)}
        )

    @staticmethod
    def raise_fatal(errors: dict[int, PrismError]) -> None:
        for error in errors.values():
            if isinstance(error, FatalHostError) or not isinstance(error, PrismRuntimeError | PrismHostError):
                raise error

    async def run_race(self, depth: int, key: str, branches: list[Call], least: float) -> Value:
        span = self.place()
        course = self.recall(key)
        results: dict[int, Value] = {}
        errors: dict[int, PrismError] = {}

        async def one(index: int, mine: Branch) -> bool:
            try:
                value = await self.run_branch(depth, branches[index], mine)
            except PrismError as error:
                errors[index] = error
                return isinstance(error, FatalHostError) or not isinstance(error, PrismRuntimeError | PrismHostError)
            results[index] = value
            return confidence_of(value) >= least

        if course is not None:
            winner = course.get("winner")
            if winner is not None:
                await self.together(key, [int(winner)], one)
                self.raise_fatal(errors)
                if int(winner) not in results:
                    raise errors[int(winner)]
        else:
            stopped = await self.together(key, list(range(len(branches))), one)
            self.raise_fatal(errors)
            winner = stopped[0] if stopped else None
            request = {"word": "race", "branches": len(branches), "winner": winner, "failed": None}
            await self.perform("join", key, request, span)
        return self.meter.confident(None, 0.0) if winner is None else results[int(winner)]

    async def together(
        self, key: str, indexes: list[int], one: Callable[[int, Branch], Coroutine[Any, Any, bool]]
    ) -> list[int]:
        """Run branches at once; the first that answers True ends the others. Gives it, if any."""
        outer = self.branch()
        if len(indexes) > 1_000 * self.meter.limits.concurrent:
            exceeded("concurrent", 1_000 * self.meter.limits.concurrent, len(indexes))
        stopped: list[int] = []
        lines = {index: Branch(f"{key}[{index}]/", (*outer.chain, (key, index)), outer) for index in indexes}
        tasks: dict[int, asyncio.Task[None]] = {}

        async def watch(index: int) -> None:
            if await one(index, lines[index]) and not stopped:
                stopped.append(index)
                for other, task in tasks.items():
                    if other != index:
                        lines[other].dead = True
                        task.cancel()

        try:
            async with asyncio.TaskGroup() as group:
                for index in indexes:
                    tasks[index] = group.create_task(watch(index))
                    self.tasks.add(tasks[index])
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for line in lines.values():
                line.dead = True
            self.tasks.difference_update(tasks.values())
        return stopped


def error_text(error: PrismError, meter: Meter) -> str:
    """What `catch` would bind, as text."""
    return text_of(error.value, meter) if isinstance(error, PrismThrow) else error.message
