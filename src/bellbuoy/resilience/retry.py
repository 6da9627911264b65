"""How long to wait before the next attempt."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Exponential back-off with jitter.

    Args:
        max_attempts: attempts in all.
        initial_delay_s: seconds after the first attempt.
        max_delay_s: the longest wait in seconds, before jitter.
        backoff_multiplier: how much longer each wait is.
        jitter_factor: how far a wait varies, as a share of it.
        delay_min_s: the shortest wait in seconds.
        retry_after_s_max: the longest wait in seconds that the other side can ask for.
    """

    max_attempts: int = 3
    initial_delay_s: float = 1.0
    max_delay_s: float = 30.0
    backoff_multiplier: float = 2.0
    jitter_factor: float = 0.1
    delay_min_s: float = 0.1
    retry_after_s_max: float = 86_400.0

    def delay_s(self, attempt: int, rng: Random, retry_after_s: float | None = None) -> float:
        """Seconds to wait after attempt number `attempt`, from 1.

        delay = min(initial * multiplier^(attempt - 1), max) * (1 +- jitter), at least `delay_min_s`. The exponent is
        clamped in the logarithm, so that no attempt overflows. A wait that the other side asked for is never cut short;
        the jitter only adds to it.
        """
        if retry_after_s is not None:
            asked = min(max(retry_after_s, 0.0), self.retry_after_s_max)
            return max(asked * (1 + self.jitter_factor * rng.random()), self.delay_min_s)
        if self.backoff_multiplier > 1 and self.initial_delay_s < self.max_delay_s:
            steps = math.log(self.max_delay_s / self.initial_delay_s, self.backoff_multiplier)
            base = (
                self.max_delay_s
                if attempt - 1 >= steps
                else self.initial_delay_s * self.backoff_multiplier ** (attempt - 1)
            )
        else:
            base = min(self.initial_delay_s, self.max_delay_s)
        return max(base * (1 + self.jitter_factor * rng.uniform(-1, 1)), self.delay_min_s)
