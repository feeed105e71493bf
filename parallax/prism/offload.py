"""Builtins that go through much: counted before they start, and, with a host, run in a thread of their own.

No value is ever changed, so a builtin may read in one thread while the event loop runs in another: a program that
sorts or prints a hundred thousand elements holds up no agent. `machine` calls this where a builtin's arguments are
heavy; generated code awaits the coroutine that it then gets.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import CoroutineType, GeneratorType

from .host import Host
from .values import COPY, LIGHT, READ, Meter, Value, compared_weight, text_of, weight_of

COPIES = frozenset(("push", "concat", "slice"))  # methods that copy their array and do not look at its elements
EQUALITIES = ("same", "not_same", "equal", "not_equal", "c_same", "c_not_same")
Drive = Callable[[Value, int], Value]


class Offload:
    """What a run does with heavy arguments. `drive` runs a builtin that calls back."""

    def __init__(self, meter: Meter, host: Host | None, drive: Drive) -> None:
        self.meter = meter
        self.host = host
        self.drive = drive
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = 0

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """The event loop that a hosted run belongs to."""
        self.loop, self.thread = loop, threading.get_ident()

    def run(self, call: Callable[..., Value], weight: int, depth: int, *args: Value, cost: int = READ) -> Value:
        """The builtin's result, or a coroutine of it."""
        self.meter.charge(weight, cost)
        if self.loop is not None:
            return self._aside(call, depth, *args)
        result = call(depth, *args)
        return self.drive(result, depth) if type(result) is GeneratorType else result

    async def _aside(self, call: Callable[..., Value], depth: int, *args: Value) -> Value:
        result = await asyncio.to_thread(call, depth, *args)
        if type(result) is GeneratorType:  # it calls back: that is for the event loop's thread
            result = self.drive(result, depth)
        return await result if type(result) is CoroutineType else result

    def method(self, name: str, call: Callable[..., Value], weight: int, depth: int, *args: Value) -> Value:
        """A heavy array's or string's method."""
        return self.run(call, weight, depth, *args, cost=COPY if name in COPIES else READ)

    def compared(self, rule: Callable[[Value, Value], Value]) -> Callable[[Value, Value], Value]:
        """An equality with a host."""

        def run(left: Value, right: Value) -> Value:
            if compared_weight(left, right) > LIGHT:
                return self._aside(lambda _depth: rule(left, right), 0)
            return rule(left, right)

        return run

    def plain_text(self, value: Value) -> Value:
        """The text of a value in a template, without its confidence."""
        if type(value) is not str and (weight := weight_of(value)) > LIGHT:
            return self.run(lambda _depth: text_of(value, self.meter, plain=True), weight, 0)
        return text_of(value, self.meter, plain=True)

    def tell(self, line: str) -> None:
        """A printed line, to the host in its own thread; before the builtin that printed it returns there."""
        if self.host is None:
            return
        if self.loop is None or self.thread == threading.get_ident():
            self.host.print(line)
        else:
            self.loop.call_soon_threadsafe(self.host.print, line)
