"""What real calls say of a dependency: how many failed and how long they took, over a sliding window.

Memory is bounded by the number of buckets, whatever the traffic: a latency falls into one of `_SIZES` classes, each a
tenth wider than the one before, so a quantile is at most a tenth too high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_FIRST_S = 0.001
_GROWTH = math.log(1.1)
_SIZES = 128  # The last begins at 1 ms times 1.1 to the 126th: about 160 s.


@dataclass(frozen=True, slots=True)
class Reading:
    """What a window holds. The rate and the quantiles are None while it holds too little to say."""

    calls: int
    failures: int
    error_rate: float | None
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None


class Meter:
    """The calls of the last `window_s` seconds.

    Args:
        window_s: how far it looks back, in seconds.
        buckets: equal parts of the window; the part being filled counts whole.
        calls_min: with fewer calls in the window it says nothing about rates.
    """

    __slots__ = ("_calls", "_epoch", "_failures", "_latencies", "_rows", "_width", "calls_min")

    def __init__(self, window_s: float = 60.0, *, buckets: int = 12, calls_min: int = 20) -> None:
        self.calls_min = calls_min
        self._width = window_s / buckets
        self._rows: list[tuple[list[int], list[int]]] = [([0, 0], [0] * _SIZES) for _ in range(buckets)]
        self._epoch = 0
        self._calls = self._failures = 0
        self._latencies = [0] * _SIZES

    def add(self, now: float, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        """Count `calls` that ended at `now` (monotonic seconds) after `seconds` each, None when that is not known."""
        counts, sizes = self._roll(now)
        counts[0] += calls
        self._calls += calls
        if failed:
            counts[1] += calls
            self._failures += calls
        if seconds is not None:
            size = 0 if seconds <= _FIRST_S else min(_SIZES - 1, 1 + int(math.log(seconds / _FIRST_S) / _GROWTH))
            sizes[size] += calls
            self._latencies[size] += calls

    def reading(self, now: float) -> Reading:
        """What the window says at `now`."""
        self._roll(now)
        if self._calls < self.calls_min:
            return Reading(self._calls, self._failures, None, None, None, None)
        p50, p95, p99 = (self._quantile(share) for share in (0.5, 0.95, 0.99))
        return Reading(self._calls, self._failures, self._failures / self._calls, p50, p95, p99)

    def _quantile(self, share: float) -> float | None:
        """The upper end of the class in which the quantile lies."""
        left = share * sum(self._latencies)
        if not left:
            return None
        for size, count in enumerate(self._latencies):
            left -= count
            if left <= 0:
                return float(_FIRST_S * math.exp(size * _GROWTH))
        return None

    def _roll(self, now: float) -> tuple[list[int], list[int]]:
        """Forget what is too old, and return the part that `now` falls in."""
        epoch = int(now / self._width)
        for step in range(1, min(epoch - self._epoch, len(self._rows)) + 1):
            counts, sizes = self._rows[(self._epoch + step) % len(self._rows)]
            self._calls -= counts[0]
            self._failures -= counts[1]
            counts[:] = (0, 0)
            for size, count in enumerate(sizes):
                if count:
                    self._latencies[size] -= count
                    sizes[size] = 0
        self._epoch = max(self._epoch, epoch)
        return self._rows[self._epoch % len(self._rows)]


class Meters:
    """One meter a dependency, and one over all of them."""

    def __init__(self, window_s: float = 60.0, *, calls_min: int = 20) -> None:
        self._window_s = window_s
        self._calls_min = calls_min
        self.overall = Meter(window_s, calls_min=calls_min)
        self.of: dict[str, Meter] = {}

    def add(self, dependency: str, now: float, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        """Count calls of a dependency; see `Meter.add`. There are few dependencies, so their number has no bound."""
        meter = self.of.get(dependency)
        if meter is None:
            meter = self.of[dependency] = Meter(self._window_s, calls_min=self._calls_min)
        meter.add(now, seconds, failed=failed, calls=calls)
        self.overall.add(now, seconds, failed=failed, calls=calls)
