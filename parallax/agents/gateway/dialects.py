"""What the four dialects share: the facts of a request, the counts of an answer, an error in the CLI's own shape.

Each dialect is a module of its own beside this one, pure and without I/O. `route` finds the one that a path speaks; a
path that none of them knows is not passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from parallax.models import Json, Usage

MOST_INPUT: Final = 10_000_000  # tokens of one call; more, or less than none, is no count
MOST_OUTPUT: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for. `max_output` None: the CLI left it to the provider. `goes_on`: what was said before is
    kept by the provider and not in the request.
    """

    model: str
    max_output: int | None
    goes_on: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The tokens that an answer says it used. Not `final`: the end of a stream may raise them."""

    usage: Usage
    final: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the gateway does not pass something on: a status, the field's word for it, a sentence."""

    status: int
    kind: str  # auth, path, size, request, budget, limited, unreachable
    message: str


class Dialect(Protocol):
    """One way of speaking with a model."""

    def asked(self, path: str, body: Mapping[str, Any]) -> Asked | None:
        """The facts of a request's JSON; None when it names no model."""
        ...

    def counted(self, event: Mapping[str, Any]) -> Counted | None:
        """The counts in a whole answer or in one event of a stream, if any. Raises ValueError for absurd ones."""
        ...

    def error(self, refusal: Refusal) -> Json:
        """The refusal as this dialect says it."""
        ...


def usage_of(*, whole_input: Any, output: Any, cached: Any = 0, written: Any = 0) -> Usage:
    """Checked counts. `whole_input` includes what the cache gave and took. Raises ValueError."""
    counts = [0 if count is None else count for count in (whole_input, output, cached, written)]
    for count, most in zip(counts, (MOST_INPUT, MOST_OUTPUT, MOST_INPUT, MOST_INPUT), strict=True):
        if type(count) is not int or not 0 <= count <= most:
            raise ValueError(f"no count of tokens: {count!r:.40}")
    fresh = counts[0] - counts[2] - counts[3]
    if fresh < 0:
        raise ValueError("more tokens from the cache than there were")
    return Usage(input_tokens=fresh, output_tokens=counts[1], cached_tokens=counts[2], cache_write_tokens=counts[3])


def a_count(value: Any) -> int | None:
    """A limit that a request names, if it is one."""
    return value if type(value) is int and 0 < value <= MOST_OUTPUT else None


def part(holder: Any, name: str) -> Mapping[str, Any]:
    """A member that is an object, else an empty one."""
    found = holder.get(name) if isinstance(holder, dict) else None
    return found if isinstance(found, dict) else {}
