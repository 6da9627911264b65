"""When a breaker opens: plain counters that are told how calls ended and answer whether that is enough.

`failure` and `slow` return True when the breaker is to open. None of them knows the breaker, waits, or reads a clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Protocol

from bellbuoy.resilience.presets import BreakerSettings
from bellbuoy.resilience.window import CountWindow, TimeWindow, Window


class Trip(Protocol):
    """A rule about failures."""

    @property
    def needs_successes(self) -> bool:
        """Whether it wants to be told of successes; if not, a success costs nothing."""
        ...

    def success(self, now: float) -> None: ...

    def failure(self, now: float) -> bool: ...

    def count(self, now: float) -> int:
        """Failures that count at `now`."""
        ...

    def clear(self) -> None: ...

    def configure(self, settings: BreakerSettings) -> None:
        """Go by other numbers and keep what was counted."""
        ...


class InWindow:
    """`failure_threshold` failures within `monitoring_window_s`, exactly.

    Whether N failures lie within the window is known from the time of the Nth last alone, so N times are kept and each
    failure costs the same however many there are.
    """

    __slots__ = ("_times", "_window_s")
    needs_successes = False

    def __init__(self, settings: BreakerSettings) -> None:
        self._times: deque[float] = deque(maxlen=settings.failure_threshold)
        self._window_s = settings.monitoring_window_s

    def success(self, now: float) -> None:
        pass

    def failure(self, now: float) -> bool:
        times = self._times
        times.append(now)
        return len(times) == times.maxlen and times[0] > now - self._window_s

    def count(self, now: float) -> int:
        while self._times and self._times[0] <= now - self._window_s:
            self._times.popleft()
        return len(self._times)

    def clear(self) -> None:
        self._times.clear()

    def configure(self, settings: BreakerSettings) -> None:
        self._times = deque(self._times, maxlen=settings.failure_threshold)
        self._window_s = settings.monitoring_window_s


class Consecutive:
    """`failure_threshold` failures with no success between them, whenever they were."""

    __slots__ = ("_run", "_threshold")
    needs_successes = True

    def __init__(self, settings: BreakerSettings) -> None:
        self._run = 0
        self._threshold = settings.failure_threshold

    def success(self, now: float) -> None:
        self._run = 0

    def failure(self, now: float) -> bool:
        self._run += 1
        return self._run >= self._threshold

    def count(self, now: float) -> int:
        return self._run

    def clear(self) -> None:
        self._run = 0

    def configure(self, settings: BreakerSettings) -> None:
        self._threshold = settings.failure_threshold


class Ratio:
    """The share of failures among at least `minimum_calls` calls of a window."""

    __slots__ = ("_minimum", "_ratio", "_window")
    needs_successes = True

    def __init__(self, settings: BreakerSettings) -> None:
        self._window = window_of(settings)
        self._ratio = _given(settings.failure_ratio)
        self._minimum = settings.minimum_calls

    def success(self, now: float) -> None:
        self._window.add(now, 1, 0, 0)

    def failure(self, now: float) -> bool:
        self._window.add(now, 1, 1, 0)
        totals = self._window.totals(now)
        return totals.calls >= self._minimum and totals.failures >= self._ratio * totals.calls

    def count(self, now: float) -> int:
        return self._window.totals(now).failures

    def clear(self) -> None:
        self._window.clear()

    def configure(self, settings: BreakerSettings) -> None:
        self._ratio = _given(settings.failure_ratio)
        self._minimum = settings.minimum_calls
        self._window = same_window(self._window, settings)


class SlowCalls:
    """The share of slow calls among at least `minimum_calls` calls of a window, one that still runs counted as well.

    Waiting for a call to end before calling it slow would leave a dependency that hangs unnoticed until its timeouts.
    """

    __slots__ = ("_minimum", "_ratio", "_running", "_window", "slow_call_s")

    def __init__(self, settings: BreakerSettings) -> None:
        self._window = window_of(settings)
        self._running: OrderedDict[object, float] = OrderedDict()  # In order of their start.
        self._ratio = settings.slow_call_ratio
        self._minimum = settings.minimum_calls
        self.slow_call_s = _given(settings.slow_call_s)

    def began(self, call: object, now: float) -> None:
        """`call` was let through."""
        self._running[call] = now

    def dropped(self, call: object) -> None:
        """`call` ended in a way that says nothing."""
        self._running.pop(call, None)

    def ended(self, call: object, now: float, *, slow: bool = False) -> bool:
        """`call` ended; `slow` True: it is to count as slow whatever it took. Returns whether that is enough."""
        began = self._running.pop(call, None)
        if began is not None:  # Otherwise it was counted while it ran.
            self._window.add(now, 1, 0, int(slow or now - began > self.slow_call_s))
        return self.overdue(now)

    def overdue(self, now: float) -> bool:
        """Count calls that have been running for too long; returns whether it is enough. Each is counted once."""
        running = self._running
        while running:
            call, began = next(iter(running.items()))
            if now - began <= self.slow_call_s:
                break
            del running[call]
            self._window.add(now, 1, 0, 1)
        totals = self._window.totals(now)
        return totals.calls >= self._minimum and totals.slow >= self._ratio * totals.calls

    def clear(self) -> None:
        self._window.clear()
        self._running.clear()

    def configure(self, settings: BreakerSettings) -> None:
        """Go by other numbers and keep what was counted."""
        self._ratio = settings.slow_call_ratio
        self._minimum = settings.minimum_calls
        self.slow_call_s = _given(settings.slow_call_s)
        self._window = same_window(self._window, settings)


def trip_of(settings: BreakerSettings) -> Trip:
    """The rule about failures that `settings` ask for."""
    if settings.failure_ratio is not None:
        return Ratio(settings)
    return Consecutive(settings) if settings.consecutive else InWindow(settings)


def _given(number: float | None) -> float:
    """A number without which its rule would not have been chosen."""
    assert number is not None
    return number


def window_of(settings: BreakerSettings) -> Window:
    """The window for ratios that `settings` ask for."""
    if settings.window_calls is not None:
        return CountWindow(settings.window_calls)
    return TimeWindow(settings.monitoring_window_s)


def same_window(window: Window, settings: BreakerSettings) -> Window:
    """`window` if it is of the size that `settings` ask for, else a new one, since counts cannot be cut to size."""
    if isinstance(window, CountWindow):
        return window if window.size == settings.window_calls else window_of(settings)
    same = isinstance(window, TimeWindow) and window.window_s == settings.monitoring_window_s
    return window if same and settings.window_calls is None else window_of(settings)
