"""The breaker against a slow, obvious model, with calls at once, cancels, late results and clock jumps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen, Permanent
from bellbuoy.resilience import BreakerSettings, CircuitBreaker

FAILURES, OPEN_S, WINDOW_S, PROBES, LEASE_S = 3, 10.0, 60.0, 2, 10.0


class Model:
    """The same breaker written for reading: it keeps everything that ever happened and looks through it."""

    def __init__(self) -> None:
        self.state = "closed"
        self.since = 0.0
        self.era = 0
        self.failures: list[float] = []
        self.running: list[tuple[int, int, float]] = []  # (permit, era, since), of probes.
        self.successes = 0

    def enter(self, state: str, now: float) -> None:
        self.state, self.since, self.era = state, now, self.era + 1
        self.successes, self.running = 0, []
        if state == "closed":
            self.failures = []

    def seen(self, now: float) -> str:
        return "half_open" if self.state == "open" and now - self.since >= OPEN_S else self.state

    def admit(self, permit: int, now: float) -> bool:
        if self.state == "closed":
            return True
        if self.state == "open" and now - self.since >= OPEN_S:
            self.enter("half_open", now)
        if self.state == "half_open" and any(now - since >= LEASE_S for _, _, since in self.running):
            self.enter("open", now)
        if self.state == "half_open" and len(self.running) + self.successes < PROBES:
            self.running.append((permit, self.era, now))
            return True
        return False

    def end(self, permit: int, era: int, how: str, now: float) -> None:
        if era != self.era:
            return
        self.running = [one for one in self.running if one[0] != permit]
        if self.state == "closed" and how == "fail":
            self.failures.append(now)
            if sum(now - at < WINDOW_S for at in self.failures) >= FAILURES:
                self.enter("open", now)
        elif self.state == "half_open" and how == "fail":
            self.enter("open", now)
        elif self.state == "half_open" and how in ("succeed", "mistake"):
            self.successes += 1
            if self.successes >= PROBES:
                self.enter("closed", now)


class ByPermit:
    """A call that takes a permit and reports its end, perhaps more than once."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        self.permit = breaker.admit()

    def end(self, how: str, *, twice: bool) -> None:
        for _ in range(2 if twice else 1):
            if how == "succeed":
                self.permit.success()
            elif how == "cancel":
                self.permit.drop()
            else:
                self.permit.failure(ENDS[how])


class Pending:
    """What a call waits for; an event loop is not needed to go on with it."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class ByCall:
    """A call through `call`, which takes another way through the breaker while nothing needs a permit."""

    def __init__(self, breaker: CircuitBreaker) -> None:
        async def work() -> None:
            await Pending()

        self.running = breaker.call(work)
        self.running.send(None)

    def end(self, how: str, *, twice: bool) -> None:
        del twice  # A coroutine ends once.
        with contextlib.suppress(StopIteration, *{type(error) for error in ENDS.values()}):
            if how == "succeed":
                self.running.send(None)
            else:
                self.running.throw(ENDS[how])


ENDS: dict[str, BaseException] = {
    "fail": ConnectionError(),
    "cancel": asyncio.CancelledError(),
    "mistake": Permanent("no"),
}


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(monotonic_s=0.0)
        numbers = BreakerSettings(FAILURES, OPEN_S, WINDOW_S, PROBES, LEASE_S / 2)
        self.breaker = CircuitBreaker("them", numbers, clock=self.clock)
        self.model = Model()
        self.calls: list[tuple[int, int, ByPermit | ByCall]] = []
        self.number = 0

    @rule(way=st.sampled_from([ByPermit, ByCall]))
    def admit(self, way: type[ByPermit | ByCall]) -> None:
        self.number += 1
        allowed = self.model.admit(self.number, self.clock.monotonic())
        try:
            call = way(self.breaker)
        except CircuitOpen:
            assert not allowed
        else:
            assert allowed
            self.calls.append((self.number, self.model.era, call))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "cancel", "mistake"]), twice=st.booleans())
    def end(self, data: Any, how: str, twice: bool) -> None:
        number, era, call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.model.end(number, era, how, self.clock.monotonic())
        call.end(how, twice=twice)

    @rule(seconds=st.sampled_from([0.0, 0.25, 1.0, 5.0, 9.75, 10.0, 20.0, 59.75, 60.0]))
    def wait(self, seconds: float) -> None:
        self.clock._move(seconds)

    @rule(seconds=st.sampled_from([-86_400.0, -1.0, 3_600.0]))
    def jump(self, seconds: float) -> None:
        self.clock.jump(seconds)

    @rule(state=st.sampled_from(["isolated", "closed"]))
    def by_hand(self, state: str) -> None:
        self.model.enter(state, self.clock.monotonic())
        self.breaker.isolate() if state == "isolated" else self.breaker.close()

    def teardown(self) -> None:
        for _, _, call in self.calls:
            call.end("cancel", twice=False)

    @invariant()
    def agree(self) -> None:
        assert str(self.breaker.state) == self.model.seen(self.clock.monotonic())
        if self.model.state == "half_open":
            assert self.breaker.snapshot().success_count == self.model.successes


TestBreaker = Machine.TestCase
TestBreaker.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
