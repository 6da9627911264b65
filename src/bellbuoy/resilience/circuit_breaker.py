"""The circuit breaker: stop calling what does not work, and find out gently whether it works again.

    closed ──failure_threshold failures within the window──> open
    open ──recovery_timeout_s──> half_open ──success_threshold successes──> closed
    half_open ──one failure──> open
    any ──isolate()──> isolated ──close()──> closed

Admission hands out a one-shot permit that carries the generation of the state it was given in. A result that comes
after the state moved on changes nothing: a late success does not close what has since opened, and a late failure does
not open what has since recovered.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import CircuitOpen
from bellbuoy.resilience.classify import Verdict, classify
from bellbuoy.resilience.presets import BreakerSettings

P = ParamSpec("P")
T = TypeVar("T")


class State(StrEnum):
    """The states of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"


@dataclass(frozen=True, slots=True)
class CircuitEvent:
    """The breaker `name` changed state at `at`, in seconds since the epoch."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class CircuitOpened(CircuitEvent):
    """It refuses calls for `retry_after_s` seconds, because of `failure_count` failures within its window."""

    failure_count: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class CircuitHalfOpened(CircuitEvent):
    """It admits probes."""


@dataclass(frozen=True, slots=True)
class CircuitClosed(CircuitEvent):
    """It admits every call."""


@dataclass(frozen=True, slots=True)
class CircuitIsolated(CircuitEvent):
    """It was opened by hand and stays so until it is closed by hand."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A breaker at one moment. `opened_at` is in epoch seconds; both it and `retry_after_s` are None unless open."""

    state: State
    failure_count: int
    success_count: int
    opened_at: float | None
    retry_after_s: float | None


class Permit:
    """Leave for one call. Report its end once, with `success`, `failure` or `drop`; further reports change nothing."""

    __slots__ = ("_breaker", "_generation", "deadline", "probe")

    def __init__(self, breaker: CircuitBreaker, generation: int, deadline: float, *, probe: bool) -> None:
        self._breaker: CircuitBreaker | None = breaker
        self._generation = generation
        self.deadline = deadline
        self.probe = probe

    def success(self) -> None:
        """The call returned."""
        self._end(Verdict.OK)

    def failure(self, error: BaseException) -> None:
        """The call raised; `classify` decides what that means."""
        self._end(classify(error))

    def drop(self) -> None:
        """Nothing can be concluded: the call was cancelled, or never made."""
        self._end(Verdict.IGNORE)

    def _end(self, verdict: Verdict) -> None:
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._record(self, self._generation, verdict)


class CircuitBreaker:
    """See the module.

    Args:
        name: in events and refusals.
        settings: the numbers.
        clock: only its monotonic time decides; its wall time is shown.
        rng: kept for jittered re-opening.
        on_event: called with each change of state, synchronously; it must not raise.
    """

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_event: Callable[[CircuitEvent], None] | None = None,
    ) -> None:
        self.name = name
        self._settings = settings
        self._clock: Clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._rng = rng or random.Random()
        self._on_event = on_event
        self._state = State.CLOSED
        self._generation = 0
        self._failures: deque[float] = deque(maxlen=settings.failure_threshold)
        self._successes = 0
        self._probes: set[Permit] = set()
        self._opened_at = 0.0
        self._opened_at_epoch: float | None = None

    @property
    def settings(self) -> BreakerSettings:
        """The numbers in force."""
        return self._settings

    @property
    def state(self) -> State:
        """The state as the next caller would find it: an open one whose time is up reads as half open."""
        if self._state is State.OPEN and self._remaining() <= 0:
            return State.HALF_OPEN
        return self._state

    @property
    def retry_after_s(self) -> float | None:
        """Seconds until calls may be admitted again; None while they are, infinity while isolated."""
        if self._state is State.OPEN:
            remaining = self._remaining()
            return remaining if remaining > 0 else None
        return float("inf") if self._state is State.ISOLATED else None

    def snapshot(self) -> Snapshot:
        """Everything about it at this moment; changes nothing."""
        self._forget_old(self._monotonic())
        wait = self.retry_after_s
        return Snapshot(
            self.state,
            len(self._failures),
            self._successes,
            self._opened_at_epoch if self._state is not State.CLOSED else None,
            None if wait is None or wait == float("inf") else wait,
        )

    def admit(self) -> Permit:
        """Leave for one call.

        Raises:
            CircuitOpen: not now; `retry_after_s` says when, None when only a hand can close it.
        """
        if self._state is State.CLOSED:
            return Permit(self, self._generation, 0.0, probe=False)
        now = self._monotonic()
        if self._state is State.OPEN and self._remaining() <= 0:
            self._move(State.HALF_OPEN)
        if self._state is State.HALF_OPEN:
            # A probe that hangs gives its place away when its time is up.
            self._probes = {permit for permit in self._probes if permit.deadline > now}
            if len(self._probes) < self._settings.success_threshold - self._successes:
                permit = Permit(self, self._generation, now + 2 * self._settings.timeout_s, probe=True)
                self._probes.add(permit)
                return permit
            raise CircuitOpen(f"{self.name} is being tested", retry_after_s=1.0)
        wait = self.retry_after_s
        raise CircuitOpen(
            f"the breaker of {self.name} is {self._state}", retry_after_s=None if wait == float("inf") else wait
        )

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` if it may be called, and learn from how it ends. Raises CircuitOpen, or what `fn` raises."""
        permit = self.admit()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            permit.failure(error)
            raise
        permit.success()
        return result

    def isolate(self) -> None:
        """Refuse every call until `close` or `reset`."""
        self._move(State.ISOLATED)

    def close(self) -> None:
        """Admit every call from now on."""
        self._move(State.CLOSED)

    def reset(self) -> None:
        """Forget everything and begin closed."""
        self._move(State.CLOSED)

    def configure(self, settings: BreakerSettings) -> None:
        """Go by other numbers from now on; the state and what was counted stay."""
        self._settings = settings
        self._failures = deque(self._failures, maxlen=settings.failure_threshold)

    def _record(self, permit: Permit, generation: int, verdict: Verdict) -> None:
        self._probes.discard(permit)
        if generation != self._generation:
            return
        if verdict is Verdict.FAIL:
            now = self._monotonic()
            self._failures.append(now)
            if self._state is State.HALF_OPEN:
                self._move(State.OPEN)
            else:
                self._forget_old(now)
                if len(self._failures) >= self._settings.failure_threshold:
                    self._move(State.OPEN)
        elif self._state is State.HALF_OPEN and verdict in (Verdict.OK, Verdict.THROTTLED):
            self._successes += 1
            if self._successes >= self._settings.success_threshold:
                self._move(State.CLOSED)

    def _forget_old(self, now: float) -> None:
        while self._failures and self._failures[0] <= now - self._settings.monitoring_window_s:
            self._failures.popleft()

    def _remaining(self) -> float:
        return self._opened_at + self._settings.recovery_timeout_s - self._monotonic()

    def _move(self, state: State) -> None:
        self._generation += 1
        changed = state is not self._state
        failures = len(self._failures)
        self._state = state
        self._successes = 0
        self._probes.clear()
        now = self._clock.time()
        if state is State.CLOSED:
            self._failures.clear()
            self._opened_at_epoch = None
        elif state is not State.HALF_OPEN:
            self._opened_at = self._monotonic()
            self._opened_at_epoch = now
        if changed and self._on_event is not None:
            self._on_event(self._event(state, now, failures))

    def _event(self, state: State, now: float, failures: int) -> CircuitEvent:
        if state is State.OPEN:
            return CircuitOpened(self.name, now, failures, self._settings.recovery_timeout_s)
        kinds: dict[State, type[CircuitEvent]] = {
            State.HALF_OPEN: CircuitHalfOpened,
            State.CLOSED: CircuitClosed,
            State.ISOLATED: CircuitIsolated,
        }
        return kinds[state](self.name, now)
