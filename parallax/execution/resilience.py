"""One retry layer, and how long it waits. (The circuit breaker and the rate limiter join it in this room.)

Called by `agent_proxy` around a turn. Only errors that say `.retryable` are tried again, with exponential backoff and
full jitter, so that agents which failed together do not come back together.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Final

from parallax.errors import ParallaxError, ProviderLimited

LONGEST_PARK_S: Final = 6 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`retries` further attempts; the wait before attempt n is uniform in [0, min(cap, first * 2^(n-1))] seconds."""

    retries: int = 2
    first_s: float = 1.0
    cap_s: float = 60.0

    def wait_s(self, error: ParallaxError, attempt: int) -> float | None:
        """Seconds to wait before another attempt after `attempt` (from 1) failed; None: do not try again."""
        if not error.retryable or attempt > self.retries:
            return None
        if isinstance(error, ProviderLimited) and error.resets_at is not None:
            return min(LONGEST_PARK_S, max(0.0, error.resets_at - time.time()))
        return random.uniform(0.0, min(self.cap_s, self.first_s * 2 ** (attempt - 1)))  # noqa: S311 - jitter
