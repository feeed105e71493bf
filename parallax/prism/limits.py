"""The limits of section 14: the only place of their numbers.

`Limits()` is the column of `evaluate`, `Limits.hosted()` that of a hosted run; a host replaces fields from its
settings. Everything that grows asks before it grows, and `exceeded` is the one way to say no.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import NoReturn

from .errors import PrismLimitError, Span

MIB = 1024 * 1024
STACK = 6_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may use."""

    nodes: int = 1_000_000
    call_depth: int = 200
    source_size: int = 256 * 1024
    tokens: int = 100_000
    parse_nesting: int = 200
    loop_iterations: int = 100_000
    string_size: int = MIB
    array_size: int = 100_000
    object_size: int = 100_000
    live_heap: int = 64 * MIB
    value_nesting: int = 100
    confident_layers: int = 8
    printed_lines: int = 10_000
    printed_bytes: int = MIB
    effects: int = 1_000
    concurrent: int = 16
    wall_time_s: float = 30 * 60
    modules: int = 100
    import_depth: int = 20

    @classmethod
    def hosted(cls) -> Limits:
        """The defaults of a run with a host."""
        return cls(effects=10_000, concurrent=64, wall_time_s=24 * 3600)


DEFAULT = Limits()


def exceeded(name: str, limit: float, amount: float, span: Span | None = None) -> NoReturn:
    raise PrismLimitError(name, limit, amount, span=span)


def ensure_stack() -> None:
    """Room for 200 levels of nesting and of calls, a few Python frames each.

    Python-to-Python calls take no C stack since 3.11, and both depths are bounded by our own counters, so a higher
    interpreter limit is safe; set once, at import, because a change in the middle of a caller's work would surprise it.
    """
    if sys.getrecursionlimit() < STACK:
        sys.setrecursionlimit(STACK)


ensure_stack()
