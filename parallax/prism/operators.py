"""Operators (section 6) over any values.

Generated code adds and compares two plain numbers by itself; everything else comes here. `Operators` is bound to one
run's meter. A confident operand is looked through by one layer and the result carries the least confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .limits import exceeded
from .values import (
    LIGHT,
    Array,
    Confident,
    Function,
    Meter,
    Object,
    Promise,
    Value,
    compared_weight,
    confidence_of,
    fail,
    loosely_same,
    number_text,
    peel,
    same,
    scaled,
    tag,
    text_of,
    truthy,
)

FLEXIBLE = {
    "number": float,
    "string": str,
    "boolean": bool,
    "array": Array,
    "object": Object,
    "function": Function,
    "null": type(None),
    "undefined": type(None),
}
HIGH, MEDIUM = 0.7, 0.5


def power(a: float, b: float) -> float:
    try:
        result = a**b
    except OverflowError:
        return -math.inf if a < 0 and b == int(b) and int(b) % 2 else math.inf
    except ZeroDivisionError:
        odd = math.isfinite(b) and b == int(b) and int(b) % 2
        return -math.inf if math.copysign(1, a) < 0 and odd else math.inf
    if abs(a) == 1 and math.isinf(b):
        return math.nan
    if a == 1 and b != b:
        return math.nan
    return math.nan if isinstance(result, complex) else result


def _divide(a: float, b: float) -> float:
    if b == 0:
        raise fail("Division by zero")
    return a / b


def _modulo(a: float, b: float) -> float:
    if b == 0:
        raise fail("Modulo by zero")
    if math.isinf(a):
        return math.nan
    return math.fmod(a, b)


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": _modulo,
    "**": power,
}
_ORDER: dict[str, Callable[[Value, Value], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_CONFIDENT_NAMES = {
    "~+": "Confident addition",
    "~-": "Confident subtraction",
    "~*": "Confident multiplication",
    "~/": "Confident division",
    "~==": "Confident equality",
    "~!=": "Confident not equal",
    "~<": "Confident less than",
    "~<=": "Confident less equal",
    "~>=": "Confident greater equal",
    "~~": "Confidence chaining",
    "~&&": "Confidence AND",
    "~||": "Confidence OR",
    "~||>": "Parallel confidence",
}


class Operators:
    """The operators of one run."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def binary(self, op: str) -> Callable[[Value, Value], Value]:
        """The function of an operator that evaluates both sides."""
        if op in _ARITHMETIC:
            return self._lifted(self._arithmetic(op))
        if op in _ORDER:
            return self._lifted(self._order(_ORDER[op]))
        if op in ("===", "!=="):
            return self._lifted(lambda a, b: self._same(a, b) is (op == "==="))
        if op in ("==", "!="):
            return self._lifted(lambda a, b: self._loosely_same(a, b) is (op == "=="))
        if op == "instanceof":
            return instance_of
        if op == "~?>":
            return threshold_gate
        return self._confident(op)

    def _same(self, left: Value, right: Value) -> bool:
        self._count(left, right)
        return same(left, right)

    def _loosely_same(self, left: Value, right: Value) -> bool:
        self._count(left, right)
        return loosely_same(left, right, self.meter)

    def _count(self, left: Value, right: Value) -> None:
        if (weight := compared_weight(left, right)) > LIGHT:
            self.meter.charge(weight)

    @staticmethod
    def _lifted(plain: Callable[[Value, Value], Value]) -> Callable[[Value, Value], Value]:
        def apply(left: Value, right: Value) -> Value:
            if type(left) is Confident:
                if type(right) is Confident:
                    a, b = left.confidence, right.confidence
                    return Confident(plain(left.value, right.value), a if a < b else b)
                return Confident(plain(left.value, right), left.confidence)
            if type(right) is Confident:
                return Confident(plain(left, right.value), right.confidence)
            return plain(left, right)

        return apply

    def _arithmetic(self, op: str) -> Callable[[Value, Value], Value]:
        compute = _ARITHMETIC[op]

        def apply(a: Value, b: Value) -> Value:
            if type(a) is float and type(b) is float:
                return compute(a, b)
            if type(b) is Promise:
                raise fail(f"Invalid right operand for operator {op}")
            if op == "+" and (type(a) is str or type(b) is str):
                return self.join(a, b)
            raise fail(f"Cannot apply {op} to {tag(a)} and {tag(b)}")

        return apply

    def join(self, a: Value, b: Value) -> str:
        left, right = text_of(a, self.meter), text_of(b, self.meter)
        length = len(left) + len(right)
        limit = self.meter.limits.string_size
        if length > limit:
            exceeded("string size", limit, length)
        return self.meter.text(left + right)

    @staticmethod
    def _order(compare: Callable[[Value, Value], bool]) -> Callable[[Value, Value], Value]:
        def apply(a: Value, b: Value) -> Value:
            kind = type(a)
            if kind is type(b) and (kind is float or kind is str):
                return compare(a, b)
            raise fail(f"Cannot compare {tag(a)} and {tag(b)}")

        return apply

    def _confident(self, op: str) -> Callable[[Value, Value], Value]:
        name = _CONFIDENT_NAMES[op]
        compute = _ARITHMETIC.get(op[1:])
        order = _ORDER.get(op[1:])

        def apply(left: Value, right: Value) -> Value:
            if type(left) is not Confident and type(right) is not Confident:
                raise fail(f"{name} requires confident values")
            a, b = peel(left), peel(right)
            least = min(confidence_of(left), confidence_of(right))
            if op == "~||>":
                return left if confidence_of(left) >= confidence_of(right) else right
            if op == "~~":
                return self.meter.confident(b, least)
            if op == "~&&":
                return Confident(truthy(a) and truthy(b), least)
            if op == "~||":
                return Confident(truthy(a) or truthy(b), max(confidence_of(left), confidence_of(right)))
            if op in ("~==", "~!="):
                return Confident(self._same(a, b) is (op == "~=="), least)
            if compute is not None:
                if type(a) is not float or type(b) is not float:
                    raise fail("Confident arithmetic requires numeric values")
                if op == "~/" and b == 0:
                    raise fail("Division by zero in confident arithmetic")
                return Confident(compute(a, b), least)
            if type(a) is not type(b) or type(a) not in (float, str):
                raise fail(f"{name} requires two numbers or two strings")
            assert order is not None
            return Confident(order(a, b), least)

        return apply

    # --- one operand ---

    @staticmethod
    def negate(value: Value) -> Value:
        if type(value) is float:
            return -value
        raise fail(f"Cannot apply unary - to {tag(value)}")

    def attach(self, value: Value, confidence: Value) -> Confident:
        """`v ~> c`."""
        return self.meter.confident(value, checked_confidence(confidence))

    @staticmethod
    def ternary(test: Value, branch: Value) -> Confident:
        """`c ~? x : y`, the branch already chosen."""
        return scaled(branch, confidence_of(test))

    def piped(self, left: Value, result: Value) -> Value:
        """The result of `left ~|> …`."""
        if type(result) is Confident:
            return result
        if type(left) is not Confident:
            raise fail("Confidence pipeline requires confident values")
        return Confident(result, left.confidence)


def checked_confidence(confidence: Value) -> float:
    value = peel(confidence)
    if type(value) is not float:
        raise fail("Confidence value must be a number")
    if not 0 <= value <= 1:
        raise fail(f"Confidence must be between 0 and 1, got {number_text(value)}")
    return value


def instance_of(left: Value, right: Value) -> bool:
    if type(right) is Function:
        raise fail("instanceof with constructor functions not yet supported")
    if type(right) is not str:
        raise fail("Right-hand side of instanceof must be a type name or constructor")
    kind = FLEXIBLE.get(right.lower())
    if kind is None:
        raise fail(f"Unknown type name: {right}")
    return type(peel(left)) is kind


def threshold_gate(left: Value, right: Value) -> Value:
    """`a ~?> t` and `a ~?> [t, d]`."""
    default = None
    limit = right
    if type(right) is Array:
        if len(right) != 2:
            raise fail("Threshold gate expects a number or [threshold, default] array")
        if type(right[0]) is not float:
            raise fail("Threshold gate array first element must be a number")
        limit, default = right
    elif type(right) is not float:
        raise fail("Threshold gate expects a number or [threshold, default] array")
    if not 0 <= limit <= 1:
        raise fail("Confidence threshold must be between 0 and 1")
    if confidence_of(left) >= limit:
        return left if type(left) is Confident else Confident(left, 1.0)
    return default
