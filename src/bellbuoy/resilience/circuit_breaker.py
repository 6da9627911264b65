"""The circuit breaker: stop calling what does not work, and find out gently whether it works again.

    closed ──enough failures or slow calls──> open
    open ──its time is up──> half_open ──success_threshold successes──> closed (ramped)
    half_open ──a failed, slow or hung probe──> open, for longer
    any ──isolate()──> isolated ──close()──> closed
    any ──disable()──> disabled ──close()──> closed

Admission hands out a one-shot permit that carries the generation of the state it was given in. A result that comes
after the state moved on changes nothing: a late success does not close what has since opened, and a late failure does
not open what has since recovered. Nothing here waits, so nothing is locked; only the monotonic clock decides.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import CircuitOpen
from bellbuoy.resilience.classify import Classifier, Verdict, classify
from bellbuoy.resilience.events import (
    CircuitClosed,
    CircuitDisabled,
    CircuitEvent,
    CircuitHalfOpened,
    CircuitIsolated,
    CircuitOpened,
    Events,
    EventStream,
)
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.modes import CHANCE
from bellbuoy.resilience.presets import BreakerSettings
from bellbuoy.resilience.probation import Probes, Ramp
from bellbuoy.resilience.trip import SlowCalls, trip_of

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# How often somebody who is refused during a test or a ramp should look again, in seconds.
_SOON_S = 1.0


class State(StrEnum):
    """The states of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"
    DISABLED = "disabled"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A breaker at one moment.

    `opened_at` is in epoch seconds, None while closed. `retry_after_s` is None while calls are admitted, and when only
    a hand can close it. `success_count` counts the probes that succeeded; `admitted_share` is below 1 while it ramps.
    """

    state: State
    failure_count: int
    success_count: int
    opened_at: float | None
    retry_after_s: float | None
    admitted_share: float
    rounds: int


class Permit:
    """Leave for one call. Report its end once, with `success`, `failure` or `drop`; further reports change nothing.

    A permit that is never reported holds nothing for ever: as a probe it is given up at its `deadline`.
    """

    __slots__ = ("_breaker", "_generation", "deadline", "probe", "started")

    def __init__(
        self, breaker: CircuitBreaker | None, generation: int, started: float, deadline: float, *, probe: bool
    ) -> None:
        self._breaker = breaker
        self._generation = generation
        self.started = started
        self.deadline = deadline
        self.probe = probe

    def success(self, result: object = None) -> None:
        """The call returned `result`, which the breaker's classifier may judge."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._settle(self, self._generation, breaker._judge(result))

    def failure(self, error: BaseException) -> None:
        """The call raised; the breaker's classifier decides what that means."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._settle(self, self._generation, breaker._classify(error))

    def drop(self) -> None:
        """Nothing can be concluded: the call was cancelled, or never made."""
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker._settle(self, self._generation, Verdict.IGNORE)


class CircuitBreaker:
    """See the module.

    Args:
        name: in events and refusals.
        settings: the numbers.
        clock: only its monotonic time decides; its wall time is shown.
        rng: for the jitter of the time it stays open.
        on_event: called with each change of state, synchronously.
        classifier: judges what was raised.
        judge_results: let the classifier judge what was returned as well; without it every result is good.
        shadow: measure and tell, but refuse nothing.
        gate: asked before an open breaker lets probes through; False keeps it open. For shared state.
    """

    kind: ClassVar[str] = "breaker"

    __slots__ = (
        "__weakref__",
        "_classify",
        "_clock",
        "_generation",
        "_judges",
        "_monotonic",
        "_open_s",
        "_opened_at",
        "_opened_epoch",
        "_plain",
        "_probes",
        "_ramp",
        "_rng",
        "_round",
        "_settings",
        "_slow",
        "_state",
        "_trip",
        "events",
        "gate",
        "name",
        "shadow",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        settings: BreakerSettings | None = None,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_event: Callable[[CircuitEvent], None] | None = None,
        classifier: Classifier = classify,
        judge_results: bool = False,
        shadow: bool = False,
        gate: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self.shadow = shadow
        self.gate = gate
        self._clock: Clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._rng = rng or CHANCE
        self._classify = classifier
        self._judges = judge_results
        self._settings = settings or BreakerSettings()
        self._trip = trip_of(self._settings)
        self._slow = SlowCalls(self._settings) if self._settings.slow_call_s is not None else None
        self._state = State.CLOSED
        self._generation = 0
        self._probes: Probes[Permit] | None = None  # While it is half open.
        self._ramp: Ramp | None = None
        self._round = 0
        self._opened_at = self._opened_epoch = self._open_s = 0.0
        self._choose_path()

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
        now = self._monotonic()
        wait = self.retry_after_s
        return Snapshot(
            self.state,
            self._trip.count(now),
            self._probes.successes if self._probes else 0,
            self._opened_epoch if self._state not in (State.CLOSED, State.DISABLED) else None,
            None if wait == float("inf") else wait,
            self._ramp.share(now, self._settings) if self._ramp else 1.0,
            self._round,
        )

    def stream(self, keep_max: int = 1_000) -> EventStream:
        """Its events from now on, as an async iterator."""
        return self.events.stream(keep_max)

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` if it may be called, and learn from how it ends.

        Raises:
            CircuitOpen: it was not called; `retry_after_s` says when it may be.

        Cancellation: a cancelled call counts neither for nor against the dependency.
        """
        if self._plain:  # Closed, and a success leaves no trace: there is nothing to take and nothing to give back.
            generation = self._generation
            try:
                return await fn(*args, **kwargs)
            except BaseException as error:
                if generation == self._generation and self._classify(error) is Verdict.FAIL:
                    self._failed(self._monotonic())
                raise
        permit = self.admit()
        try:
            result = await fn(*args, **kwargs)
        except BaseException as error:
            permit.failure(error)
            raise
        permit.success(result)
        return result

    def call_sync(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`call` for a function that is not asynchronous. A breaker belongs to one thread, or to one event loop."""
        permit = self.admit()
        try:
            result = fn(*args, **kwargs)
        except BaseException as error:
            permit.failure(error)
            raise
        permit.success(result)
        return result

    def __call__(self, fn: F) -> F:
        """Decorate a function, asynchronous or not, so that each call of it goes through the breaker."""
        return around(fn, self.call, self.call_sync)

    def admit(self) -> Permit:
        """Leave for one call.

        Raises:
            CircuitOpen: not now; `retry_after_s` says when, None when only a hand can close it.
        """
        if self._state is State.CLOSED and self._slow is None and self._ramp is None:
            return Permit(self, self._generation, 0.0, 0.0, probe=False)
        if self._state is State.DISABLED:
            return Permit(None, 0, 0.0, 0.0, probe=False)
        try:
            return self._admit(self._monotonic())
        except CircuitOpen:
            if self.shadow:
                return Permit(None, 0, 0.0, 0.0, probe=False)
            raise

    def isolate(self) -> None:
        """Refuse every call until `close` or `reset`."""
        self._move(State.ISOLATED)

    def disable(self) -> None:
        """Admit every call and learn nothing until `close` or `reset`."""
        self._move(State.DISABLED)

    def close(self) -> None:
        """Admit every call from now on, without a ramp."""
        self._round = 0
        self._move(State.CLOSED)

    def reset(self) -> None:
        """Forget everything and begin closed."""
        self.close()

    def open(self, reason: str = "shared", *, for_s: float | None = None) -> None:
        """Open it for `for_s` seconds, None for as long as its settings say."""
        self._move(State.OPEN, reason, open_s=for_s)

    def configure(self, settings: BreakerSettings) -> None:
        """Go by other numbers from now on; the state and what was counted stay.

        Counts are lost only where the rule or the size of the window changes, since they mean nothing for another. An
        open breaker stays open for as long as the new numbers say, counted from when it opened.
        """
        fresh = trip_of(settings)
        if type(fresh) is type(self._trip):
            self._trip.configure(settings)
        else:
            self._trip = fresh
        if settings.slow_call_s is None:
            self._slow = None
        elif self._slow is None:
            self._slow = SlowCalls(settings)
        else:
            self._slow.configure(settings)
        changed = settings.recovery_timeout_s != self._settings.recovery_timeout_s
        self._settings = settings
        if changed and self._state is State.OPEN:
            self._open_s = settings.open_s(self._round, self._rng)
        self._choose_path()

    def _admit(self, now: float) -> Permit:
        slow = self._slow
        if self._state is State.CLOSED:
            if slow is not None and slow.overdue(now):
                self._move(State.OPEN, "slow_calls")
            elif self._ramped(now):
                permit = Permit(self, self._generation, now, 0.0, probe=False)
                if slow is not None:
                    slow.began(permit, now)
                return permit
            else:
                raise CircuitOpen(f"{self.name} is coming back, little by little", retry_after_s=_SOON_S)
        if self._state is State.OPEN and self._remaining() <= 0 and (self.gate is None or self.gate()):
            self._move(State.HALF_OPEN)
        if self._probes is not None:
            self._give_up_hung(self._probes, now)
        if self._probes is not None:
            if self._probes.room(self._settings):
                permit = Permit(self, self._generation, now, now + 2 * self._settings.timeout_s, probe=True)
                self._probes.began(permit, permit.deadline)
                return permit
            raise CircuitOpen(f"{self.name} is being tested", retry_after_s=_SOON_S)
        wait = self.retry_after_s
        if self._state is State.OPEN and wait is None:
            wait = _SOON_S  # Its time is up, but another process holds the leave to probe.
        raise CircuitOpen(
            f"the breaker of {self.name} is {self._state}", retry_after_s=None if wait == float("inf") else wait
        )

    def _give_up_hung(self, probes: Probes[Permit], now: float) -> None:
        """A probe whose lease ran out counts as slow: what takes for ever has not recovered."""
        for permit in probes.hung(now):
            permit._breaker = None
            if probes.failed(permit, self._settings):
                self._reopen("lease")
                return

    def _judge(self, result: object) -> Verdict:
        return self._classify(result) if self._judges else Verdict.OK

    def _settle(self, permit: Permit, generation: int, verdict: Verdict) -> None:
        if generation != self._generation:
            return
        if self._probes is not None:
            self._settle_probe(self._probes, permit, verdict)
            return
        slow, trip = self._slow, self._trip  # It is closed: in no other state does a permit count.
        if verdict is Verdict.FAIL:
            now = self._monotonic()
            opens = slow is not None and slow.ended(permit, now)
            self._failed(now)
            if opens and self._state is State.CLOSED:
                self._move(State.OPEN, "slow_calls")
        elif verdict in (Verdict.IGNORE, Verdict.LOCAL):
            if slow is not None:
                slow.dropped(permit)
        elif slow is not None or trip.needs_successes:
            now = self._monotonic()
            trip.success(now)
            if slow is not None and slow.ended(permit, now, slow=verdict is Verdict.SLOW):
                self._move(State.OPEN, "slow_calls")

    def _failed(self, now: float) -> None:
        if self._trip.failure(now):
            self._move(State.OPEN, "failures")

    def _settle_probe(self, probes: Probes[Permit], permit: Permit, verdict: Verdict) -> None:
        if verdict in (Verdict.IGNORE, Verdict.LOCAL):
            probes.dropped(permit)
            return
        settings, now = self._settings, self._monotonic()
        if verdict is Verdict.FAIL:
            self._trip.failure(now)
            if probes.failed(permit, settings):
                self._reopen("probe")
        elif verdict is Verdict.SLOW or (
            settings.slow_call_s is not None and now - permit.started > settings.slow_call_s
        ):
            if probes.failed(permit, settings):
                self._reopen("slow_calls")
        elif probes.succeeded(permit, settings):
            self._round = 0
            self._move(State.CLOSED, ramp=settings.ramp_s > 0)

    def _reopen(self, reason: str) -> None:
        self._round += 1
        self._move(State.OPEN, reason)

    def _ramped(self, now: float) -> bool:
        """Whether the ramp, if there is one, admits this call."""
        if self._ramp is None:
            return True
        share = self._ramp.share(now, self._settings)
        if share < 1.0:
            return self._ramp.admits(share)
        self._ramp = None
        self._choose_path()
        return True

    def _remaining(self) -> float:
        return self._opened_at + self._open_s - self._monotonic()

    def _move(self, state: State, reason: str = "failures", *, ramp: bool = False, open_s: float | None = None) -> None:
        changed = state is not self._state
        now, at = self._monotonic(), self._clock.time()
        failures = self._trip.count(now)
        self._generation += 1
        self._state = state
        self._probes = Probes() if state is State.HALF_OPEN else None
        self._ramp = Ramp(now) if ramp else None
        if self._slow is not None:
            self._slow.clear()
        if state is State.CLOSED:
            self._trip.clear()
        elif state is not State.HALF_OPEN:
            self._opened_at, self._opened_epoch = now, at
            self._open_s = self._settings.open_s(self._round, self._rng) if open_s is None else open_s
        self._choose_path()
        if changed:
            self.events.emit(self._event(state, at, failures, reason))

    def _event(self, state: State, at: float, failures: int, reason: str) -> CircuitEvent:
        if state is State.OPEN:
            return CircuitOpened(self.name, at, failures, self._open_s, reason, self.shadow)
        kinds: dict[State, type[CircuitEvent]] = {
            State.HALF_OPEN: CircuitHalfOpened,
            State.CLOSED: CircuitClosed,
            State.ISOLATED: CircuitIsolated,
            State.DISABLED: CircuitDisabled,
        }
        return kinds[state](self.name, at)

    def _choose_path(self) -> None:
        self._plain = (
            self._state is State.CLOSED
            and self._slow is None
            and self._ramp is None
            and not self._judges
            and not self._trip.needs_successes
        )
