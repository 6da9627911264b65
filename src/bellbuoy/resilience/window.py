"""Windows over recent calls, by number and by time, at a cost that does not depend on how many calls they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Totals:
    """What a window holds: calls in all, those that failed, and those that were slow (a call may be both)."""

    calls: int
    failures: int
    slow: int


class Window(Protocol):
    """Counts of recent calls."""

    def add(self, now: float, calls: int, failures: int, slow: int) -> None:
        """Count what ended at `now`, in seconds of a monotonic clock."""
        ...

    def totals(self, now: float) -> Totals:
        """What still counts at `now`."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...


class CountWindow:
    """The last `size` calls. `add` is O(1) and time plays no part."""

    __slots__ = ("_failures", "_next", "_ring", "_slow", "size")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self._ring: list[tuple[int, int]] = []
        self._next = 0
        self._failures = 0
        self._slow = 0

    def add(self, now: float, calls: int, failures: int, slow: int) -> None:
        """Count the call that ended; there is always one."""
        del now, calls
        self._failures += failures
        self._slow += slow
        if len(self._ring) < self.size:
            self._ring.append((failures, slow))
        else:
            oldest = self._ring[self._next]
            self._failures -= oldest[0]
            self._slow -= oldest[1]
            self._ring[self._next] = (failures, slow)
        self._next = (self._next + 1) % self.size

    def totals(self, now: float) -> Totals:
        del now
        return Totals(len(self._ring), self._failures, self._slow)

    def clear(self) -> None:
        self._ring.clear()
        self._next = self._failures = self._slow = 0


class TimeWindow:
    """The last `window_s` seconds, in `buckets` equal parts.

    The part that is being filled counts whole, so the window reaches back between `window_s * (1 - 1 / buckets)` and
    `window_s` seconds: what is older than `window_s` never counts. `add` and `totals` are O(1) in the calls, and
    O(`buckets`) after a silence.
    """

    __slots__ = ("_calls", "_epoch", "_failures", "_rows", "_slow", "_width", "buckets", "window_s")

    def __init__(self, window_s: float, buckets: int = 20) -> None:
        if not window_s > 0 or buckets < 1:
            raise ValueError(f"window_s must be greater than 0 and buckets at least 1, got {window_s} and {buckets}")
        self.window_s = window_s
        self.buckets = buckets
        self._width = window_s / buckets
        self._rows = [[0, 0, 0] for _ in range(buckets)]
        self._epoch = 0
        self._calls = self._failures = self._slow = 0

    def add(self, now: float, calls: int, failures: int, slow: int) -> None:
        row = self._roll(now)
        row[0] += calls
        row[1] += failures
        row[2] += slow
        self._calls += calls
        self._failures += failures
        self._slow += slow

    def totals(self, now: float) -> Totals:
        self._roll(now)
        return Totals(self._calls, self._failures, self._slow)

    def clear(self) -> None:
        for row in self._rows:
            row[:] = (0, 0, 0)
        self._calls = self._failures = self._slow = 0

    def _roll(self, now: float) -> list[int]:
        """Forget the parts that are too old, and return the one that `now` falls in."""
        epoch = int(now / self._width)
        passed = epoch - self._epoch
        if passed > 0:
            for step in range(1, min(passed, self.buckets) + 1):
                row = self._rows[(self._epoch + step) % self.buckets]
                self._calls -= row[0]
                self._failures -= row[1]
                self._slow -= row[2]
                row[:] = (0, 0, 0)
            self._epoch = epoch
        return self._rows[self._epoch % self.buckets]
