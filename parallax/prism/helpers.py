"""The pure helpers of section 10: votes and merges over results.

An array is read into items once (`Item`: value, confidence, agent, and where it came from); the helpers then only
count. A chosen value keeps the step behind it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from .values import Array, Confident, Function, Meter, Object, Value, confidence_of, fail, identity, peel, same, tag

EPSILON = 1e-9
Table = dict[str, Value]


class Item(NamedTuple):
    """One counted item of an array of results."""

    value: Value
    confidence: float
    agent: Value
    step: str | None


class Group:
    """Items of one value."""

    __slots__ = ("count", "first", "items", "total", "value")

    def __init__(self, item: Item) -> None:
        self.value = item.value
        self.first = item
        self.count = 0
        self.total = 0.0
        self.items: list[Item] = []


def step_of(value: Value) -> str | None:
    """The workspace step behind a value, a record, or a record's value."""
    while type(value) is Confident:
        if value.step is not None:
            return value.step
        value = value.value
    if type(value) is Object:
        if value.step is not None:
            return value.step
        if "value" in value and "confidence" in value:
            return step_of(value["value"])
    return None


def grouped(items: Iterable[Item]) -> list[Group]:
    groups: dict[Hashable, Group] = {}
    for item in items:
        group = groups.setdefault(identity(item.value), Group(item))
        group.count += 1
        group.total += item.confidence
        group.items.append(item)
    return list(groups.values())


def leading(groups: list[Group]) -> Group:
    """Largest count, then larger sum, then first."""
    best = groups[0]
    for group in groups[1:]:
        if group.count > best.count or (group.count == best.count and group.total > best.total + EPSILON):
            best = group
    return best


def heaviest(pairs: list[tuple[Group, float]]) -> tuple[Group, float]:
    best = pairs[0]
    for pair in pairs[1:]:
        if pair[1] > best[1] + EPSILON:
            best = pair
    return best


def mean(items: list[Item]) -> float:
    return math.fsum(item.confidence for item in items) / len(items)


class Helpers:
    """The helpers of one run."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def table(self) -> Table:
        return {
            name: Function(name, call, pure=True)
            for name, call in {
                "voting": self.voting,
                "consensus": self.consensus,
                "merge": self.merge,
                "best": self.best,
                "first": self.first,
                "average": self.average,
                "majorityVote": self.majority_vote,
            }.items()
        }

    # --- reading ---

    def items(self, name: str, value: Value) -> list[Item]:
        xs = peel(value)
        if type(xs) is not Array:
            raise fail(f"{name}() requires an array of results, got {tag(xs)}")
        return [item for x in xs if (item := self.item(name, x)) is not None]

    @staticmethod
    def item(name: str, x: Value) -> Item | None:
        inner, confidence = peel(x), confidence_of(x)
        step = step_of(x)
        if type(inner) is not Object or "value" not in inner or "confidence" not in inner:
            return None if inner is None else Item(inner, confidence, None, step)
        if peel(inner.get("error")) is not None:
            return None
        value = inner["value"]
        if peel(value) is None:
            return None
        own = peel(inner["confidence"])
        if type(own) is not float or not 0 <= own <= 1:
            raise fail(f"{name}() result confidence must be a number between 0 and 1")
        return Item(peel(value), min(confidence, own, confidence_of(value)), peel(inner.get("agent")), step)

    def result(self, source: Value, value: Value, confidence: float, step: str | None = None) -> Confident:
        confidence = min(1.0, max(0.0, confidence))
        if type(source) is Confident:
            confidence = min(source.confidence, confidence)
        made = self.meter.confident(value, confidence)
        made.step = step
        return made

    @staticmethod
    def options(name: str, args: tuple[Value, ...], known: str) -> dict[str, Value]:
        if not 1 <= len(args) <= 2:
            raise fail(f"{name}() requires an array and optional options")
        given = peel(args[1]) if len(args) > 1 else None
        if given is None:
            return {}
        if type(given) is not Object:
            raise fail(f"{name}() options must be an object")
        for key in given:
            if key not in known.split():
                raise fail(f"{name}() has no option '{key}'")
        return {k: peel(v) for k, v in given.items() if peel(v) is not None}

    @staticmethod
    def alone(name: str, args: tuple[Value, ...]) -> Value:
        if len(args) != 1:
            raise fail(f"{name}() requires exactly 1 argument: array")
        return args[0]

    # --- voting ---

    def voting(self, _depth: int, *args: Value) -> Value:
        options = self.options("voting", args, "method minVotes weights")
        method = options.get("method", "majority")
        if method not in ("majority", "unanimous", "plurality", "weighted"):
            raise fail('voting() method must be one of "majority", "unanimous", "plurality", "weighted"')
        least = options.get("minVotes", 1.0)
        if type(least) is not float or least < 1 or least != least or math.isinf(least) or least != int(least):
            raise fail("voting() minVotes must be an integer of at least 1")
        weights = options.get("weights")
        if weights is not None:
            if method != "weighted":
                raise fail('voting() weights need method "weighted"')
            self.check_weights(weights)
        items = self.items("voting", args[0])
        if not items or len(items) < least:
            return self.result(args[0], None, 0.0)
        groups = grouped(items)
        n = len(items)
        if method == "unanimous":
            only = groups[0] if len(groups) == 1 else None
            return self.result(
                args[0], only and only.value, mean(items) if only else 0.0, only.first.step if only else None
            )
        if method == "weighted":
            return self.weighted_vote(args[0], groups, weights)
        top = leading(groups)
        if method == "majority" and top.count * 2 <= n:
            return self.result(args[0], None, 0.0)
        return self.result(args[0], top.value, top.count / n, top.first.step)

    @staticmethod
    def check_weights(weights: Value) -> None:
        if type(weights) is not Object:
            raise fail("voting() weights must be an object")
        for name, weight in weights.items():
            value = peel(weight)
            if type(value) is not float or not value >= 0 or math.isinf(value):
                raise fail(f"voting() weight for '{name}' must be a number of at least 0")

    def weighted_vote(self, source: Value, groups: list[Group], weights: Object | None) -> Value:
        def weight(item: Item) -> float:
            if weights is None:
                return item.confidence
            key = item.agent if type(item.agent) is str and item.agent in weights else "default"
            return float(peel(weights[key])) if key in weights else 1.0

        pairs = [(group, math.fsum(map(weight, group.items))) for group in groups]
        total = math.fsum(w for _, w in pairs)
        top, most = heaviest(pairs)
        if total <= 0:
            return self.result(source, None, 0.0)
        return self.result(source, top.value, most / total, top.first.step)

    def majority_vote(self, _depth: int, *args: Value) -> Value:
        source = self.alone("majorityVote", args)
        items = self.items("majorityVote", source)
        if not items:
            return self.result(source, None, 0.0)
        top = leading(grouped(items))
        return self.result(source, top.value, top.total / len(items), top.first.step)

    # --- choosing ---

    def best(self, _depth: int, *args: Value) -> Value:
        source = self.alone("best", args)
        items = self.items("best", source)
        if not items:
            return self.result(source, None, 0.0)
        top = max(items, key=lambda item: item.confidence)
        return self.result(source, top.value, top.confidence, top.step)

    def first(self, _depth: int, *args: Value) -> Value:
        options = self.options("first", args, "minConfidence")
        least = options.get("minConfidence", 0.0)
        if type(least) is not float or not 0 <= least <= 1:
            raise fail("first() minConfidence must be a number between 0 and 1")
        found = next((i for i in self.items("first", args[0]) if i.confidence >= least), None)
        if found is None:
            return self.result(args[0], None, 0.0)
        return self.result(args[0], found.value, found.confidence, found.step)

    def average(self, _depth: int, *args: Value) -> Value:
        source = self.alone("average", args)
        items = self.items("average", source)
        for item in items:
            if type(item.value) is not float:
                raise fail(f"average() requires numeric values, got {tag(item.value)}")
        if not items:
            return self.result(source, None, 0.0)
        return self.result(source, sum(item.value for item in items) / len(items), mean(items))

    # --- consensus ---

    def consensus(self, _depth: int, *args: Value) -> Value:
        given = peel(args[1]) if len(args) > 1 else None
        if type(given) is Object and not {"threshold", "fields", "conflictResolution"}.isdisjoint(given):
            return self.consensus_of_results(args)
        if not 1 <= len(args) <= 2:
            raise fail("consensus() requires an array and optional options object")
        xs = peel(args[0])
        if type(xs) is not Array:
            raise fail("consensus() expects an array of values")
        if given is not None and type(given) is not Object:
            raise fail("consensus() options must be an object")
        strategy = peel(given.get("strategy")) if given is not None else None
        if strategy is not None and type(strategy) is not str:
            raise fail("consensus() strategy must be a string")
        if strategy not in (None, "min", "max"):
            raise fail('consensus() strategy must be "min" or "max"')
        if not xs:
            raise fail("consensus() requires at least one value")
        choose = min if strategy == "min" else max
        return choose(xs, key=confidence_of)

    def consensus_of_results(self, args: tuple[Value, ...]) -> Value:
        options = self.options("consensus", args, "threshold fields conflictResolution")
        threshold = self.fraction(options.get("threshold", 0.7))
        resolution = options.get("conflictResolution")
        if resolution not in (None, "weighted", "first", "highest-confidence"):
            raise fail('consensus() conflictResolution must be one of "weighted", "first", "highest-confidence"')
        fields = self.fields(options["fields"], threshold) if "fields" in options else None
        items = self.items("consensus", args[0])
        if not items:
            return self.result(args[0], None, 0.0)
        if fields is None:
            value, confidence, step = self.agree(items, threshold, resolution)
            return self.result(args[0], value, confidence, step)
        decided: dict[str, Value] = {}
        least = 1.0
        for name, limit in fields:
            parts = [
                Item(peel(i.value[name]), min(i.confidence, confidence_of(i.value[name])), i.agent, None)
                for i in items
                if type(i.value) is Object and peel(i.value.get(name)) is not None
            ]
            decided[name], confidence, _ = self.agree(parts, limit, resolution) if parts else (None, 0.0, None)
            least = min(least, confidence)
        return self.result(args[0], self.meter.object(decided), least)

    @staticmethod
    def fraction(value: Value) -> float:
        if type(value) is not float or not 0 <= value <= 1:
            raise fail("consensus() threshold must be a number between 0 and 1")
        return value

    def fields(self, value: Value, threshold: float) -> list[tuple[str, float]]:
        problem = "consensus() fields must be a non-empty array of names or {name, threshold} objects"
        if type(value) is not Array or not value:
            raise fail(problem)
        result = []
        for each in map(peel, value):
            if type(each) is str:
                result.append((each, threshold))
            elif type(each) is Object and type(peel(each.get("name"))) is str and set(each) <= {"name", "threshold"}:
                own = peel(each.get("threshold"))
                result.append((peel(each["name"]), threshold if own is None else self.fraction(own)))
            else:
                raise fail(problem)
        return result

    @staticmethod
    def agree(items: list[Item], threshold: float, resolution: str | None) -> tuple[Value, float, str | None]:
        groups = grouped(items)
        n = len(items)
        chosen: Group | None = leading(groups)
        assert chosen is not None
        if chosen.count / n < threshold - EPSILON:
            if resolution == "first":
                chosen = groups[0]
            elif resolution == "weighted":
                chosen = heaviest([(g, g.total) for g in groups])[0]
            elif resolution == "highest-confidence":
                top = max(items, key=lambda item: item.confidence)
                chosen = next(g for g in groups if same(g.value, top.value))
            else:
                chosen = None
        return (chosen.value, chosen.total / n, chosen.first.step) if chosen else (None, 0.0, None)

    # --- merge ---

    def merge(self, _depth: int, *args: Value) -> Value:
        options = self.options("merge", args, "method fields deduplication")
        method = options.get("method", "deep")
        if method not in ("deep", "shallow", "concat", "union"):
            raise fail('merge() method must be one of "deep", "shallow", "concat", "union"')
        fields = options.get("fields")
        names: list[str] | None = None
        if fields is not None:
            if type(fields) is not Array or not all(type(peel(f)) is str for f in fields):
                raise fail("merge() fields must be an array of names")
            names = [peel(f) for f in fields]
        unique = options.get("deduplication", False)
        if type(unique) not in (bool, str):
            raise fail("merge() deduplication must be a boolean or a key name")
        items = self.items("merge", args[0])
        if not items:
            return self.result(args[0], None, 0.0)
        values = [item.value for item in items]
        if method in ("concat", "union"):
            merged = self.join_fields(values, names, method, unique)
        else:
            for value in values:
                if type(value) is not Object:
                    raise fail(f'merge() method "{method}" needs object values, got {tag(value)}')
            merged = self.merge_objects(values, deep=method == "deep", unique=unique)
            if names is not None:
                merged = self.meter.object({name: merged[name] for name in names if name in merged})
        return self.result(args[0], merged, mean(items), items[0].step if len(items) == 1 else None)

    def merge_objects(self, values: list[Object], *, deep: bool, unique: bool | str) -> Object:
        result: dict[str, Value] = {}
        for value in values:
            for key, new in value.items():
                old = result.get(key)
                if deep and type(old) is Object and type(new) is Object:
                    result[key] = self.merge_objects([old, new], deep=True, unique=unique)
                elif deep and type(old) is Array and type(new) is Array:
                    self.meter.array_size(len(old) + len(new))
                    result[key] = self.meter.array(distinct([*old, *new], unique))
                else:
                    result[key] = new
        return self.meter.object(result)

    def join(self, values: list[Value], method: str, unique: bool | str) -> Array:
        joined: list[Value] = []
        for value in values:
            joined.extend(value if type(value) is Array else [value])
            self.meter.array_size(len(joined))
        joined = distinct(joined, unique)
        return self.meter.array(distinct(joined, True) if method == "union" else joined)

    def join_fields(self, values: list[Value], names: list[str] | None, method: str, unique: bool | str) -> Value:
        if names is None:
            return self.join(values, method, unique)
        for value in values:
            if type(value) is not Object:
                raise fail(f'merge() method "{method}" with fields needs object values, got {tag(value)}')
        result = {}
        for name in names:
            parts = [value[name] for value in values if peel(value.get(name)) is not None]
            result[name] = self.join(parts, method, unique)
        return self.meter.object(result)


def distinct(items: list[Value], unique: bool | str) -> list[Value]:
    """Without repeats, the first kept; by a key, objects without it stay."""
    if unique is False:
        return items
    kept: list[Value] = []
    seen: set[Hashable] = set()
    for item in items:
        mark = peel(item)
        if type(unique) is str:
            if type(mark) is not Object or unique not in mark:
                kept.append(item)
                continue
            mark = peel(mark[unique])
        key = identity(mark)
        if key not in seen:
            seen.add(key)
            kept.append(item)
    return kept
