"""What the steps of destructuring and matching mean (section 5).

`patterns` puts these in order. A container is taken apart once, into its items and the confidence around it; every
item fetched carries that confidence, times its own.
"""

from __future__ import annotations

from typing import NamedTuple

from .values import Array, Confident, Meter, Object, Value, confidence_of, fail, peel, same, scaled


class Parts(NamedTuple):
    """An opened array or object and the confidence of its container, None for a plain one."""

    items: Array | Object
    confidence: float | None


def _open(value: Value, kind: type[Array | Object], name: str) -> Parts:
    inner = peel(value)
    if type(inner) is not kind:
        raise fail(f"Cannot destructure non-{name} value")
    return Parts(inner, value.confidence if type(value) is Confident else None)


def take_array(value: Value) -> Parts:
    return _open(value, Array, "array")


def take_object(value: Value) -> Parts:
    return _open(value, Object, "object")


def at_confidence(value: Value, confidence: float | None) -> Value:
    return value if confidence is None else scaled(value, confidence)


def item_array(parts: Parts, index: int) -> Value:
    return at_confidence(parts.items[index] if index < len(parts.items) else None, parts.confidence)  # type: ignore[index]


def item_object(parts: Parts, key: str) -> Value:
    return at_confidence(parts.items.get(key), parts.confidence)  # type: ignore[union-attr]


def has_key(parts: Parts, key: str) -> bool:
    return key in parts.items


def default_object(parts: Parts, value: Value) -> Value:
    return at_confidence(value, parts.confidence)


def threshold(value: Value, kind: str) -> float:
    inner = peel(value)
    if type(inner) is not float:
        raise fail(
            f"{kind} threshold must be a number"
            if kind == "Confidence"
            else f"{kind} confidence threshold must be a number"
        )
    return inner


def meets(value: Value, limit: float) -> bool:
    return confidence_of(value) >= limit


def passing(value: Value, limit: float, otherwise: Value) -> Value:
    return value if confidence_of(value) >= limit else otherwise


class Binding:
    """The steps that build values."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def rest_array(self, parts: Parts, start: int, limit: float | None) -> Value:
        items = list(parts.items)[start:]
        if limit is not None:
            items = [item for item in items if confidence_of(at_confidence(item, parts.confidence)) >= limit]
        return at_confidence(self.meter.array(items), parts.confidence)

    def rest_object(self, parts: Parts, keys: tuple[str, ...], limit: float | None) -> Value:
        assert isinstance(parts.items, Object)
        rest = {k: v for k, v in parts.items.items() if k not in keys}
        if limit is not None:
            rest = {k: v for k, v in rest.items() if confidence_of(at_confidence(v, parts.confidence)) >= limit}
        return at_confidence(self.meter.object(rest), parts.confidence)

    def slice_rest(self, items: Array, start: int) -> Value:
        return self.meter.array(items[start:])

    def key_rest(self, items: Object, keys: tuple[str, ...]) -> Value:
        return self.meter.object({k: v for k, v in items.items() if k not in keys})


def match_array(value: Value, count: int, rest: bool) -> Array | None:
    inner = peel(value)
    if type(inner) is not Array:
        return None
    return inner if len(inner) == count or (rest and len(inner) > count) else None


def match_object(value: Value, keys: tuple[str, ...]) -> Object | None:
    inner = peel(value)
    return inner if type(inner) is Object and all(key in inner for key in keys) else None


def matches(value: Value, literal: Value) -> bool:
    return same(peel(value), literal)
