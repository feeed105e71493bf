"""Values (section 3): what they are, how they read, when they are equal, and how they grow.

Numbers are `float`, strings `str`, booleans `bool`, null `None`; arrays and objects are a list and a dict that know
how deep they nest and that nobody changes once made. `Meter` makes every value that can be large, so each limit is
asked before the allocation. Used by everything that runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable
from operator import attrgetter
from typing import Any

from .errors import PrismRuntimeError
from .limits import Limits, exceeded

Value = Any
STRING_OVERHEAD, SLOT = 48, 8
LIGHT = 32 * 1024  # bytes of values that any builtin reads within a few milliseconds
READ, COPY = 6, 10  # eight elements that are read count as one node, or 128 that are only copied


class Array(list[Value]):
    """An array; `depth` counts the containers within, itself included; `weight` is its size if nothing were shared."""

    __slots__ = ("depth", "weight")
    depth: int
    weight: int


class Object(dict[str, Value]):
    """An object. `step` is the step behind a record of `fanout`; programs cannot see it."""

    __slots__ = ("depth", "step", "weight")
    depth: int
    weight: int
    step: str | None


class Confident:
    """A value with a confidence; `step` is the workspace step behind it, `why` its reason when a run explains."""

    __slots__ = ("confidence", "layers", "step", "value", "why")

    def __init__(self, value: Value, confidence: float, step: str | None = None) -> None:
        self.value = value
        self.confidence = confidence
        self.step = step
        self.why: Any = None
        self.layers = 1
        if type(value) is Confident:
            self.layers = value.layers + 1


class Promise:
    """A ready value."""

    __slots__ = ("value",)

    def __init__(self, value: Value) -> None:
        self.value = value


class Function:
    """Anything callable: `call(depth, *args)` may return a value, a coroutine, or a generator of callbacks.

    `arity` is the exact number of parameters for a direct call, -1 when it varies; builtins check their own counts.
    `most` None means a rest parameter. A `pure` builtin takes longer the more it is given, and touches nothing else: a
    hosted run may call it in another thread.
    """

    __slots__ = ("arity", "builtin", "call", "kind", "least", "most", "name", "pure")

    def __init__(
        self,
        name: str,
        call: Callable[..., Value],
        least: int = 0,
        most: int | None = None,
        *,
        builtin: bool = True,
        kind: str = "Function",
        pure: bool = False,
    ) -> None:
        self.name = name
        self.call = call
        self.least = least
        self.most = most
        self.builtin = builtin
        self.kind = kind
        self.pure = pure
        self.arity = least if not builtin and least == most else -1


_FLAT = frozenset((float, str, bool, type(None), Function))
_CONTAINERS = frozenset((Array, Object))


def fail(message: str) -> PrismRuntimeError:
    return PrismRuntimeError(message)


# --- limits of size ---------------------------------------------------------------------------------------------------


class Meter:
    """Counts what a run uses. `nodes` runs up to `stop`; there the runtime yields, looks at the clock or gives up."""

    __slots__ = ("allocated", "base", "heap_stop", "limits", "live", "nodes", "stop")

    def __init__(self, limits: Limits, live: Callable[[], int] | None = None) -> None:
        self.limits = limits
        self.nodes = 0
        self.base = 0
        self.stop = limits.nodes
        self.allocated = 0
        self.heap_stop = limits.live_heap
        self.live = live

    def grow(self, size: int) -> None:
        """Count an allocation before it is made; when much was made, measure what is still alive."""
        self.allocated += size
        if self.allocated > self.heap_stop:
            limit = self.limits.live_heap
            alive = (self.live() if self.live else self.allocated) + size
            if alive > limit:
                exceeded("live heap", limit, alive)
            self.heap_stop = self.allocated + max(limit - alive, limit // 8)

    def charge(self, weight: int, cost: int = READ) -> None:
        """Count a builtin that goes through so many bytes of values as the nodes that would do the same."""
        self.nodes += weight >> cost
        used = self.nodes - self.base
        if used > self.limits.nodes:
            exceeded("evaluated nodes", self.limits.nodes, used)

    def string_size(self, length: int) -> None:
        if length > self.limits.string_size:
            exceeded("string size", self.limits.string_size, length)
        self.grow(length + STRING_OVERHEAD)

    def text(self, value: str) -> str:
        """A string that was just built from parts of checked size; only wide characters can push it over."""
        length = len(value)
        if length * 4 > self.limits.string_size and not value.isascii():
            length = len(value.encode("utf-8", "surrogatepass"))
        self.string_size(length)
        return value

    def array_size(self, length: int) -> None:
        if length > self.limits.array_size:
            exceeded("array size", self.limits.array_size, length)

    def array(self, items: Iterable[Value]) -> Array:
        result = Array(items)
        length = len(result)
        if length > self.limits.array_size:
            exceeded("array size", self.limits.array_size, length)
        self.grow(SLOT * length + STRING_OVERHEAD)
        self.measure(result, result)
        return result

    def measure(self, container: Array | Object, items: Collection[Value]) -> None:
        """How deep and how heavy. A value of shared parts is small here and endless for whoever reads it to its end."""
        kinds = set(map(type, items))
        depth = 0
        weight = SLOT * len(items) + (sum(map(len, container)) if type(container) is Object else 0)
        if kinds <= _CONTAINERS:
            depth = max(map(attrgetter("depth"), items), default=0)
            weight += sum(map(attrgetter("weight"), items))
        elif not kinds <= _FLAT:
            depth = max(map(depth_of, items))
            weight += sum(map(weight_of, items))
        elif str in kinds:
            weight += sum(len(item) for item in items if type(item) is str)
        container.depth = depth + 1
        container.weight = weight
        if depth >= self.limits.value_nesting:
            exceeded("value nesting", self.limits.value_nesting, depth + 1)
        if weight > self.limits.live_heap:
            exceeded("live heap", self.limits.live_heap, weight)

    def pushed(self, items: Array, more: tuple[Value, ...]) -> Array:
        """A longer copy; how deep the old items nest is known."""
        length = len(items) + len(more)
        self.array_size(length)
        self.grow(SLOT * length + STRING_OVERHEAD)
        result = Array(items)
        result.extend(more)
        result.depth = max(items.depth, 1 + max(map(depth_of, more), default=0))
        result.weight = items.weight + SLOT * len(more) + sum(map(weight_of, more))
        if result.depth > self.limits.value_nesting:
            exceeded("value nesting", self.limits.value_nesting, result.depth)
        if result.weight > self.limits.live_heap:
            exceeded("live heap", self.limits.live_heap, result.weight)
        return result

    def object(self, entries: dict[str, Value]) -> Object:
        result = Object(entries)
        length = len(result)
        if length > self.limits.object_size:
            exceeded("object size", self.limits.object_size, length)
        self.grow(4 * SLOT * length + 2 * STRING_OVERHEAD)
        result.step = None
        self.measure(result, result.values())
        return result

    def confident(self, value: Value, confidence: float) -> Confident:
        result = Confident(value, confidence)
        if result.layers > self.limits.confident_layers:
            exceeded("confident layers", self.limits.confident_layers, result.layers)
        return result


def depth_of(value: Value) -> int:
    while type(value) in (Confident, Promise):
        value = value.value
    return value.depth if type(value) in (Array, Object) else 0


def weight_of(value: Value) -> int:
    """Its size in bytes as if nothing in it were shared."""
    while type(value) in (Confident, Promise):
        value = value.value
    kind = type(value)
    return value.weight if kind is Array or kind is Object else len(value) if kind is str else 0


def compared_weight(left: Value, right: Value) -> int:
    """How many bytes of values a comparison goes through at most: it ends where one side does, or reads a text form."""
    left, right = core(left), core(right)
    kinds = (type(left), type(right))
    if kinds[0] is kinds[1]:
        return min(weight_of(left), weight_of(right)) if kinds[0] in _CONTAINERS else 0
    if str not in kinds:
        return 0
    return sum(weight_of(value) for value in (left, right) if type(value) in _CONTAINERS)


# --- looking at values ------------------------------------------------------------------------------------------------

_TAGS = {
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    Array: "array",
    Object: "object",
    Function: "function",
    Confident: "confident",
    Promise: "promise",
}


def tag(value: Value) -> str:
    return _TAGS.get(type(value), "unknown")


def type_name(value: Value) -> str:
    """`typeof`: looks through one layer."""
    if type(value) is Confident:
        value = value.value
    return "unknown" if type(value) in (Confident, Promise) else tag(value)


def peel(value: Value) -> Value:
    """Without one confident layer."""
    return value.value if type(value) is Confident else value


def core(value: Value) -> Value:
    """Without any confident layer."""
    while type(value) is Confident:
        value = value.value
    return value


def confidence_of(value: Value) -> float:
    return value.confidence if type(value) is Confident else 1.0


def scaled(value: Value, confidence: float) -> Confident:
    """At a container's confidence, times its own if it has one."""
    if type(value) is Confident:
        return Confident(value.value, confidence * value.confidence)
    return Confident(value, confidence)


def keep(value: Value, confidence: float | None) -> Value:
    """At a confidence if there is one and the value has none of its own."""
    return value if confidence is None or type(value) is Confident else Confident(value, confidence)


def truthy(value: Value) -> bool:
    while type(value) is Confident:
        value = value.value
    if value is None or value is False:
        return False
    if type(value) is float:
        return value != 0.0 and value == value
    return value != "" if type(value) is str else True


# --- text -------------------------------------------------------------------------------------------------------------


def number_text(value: float) -> str:
    """As JavaScript writes numbers."""
    if value != value:
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if abs(value) < 2**53 and value == int(value):
        return str(int(value))
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = (
        len(whole) + int(exponent or 0)
        if whole != "0"
        else int(exponent or 0) - (len(fraction) - len(fraction.lstrip("0")))
    )
    digits = digits.rstrip("0") or "0"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    if 0 < point <= 21:
        return sign + (digits.ljust(point, "0") if len(digits) <= point else f"{digits[:point]}.{digits[point:]}")
    tail = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"


class TextWriter:
    """Text forms, stopped as soon as they grow over the string limit."""

    def __init__(self, meter: Meter, *, plain: bool) -> None:
        self.left = meter.limits.string_size
        self.meter = meter
        self.plain = plain
        self.parts: list[str] = []

    def put(self, text: str) -> None:
        self.left -= len(text)
        if self.left < 0:
            limit = self.meter.limits.string_size
            exceeded("string size", limit, limit - self.left)
        self.parts.append(text)

    def write(self, value: Value) -> None:
        kind = type(value)
        if kind is str:
            self.put(value)
        elif kind is float:
            self.put(number_text(value))
        elif value is None:
            self.put("null")
        elif kind is bool:
            self.put("true" if value else "false")
        elif kind is Array:
            self.put("[")
            for index, item in enumerate(value):
                if index:
                    self.put(", ")
                self.write(item)
            self.put("]")
        elif kind is Object:
            self.put("{ " if value else "{")
            for index, (key, item) in enumerate(value.items()):
                self.put(f", {key}: " if index else f"{key}: ")
                self.write(item)
            self.put(" }" if value else "}")
        elif kind is Confident:
            self.write(value.value)
            if not self.plain:
                self.put(f" (~{value.confidence * 100:.1f}%)")
        elif kind is Function:
            self.put(f"[Function: {value.name}]")
        else:
            self.put("[Promise]")


def text_of(value: Value, meter: Meter, *, plain: bool = False) -> str:
    """The text form; `plain` leaves confidence out at every depth."""
    if type(value) is str:
        return value
    if type(value) is float:
        return number_text(value)
    writer = TextWriter(meter, plain=plain)
    writer.write(value)
    return "".join(writer.parts)


# --- equality and order -----------------------------------------------------------------------------------------------


def same(left: Value, right: Value) -> bool:
    """Strict equality."""
    kind = type(left)
    if kind is not type(right):
        return False
    if kind is Array:
        return len(left) == len(right) and all(map(same, left, right))
    if kind is Object:
        return len(left) == len(right) and all(k in right and same(v, right[k]) for k, v in left.items())
    if kind is Confident:
        return bool(left.confidence == right.confidence) and same(left.value, right.value)
    if kind is Function:
        return left is right
    if kind is Promise:
        return False
    return bool(left == right)


def identity(value: Value) -> Hashable:
    """A key that two values share exactly if they are the same: groups of many values take one pass."""
    kind = type(value)
    if kind is float:
        return value if value == value else object()
    if kind is Array:
        return (Array, *map(identity, value))
    if kind is Object:
        return (Object, frozenset((key, identity(item)) for key, item in value.items()))
    if kind is Confident:
        return (Confident, value.confidence, identity(value.value))
    if kind is bool:
        return (bool, value)
    return object() if kind is Promise else value if kind is str or value is None else (kind, id(value))


_LEADING = re.compile(r"\s*([+-]?(?:Infinity|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?))")


def _loose_number(value: Value) -> float | None:
    if type(value) is float:
        return value
    if type(value) is bool:
        return 1.0 if value else 0.0
    if value is None:
        return 0.0
    if type(value) is str and (found := _LEADING.match(value)):
        return float(found.group(1))
    return None


def loosely_same(left: Value, right: Value, meter: Meter) -> bool:
    """`==`."""
    kinds = (type(left), type(right))
    if kinds[0] is kinds[1]:
        return same(left, right)
    if float in kinds:
        a, b = _loose_number(left), _loose_number(right)
        if a is not None and b is not None:
            return a == b
        if str not in kinds and bool not in kinds:
            return False
    if str in kinds:
        if (left == "" and right is False) or (right == "" and left is False):
            return True
        return text_of(left, meter) == text_of(right, meter)
    if bool in kinds:
        return truthy(left) == truthy(right)
    return False


# --- to and from plain Python data ------------------------------------------------------------------------------------


def plain_number(value: float) -> int | float:
    return (
        int(value)
        if value == value
        and abs(value) < 2**53
        and value == int(value)
        and not (value == 0 and math.copysign(1, value) < 0)
        else value
    )


def to_plain(value: Value) -> Any:
    """Plain Python data; a nested confident value becomes `{value, confidence}`, a function or promise its text."""
    kind = type(value)
    if kind is float:
        return plain_number(value)
    if kind is Array:
        return [to_plain(item) for item in value]
    if kind is Object:
        return {key: to_plain(item) for key, item in value.items()}
    if kind is Confident:
        return {"value": to_plain(value.value), "confidence": plain_number(value.confidence)}
    if kind is Function:
        return f"[Function: {value.name}]"
    return "[Promise]" if kind is Promise else value


def from_plain(data: Any, meter: Meter) -> Value:
    """Prism values of plain data; each size is counted. Prism values pass."""
    if data is None or type(data) in (bool, float, Array, Object, Confident, Function, Promise):
        return data
    if isinstance(data, str):
        return meter.text(data)
    if isinstance(data, int | float):
        try:
            return float(data)
        except OverflowError:
            return math.inf if data > 0 else -math.inf
    if isinstance(data, dict):
        return meter.object({str(k): from_plain(v, meter) for k, v in data.items()})
    if isinstance(data, list | tuple):
        meter.array_size(len(data))
        return meter.array([from_plain(v, meter) for v in data])
    raise TypeError(f"no Prism value for {type(data).__name__}")


def json_text(value: Value, meter: Meter, indent: str = "") -> str:
    """JSON as section 9 has it."""
    parts: list[str] = []
    left = meter.limits.string_size

    def put(text: str) -> None:
        nonlocal left
        left -= len(text)
        if left < 0:
            exceeded("string size", meter.limits.string_size, meter.limits.string_size - left)
        parts.append(text)

    def write(item: Value, line: str) -> None:
        kind = type(item)
        if kind is Array or kind is Object:
            pairs = item.items() if kind is Object else ((None, each) for each in item)
            open_, close = ("{", "}") if kind is Object else ("[", "]")
            put(open_)
            inner = line + indent
            for index, (key, each) in enumerate(pairs):
                put("," if index else "")
                put(inner if indent else "")
                if key is not None:
                    put(json.dumps(key, ensure_ascii=False) + (": " if indent else ":"))
                write(each, inner)
            put(line if indent and item else "")
            put(close)
        elif kind is float:
            put(number_text(item) if math.isfinite(item) else "null")
        elif kind is str:
            put(json.dumps(item, ensure_ascii=False))
        elif kind is Confident:
            write(Object({"value": item.value, "confidence": item.confidence}), line)
        elif kind is Function:
            raise fail("JSON.stringify() cannot represent a function")
        elif kind is Promise:
            raise fail("JSON.stringify() cannot represent a promise")
        else:
            put("null" if item is None else "true" if item else "false")

    write(value, "\n")
    return "".join(parts)
