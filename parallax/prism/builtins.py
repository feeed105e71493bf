"""The builtins of section 9: functions and namespaces that touch nothing outside the program.

`make_builtins` returns them for one run. Those that call back are generators, as in `methods`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cmp_to_key
from typing import Any

from .limits import exceeded
from .methods import Direct, Steps
from .operators import power
from .values import (
    Array,
    Confident,
    Function,
    Meter,
    Object,
    Promise,
    Value,
    confidence_of,
    core,
    fail,
    json_text,
    keep,
    peel,
    tag,
    text_of,
    truthy,
)

SAFE = 2**53 - 1
_NUMBER = re.compile(r"[+-]?(?:Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
Table = dict[str, Value]
Keyed = tuple[tuple[Value, str], Value]

# Builtins that take no longer the more they are given: generated code calls them without waiting.
QUICK = frozenset(("range", "max", "min", "Number", "Boolean"))


def confidence_or_none(value: Value) -> float | None:
    return value.confidence if type(value) is Confident else None


def exactly(name: str, args: tuple[Value, ...], count: int, words: str) -> None:
    if len(args) != count:
        raise fail(f"{name}() requires {words}")


class Builtins:
    """Builds the table; every method that is a builtin takes the call depth first."""

    def __init__(self, meter: Meter, write: Callable[[str], None]) -> None:
        self.meter = meter
        self.write = write

    def table(self) -> Table:
        simple: dict[str, Callable[..., Value]] = {
            "print": self.printer(""),
            "map": self.map,
            "filter": self.filter,
            "reduce": self.reduce,
            "range": self.range,
            "max": self.extreme("max", lambda a, b: a > b),
            "min": self.extreme("min", lambda a, b: a < b),
            "confidence": self.confidence,
            "threshold": self.threshold,
            "aggregate": self.aggregate,
            "sortBy": self.sort_by,
            "groupBy": self.group_by,
            "Number": self.converter("Number", self.number),
            "String": self.converter("String", self.string),
            "Boolean": self.converter("Boolean", truthy),
        }
        table: Table = {name: Function(name, call, pure=name not in QUICK) for name, call in simple.items()}
        table["console"] = self.namespace(
            {
                "log": self.printer(""),
                "warn": self.printer(""),
                "error": self.printer(""),
                "debug": self.printer("[DEBUG] "),
            },
        )
        table["Object"] = self.namespace(self.object_functions())
        table["JSON"] = self.namespace({"parse": self.json_parse, "stringify": self.json_stringify})
        table["Math"] = self.math(table)
        table["Array"] = self.namespace({"isArray": self.is_array}, pure=False)
        table["Promise"] = self.namespace({"resolve": self.promise_resolve, "all": self.promise_all})
        return table

    @staticmethod
    def namespace(
        functions: dict[str, Callable[..., Value]], more: Table | None = None, *, pure: bool = True
    ) -> Object:
        result = Object({key: Function(key, call, pure=pure) for key, call in functions.items()})
        result.update(more or {})
        result.depth, result.weight, result.step = 1, 0, None
        return result

    # --- output ---

    def printer(self, prefix: str) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            parts = []
            for value in args:
                if type(value) is Confident:
                    parts.append(f"{text_of(value.value, self.meter)} ~> {value.confidence:.2f}")
                else:
                    parts.append(text_of(value, self.meter))
            self.write(prefix + " ".join(parts))
            return None

        return run

    # --- arrays ---

    def array_and_function(self, name: str, args: tuple[Value, ...], words: str) -> tuple[Array, Function]:
        exactly(name, args, 2, f"exactly 2 arguments: {words}")
        if type(peel(args[0])) is not Array:
            raise fail(f"First argument to {name}() must be an array")
        if type(args[1]) is not Function:
            raise fail(f"Second argument to {name}() must be a function")
        return peel(args[0]), args[1]

    def map(self, _depth: int, *args: Value) -> Value:
        xs, function = self.array_and_function("map", args, "array and function")

        def steps() -> Steps:
            result = []
            for i, x in enumerate(xs):
                result.append((yield function, (x, float(i), xs)))
            return self.wrap(self.meter.array(result), args[0])

        return steps()

    def filter(self, _depth: int, *args: Value) -> Value:
        xs, function = self.array_and_function("filter", args, "array and predicate")

        def steps() -> Steps:
            result = []
            for i, x in enumerate(xs):
                if truthy((yield function, (x, float(i), xs))):
                    result.append(x)
            return self.wrap(self.meter.array(result), args[0])

        return steps()

    def reduce(self, _depth: int, *args: Value) -> Value:
        if not 2 <= len(args) <= 3:
            raise fail("reduce() requires 2 or 3 arguments: array, reducer, and optional initial value")
        xs, function = self.array_and_function("reduce", args[:2], "")
        if not xs and len(args) < 3:
            raise fail("reduce() of empty array with no initial value")

        def steps() -> Steps:
            total, start = (args[2], 0) if len(args) == 3 else (xs[0], 1)
            for i in range(start, len(xs)):
                total = yield function, (total, xs[i], float(i), xs)
            return keep(total, confidence_or_none(args[0]))

        return steps()

    @staticmethod
    def wrap(result: Value, source: Value) -> Value:
        """At the source's own confidence."""
        return Confident(result, source.confidence) if type(source) is Confident else result

    def range(self, _depth: int, *args: Value) -> Value:
        if not 1 <= len(args) <= 3:
            raise fail("range() requires 1 to 3 arguments: end, or start, end and optional step")
        values = [peel(a) for a in args]
        names = ["end"] if len(args) == 1 else ["start", "end", "step"]
        for name, value in zip(names, values, strict=False):
            if (
                type(value) is not float
                or value != value
                or abs(value) > SAFE
                or value != int(value)
                or (name == "step" and value == 0)
            ):
                raise fail(f"range() {name} must be an integer" + (" other than 0" if name == "step" else ""))
        numbers = range(*(int(v) for v in values))
        count = len(numbers) if len(numbers) else 0
        self.meter.array_size(count)
        result = self.meter.array(map(float, numbers))
        sure = [a.confidence for a in args if type(a) is Confident]
        return Confident(result, min(sure)) if sure else result

    @staticmethod
    def extreme(name: str, better: Callable[[float, float], bool]) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            if not args:
                raise fail(f"{name}() requires at least one argument")
            for value in args:
                if type(peel(value)) is not float:
                    raise fail(f"{name}() requires numeric arguments, got {tag(peel(value))}")
            winner = args[0]
            for value in args[1:]:
                if better(peel(value), peel(winner)):
                    winner = value
            return winner

        return run

    # --- confidence ---

    def confidence(self, _depth: int, *args: Value) -> Value:
        exactly("confidence", args, 1, "exactly one argument: threshold")
        level = peel(args[0])
        if type(level) is not float:
            raise fail("confidence() threshold must be a number")
        if not 0 <= level <= 1:
            raise fail("confidence() threshold must be between 0 and 1")

        def configure(_depth: int, *functions: Value) -> Value:
            if len(functions) != 1:
                raise fail("confidence-configured function requires exactly one argument: function")
            function = functions[0]
            if type(function) is not Function:
                raise fail("confidence-configured function requires a function argument")

            def run(_depth: int, *values: Value) -> Value:
                def steps() -> Steps:
                    return self.meter.confident((yield Direct(function, values)), level)

                return steps()

            return Function("confident", run)

        return Function("confidence", configure)

    def threshold(self, _depth: int, *args: Value) -> Value:
        exactly("threshold", args, 1, "exactly one argument: minimum confidence")
        limit = peel(args[0])
        if type(limit) is not float:
            raise fail("threshold() requires a number")

        def passes(item: Value) -> bool:
            if type(item) is Confident:
                return bool(item.confidence >= limit)
            if type(item) is Object:
                return not any(type(v) is Confident and v.confidence < limit for v in item.values())
            return True

        def run(_depth: int, *arrays: Value) -> Value:
            if len(arrays) != 1:
                raise fail("threshold filter requires exactly one argument: array")
            xs = peel(arrays[0])
            if type(xs) is not Array:
                raise fail("threshold filter requires an array")
            return self.meter.array([x for x in xs if passes(x)])

        return Function("threshold", run, pure=True)

    def aggregate(self, _depth: int, *args: Value) -> Value:
        if not 1 <= len(args) <= 2:
            raise fail("aggregate() requires an array and optional options object")
        xs = peel(args[0])
        if type(xs) is not Array:
            raise fail("aggregate() expects an array of values")
        options = peel(args[1]) if len(args) > 1 and peel(args[1]) is not None else Object()
        if type(options) is not Object:
            raise fail("aggregate() options must be an object")
        strategy, combine = options.get("strategy"), options.get("combine")
        if strategy is not None and type(strategy) is not str:
            raise fail("aggregate() strategy must be a string")
        if strategy not in (None, "min", "max", "product", "average"):
            raise fail('aggregate() strategy must be "min", "max", "product", or "average"')
        if combine is not None and type(combine) is not Function:
            raise fail("aggregate() combine must be a function")
        levels = [confidence_of(x) for x in xs]
        if not levels:
            level = 1.0
        elif strategy in ("min", "max"):
            level = min(levels) if strategy == "min" else max(levels)
        elif strategy == "product":
            level = math.prod(levels)
        else:
            level = min(1.0, math.fsum(levels) / len(levels))

        def steps() -> Steps:
            return self.meter.confident((yield combine, (xs,)), level)

        return steps() if combine is not None else self.meter.confident(xs, level)

    def sort_by(self, _depth: int, *args: Value) -> Value:
        if not 1 <= len(args) <= 2:
            raise fail("sortBy() requires 1-2 arguments: key [, direction]")
        key = peel(args[0])
        direction = peel(args[1]) if len(args) > 1 else "asc"
        if type(key) is not str:
            raise fail("sortBy() key must be a string")
        if type(direction) is not str:
            raise fail("sortBy() direction must be a string")

        def run(_depth: int, *arrays: Value) -> Value:
            if len(arrays) != 1:
                raise fail("sortBy sorter requires exactly one argument: array")
            xs = peel(arrays[0])
            if type(xs) is not Array:
                raise fail("sortBy sorter requires an array")
            return self.wrap(self.meter.array(self.sorted_by(xs, key, descending=direction != "asc")), arrays[0])

        return Function("sortBy", run, pure=True)

    def sorted_by(self, xs: Array, key: str, *, descending: bool) -> list[Value]:
        """Two numbers by size, else by text; mixed keys have no total order, so the sort compares pairs."""

        def key_of(item: Value) -> Value:
            inner = peel(item)
            return peel(inner.get(key)) if type(inner) is Object else None

        def compare(left: Keyed, right: Keyed) -> int:
            a, b = left[0], right[0]
            if type(a[0]) is float and type(b[0]) is float:
                order = (a[0] > b[0]) - (a[0] < b[0])
            else:
                order = (a[1] > b[1]) - (a[1] < b[1])
            return -order if descending else order

        keyed: list[Keyed] = []
        for x in xs:
            k = key_of(x)
            keyed.append(((k, text_of(k, self.meter)), x))
        return [x for _, x in sorted(keyed, key=cmp_to_key(compare))]

    def group_by(self, _depth: int, *args: Value) -> Value:
        exactly("groupBy", args, 1, "exactly one argument: key or function")
        key = peel(args[0])
        if type(key) not in (str, Function):
            raise fail("groupBy() requires a string key or function")

        def run(_depth: int, *arrays: Value) -> Value:
            if len(arrays) != 1:
                raise fail("groupBy grouper requires exactly one argument: array")
            xs = peel(arrays[0])
            if type(xs) is not Array:
                raise fail("groupBy grouper requires an array")

            def steps() -> Steps:
                values = []
                for i, x in enumerate(xs):
                    values.append((yield key, (x, float(i), xs)))
                return self.grouped(xs, values)

            if type(key) is Function:
                return steps()
            inner = map(peel, xs)
            return self.grouped(xs, [each.get(key) if type(each) is Object else None for each in inner])

        return Function("groupBy", run, pure=True)

    def grouped(self, xs: Array, values: list[Value]) -> Object:
        """The elements by the text of their values."""
        groups: dict[str, list[Value]] = {}
        for x, value in zip(xs, values, strict=True):
            groups.setdefault(text_of(core(value), self.meter), []).append(x)
        return self.meter.object({name: self.meter.array(items) for name, items in groups.items()})

    # --- objects and JSON ---

    def object_functions(self) -> dict[str, Callable[..., Value]]:
        def reader(name: str, read: Callable[[Object], list[Value]]) -> Callable[..., Value]:
            def run(_depth: int, *args: Value) -> Value:
                exactly(f"Object.{name}", args, 1, "exactly 1 argument: object")
                inner = peel(args[0])
                if type(inner) is not Object:
                    raise fail(f"Object.{name}() requires an object, got {tag(inner)}")
                return self.wrap(self.meter.array(read(inner)), args[0])

            return run

        return {
            "keys": reader("keys", list),
            "values": reader("values", lambda o: list(o.values())),
            "entries": reader("entries", lambda o: [self.meter.array([k, v]) for k, v in o.items()]),
            "fromEntries": self.from_entries,
        }

    def from_entries(self, _depth: int, *args: Value) -> Value:
        exactly("Object.fromEntries", args, 1, "exactly 1 argument: array of pairs")
        pairs = peel(args[0])
        result: dict[str, Value] = {}
        if type(pairs) is not Array:
            raise fail("Object.fromEntries() requires an array of [key, value] pairs")
        for pair in pairs:
            inner = peel(pair)
            if type(inner) is not Array or len(inner) != 2:
                raise fail("Object.fromEntries() requires an array of [key, value] pairs")
            result[text_of(core(inner[0]), self.meter)] = inner[1]
        return self.wrap(self.meter.object(result), args[0])

    def json_parse(self, _depth: int, *args: Value) -> Value:
        exactly("JSON.parse", args, 1, "exactly 1 argument: text")
        text = peel(args[0])
        if type(text) is not str:
            raise fail(f"JSON.parse() requires a string, got {tag(text)}")
        return self.wrap(self.read_json(text), args[0])

    def read_json(self, text: str) -> Value:
        meter = self.meter
        depth = deepest = 0
        for mark in re.finditer(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', text, re.DOTALL):
            if mark.group() in "[{":
                depth += 1
                deepest = max(deepest, depth)
            elif mark.group() in "]}":
                depth -= 1
        if deepest > meter.limits.value_nesting:
            exceeded("value nesting", meter.limits.value_nesting, deepest)

        def constant(name: str) -> Any:
            raise ValueError(f"{name} is not JSON")

        def convert(value: Any) -> Value:
            if type(value) is dict:
                return meter.object({k: convert(v) for k, v in value.items()})
            if type(value) is list:
                return meter.array([convert(v) for v in value])
            return value

        try:
            return convert(json.loads(text, parse_int=float, parse_float=float, parse_constant=constant))
        except ValueError as error:
            raise fail(f"JSON.parse() failed: {error}") from None

    def json_stringify(self, _depth: int, *args: Value) -> Value:
        if not 1 <= len(args) <= 3:
            raise fail("JSON.stringify() requires 1 to 3 arguments: value, null and indent")
        if len(args) > 1 and args[1] is not None:
            raise fail("JSON.stringify() second argument must be null")
        indent = args[2] if len(args) > 2 else None
        if indent is not None and (type(indent) is not float or not 0 <= indent <= 10):
            raise fail("JSON.stringify() indent must be a number between 0 and 10")
        text = json_text(peel(args[0]), self.meter, " " * int(indent or 0))
        return self.wrap(self.meter.text(text), args[0])

    # --- numbers and conversions ---

    def math(self, table: Table) -> Object:
        def one(name: str, compute: Callable[[float], float]) -> Callable[..., Value]:
            def run(_depth: int, *args: Value) -> Value:
                exactly(f"Math.{name}", args, 1, "exactly 1 argument")
                return self.wrap(compute(numeric(f"Math.{name}", peel(args[0]))), args[0])

            return run

        def numeric(name: str, value: Value) -> float:
            if type(value) is not float:
                raise fail(f"{name}() requires a number, got {tag(value)}")
            return value

        def pow_(_depth: int, *args: Value) -> Value:
            exactly("Math.pow", args, 2, "exactly 2 arguments")
            a, b = (numeric("Math.pow", peel(v)) for v in args)
            sure = [v.confidence for v in args if type(v) is Confident]
            return Confident(power(a, b), min(sure)) if sure else power(a, b)

        def exp(x: float) -> float:
            try:
                return math.exp(x)
            except OverflowError:
                return math.inf

        functions: dict[str, Callable[[float], float]] = {
            "abs": abs,
            "ceil": whole_or_same(math.ceil),
            "floor": whole_or_same(math.floor),
            "round": whole_or_same(lambda x: math.floor(x) + (x - math.floor(x) >= 0.5)),
            "sqrt": lambda x: math.sqrt(x) if x >= 0 else math.nan,
            "log": lambda x: math.log(x) if x > 0 else -math.inf if x == 0 else math.nan,
            "exp": exp,
            "trunc": whole_or_same(math.trunc),
            "sign": lambda x: x if x != x or x == 0 else math.copysign(1.0, x),
        }
        calls = {name: one(name, compute) for name, compute in functions.items()}
        return self.namespace(
            {**calls, "pow": pow_}, {"max": table["max"], "min": table["min"], "PI": math.pi, "E": math.e}
        )

    def converter(self, name: str, convert: Callable[[Value], Value]) -> Callable[..., Value]:
        def run(_depth: int, *args: Value) -> Value:
            exactly(name, args, 1, "exactly 1 argument")
            return self.wrap(convert(peel(args[0])), args[0])

        return run

    @staticmethod
    def number(value: Value) -> float:
        if type(value) is float:
            return value
        if type(value) is bool:
            return 1.0 if value else 0.0
        if value is None:
            return 0.0
        if type(value) is str and _NUMBER.fullmatch(text := value.strip()):
            return float(text)
        return math.nan

    def string(self, value: Value) -> str:
        return value if type(value) is str else self.meter.text(text_of(value, self.meter))

    @staticmethod
    def is_array(_depth: int, *args: Value) -> Value:
        exactly("Array.isArray", args, 1, "exactly 1 argument")
        return type(peel(args[0])) is Array

    # --- promises ---

    @staticmethod
    def promise_resolve(_depth: int, *args: Value) -> Value:
        exactly("Promise.resolve", args, 1, "exactly one argument")
        return args[0] if type(args[0]) is Promise else Promise(args[0])

    def promise_all(self, _depth: int, *args: Value) -> Value:
        if len(args) != 1 or type(peel(args[0])) is not Array:
            raise fail("Promise.all() requires an array of promises")
        return self.meter.array([x.value if type(x) is Promise else x for x in peel(args[0])])


def whole_or_same(round_: Callable[[float], float]) -> Callable[[float], float]:
    return lambda x: float(round_(x)) if math.isfinite(x) else x
