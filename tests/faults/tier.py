"""How much of the fault suite runs, with which seed, and the one page that it prints at its end.

PARALLAX_FAULTS=fast (`make faults`) or full (`make faults FULL=1`); without it the suite is a small part of `make test`.
PARALLAX_FAULTS_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import secrets
from typing import Final, TypeVar

import pytest

Value = TypeVar("Value")

TIER: Final = os.environ.get("PARALLAX_FAULTS") or "small"
SEED: Final = int(os.environ.get("PARALLAX_FAULTS_SEED") or secrets.randbelow(2**32))
ALLOWANCE: Final = 3.0  # times are asserted with three times their target: the machine may be shared
PAGE: Final[dict[str, tuple[str, str]]] = {}  # test -> (what was done, what was seen)
STRUCK: Final[list[tuple[str, str]]] = []  # (failpoint, kind), each time that one struck


def size(small: Value, fast: Value, full: Value) -> Value:
    """The value for this tier."""
    return {"small": small, "fast": fast, "full": full}[TIER]


big = pytest.mark.skipif(TIER == "small", reason="a part of `make faults`")


def rng(name: str) -> random.Random:
    """Chance that the seed and the test's name decide."""
    return random.Random(f"{SEED} {name}")


def record(test: str, done: str, seen: str) -> None:
    """A line of the page."""
    PAGE[test] = (done, seen)
    print(f"\n{test}: {done}: {seen} (seed {SEED})")
