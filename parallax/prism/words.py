"""The orchestration words of section 11: what a program can ask of its host.

Each word checks its arguments at once, then takes its step id, then needs a host; only then it returns a coroutine
that performs the effect. A key is the id or the call path: the branch, the word and how often the branch has used it,
which is the same in every run that takes the same course.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from .errors import PrismCancelled, PrismError, PrismHostError, PrismRuntimeError, PrismThrow, Span
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
    confidence_of,
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


class Words:
    """The words of one run."""

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

    def table(self) -> dict[str, Value]:
        names: dict[str, Callable[..., Value]] = {
            "assign": self.assign,
            "fanout": self.fanout,
            "parallel": self.parallel,
            "race": self.race,
            "integrate": self.integrate,
            "review": self.reviewer("review"),
            "approve": self.reviewer("approve"),
            "askHuman": self.ask_human,
            "escalate": self.escalate,
            "verify": self.verify,
            "pattern": self.pattern,
            "llm": self.llm,
            "now": self.bare("now"),
            "random": self.bare("random"),
            "uuid": self.bare("uuid"),
            "sleep": self.sleeper("sleep"),
            "delay": self.sleeper("delay"),
            "emit": self.emit,
            "select": self.select,
            "org": self.org,
        }
        return {name: Function(name, call) for name, call in names.items()}

    def branch(self) -> Branch:
        return _current.get()

    @staticmethod
    def enter(branch: Branch) -> None:
        _current.set(branch)

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

    # --- words ---

    def name_or_selector(self, word: str, what: str, value: Value) -> Json:
        inner = peel(value)
        if type(inner) is str:
            return inner
        if type(inner) is Object:
            return self.json(word, self.meter.object({k: peel(v) for k, v in inner.items() if peel(v) is not None}))
        raise fail(f"{word}() {what} must be a name or a selector, got {tag(inner)}")

    def text(self, word: str, what: str, value: Value) -> str:
        inner = peel(value)
        if type(inner) is not str:
            raise fail(f"{word}() {what} must be a string, got {tag(inner)}")
        return inner

    def task(self, word: str, value: Value) -> Json:
        inner = peel(value)
        if type(inner) not in (str, Object):
            raise fail(f"{word}() task must be a string or an object, got {tag(inner)}")
        return self.json(word, inner)

    def assign(self, _depth: int, *args: Value) -> Value:
        self.count_args("assign", args, 2, 3, "target, task and optional options")
        options = self.with_refs(args, 2, self.options("assign", args, 2))
        target = self.name_or_selector("assign", "target", args[0])
        task = self.task("assign", args[1])
        self.check_review(options)
        self.check_id("assign", options)
        key = self.take_id("assign", options)
        request = {"target": target, "task": task, "options": self.sent_options("assign", options)}
        return self.effect("assign", key, request, confident=True, workspace=True)

    def check_review(self, options: Options) -> None:
        review = options.get("review")
        if review is None:
            return
        if type(review) is not Object:
            raise fail("assign() review must be an object")
        if type(peel(review.get("role"))) is not str:
            raise fail("assign() review role must be a string")
        rounds = peel(review.get("maxRounds"))
        if rounds is not None and (
            type(rounds) is not float or not math.isfinite(rounds) or rounds < 1 or rounds != int(rounds)
        ):
            raise fail("assign() review maxRounds must be an integer of at least 1")
        inner = {key: peel(value) for key, value in review.items() if peel(value) is not None}
        self.check_id("assign", inner)
        options["review"] = self.meter.object(inner)

    def fanout(self, _depth: int, *args: Value) -> Value:
        self.count_args("fanout", args, 2, 3, "selector, task and optional options")
        options = self.options("fanout", args, 2)
        selector = self.name_or_selector("fanout", "selector", args[0])
        task = self.task("fanout", args[1])
        self.check_id("fanout", options)
        key = self.take_id("fanout", options)
        return self.run_fanout(
            key, {"selector": selector, "task": task, "options": self.sent_options("fanout", options)}
        )

    async def run_fanout(self, key: str, request: Json) -> Value:
        span = self.place()
        outcome = await self.perform("fanout", key, request, span)
        if not isinstance(outcome.value, list):
            raise PrismHostError("fanout() needs a list of records from its host", span=span)
        records = []
        for each in outcome.value:
            shown = {k: v for k, v in each.items() if k != "step"}
            record = from_plain(shown, self.meter)
            record.step = each.get("step")
            records.append(record)
        result = self.meter.array(records)
        return result if outcome.confidence is None else Confident(result, float(outcome.confidence))

    def integrate(self, _depth: int, *args: Value) -> Value:
        self.count_args("integrate", args, 0, 2, "results and options")
        results = peel(args[0]) if args else None
        if results is not None and type(results) is not Array:
            raise fail(f"integrate() requires an array of results, got {tag(results)}")
        options = self.options("integrate", args, 1)
        if options.get("onConflict", "owner") not in ("owner", "lead", "fail"):
            raise fail('integrate() onConflict must be one of "owner", "lead", "fail"')
        self.check_id("integrate", options)
        key = self.take_id("integrate", options)
        refs = None
        if results is not None:
            refs = []
            for index, result in enumerate(results):
                inner, step = peel(result), step_of(result)
                if step is None:
                    if inner is None or (type(inner) is Object and peel(inner.get("error")) is not None):
                        continue
                    raise fail(f"integrate() result {index} has no workspace")
                if (
                    type(inner) is Object
                    and "confidence" in inner
                    and "value" in inner
                    and peel(inner.get("error")) is not None
                ):
                    continue
                refs.append(self.ref("integrate", result))
        request = {"results": refs, "options": self.sent_options("integrate", options)}
        return self.effect("integrate", key, request, confident=True, workspace=True)

    def reviewer(self, word: str) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            self.count_args(word, args, 2, 3, "role, subject and optional options")
            options = self.with_refs(args, 2, self.options(word, args, 2))
            role = self.text(word, "role", args[0])
            self.check_id(word, options)
            key = self.take_id(word, options)
            request = {"role": role, "subject": self.ref(word, args[1]), "options": self.sent_options(word, options)}
            return self.effect(word, key, request, confident=True)

        return run

    def ask_human(self, _depth: int, *args: Value) -> Value:
        self.count_args("askHuman", args, 1, 2, "question and optional options")
        options = self.with_refs(args, 1, self.options("askHuman", args, 1))
        question = self.text("askHuman", "question", args[0])
        self.check_id("askHuman", options)
        key = self.take_id("askHuman", options)
        return self.effect("askHuman", key, {"question": question, "options": self.sent_options("askHuman", options)})

    def escalate(self, _depth: int, *args: Value) -> Value:
        self.count_args("escalate", args, 2, 3, "from, question and optional options")
        options = self.with_refs(args, 2, self.options("escalate", args, 2))
        source = self.text("escalate", "from", args[0])
        question = self.text("escalate", "question", args[1])
        self.check_id("escalate", options)
        key = self.take_id("escalate", options)
        return self.effect(
            "escalate", key, {"from": source, "question": question, "options": self.sent_options("escalate", options)}
        )

    def verify(self, _depth: int, *args: Value) -> Value:
        check = peel(args[0]) if args else None
        problem = "verify() requires a check name, an array of arguments or an object"
        if not args:
            raise fail(problem)
        if len(args) > 2:
            raise fail("verify() requires 1 or 2 arguments: check and optional options")
        if type(check) is Array:
            check = self.meter.array([peel(item) for item in check])
            if not check or not all(type(item) is str for item in check):
                raise fail("verify() arguments must be a non-empty array of strings")
        elif type(check) not in (str, Object):
            raise fail(f"{problem}, got {tag(check)}")
        options = self.with_refs(args, 1, self.options("verify", args, 1))
        self.check_id("verify", options)
        key = self.take_id("verify", options)
        request = {"check": self.json("verify", check), "options": self.sent_options("verify", options)}
        return self.effect("verify", key, request, confident=True)

    def pattern(self, _depth: int, *args: Value) -> Value:
        self.count_args("pattern", args, 1, 3, "name, input and optional options")
        options = self.options("pattern", args, 2)
        name = self.text("pattern", "name", args[0])
        self.check_id("pattern", options)
        key = self.take_id("pattern", options)
        given = self.ref("pattern", args[1] if len(args) > 1 else None)["value"]
        return self.effect(
            "pattern", key, {"name": name, "input": given, "options": self.sent_options("pattern", options, ())}
        )

    def llm(self, depth: int, *args: Value) -> Value:
        if not args:
            raise fail("llm() requires at least one argument")
        prompt = peel(args[0])
        if type(prompt) is not str:
            raise fail("llm() first argument must be a string")
        options = self.llm_options(args)
        self.check_id("llm", options)
        key = self.take_id("llm", options)
        return self.run_llm(depth, key, prompt, options)

    @staticmethod
    def llm_options(args: tuple[Value, ...]) -> Options:
        given = args[1] if len(args) > 1 else None
        if given is None:
            return {}
        if type(given) is not Object:
            raise fail("llm() options must be an object")
        options = {key: value for key, value in given.items() if value is not None}
        kinds = {
            **dict.fromkeys(("provider", "model"), (str, "string")),
            **dict.fromkeys(("temperature", "maxTokens", "topP", "timeout"), (float, "number")),
            **dict.fromkeys(("structuredOutput", "includeReasoning"), (bool, "boolean")),
        }
        for key, (kind, name) in kinds.items():
            if key in options and type(options[key]) is not kind:
                raise fail(f"llm() option '{key}' must be a {name}")
        if "extractor" in options and type(options["extractor"]) is not Function:
            raise fail("llm() extractor must be a function")
        if "id" in options and type(options["id"]) is not str:
            raise fail("llm() option 'id' must be a string")
        return options

    async def run_llm(self, depth: int, key: str, prompt: str, options: Options) -> Value:
        sent = self.sent_options("llm", options, (), ("extractor",))
        outcome = await self.perform("llm", key, {"prompt": prompt, "options": sent}, self.place())
        value = from_plain(outcome.value, self.meter)
        reply = value if type(value) is Object and "content" in value else Object({"content": value})
        level = 1.0 if outcome.confidence is None else float(outcome.confidence)
        content = reply["content"]
        extractor = options.get("extractor")
        if extractor is not None:
            shown = {
                "content": content,
                "confidence": level,
                "model": reply.get("model", options.get("model")),
                "tokensUsed": reply.get("tokensUsed"),
                "provider": reply.get("provider", options.get("provider")),
                "prompt": prompt,
                "options": from_plain(sent, self.meter),
            }
            level = self.extracted(await self.settle(self.call(extractor, depth, self.meter.object(shown))))
        return self.meter.confident(content, level)

    @staticmethod
    def extracted(found: Value) -> float:
        if type(found) is Confident:
            return float(found.confidence)
        level = peel(found.get("confidence")) if type(found) is Object else found
        if type(level) is not float or not 0 <= level <= 1:
            raise fail(
                "llm() extractor must return a number in [0, 1], a confident value or an object with a confidence"
            )
        return level

    def bare(self, word: str) -> Callable[..., Value]:
        """`now`, `random` and `uuid`: nothing but options."""

        def run(_depth: int, *args: Value) -> Value:
            self.count_args(word, args, 0, 1, "options")
            options = self.options(word, args, 0)
            self.check_id(word, options)
            return self.effect(word, self.take_id(word, options), {})

        return run

    def sleeper(self, word: str) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            self.count_args(word, args, 1, 2, "milliseconds and optional options")
            ms = peel(args[0])
            if type(ms) is not float or ms != ms:
                raise fail(f"{word}() requires a number of milliseconds")
            options = self.options(word, args, 1)
            self.check_id(word, options)
            key = self.take_id(word, options)
            return self.pause(key, self.json(word, ms))

        return run

    async def pause(self, key: str, ms: Json) -> Value:
        await self.perform("sleep", key, {"ms": ms}, self.place())
        return None

    def emit(self, _depth: int, *args: Value) -> Value:
        self.count_args("emit", args, 1, 3, "name, data and optional options")
        name = self.text("emit", "name", args[0])
        options = self.options("emit", args, 2)
        self.check_id("emit", options)
        key = self.take_id("emit", options)
        data = self.json("emit", peel(args[1])) if len(args) > 1 else None
        return self.quietly("emit", key, {"name": name, "data": data})

    async def quietly(self, word: str, key: str, request: Json) -> Value:
        await self.perform(word, key, request, self.place())
        return None

    def select(self, _depth: int, *args: Value) -> Value:
        self.count_args("select", args, 1, 2, "role and optional options")
        options = self.options("select", args, 1)
        role = self.text("select", "role", args[0])
        criteria = options.get("criteria", "availability")
        if criteria not in ("availability", "expertise", "round_robin", "best"):
            raise fail('select() criteria must be one of "availability", "expertise", "round_robin", "best"')
        self.check_id("select", options)
        return self.effect("select", self.take_id("select", options), {"role": role, "criteria": criteria})

    def org(self, _depth: int, *args: Value) -> Value:
        self.count_args("org", args, 1, 2, "roles and optional routing and escalation")
        roles = peel(args[0])
        if type(roles) is not Object:
            raise fail(f"org() roles must be an object, got {tag(roles)}")
        options = self.options("org", args, 1)
        self.check_id("org", options)
        late = self.effects_seen
        key = self.take_id("org", options)
        if late:
            raise fail("org() must come before any other effect, and once")
        request = {
            "roles": self.json("org", roles),
            "routing": self.json("org", options.get("routing")),
            "escalation": self.json("org", options.get("escalation")),
        }
        return self.quietly("org", key, request)

    # --- branches ---

    def branches(self, word: str, args: tuple[Value, ...]) -> tuple[list[tuple[Function, tuple[Value, ...]]], Options]:
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

    async def run_branch(self, depth: int, branch: tuple[Function, tuple[Value, ...]], mine: Branch) -> Value:
        """Run one branch, in a task of its own, as the line `mine`."""
        _current.set(mine)
        function, args = branch
        return await self.settle(self.call(function, depth, *args))

    async def run_parallel(
        self, depth: int, key: str, branches: list[tuple[Function, tuple[Value, ...]]], limit: int, *, collect: bool
    ) -> Value:
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

    async def run_race(
        self, depth: int, key: str, branches: list[tuple[Function, tuple[Value, ...]]], least: float
    ) -> Value:
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
