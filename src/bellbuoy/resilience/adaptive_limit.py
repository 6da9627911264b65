"""Adaptive limits: find out how many calls at once a dependency takes, instead of guessing.

An algorithm is a plain object that is told how each call went and answers with the limit. Both hold the limit while the
application does not use half of it, since latency under no load says nothing about what more load would do, and both
cut it when a call fails or is throttled, since what is dropped has no latency to measure.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, ParamSpec, Protocol, TypeVar, cast

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.resilience.bulkhead import Bulkhead
from bellbuoy.resilience.classify import Classifier, Verdict, classify
from bellbuoy.resilience.events import Events, LimitChanged
from bellbuoy.resilience.forms import around

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Algorithm(Protocol):
    """Turns what calls did into a limit."""

    def ended(self, now: float, taken_s: float, running: int, *, dropped: bool) -> int:
        """A call ended after `taken_s` seconds, with `running` at once when it began; returns the limit."""
        ...

    @property
    def limit(self) -> int: ...


class Aimd:
    """Additive increase, multiplicative decrease, as TCP does (Chiu and Jain, 1989).

    limit + 1 / limit for a good call, so about one more for each round; limit * `decrease` for a dropped one, and at
    most once a round trip, since calls that were lost together are one sign and not many.
    """

    __slots__ = ("_cut_at", "_limit", "decrease", "limit_max", "limit_min", "slow_s")

    def __init__(
        self,
        *,
        initial: int = 10,
        limit_min: int = 1,
        limit_max: int = 200,
        decrease: float = 0.9,
        slow_s: float | None = None,
    ) -> None:
        if not 1 <= limit_min <= initial <= limit_max or not 0 < decrease < 1:
            raise ValueError("it needs 1 <= limit_min <= initial <= limit_max and a decrease between 0 and 1")
        self._limit = float(initial)
        self._cut_at = -math.inf
        self.limit_min = limit_min
        self.limit_max = limit_max
        self.decrease = decrease
        self.slow_s = slow_s

    @property
    def limit(self) -> int:
        return int(self._limit)

    def ended(self, now: float, taken_s: float, running: int, *, dropped: bool) -> int:
        if dropped or (self.slow_s is not None and taken_s > self.slow_s):
            if now - taken_s >= self._cut_at:  # It began after the last cut, so it says something new.
                self._limit = max(float(self.limit_min), self._limit * self.decrease)
                self._cut_at = now
        elif running * 2 >= self._limit:
            self._limit = min(float(self.limit_max), self._limit + 1 / self._limit)
        return self.limit


class Gradient:
    """The limit follows the ratio of the latency without load to the latency now (Netflix's Gradient2).

        gradient = clamp(tolerance * baseline / recent, 0.5, 1)
        limit    = (1 - smoothing) * limit + smoothing * (limit * gradient + sqrt(limit))

    with three guards. The baseline is an average that never exceeds `inflation_max` times the least latency seen, which
    is measured anew each `window_s` but only with next to no load: a slow overload cannot pass itself off as normal,
    and where latency grew for good the limit falls until that is seen. When `recent` exceeds `tolerance` times the
    baseline nothing is added for a queue, so that mild overload does not grow the limit without bound. And a dropped
    call cuts it.
    """

    __slots__ = (
        "_aimd", "_average", "_least", "_limit", "_recent", "_window_end", "inflation_max",
        "smoothing", "tolerance", "window_s",
    )  # fmt: skip

    def __init__(
        self,
        *,
        initial: int = 20,
        limit_min: int = 1,
        limit_max: int = 200,
        tolerance: float = 1.5,
        smoothing: float = 0.2,
        inflation_max: float = 1.2,
        window_s: float = 60.0,
    ) -> None:
        if tolerance < 1 or not 0 < smoothing <= 1 or inflation_max < 1 or not window_s > 0:
            raise ValueError("tolerance and inflation_max must be at least 1, smoothing in (0, 1], window_s above 0")
        self._aimd = Aimd(initial=initial, limit_min=limit_min, limit_max=limit_max)
        self._limit = float(initial)
        self._average = self._recent = 0.0
        self._least = math.inf
        self._window_end = -math.inf
        self.tolerance = tolerance
        self.smoothing = smoothing
        self.inflation_max = inflation_max
        self.window_s = window_s

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def baseline_s(self) -> float:
        """The latency that counts as normal, in seconds."""
        return min(self._average, self.inflation_max * self._least)

    def ended(self, now: float, taken_s: float, running: int, *, dropped: bool) -> int:
        bounds = self._aimd
        if dropped:
            bounds._limit = self._limit
            bounds.ended(now, taken_s, running, dropped=True)
            self._limit = bounds._limit
            return self.limit
        self._measure(now, taken_s, running)
        if running * 2 < self._limit:
            return self.limit
        loaded = self.tolerance * self.baseline_s / max(self._recent, 1e-9)
        queue = math.sqrt(self._limit) if loaded >= 1 else 0.0
        wanted = self._limit * min(1.0, max(0.5, loaded)) + queue
        limit = (1 - self.smoothing) * self._limit + self.smoothing * wanted
        self._limit = min(float(bounds.limit_max), max(float(bounds.limit_min), limit))
        return self.limit

    def _measure(self, now: float, taken_s: float, running: int) -> None:
        if now >= self._window_end:
            self._window_end = now + self.window_s
            # With so few calls at once a longer latency is the dependency's own, not the queue's.
            if running <= max(2, self._aimd.limit_min):
                self._least = taken_s
        self._least = min(self._least, taken_s)
        first = self._average == 0.0
        self._average = taken_s if first else self._average * 0.99 + taken_s * 0.01
        self._recent = taken_s if first else self._recent * 0.8 + taken_s * 0.2


class AdaptiveLimit:
    """A bulkhead whose number of places an algorithm sets.

    Args:
        name: in refusals and events.
        algorithm: Aimd or Gradient, or your own; None for Gradient.
        queue_max, wait_s_max: the waiting line, as in Bulkhead.
        classifier: failed, slow and throttled calls cut the limit; others are measured or passed over.
        clock: measures.
        on_event: told when the limit changes.
    """

    kind: ClassVar[str] = "bulkhead"

    __slots__ = ("_classify", "_clock", "_monotonic", "algorithm", "bulkhead", "events", "name")

    def __init__(
        self,
        name: str,
        algorithm: Algorithm | None = None,
        *,
        queue_max: int = 0,
        wait_s_max: float | None = None,
        classifier: Classifier = classify,
        clock: Clock | None = None,
        on_event: Callable[[LimitChanged], None] | None = None,
    ) -> None:
        self.name = name
        self.algorithm: Algorithm = algorithm or Gradient()
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._clock: Clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._classify = classifier
        self.bulkhead = Bulkhead(
            name,
            concurrency_max=self.algorithm.limit,
            queue_max=queue_max,
            wait_s_max=wait_s_max,
            clock=self._clock,
        )

    @property
    def limit(self) -> int:
        """Calls that may run at once now."""
        return self.bulkhead.concurrency_max

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` when there is a place; raises BulkheadFull when there is none. Cancelled calls are not measured."""
        return cast(T, await self.bulkhead.call(self._measured, fn, args, kwargs))

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)

    async def _measured(self, fn: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
        began, running = self._monotonic(), self.bulkhead.active
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            self._learn(began, running, self._classify(error))
            raise
        self._learn(began, running, Verdict.OK)
        return result

    def _learn(self, began: float, running: int, verdict: Verdict) -> None:
        if verdict in (Verdict.IGNORE, Verdict.LOCAL):
            return
        now = self._monotonic()
        was = self.bulkhead.concurrency_max
        limit = self.algorithm.ended(now, now - began, running, dropped=verdict is not Verdict.OK)
        if limit != was:
            self.bulkhead.resize(limit)
            self.events.emit(LimitChanged(self.name, self._clock.time(), was, limit))
