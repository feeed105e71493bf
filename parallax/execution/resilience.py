"""One retry layer, and how long it waits. (The circuit breaker and the rate limiter join it in this room.)

Called by `agent_proxy` around a turn. Only errors that say `.retryable` are tried again, with exponential backoff and
full jitter, so that agents which failed together do not come back together. A provider's limit is no failure: the agent
is parked, and the attempt goes on afterwards.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from parallax.errors import ParallaxError, ProviderLimited


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`retries` further attempts; the wait before attempt n is uniform in [0, min(cap, first * 2^(n-1))] seconds.

    `blind_parks`: how often in one turn an agent is parked because of a limit whose end nobody names. With the
    supervisor's doubling that is an hour and three quarters; one with a known end is waited for however often it comes.
    """

    retries: int = 2
    first_s: float = 1.0
    cap_s: float = 60.0
    blind_parks: int = 12

    def parks(self, times: int, error: ParallaxError) -> bool:
        """Whether a turn that met a limit for the n-th time waits until it is over."""
        known = isinstance(error, ProviderLimited) and error.resets_at is not None
        return known or times <= self.blind_parks

    def wait_s(self, error: ParallaxError, attempt: int) -> float | None:
        """Seconds to wait before another attempt after `attempt` (from 1) failed; None: do not try again.

        A limit is waited for or it ends the turn; trying again would only meet it again.
        """
        if not error.retryable or isinstance(error, ProviderLimited) or attempt > self.retries:
            return None
        return random.uniform(0.0, min(self.cap_s, self.first_s * 2 ** (attempt - 1)))  # noqa: S311 - jitter
