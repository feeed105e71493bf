"""Members, indexes and methods (section 8).

`Members` is bound to a run. A method with callbacks is a generator: it yields `(function, available arguments)` and
receives the result, so that one text serves a run without a host and one in which a callback waits for an agent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

from .limits import exceeded
from .values import (
    Array,
    Confident,
    Function,
    Meter,
    Object,
    Value,
    confidence_of,
    core,
    fail,
    number_text,
    peel,
    same,
    scaled,
    tag,
    text_of,
    truthy,
)


class Direct(NamedTuple):
    """A call with exactly these arguments, where a plain pair is a callback that takes what it declares."""

    function: Function
    args: tuple[Value, ...]


Steps = Generator[Any, Value, Value]


class Method(NamedTuple):
    """A method, how many arguments it takes, and the words of the count error."""

    run: Callable[..., Value]
    least: int
    most: int | None
    phrase: str


def whole(value: Value, name: str) -> int:
    """An index or a count, truncated."""
    if type(value) is not float:
        raise fail(f"{name} must be a number")
    if value != value:
        return 0
    return int(max(-(2.0**53), min(2.0**53, value)))


def text_argument(value: Value, name: str) -> str:
    if type(value) is not str:
        raise fail(f"{name} must be a string")
    return value


def equal_peeled(left: Value, right: Value) -> bool:
    """The "same" of section 8."""
    return same(peel(left), peel(right))


def callback(value: Value, name: str) -> Function:
    if type(value) is not Function:
        raise fail(f"Argument to {name}() must be a function")
    return value


def window(length: int, args: tuple[Value, ...], name: str) -> slice:
    start = whole(args[0], f"{name} start") if args else 0
    stop = whole(args[1], f"{name} end") if len(args) > 1 else length
    start = max(0, length + start) if start < 0 else start
    stop = max(0, length + stop) if stop < 0 else stop
    return slice(start, max(start, stop))


class Members:
    """Reads of members and indexes, and the methods, for one run."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.arrays = self._array_callbacks() | self._array_methods()
        self.strings = self._string_methods()

    # --- reading ---

    def get(self, base: Value, name: str) -> Value:
        """`base.name`."""
        kind = type(base)
        if kind is Object:
            if name in base:
                return base[name]
            raise fail(f"Property '{name}' does not exist")
        if kind is Confident:
            inner = base.value
            if type(inner) in (Array, str) and name != "length":
                table = self.arrays if type(inner) is Array else self.strings
                if name in table:
                    return self.bound_method(table[name], inner, name, base.confidence)
            return scaled(self.get(inner, name), base.confidence)
        if kind is Array or kind is str:
            if name == "length":
                return float(len(base))
            table = self.arrays if kind is Array else self.strings
            if name in table:
                return self.bound_method(table[name], base, name, None)
            raise fail(f"Property '{name}' does not exist")
        if kind is Function:
            raise fail(f"Property '{name}' does not exist")
        raise fail(f"Cannot access property '{name}' on {tag(base)}")

    def get_sure(self, base: Value, name: str) -> Value:
        """`base~.name`: always confident; nothing there is null."""
        inner, confidence = peel(base), confidence_of(base)
        if inner is None or (type(inner) is Object and name not in inner):
            return Confident(None, confidence)
        if type(base) is Confident:
            return self.get(base, name)
        return scaled(self.get(base, name), 1.0)

    def get_optional(self, base: Value, name: str) -> Value:
        """`base?.name`: what is not there is plain null."""
        inner = core(base)
        if type(inner) is Object:
            if name not in inner:
                return None
        elif type(inner) not in (Array, str) or (
            name != "length" and name not in (self.arrays if type(inner) is Array else self.strings)
        ):
            return None
        return self.get(base, name)

    def index(self, base: Value, key: Value) -> Value:
        kind = type(base)
        if kind is Confident:
            return Confident(self.index(base.value, key), base.confidence)
        if kind is Array or kind is str:
            name = "Array" if kind is Array else "String"
            if type(key) is not float:
                raise fail(f"{name} index must be a number")
            at = math.floor(key) if math.isfinite(key) else -1
            if not 0 <= at < len(base):
                raise fail(f"{name} index {number_text(key)} out of bounds")
            return base[at]
        if kind is Object:
            if type(key) is not str:
                raise fail("Object index must be a string")
            return base.get(key)
        raise fail(f"Cannot index {tag(base)}")

    # --- methods ---

    def method(self, base: Value, name: str) -> Callable[..., Value] | None:
        """The method of a plain array or string, ready to be called as `(depth, *args)`."""
        kind = type(base)
        table = self.arrays if kind is Array else self.strings if kind is str else None
        entry = table.get(name) if table is not None else None
        return partial(self.run_method, entry, base, name) if entry is not None else None

    def run_method(self, entry: Method, base: Value, name: str, _depth: int, *args: Value) -> Value:
        count = len(args)
        if count < entry.least or (entry.most is not None and count > entry.most):
            raise fail(f"{'Array' if type(base) is Array else 'String'}.{name}() requires {entry.phrase}")
        return entry.run(base, *args)

    def bound_method(self, entry: Method, base: Value, name: str, confidence: float | None) -> Function:
        if confidence is None:
            return Function(name, partial(self.run_method, entry, base, name), pure=True)
        sure = confidence

        def run(depth: int, *args: Value) -> Value:
            result = self.run_method(entry, base, name, depth, *args)
            return self._keep_steps(result, sure) if isinstance(result, Generator) else scaled(result, sure)

        return Function(name, run, pure=True)

    @staticmethod
    def _keep_steps(steps: Steps, confidence: float) -> Steps:
        return scaled((yield from steps), confidence)

    def _array_callbacks(self) -> dict[str, Method]:
        """The methods that call a function for each element."""
        meter = self.meter
        array = meter.array

        def map_(xs: Array, f: Value) -> Steps:
            function = callback(f, "map")
            result = []
            for i, x in enumerate(xs):
                result.append((yield function, (x, float(i), xs)))
            return array(result)

        def filter_(xs: Array, f: Value) -> Steps:
            function = callback(f, "filter")
            result = []
            for i, x in enumerate(xs):
                if truthy((yield function, (x, float(i), xs))):
                    result.append(x)
            return array(result)

        def for_each(xs: Array, f: Value) -> Steps:
            function = callback(f, "forEach")
            for i, x in enumerate(xs):
                yield function, (x, float(i), xs)
            return None

        def reduce_(xs: Array, f: Value, *init: Value) -> Steps:
            if type(f) is not Function:
                raise fail("First argument to reduce() must be a function")
            if not xs and not init:
                raise fail("reduce() of empty array with no initial value")
            total, start = (init[0], 0) if init else (xs[0], 1)
            for i in range(start, len(xs)):
                total = yield f, (total, xs[i], float(i), xs)
            return total

        def seek(
            name: str, found: Callable[[int, Value], Value], missing: Value, *, wanted: bool = True
        ) -> Callable[..., Steps]:
            def run(xs: Array, f: Value) -> Steps:
                function = callback(f, name)
                for i, x in enumerate(xs):
                    if truthy((yield function, (x, float(i), xs))) is wanted:
                        return found(i, x)
                return missing

            return run

        def flat_map(xs: Array, f: Value) -> Steps:
            function = callback(f, "flatMap")
            result: list[Value] = []
            for i, x in enumerate(xs):
                value = yield function, (x, float(i), xs)
                if type(value) is Array:
                    meter.array_size(len(result) + len(value))
                    result.extend(value)
                else:
                    result.append(value)
            return array(result)

        one = "exactly 1 argument: "
        return {
            "map": Method(map_, 1, 1, one + "function"),
            "filter": Method(filter_, 1, 1, one + "predicate"),
            "forEach": Method(for_each, 1, 1, one + "function"),
            "reduce": Method(reduce_, 1, 2, "1 or 2 arguments: reducer and optional initial value"),
            "find": Method(seek("find", lambda _i, x: x, None), 1, 1, one + "predicate"),
            "findIndex": Method(seek("findIndex", lambda i, _x: float(i), -1.0), 1, 1, one + "predicate"),
            "some": Method(seek("some", lambda _i, _x: True, False), 1, 1, one + "predicate"),
            "every": Method(seek("every", lambda _i, _x: False, True, wanted=False), 1, 1, one + "predicate"),
            "flatMap": Method(flat_map, 1, 1, one + "function"),
        }

    def _array_methods(self) -> dict[str, Method]:
        meter = self.meter
        array = meter.array

        def join(xs: Array, sep: Value = ",") -> str:
            between = text_argument(sep, "Array.join() separator")
            parts = ["" if x is None else text_of(x, meter) for x in xs]
            length = sum(map(len, parts)) + len(between) * max(0, len(parts) - 1)
            if length > meter.limits.string_size:
                exceeded("string size", meter.limits.string_size, length)
            return meter.text(between.join(parts))

        def concat(xs: Array, *more: Value) -> Array:
            pieces = [list(peel(m)) if type(peel(m)) is Array else [m] for m in more]
            meter.array_size(len(xs) + sum(map(len, pieces)))
            return array([*xs, *(x for piece in pieces for x in piece)])

        def push(xs: Array, *more: Value) -> Array:
            return meter.pushed(xs, more)

        def index_of(xs: Array, value: Value) -> float:
            return float(next((i for i, x in enumerate(xs) if equal_peeled(x, value)), -1))

        def flat(xs: Array, depth: Value = 1.0) -> Array:
            result: list[Value] = []
            limit = meter.limits.array_size

            def add(items: Array, level: int) -> None:
                for item in items:
                    if level > 0 and type(item) is Array:
                        add(item, level - 1)
                    else:
                        result.append(item)
                        if len(result) > limit:
                            exceeded("array size", limit, len(result))

            add(xs, whole(depth, "Array.flat() depth"))
            return array(result)

        def at(xs: Array, i: Value) -> Value:
            place = whole(i, "Array.at() index")
            return xs[place] if -len(xs) <= place < len(xs) else None

        return {
            "push": Method(push, 1, None, "at least 1 argument"),
            "join": Method(join, 0, 1, "0 or 1 argument"),
            "concat": Method(concat, 0, None, ""),
            "slice": Method(lambda xs, *a: array(xs[window(len(xs), a, "Array.slice()")]), 0, 2, "0 to 2 arguments"),
            "includes": Method(lambda xs, v: index_of(xs, v) >= 0, 1, 1, "exactly 1 argument: value"),
            "indexOf": Method(index_of, 1, 1, "exactly 1 argument: value"),
            "sort": Method(self.sort, 0, 1, "0 or 1 argument: comparator"),
            "reverse": Method(lambda xs: array(xs[::-1]), 0, 0, "no arguments"),
            "flat": Method(flat, 0, 1, "0 or 1 argument: depth"),
            "at": Method(at, 1, 1, "exactly 1 argument: index"),
        }

    def sort(self, xs: Array, comparator: Value = None) -> Value:
        if comparator is not None:
            return self.sort_by(xs, callback(comparator, "sort"))
        keys = [peel(x) for x in xs]
        if all(type(k) is float for k in keys):
            order = sorted(range(len(xs)), key=lambda i: (keys[i] != keys[i], keys[i] if keys[i] == keys[i] else 0.0))
        elif all(type(k) is str for k in keys):
            order = sorted(range(len(xs)), key=keys.__getitem__)
        else:
            raise fail("Array.sort() needs a comparator unless all elements are numbers or all are strings")
        return self.meter.array([xs[i] for i in order])

    def sort_by(self, xs: Array, comparator: Function) -> Steps:
        """A merge sort by hand, for the comparator may wait."""
        runs = [[x] for x in xs]
        while len(runs) > 1:
            merged: list[list[Value]] = []
            for i in range(0, len(runs) - 1, 2):
                left, right, a, b = runs[i], runs[i + 1], 0, 0
                out: list[Value] = []
                while a < len(left) and b < len(right):
                    order = yield comparator, (left[a], right[b])
                    if type(order) is not float:
                        raise fail("Array.sort() comparator must return a number")
                    if order > 0:
                        out.append(right[b])
                        b += 1
                    else:
                        out.append(left[a])
                        a += 1
                merged.append(out + left[a:] + right[b:])
            if len(runs) % 2:
                merged.append(runs[-1])
            runs = merged
        return self.meter.array(runs[0] if runs else [])

    def _string_methods(self) -> dict[str, Method]:
        meter = self.meter

        def split(s: str, *sep: Value) -> Array:
            if not sep:
                return meter.array([s])
            by = text_argument(sep[0], "String.split() separator")
            meter.array_size(len(s) if by == "" else s.count(by) + 1)
            return meter.array(s if by == "" else s.split(by))

        def replace(name: str, count: int) -> Callable[..., str]:
            def run(s: str, old: Value, new: Value) -> str:
                search = text_argument(old, f"String.{name}() search")
                by = text_argument(new, f"String.{name}() replacement")
                times = (len(s) + 1 if search == "" else s.count(search)) if count < 0 else int(search in s)
                length = len(s) + times * (len(by) - len(search))
                if length > meter.limits.string_size:
                    exceeded("string size", meter.limits.string_size, length)
                return meter.text(s.replace(search, by, count))

            return run

        def repeat(s: str, n: Value) -> str:
            if type(n) is not float or n != n or n < 0 or math.isinf(n) or n != int(n):
                raise fail("String.repeat() count must be a non-negative integer")
            length = len(s) * int(n)
            if length > meter.limits.string_size:
                exceeded("string size", meter.limits.string_size, length)
            return meter.text(s * int(n))

        def pad(name: str, *, start: bool) -> Callable[..., str]:
            def run(s: str, length: Value, fill: Value = " ") -> str:
                size = whole(length, f"String.{name}() length")
                by = text_argument(fill, f"String.{name}() fill")
                missing = size - len(s)
                if missing <= 0 or not by:
                    return s
                if size > meter.limits.string_size:
                    exceeded("string size", meter.limits.string_size, size)
                padding = (by * (missing // len(by) + 1))[:missing]
                return meter.text(padding + s if start else s + padding)

            return run

        def test(name: str, check: Callable[[str, str], Value]) -> Method:
            return Method(
                lambda s, t: check(s, text_argument(t, f"String.{name}() text")), 1, 1, "exactly 1 argument: text"
            )

        two = "exactly 2 arguments: search and replacement"
        return {
            "toUpperCase": Method(lambda s: meter.text(s.upper()), 0, 0, "no arguments"),
            "toLowerCase": Method(lambda s: meter.text(s.lower()), 0, 0, "no arguments"),
            "trim": Method(lambda s: s.strip(WHITE), 0, 0, "no arguments"),
            "split": Method(split, 0, 1, "0 or 1 argument: separator"),
            "includes": test("includes", lambda s, t: t in s),
            "startsWith": test("startsWith", lambda s, t: s.startswith(t)),
            "endsWith": test("endsWith", lambda s, t: s.endswith(t)),
            "indexOf": test("indexOf", lambda s, t: float(s.find(t))),
            "slice": Method(lambda s, *a: s[window(len(s), a, "String.slice()")], 0, 2, "0 to 2 arguments"),
            "replace": Method(replace("replace", 1), 2, 2, two),
            "replaceAll": Method(replace("replaceAll", -1), 2, 2, two),
            "repeat": Method(repeat, 1, 1, "exactly 1 argument: count"),
            "padStart": Method(pad("padStart", start=True), 1, 2, "1 or 2 arguments: length and fill"),
            "padEnd": Method(pad("padEnd", start=False), 1, 2, "1 or 2 arguments: length and fill"),
        }


# White space and line breaks as ECMAScript lists them, and U+FEFF.
WHITE = "\t\n\v\f\r \u00a0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000\ufeff"
