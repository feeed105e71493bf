"""What all effects share: branches and keys, the checks of arguments, and the way to the host.

A key is the id or the call path: the branch, the word and how often the branch has used it, which is the same in
every run that takes the same course. `branches` and `words` build on it.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from .errors import PrismCancelled, PrismHostError, Span
from .helpers import step_of
from .host import Effect, Host, Json, Outcome
from .limits import exceeded
from .values import (
    Array,
    Confident,
    Function,
    Meter,
    Object,
    Promise,
    Value,
    fail,
    from_plain,
    peel,
    plain_number,
    tag,
    text_of,
)

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}")
Waiting = Coroutine[Any, Any, Value]
Options = dict[str, Value]


class FatalHostError(PrismHostError):
    """A failed effect that the host will not let the program catch."""


class Branch:
    """One line of execution: the main one, or a branch of `parallel` or `race`."""

    __slots__ = ("chain", "counts", "dead", "outer", "prefix")

    def __init__(self, prefix: str = "", chain: tuple[tuple[str, int], ...] = (), outer: Branch | None = None) -> None:
        self.prefix = prefix
        self.chain = chain
        self.outer = outer
        self.counts: dict[str, int] = {}
        self.dead = False  # lost or stopped: its `finally` blocks may run, but order nothing

    def next(self, word: str) -> str:
        count = self.counts[word] = self.counts.get(word, 0) + 1
        return f"{self.prefix}{word}#{count}"

    def stopped(self) -> bool:
        line: Branch | None = self
        while line is not None and not line.dead:
            line = line.outer
        return line is not None


_current: ContextVar[Branch] = ContextVar("prism_branch")


def enter_branch(branch: Branch) -> None:
    """From here on this task runs the branch."""
    _current.set(branch)


class Effects:
    """The state and the manners of one run's effects."""

    def __init__(
        self,
        meter: Meter,
        host: Host | None,
        call: Callable[..., Value],
        settle: Callable[[Value], Any],
        place: Callable[[], Span],
        tell: Callable[[str, str, Span], None],
    ) -> None:
        self.meter = meter
        self.host = host
        self.call = call
        self.settle = settle
        self.place = place
        self.tell = tell
        self.ids: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.count = 0
        self.stopped = False
        self.effects_seen = False

    def branch(self) -> Branch:
        return _current.get()

    @staticmethod
    def enter(branch: Branch) -> None:
        enter_branch(branch)

    # --- arguments ---

    @staticmethod
    def count_args(word: str, args: tuple[Value, ...], least: int, most: int, words: str) -> None:
        if not least <= len(args) <= most:
            counts = f"{least} or {most} arguments" if least else f"at most {most} argument{'s' if most > 1 else ''}"
            raise fail(f"{word}() requires {counts}: {words}")

    @staticmethod
    def options(word: str, args: tuple[Value, ...], place: int) -> Options:
        given = peel(args[place]) if len(args) > place else None
        if given is None:
            return {}
        if type(given) is not Object:
            raise fail(f"{word}() options must be an object")
        return {key: peel(value) for key, value in given.items() if peel(value) is not None}

    @staticmethod
    def check_id(word: str, options: Options) -> None:
        value = options.get("id")
        if value is None:
            return
        if type(value) is not str:
            raise fail(f"{word}() id must be a string")
        if not ID.fullmatch(value):
            raise fail(f"{word}() id '{value}' must match [A-Za-z0-9][A-Za-z0-9 ._-]{{0,62}}")

    def take_id(self, word: str, options: Options) -> str:
        """The key of this effect; an id counts as used from here on."""
        value = options.get("id")
        if value is not None:
            if value in self.ids:
                raise fail(f"Step id '{value}' is used twice")
            self.ids.add(value)
        if self.host is None:
            if word == "llm":
                provider = options.get("provider")
                raise fail(
                    f"LLM provider '{provider}' not found" if provider is not None else "No LLM provider configured"
                )
            raise fail(f"No host: '{word}' needs one")
        branch = self.branch()
        if self.stopped or branch.stopped():
            raise PrismCancelled("The run was stopped")
        self.effects_seen = True
        return value if value is not None else branch.next(word)

    def json(self, word: str, value: Value) -> Json:
        """A request is strict JSON; a confident value inside becomes `{value, confidence}`."""
        kind = type(value)
        if kind is float:
            if not math.isfinite(value):
                raise fail(f"{word}() cannot send {text_of(value, self.meter)}")
            return plain_number(value)
        if kind is Array:
            return [self.json(word, item) for item in value]
        if kind is Object:
            return {key: self.json(word, item) for key, item in value.items()}
        if kind is Confident:
            return {"value": self.json(word, value.value), "confidence": plain_number(value.confidence)}
        if kind is Function or kind is Promise:
            raise fail(f"{word}() cannot send a {tag(value)}")
        return value

    def sent_options(
        self, word: str, options: Options, refs: tuple[str, ...] = ("input",), drop: tuple[str, ...] = ()
    ) -> Json:
        return {
            key: self.ref(word, value) if key in refs else self.json(word, value)
            for key, value in options.items()
            if key != "id" and key not in drop
        }

    def ref(self, word: str, value: Value) -> Json:
        """A result as it is passed on: its step, value and confidence."""
        confidence = plain_number(value.confidence) if type(value) is Confident else None
        inner = peel(value)
        step = step_of(value)
        if (
            type(inner) is Object
            and step is not None
            and inner.step == step
            and "value" in inner
            and type(value) is not Confident
        ):
            confidence = self.json(word, peel(inner.get("confidence")))
            inner = peel(inner["value"])
        return {"step": step, "value": self.json(word, inner), "confidence": confidence}

    @staticmethod
    def raw_options(args: tuple[Value, ...], place: int) -> Object | None:
        given = peel(args[place]) if len(args) > place else None
        return given if type(given) is Object else None

    def with_refs(self, args: tuple[Value, ...], place: int, options: Options) -> Options:
        """`input` keeps its confidence and its step, which looking through a layer would lose."""
        raw = self.raw_options(args, place)
        if raw is not None and "input" in options:
            options["input"] = raw["input"]
        return options

    # --- performing ---

    async def perform(self, kind: str, key: str, request: Json, span: Span) -> Outcome:
        assert self.host is not None
        self.tell(kind, key, span)
        self.count += 1
        if self.count > self.meter.limits.effects:
            exceeded("effects total", self.meter.limits.effects, self.count, span)
        outcome = await self.host.perform(
            Effect(kind=kind, key=key, request=request, span=span, branch=self.branch().chain)
        )
        self.meter.base = self.meter.nodes  # a new activation
        if self.stopped:
            raise PrismCancelled("The run was stopped", span=span)
        if outcome.error is not None:
            message = outcome.error
            if kind == "llm" and not message.startswith(("LLM ", "No LLM ")):
                message = f"LLM call failed: {message}"
            raise (PrismHostError if outcome.catchable else FatalHostError)(
                message, catchable=outcome.catchable, span=span
            )
        level = outcome.confidence
        if level is not None and (type(level) not in (int, float) or not 0 <= level <= 1):
            raise fail(f"{kind}() reported confidence must be a number between 0 and 1")
        return outcome

    async def effect(
        self, word: str, key: str, request: Json, *, confident: bool = False, workspace: bool = False
    ) -> Value:
        outcome = await self.perform(word, key, request, self.place())
        value = from_plain(outcome.value, self.meter)
        if outcome.confidence is None and not confident:
            return value
        result = self.meter.confident(value, 1.0 if outcome.confidence is None else float(outcome.confidence))
        if workspace:
            result.step = key
        return result
