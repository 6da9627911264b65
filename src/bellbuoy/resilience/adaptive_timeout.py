"""The adaptive timeout: as long as nearly all calls take, times a margin, within bounds."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import TimeoutExceeded
from bellbuoy.resilience.events import CallTimedOut
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.timeout import Timeout

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_STEP: Final = math.log(1.1)


class Latencies:
    """Latencies in buckets that grow by 10 %, of the current and the last window of `window_s` seconds.

    A call that was cut off is known to take longer than it was given, and not how long: it is entered as taking for
    ever. If it were entered with the time it was given, each timeout would lower the next.
    """

    __slots__ = ("_before", "_end", "_now", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._now: dict[int, int] = {}
        self._before: dict[int, int] = {}
        self._end = -math.inf

    def add(self, now: float, taken_s: float) -> None:
        """A call took `taken_s` seconds, infinity when it was cut off."""
        if now >= self._end:
            idle = now >= self._end + self.window_s
            self._before, self._now = ({} if idle else self._now), {}
            self._end = now + self.window_s
        bucket = 10_000 if taken_s == math.inf else math.ceil(math.log(max(taken_s, 1e-6)) / _STEP)
        self._now[bucket] = self._now.get(bucket, 0) + 1

    @property
    def count(self) -> int:
        """Calls it holds."""
        return sum(self._now.values()) + sum(self._before.values())

    def quantile_s(self, share: float) -> float:
        """Seconds within which `share` of the calls ended, at most 10 % too many; infinity if that many did not end."""
        left = share * self.count
        for bucket in sorted({*self._now, *self._before}):
            left -= self._now.get(bucket, 0) + self._before.get(bucket, 0)
            if left <= 1e-9:
                return math.inf if bucket == 10_000 else math.exp(bucket * _STEP)
        return math.inf


class AdaptiveTimeout:
    """clamp(`factor` * quantile of recent latencies, `timeout_s_min`, `timeout_s_max`).

    Until `calls_min` calls are known it is `timeout_s_max`, and so it is when more calls than the quantile leaves out
    were cut off.

    Args:
        timeout_s_min, timeout_s_max: the bounds, in seconds.
        quantile: which share of the calls is meant to end in time without the margin.
        factor: the margin.
        window_s: how long a latency counts, up to twice that.
        calls_min: calls that must be known before it adapts.
        clock: measures.
        name: in events.
        on_event: told of each call that was cut off.
    """

    kind: ClassVar[str] = "timeout"

    __slots__ = ("_added", "_latencies", "_monotonic", "_timeout", "calls_min", "events", "factor", "name", "quantile",
                 "timeout_s_max", "timeout_s_min")  # fmt: skip

    def __init__(
        self,
        *,
        timeout_s_min: float,
        timeout_s_max: float,
        quantile: float = 0.99,
        factor: float = 2.0,
        window_s: float = 60.0,
        calls_min: int = 20,
        clock: Clock | None = None,
        name: str = "timeout",
        on_event: Callable[[CallTimedOut], None] | None = None,
    ) -> None:
        if not 0 < timeout_s_min <= timeout_s_max or not 0 < quantile <= 1 or factor < 1:
            raise ValueError("it needs 0 < timeout_s_min <= timeout_s_max, a quantile in (0, 1], a factor of 1 or more")
        clock = clock or SystemClock()
        self._timeout = Timeout(timeout_s_max, clock=clock, name=name, on_event=on_event)
        self.name = name
        self.events = self._timeout.events
        self._monotonic = clock.monotonic
        self._latencies = Latencies(window_s)
        self._added = 0
        self.timeout_s_min = timeout_s_min
        self.timeout_s_max = timeout_s_max
        self.quantile = quantile
        self.factor = factor
        self.calls_min = calls_min

    @property
    def timeout_s(self) -> float:
        """Seconds that the next call gets."""
        return self._timeout.timeout_s

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` with the limit of the moment; raises and cancels as Timeout does."""
        began = self._monotonic()
        try:
            result = await self._timeout.call(fn, *args, **kwargs)
        except TimeoutExceeded as error:
            if error.started:
                self._learn(math.inf)
            raise
        self._learn(self._monotonic() - began)
        return result

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)

    def _learn(self, taken_s: float) -> None:
        self._latencies.add(self._monotonic(), taken_s)
        self._added += 1
        # The quantile looks at every bucket, so it is taken now and then; a timeout changes it at once.
        if self._added % 16 and taken_s != math.inf:
            return
        longest = self.timeout_s_max
        if self._latencies.count >= self.calls_min:
            longest = min(longest, self.factor * self._latencies.quantile_s(self.quantile))
        self._timeout.configure(max(self.timeout_s_min, longest))
