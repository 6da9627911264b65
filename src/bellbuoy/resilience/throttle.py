"""Limits on the rate: adaptive throttling, which sheds what would be refused anyway, and a rate limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, ClassVar, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import RateLimited
from bellbuoy.resilience.classify import Classifier, Verdict, classify, retry_after_of
from bellbuoy.resilience.events import CallRefused, Events
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.modes import CHANCE, is_instant
from bellbuoy.resilience.timeout import never_started
from bellbuoy.resilience.window import TimeWindow

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class AdaptiveThrottle:
    """Refuses calls here in proportion to how many the dependency refuses, so that it need not refuse them itself.

        P(refuse) = max(0, (requests - k * accepts) / (requests + 1))

    over the last `window_s` seconds; "Handling Overload" in Google's Site Reliability Engineering. Requests that were
    refused here count as requests, so it is the dependency's health that decides and not its own refusals.

    Args:
        name: in refusals and events.
        k: how many requests are let through for each that is accepted; less sheds earlier.
        window_s: seconds over which both are counted.
        classifier: failed and throttled calls were not accepted.
        clock, rng: time and chance.
        on_event: told of each refusal.
    """

    kind: ClassVar[str] = "throttle"

    __slots__ = ("_classify", "_clock", "_rng", "_window", "events", "k", "name")

    def __init__(
        self,
        name: str,
        *,
        k: float = 2.0,
        window_s: float = 120.0,
        classifier: Classifier = classify,
        clock: Clock | None = None,
        rng: Random | None = None,
        on_event: Callable[[CallRefused], None] | None = None,
    ) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.name = name
        self.k = k
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._window = TimeWindow(window_s)
        self._classify = classifier
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or CHANCE

    @property
    def refusal_share(self) -> float:
        """The share of calls that is refused at the moment."""
        totals = self._window.totals(self._clock.monotonic())
        accepts = totals.calls - totals.failures
        return max(0.0, (totals.calls - self.k * accepts) / (totals.calls + 1))

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn`, or raise RateLimited without calling it."""
        share = self.refusal_share
        if share > 0 and self._rng.random() < share:
            self._window.add(self._clock.monotonic(), 1, 1, 0)
            self.events.emit(CallRefused(self.name, self._clock.time(), RateLimited.code))
            raise RateLimited(f"{self.name} refuses too many calls; this one was not made", retry_after_s=1.0)
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            verdict = self._classify(error)
            if verdict not in (Verdict.IGNORE, Verdict.LOCAL):
                refused = verdict in (Verdict.FAIL, Verdict.THROTTLED)
                self._window.add(self._clock.monotonic(), 1, int(refused), 0)
            raise
        self._window.add(self._clock.monotonic(), 1, 0, 0)
        return result

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)


class RateLimit:
    """At most `rate_per_s` calls a second over time, with bursts of `burst`.

    The generic cell rate algorithm (ITU-T I.371): one number, the theoretical arrival time of the next call, says it
    all. A call is in order when it comes no earlier than that time less `burst - 1` intervals.

    A throttled call (429) holds all calls back for as long as the other side asked, and halves the rate, which then
    grows back within `recover_s` seconds. It says nothing to a breaker.

    Args:
        name: in refusals and events.
        rate_per_s: calls a second.
        burst: calls that may come at once after a pause.
        wait_s_max: seconds a call may wait for its turn; 0 refuses at once.
        recover_s: seconds in which the rate grows from nothing back to all of it after throttling.
        clock: measures and waits.
        on_event: told of each refusal.
    """

    kind: ClassVar[str] = "rate_limit"

    __slots__ = ("_clock", "_due", "_held_until", "_share", "_share_at", "burst", "events", "name", "rate_per_s",
                 "recover_s", "wait_s_max")  # fmt: skip

    def __init__(
        self,
        name: str,
        *,
        rate_per_s: float,
        burst: int = 1,
        wait_s_max: float = 0.0,
        recover_s: float = 30.0,
        clock: Clock | None = None,
        on_event: Callable[[CallRefused], None] | None = None,
    ) -> None:
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._clock: Clock = clock or SystemClock()
        self._due = self._held_until = 0.0
        self._share, self._share_at = 1.0, 0.0
        self.recover_s = recover_s
        self.configure(rate_per_s=rate_per_s, burst=burst, wait_s_max=wait_s_max)

    def configure(self, *, rate_per_s: float, burst: int, wait_s_max: float) -> None:
        """Go by other numbers from now on; what was used stays used."""
        if not rate_per_s > 0 or burst < 1 or wait_s_max < 0:
            raise ValueError("rate_per_s must be greater than 0, burst at least 1, wait_s_max not less than 0")
        self.rate_per_s = rate_per_s
        self.burst = burst
        self.wait_s_max = wait_s_max

    @property
    def share(self) -> float:
        """The share of the rate that is in use: 1 unless calls were throttled lately."""
        return min(1.0, self._share + (self._clock.monotonic() - self._share_at) / self.recover_s)

    def reserve(self) -> float:
        """Take the next turn and return the seconds until it; raises RateLimited if that is too far off."""
        now = self._clock.monotonic()
        interval = self._interval_s
        due = max(self._due, now)
        wait = max(due - (self.burst - 1) * interval, self._held_until) - now
        # The sums of many intervals carry rounding errors; a nanosecond is not worth a refusal.
        if wait > self.wait_s_max + 1e-9:
            self.events.emit(CallRefused(self.name, self._clock.time(), RateLimited.code))
            raise RateLimited(f"{self.name} takes {self.rate_per_s:g} calls a second", retry_after_s=wait)
        self._due = due + interval
        return max(0.0, wait)

    @property
    def _interval_s(self) -> float:
        return 1 / (self.rate_per_s * self.share)

    def throttled(self, retry_after_s: float | None = None) -> None:
        """The other side asked for less: halve the rate, and hold calls back for as long as it said."""
        now = self._clock.monotonic()
        self._share, self._share_at = max(0.05, self.share / 2), now
        if retry_after_s is not None:
            self._held_until = max(self._held_until, now + retry_after_s)

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` when it is its turn.

        Raises:
            RateLimited: its turn is too far off; `retry_after_s` says how far. `fn` was not called.

        Cancellation: a call that is cancelled while it waits gives its turn back.
        """
        taken_s = self._interval_s  # What the turn takes, which may have changed when it is given back.
        wait_s = self.reserve()
        if wait_s > 0 and not is_instant():
            try:
                await self._clock.sleep(wait_s)
            except asyncio.CancelledError as error:
                self._due -= taken_s
                never_started(error)
                raise
        try:
            return await fn(*args, **kwargs)
        except Exception as error:
            if classify(error) is Verdict.THROTTLED:
                self.throttled(retry_after_of(error))
            raise

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)
