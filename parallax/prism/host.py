"""The seam between Prism and whatever carries out its effects.

A program only orders work; `Host.perform` does it. The engine implements `Host`, tests use a dictionary. Requests are
strict JSON, so that a journal can compare them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .errors import Span

Json = (
    Any  # None, bool, int, float (finite), str, list and dict of the same; mypy has no recursive alias worth its cost
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One order of the program."""

    kind: str
    key: str
    request: Json
    span: Span
    branch: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of an effect: a value, or an error in bare words."""

    value: Json = None
    confidence: float | None = None
    error: str | None = None
    catchable: bool = True


class Host(Protocol):
    """Carries out effects. `perform` may take hours; it is cancelled when its branch lost or the run was stopped."""

    async def perform(self, effect: Effect) -> Outcome:
        """Do it, or return what the journal holds under its key."""

    def recall(self, key: str) -> Outcome | None:
        """The recorded course of a join, if this run was here before."""

    def print(self, line: str) -> None:
        """Take one printed line."""
