"""How long to wait before the next attempt, and whether an error may be gone by then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

from bellbuoy.errors import OutcomeUnknown, Transient, Unavailable
from bellbuoy.resilience.classify import Verdict, classify, status_of

Jitter: TypeAlias = Literal["around", "full", "equal", "decorrelated"]
# Errors of the machine we run on: the same call meets them again.
_HERE = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
# Errors that may be gone the next time, unless the classifier knows better.
_PASSING = (OSError, TimeoutError, Transient, OutcomeUnknown, Unavailable)


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Exponential back-off with jitter.

    Args:
        max_attempts: attempts in all.
        initial_delay_s: seconds after the first attempt.
        max_delay_s: the longest wait in seconds, before jitter.
        backoff_multiplier: how much longer each wait is.
        jitter_factor: how far a wait varies, as a share of it, with `around` jitter.
        delay_min_s: the shortest wait in seconds.
        retry_after_s_max: the longest wait in seconds that the other side can ask for.
        jitter: `around` (wait * (1 +- factor)), `full` (U(0, wait)), `equal` (wait / 2 + U(0, wait / 2)) or
            `decorrelated` (U(initial, 3 * the wait before), at most max), after Marc Brooker's "Exponential Backoff
            And Jitter".
    """

    max_attempts: int = 3
    initial_delay_s: float = 1.0
    max_delay_s: float = 30.0
    backoff_multiplier: float = 2.0
    jitter_factor: float = 0.1
    delay_min_s: float = 0.1
    retry_after_s_max: float = 86_400.0
    jitter: Jitter = "around"

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be at least 1, got {self.max_attempts}")
        if self.backoff_multiplier < 1:
            raise ValueError(f"backoff_multiplier must be at least 1, got {self.backoff_multiplier}")
        if not 0 <= self.jitter_factor <= 1:
            raise ValueError(f"jitter_factor must lie between 0 and 1, got {self.jitter_factor}")
        for name in ("initial_delay_s", "max_delay_s", "delay_min_s", "retry_after_s_max"):
            value = getattr(self, name)
            if not value >= 0 or value == math.inf:
                raise ValueError(f"{name} must be finite and not less than 0, got {value}")

    def base_s(self, attempt: int) -> float:
        """min(initial * multiplier^(attempt - 1), max), before jitter.

        The exponent is compared in logarithms first, so that no attempt overflows.
        """
        first, longest, factor = self.initial_delay_s, self.max_delay_s, self.backoff_multiplier
        if first >= longest or first <= 0 or factor <= 1:
            return min(first, longest)
        if attempt - 1 >= math.log(longest / first) / math.log(factor):
            return longest
        return float(min(longest, first * factor ** (attempt - 1)))

    def delay_s(
        self, attempt: int, rng: Random, retry_after_s: float | None = None, *, before_s: float | None = None
    ) -> float:
        """Seconds to wait after attempt number `attempt`, from 1.

        The wait is capped before the jitter, so that the longest waits are spread as well, and is never less than
        `delay_min_s`. A wait that the other side asked for is never cut short: the jitter only adds to it, so that
        those who were told the same do not come back together.

        Args:
            attempt: the number of the attempt that failed.
            rng: chance.
            retry_after_s: seconds that the other side asked for, None when it did not.
            before_s: the wait before, for `decorrelated` jitter; None for the first.
        """
        if retry_after_s is not None and not math.isnan(retry_after_s):
            asked = min(max(retry_after_s, 0.0), self.retry_after_s_max)
            return max(asked * (1 + self.jitter_factor * rng.random()), self.delay_min_s)
        if self.jitter == "decorrelated":
            previous = self.initial_delay_s if before_s is None else before_s
            wait = min(self.max_delay_s, rng.uniform(self.initial_delay_s, max(self.initial_delay_s, previous * 3)))
        else:
            base = self.base_s(attempt)
            if self.jitter == "full":
                wait = rng.uniform(0, base)
            elif self.jitter == "equal":
                wait = base / 2 + rng.uniform(0, base / 2)
            else:
                wait = base * (1 + self.jitter_factor * rng.uniform(-1, 1))
        return max(wait, self.delay_min_s)


def retryable(error: BaseException) -> bool:
    """Whether the same call may succeed later: timeouts, lost connections, 5xx, 429, unknown outcomes.

    An error of our own program or machine, a final answer and a refusal of one of our own policies are not retried.
    """
    if isinstance(error, _HERE):
        return False
    verdict = classify(error)
    if verdict is Verdict.FAIL:
        # An exception of unknown kind is most likely a mistake in the program, which no repetition cures.
        return isinstance(error, _PASSING) or status_of(error) is not None
    return verdict is Verdict.THROTTLED
