"""Meter: what an execution may spend, and what it has spent.

Money is asked for before a turn and settled after it; a turn that would begin with nothing left is refused, and the
execution ends as `partial`. Where the gateway sees the calls it refuses within a turn as well.
"""

from __future__ import annotations

from parallax.errors import ParallaxError
from parallax.models import Usage


class BudgetExhausted(ParallaxError):
    """Nothing is left to spend; what is finished is kept."""


class Meter:
    """The budget of one execution in micro-dollars; None means no limit. Restored from the journal's usage."""

    def __init__(self, limit: int | None = None, spent: Usage | None = None) -> None:
        self.limit = limit
        self.spent = spent or Usage()

    @property
    def exhausted(self) -> bool:
        """Whether the next turn is refused."""
        return self.limit is not None and self.spent.cost >= self.limit

    def reserve(self) -> None:
        """Ask for a turn; raises BudgetExhausted."""
        if self.exhausted:
            raise BudgetExhausted(
                f"the budget of ${(self.limit or 0) / 1e6:.2f} is used up (${self.spent.cost / 1e6:.2f} spent): "
                "no further turn is begun; what is finished is kept"
            )

    def settle(self, usage: Usage) -> None:
        """A turn has cost this."""
        self.spent += usage
