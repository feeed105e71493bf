"""One run of one program: its meter, builtins and words, and the helpers that generated code calls by name.

Errors pass through unplaced; when one leaves the run, the traceback tells which generated line, hence which source
line, it was. `runtime` starts machines and is the only caller.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CodeType, CoroutineType, FrameType, FunctionType, GeneratorType, TracebackType
from typing import Any, NoReturn

from . import binding, hints
from .builtins import Builtins
from .codegen import generate
from .compiler import OP_NAMES
from .effects import Branch, FatalHostError
from .errors import PrismCancelled, PrismError, PrismHostError, PrismLimitError, PrismRuntimeError, PrismThrow, Span
from .explain import Why, explained
from .heap import live_size
from .helpers import Helpers, step_of
from .host import Host
from .limits import Limits, exceeded
from .linking import LINKED, Linking
from .methods import Direct, Members
from .modules import Program, show_line
from .offload import EQUALITIES, Offload
from .operators import HIGH, MEDIUM, Operators
from .scopes import declarations
from .values import (
    LIGHT,
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
    scaled,
    tag,
    text_of,
    to_plain,
    truthy,
    type_name,
    weight_of,
)
from .words import Words

MARK = "<prism>"
CHUNK = 5_000  # nodes between two looks at the clock: well under a millisecond each
SLICE_S = 0.004  # the event loop waits no longer than this for a run
GRACE = 10_000  # nodes for the `finally` blocks after a limit was reached
UNSET = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """Something that happened: `kind` is statement, effect or band; `detail` the statement, word or band."""

    kind: str
    detail: str
    span: Span
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a run came to: plain data, its confidence if it has one, the step behind it, and the printed lines."""

    value: Any
    confidence: float | None = None
    output: list[str] = field(default_factory=list)
    step: str | None = None
    why: Why | None = None


Trace = Callable[[TraceEvent], None]


class Machine:
    """One run of one program."""

    def __init__(
        self,
        program: Program,
        limits: Limits,
        host: Host | None,
        given: Mapping[str, Any],
        *,
        trace: Trace | None = None,
        explain: bool = False,
    ) -> None:
        self.program = program
        self.limits = limits
        self.host = host
        self.trace_to = trace
        self.meter = Meter(limits, self.live)
        self.meter.stop = min(limits.nodes, CHUNK)
        self.output: list[str] = []
        self.printed = [0, 0]
        self.started = self.yielded = time.monotonic()
        self.members = Members(self.meter)
        self.offload = Offload(self.meter, host, self.drive)
        self.words = Words(self.meter, host, self.call, self.settled, self.place, self.tell_effect)
        self.linking = Linking(program, limits, self.meter, host, self.main)
        table = {
            **Builtins(self.meter, self.write).table(),
            **Helpers(self.meter).table(),
            **self.words.table(),
        }
        self.names = frozenset(table)
        self.globals: dict[str, Any] = {"__builtins__": {}, **self.helpers(explain=explain)}
        for name, value in {**table, **{k: from_plain(v, self.meter) for k, v in given.items()}}.items():
            self.globals[f"g_{name}"] = value

    # --- what generated code may name ---

    def helpers(self, *, explain: bool) -> dict[str, Any]:
        operators, members, bound = Operators(self.meter), self.members, binding.Binding(self.meter)
        rules: dict[str, Callable[..., Value]] = {
            **{py: operators.binary(op) for op, py in OP_NAMES.items()},
            "attach": operators.attach,
            "get": members.get,
            "get_sure": members.get_sure,
            "get_optional": members.get_optional,
            "index": members.index,
            "confident_choice": operators.ternary,
            "piped": operators.piped,
            "item_array": binding.item_array,
            "item_object": binding.item_object,
            "default_object": binding.default_object,
        }
        if self.host is not None:
            rules |= {name: self.offload.compared(rules[name]) for name in EQUALITIES}
        if explain:
            rules = {name: explained(name, rule, self.place) for name, rule in rules.items()}
        return {
            **rules,
            **{
                name: getattr(binding, name)
                for name in (
                    "take_array",
                    "take_object",
                    "has_key",
                    "threshold",
                    "meets",
                    "passing",
                    "match_array",
                    "match_object",
                    "matches",
                )
            },
            **{name: getattr(bound, name) for name in ("rest_array", "rest_object", "slice_rest", "key_rest")},
            "m": self.meter,
            "type": type,
            "float_": float,
            "tuple_": tuple,
            "Fn": Function,
            "CORO": CoroutineType,
            "UNSET": UNSET,
            "NULL": None,
            "NO_THRESHOLD": None,
            "EMPTY_ARRAY": self.meter.array(()),
            "EMPTY_OBJECT": self.meter.object({}),
            "MAX_DEPTH": self.limits.call_depth,
            "MAX_LOOPS": self.limits.loop_iterations,
            "FATAL": (PrismLimitError, PrismCancelled, asyncio.CancelledError, FatalHostError),
            "CATCHABLE": (PrismRuntimeError, PrismHostError),
            "ANY": (Exception, asyncio.CancelledError),
            "array": self.meter.array,
            "object": self.meter.object,
            "truthy": truthy,
            "falsy": lambda v: not truthy(v),
            "is_null": lambda v: peel(v) is None,
            "unsure": lambda v: confidence_of(v) < MEDIUM,
            "sure": lambda v: confidence_of(v) >= HIGH,
            "negate": operators.negate,
            "confidence_of": confidence_of,
            "type_name": type_name,
            "make_function": make_function,
            "settle": lambda v: v.value if type(v) is Promise else v,
            "plain_text": self.offload.plain_text,
            **{name: getattr(self, name) for name in _OWN},
            **{name: getattr(self.linking, name) for name in LINKED},
        }

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """A hosted run begins in the current task."""
        self.yielded = time.monotonic()
        self.offload.enter(loop)
        task = asyncio.current_task(loop)
        assert task is not None
        self.words.tasks.add(task)  # what it holds is found even while a builtin runs in a thread

    # --- names ---

    def lookup(self, name: str, line: int, column: int) -> Value:
        try:
            return self.globals[f"g_{name}"]
        except KeyError:
            self.undefined(name, line, column)

    def undefined(self, name: str, line: int, column: int) -> NoReturn:
        raise fail(f"Error at line {line}, column {column}: Undefined variable: {name}")

    def assign_global(self, name: str, value: Value) -> None:
        if f"g_{name}" not in self.globals:
            raise fail(f"Undefined variable: {name} (declare it with 'let {name}')")
        self.globals[f"g_{name}"] = value

    @staticmethod
    def too_early(name: str) -> NoReturn:
        raise fail(f"Cannot assign to '{name}' before initialization")

    @staticmethod
    def is_const(name: str) -> NoReturn:
        raise fail(f"Cannot assign to const variable '{name}'")

    @staticmethod
    def duplicate(name: str) -> NoReturn:
        raise fail(f"Variable '{name}' already declared in this scope")

    def branch(self) -> Branch:
        return self.words.branch()

    def guard_branch(self, declared_in: Branch, name: str) -> None:
        """A branch may only assign what was declared in it."""
        if self.words.branch() is not declared_in:
            raise fail(f"A parallel branch may not assign '{name}', which is declared outside it")

    # --- counting ---

    def checkpoint(self) -> None:
        """Generated code comes here every CHUNK nodes, and cannot wait."""
        meter = self.meter
        used = meter.nodes - meter.base
        if used > self.limits.nodes:
            exceeded("evaluated nodes", self.limits.nodes, used)
        if self.host is not None:
            meter.stop = meter.nodes - 1  # whatever can wait next will
            return
        elapsed = time.monotonic() - self.started
        if elapsed > self.limits.wall_time_s:
            exceeded("total wall time", self.limits.wall_time_s, elapsed)
        meter.stop = min(meter.nodes + CHUNK, meter.base + self.limits.nodes)

    async def pause(self) -> None:
        """The same where waiting is possible: let the event loop run if it has been long."""
        meter = self.meter
        used = meter.nodes - meter.base
        if used > self.limits.nodes:
            exceeded("evaluated nodes", self.limits.nodes, used)
        if time.monotonic() - self.yielded > SLICE_S:
            await asyncio.sleep(0)
            self.yielded = time.monotonic()
        meter.stop = min(meter.nodes + CHUNK, meter.base + self.limits.nodes)

    def grace(self) -> None:
        """`finally` blocks after a limit or a stop: a small budget, and no effects."""
        self.meter.base = self.meter.nodes - self.limits.nodes + GRACE
        self.meter.stop = self.meter.nodes
        if self.host is not None:
            self.words.branch().dead = True

    def too_deep(self, depth: int) -> NoReturn:
        exceeded("call depth", self.limits.call_depth, depth)

    def too_many_rounds(self, count: int) -> NoReturn:
        exceeded("loop iterations", self.limits.loop_iterations, count)

    def live(self) -> int:
        coroutines = [task.get_coro() for task in self.words.tasks]
        return live_size(sys._getframe(1), [*coroutines, self.globals, self.linking.modules])

    # --- calls ---

    def call(self, function: Value, depth: int, *args: Value) -> Value:
        """Call anything with exactly these arguments; the result may be a coroutine."""
        if type(function) is not Function:
            if type(function) is Confident:
                return self.at_confidence(self.call(function.value, depth, *args), function.confidence)
            raise fail(f"Cannot call non-function value: {tag(function)}")
        if function.pure and (weight := sum(map(weight_of, args))) > LIGHT:
            return self.offload.run(function.call, weight, depth, *args)
        if not function.builtin:
            count = len(args)
            if count < function.least or (function.most is not None and count > function.most):
                raise fail(arity_message(function, count))
            return function.call(depth, *args)
        result = function.call(depth, *args)
        return self.drive(result, depth) if type(result) is GeneratorType else result

    def bound(self, function: Value) -> Callable[..., Value]:
        return partial(self.call, function)

    def at_confidence(self, result: Value, confidence: float) -> Value:
        if type(result) is not CoroutineType:
            return scaled(result, confidence)

        async def later() -> Value:
            return scaled(await result, confidence)

        return later()

    def invoke(self, base: Value, name: str, depth: int, *args: Value) -> Value:
        """`base.name(…)`."""
        method = self.members.method(base, name)
        if method is None:
            return self.call(self.globals["get"](base, name), depth, *args)
        if (weight := sum(map(weight_of, args), weight_of(base))) > LIGHT:
            return self.offload.method(name, method, weight, depth, *args)
        result = method(depth, *args)
        return self.drive(result, depth) if type(result) is GeneratorType else result

    def step(self, request: Any, depth: int) -> Value:
        """One callback: as many of the available arguments as the function declares."""
        self.meter.nodes += 1
        if type(request) is Direct:
            return self.call(request.function, depth, *request.args)
        function, available = request
        if function.builtin:
            return self.call(function, depth, *(available[:2] if len(available) in (2, 4) else available[:1]))
        return self.call(function, depth, *(available if function.most is None else available[: function.most]))

    def drive(self, steps: Generator[Any, Value, Value], depth: int) -> Value:
        """Run a builtin with callbacks, without waiting as long as no callback waits."""
        value: Value = None
        meter = self.meter
        send = steps.send
        try:
            while True:
                request = send(value)
                function = request[0]
                if function.arity == 1 and type(request) is tuple:  # most callbacks
                    meter.nodes += 1
                    value = function.call(depth, request[1][0])
                else:
                    value = self.step(request, depth)
                if type(value) is CoroutineType:
                    return self.drive_waiting(steps, value, depth)
                if meter.nodes > meter.stop:
                    if self.host is not None:
                        return self.drive_waiting(steps, None, depth, value)
                    self.checkpoint()
        except StopIteration as stop:
            return stop.value

    async def drive_waiting(
        self,
        steps: Generator[Any, Value, Value],
        waiting: Coroutine[Any, Any, Value] | None,
        depth: int,
        value: Value = None,
    ) -> Value:
        try:
            if waiting is not None:
                value = await waiting
            while True:
                if self.meter.nodes > self.meter.stop:
                    await self.pause()
                value = self.step(steps.send(value), depth)
                if type(value) is CoroutineType:
                    value = await value
        except StopIteration as stop:
            return stop.value

    @staticmethod
    async def settled(result: Value) -> Value:
        return await result if type(result) is CoroutineType else result

    def pipe(self, right: Value, depth: int, value: Value) -> Value:
        if type(peel(right)) is not Function:
            raise fail(f"Pipeline right side must be a function or contain '_', got {tag(right)}")
        return self.call(right, depth, value)

    # --- literals ---

    def concat(self, parts: tuple[str, ...]) -> str:
        length = sum(map(len, parts))
        if length > self.limits.string_size:
            exceeded("string size", self.limits.string_size, length)
        return self.meter.text("".join(parts))

    def join_arrays(self, pieces: tuple[Any, ...]) -> Array:
        self.meter.array_size(sum(map(len, pieces)))
        return self.meter.array(itertools.chain.from_iterable(pieces))

    @staticmethod
    def spread_array(value: Value) -> Array:
        inner = peel(value)
        if type(inner) is not Array:
            raise fail(f"Cannot spread non-array value: {tag(inner)}")
        return inner

    @staticmethod
    def spread_call(value: Value) -> Array:
        if type(value) is not Array:
            raise fail(f"Cannot spread non-array value: {tag(value)}")
        return value

    @staticmethod
    def spread_object(value: Value) -> Object:
        inner = peel(value)
        if type(inner) is not Object:
            raise fail(f"Cannot spread non-object value: {tag(inner)}")
        return inner

    # --- statements ---

    @staticmethod
    def throw(value: Value) -> NoReturn:
        raise PrismThrow(value)

    @staticmethod
    def caught(error: PrismError) -> Value:
        if isinstance(error, FatalHostError):
            raise error
        return error.value if isinstance(error, PrismThrow) else error.message

    @staticmethod
    def each(value: Value) -> Any:
        inner = peel(value)
        if type(inner) is Array:
            return ((item, float(index)) for index, item in enumerate(inner))
        if type(inner) is Object:
            return inner.items()
        raise fail(f"for...in loop requires an array or an object, got {tag(inner)}")

    @staticmethod
    def sure_only(value: Value) -> Confident:
        if type(value) is not Confident:
            raise fail("Uncertain if requires a confidence expression")
        return value

    @staticmethod
    def loop_band(confidence: float) -> str:
        return "high" if confidence >= HIGH else "medium" if confidence >= MEDIUM else "low"

    @staticmethod
    def seen_confidence(value: Value, seen: float) -> float:
        return value.confidence if type(value) is Confident else seen

    @staticmethod
    def band(value: Confident, bands: Value) -> str:
        limits = {"high": HIGH, "medium": MEDIUM}
        if bands is not None:
            if type(bands) is not Object:
                raise fail(f"Uncertain bands must be an object, got {tag(bands)}")
            for name, level in bands.items():
                if name not in limits:
                    raise fail(f"Unknown uncertain band '{name}'")
                if level is None:
                    continue
                if type(level) is not float or not 0 <= level <= 1:
                    raise fail(f"Uncertain band '{name}' must be a number between 0 and 1")
                limits[name] = level
            if limits["medium"] > limits["high"]:
                raise fail("Uncertain band 'medium' must not be above 'high'")
        return (
            "high"
            if value.confidence >= limits["high"]
            else "medium"
            if value.confidence >= limits["medium"]
            else "low"
        )

    # --- output, places ---

    def write(self, line: str) -> None:
        printed, limits = self.printed, self.limits
        printed[0] += 1
        printed[1] += len(line.encode("utf-8", "surrogatepass")) + 1
        if printed[0] > limits.printed_lines:
            exceeded("printed lines", limits.printed_lines, printed[0])
        if printed[1] > limits.printed_bytes:
            exceeded("printed bytes", limits.printed_bytes, printed[1])
        self.output.append(line)
        self.offload.tell(line)

    def place(self) -> Span:
        """Where the program is: the nearest generated frame."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_filename.startswith(MARK):
                return code_span(frame.f_code, frame.f_lasti)
            frame = frame.f_back
        return Span(self.program.path, 1, 0)

    def trace(self, kind: str, detail: str, path: str, line: int, column: int) -> None:
        if self.trace_to is not None:
            self.trace_to(TraceEvent(kind=kind, detail=detail, span=Span(path, line, column)))

    def tell_effect(self, word: str, key: str, span: Span) -> None:
        if self.trace_to is not None:
            self.trace_to(TraceEvent(kind="effect", detail=word, span=span, key=key))

    # --- running ---

    def main(self, path: str) -> Callable[[int], Any]:
        return FunctionType(self.code(path, hosted=self.host is not None), self.globals)

    def code(self, path: str, *, hosted: bool) -> CodeType:
        """The code of a module, generated once for each kind of run."""
        traced = self.trace_to is not None
        key = (path, hosted, traced)
        code = self.program.codes.get(key)
        if code is None:
            tree = self.program.tree_of(path, self.limits)
            code = generate(tree, path, hosted=hosted, traced=traced, builtins=self.names)
            self.program.codes[key] = code
        return next(each for each in code.co_consts if isinstance(each, CodeType))

    def result(self, value: Value) -> Evaluation:
        confidence = value.confidence if type(value) is Confident else None
        why = value.why if type(value) is Confident else None
        return Evaluation(
            value=to_plain(peel(value)), confidence=confidence, output=self.output, step=step_of(value), why=why
        )

    def placed(self, error: PrismError) -> PrismError:
        """The error as it leaves the run: with its place, its source line and its final words."""
        if isinstance(error, PrismThrow):
            try:
                error.message = f"Uncaught throw: {text_of(error.value, self.meter)}"
            except PrismLimitError:
                error.message = "Uncaught throw"
            error.args = (error.message,)
        if error.path is None:
            error.place(traceback_span(error.__traceback__) or Span(self.program.path, 1, 0))
        if error.hint is None:
            names = (name for tree in (self.program.tree, *self.program.trees.values()) for name in declarations(tree))
            error.hint = hints.for_run(error.message, {*names, *self.names})
        source = self.program.bundle.get(error.path or "")
        if source is not None:
            show_line(error, source, error.path or "")
        return error


_OWN = [
    "lookup",
    "undefined",
    "assign_global",
    "too_early",
    "is_const",
    "duplicate",
    "branch",
    "guard_branch",
    "checkpoint",
    "pause",
    "grace",
    "too_deep",
    "too_many_rounds",
    "call",
    "bound",
    "invoke",
    "pipe",
    "concat",
    "join_arrays",
    "spread_array",
    "spread_call",
    "spread_object",
    "throw",
    "caught",
    "each",
    "sure_only",
    "loop_band",
    "seen_confidence",
    "band",
    "trace",
]


def make_function(name: str, call: Callable[..., Value], least: int, most: int | None, kind: str) -> Function:
    return Function(name, call, least, most, builtin=False, kind=kind)


def arity_message(function: Function, count: int) -> str:
    if function.most is None:
        expected = f"at least {function.least}"
    elif function.least == function.most:
        expected = str(function.least)
    else:
        expected = f"{function.least} to {function.most}"
    return f"{function.kind} expects {expected} arguments, got {count}"


def code_span(code: CodeType, lasti: int) -> Span:
    line, _, column, _ = next(itertools.islice(code.co_positions(), lasti // 2, None), (1, 1, 0, 0))
    return Span(code.co_filename[len(MARK) :], line or 1, column or 0)


def traceback_span(trace: TracebackType | None) -> Span | None:
    """The innermost generated line of a traceback."""
    found = None
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(MARK):
            found = (code, trace.tb_lasti)
        trace = trace.tb_next
    return code_span(*found) if found else None
