"""Hedging: when an answer takes longer than usual, ask once more and take whichever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.resilience.budget import Reservation, RetryBudget
from bellbuoy.resilience.events import Events, HedgeStarted
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.modes import is_instant

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Hedge:
    """Starts the call again each `delay_s` seconds without an answer, at most `attempts_max` times in all.

    After Dean and Barroso, "The Tail at Scale". Only for calls that may run twice. A call that fails before the others
    have begun is not hedged: that is what a retry is for. The first good answer wins; the others are cancelled and have
    ended before it is returned. When all fail, the first error is raised.

    Args:
        delay_s: seconds to wait before another try; the 95th percentile is a good beginning.
        attempts_max: tries in all.
        budget: bounds extra tries over all calls. When it is spent, no more are started; those that run go on. A retry
            around it can have the same one, and then counts the call for both.
        name: in events.
        clock: waits.
        on_event: told of each extra try.
    """

    kind: ClassVar[str] = "hedge"

    __slots__ = ("_budget", "_clock", "attempts_max", "delay_s", "events", "name")

    def __init__(
        self,
        delay_s: float,
        *,
        attempts_max: int = 2,
        budget: RetryBudget | None = None,
        name: str = "hedge",
        clock: Clock | None = None,
        on_event: Callable[[HedgeStarted], None] | None = None,
    ) -> None:
        if delay_s < 0 or attempts_max < 1:
            raise ValueError("delay_s must not be less than 0, attempts_max at least 1")
        self.delay_s = delay_s
        self.attempts_max = attempts_max
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._budget = budget
        self._clock: Clock = clock or SystemClock()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn`, perhaps more than once at a time. Cancellation ends all tries before it passes on."""
        if self._budget is not None and not self._budget.has_counted:
            self._budget.called()

        async def once() -> T:
            return await fn(*args, **kwargs)

        tries: list[asyncio.Task[T]] = [asyncio.create_task(once())]
        reserved: list[Reservation] = []
        alarm: asyncio.Task[None] | None = None
        try:
            while True:
                if alarm is None and len(tries) < self.attempts_max:
                    alarm = asyncio.create_task(self._wait())
                running: set[asyncio.Task[Any]] = {one for one in tries if not one.done()}
                await asyncio.wait(running | ({alarm} if alarm else set()), return_when=asyncio.FIRST_COMPLETED)
                good = next((one for one in tries if one.done() and _succeeded(one)), None)
                if good is not None:
                    return good.result()
                if all(one.done() for one in tries):
                    return tries[0].result()
                if alarm is not None and alarm.done():
                    alarm = None
                    self._another(once, tries, reserved)
        finally:
            try:
                await _end([*tries, *([alarm] if alarm else [])])
            finally:  # A second cancellation may end the waiting for the tries, and the budget must not bear that.
                for one in reserved:
                    one.release()

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)

    def _another(
        self, once: Callable[[], Coroutine[Any, Any, T]], tries: list[asyncio.Task[T]], reserved: list[Reservation]
    ) -> None:
        """Start one more try if the budget has one."""
        if self._budget is not None:
            reservation = self._budget.reserve()
            if reservation is None:
                return
            reserved.append(reservation)
        tries.append(asyncio.create_task(once()))
        self.events.emit(HedgeStarted(self.name, self._clock.time(), len(tries)))

    async def _wait(self) -> None:
        # Without a wait at all a spent budget would be asked over and over.
        await self._clock.sleep(0.0 if is_instant() else max(self.delay_s, 0.001))


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return not task.cancelled() and task.exception() is None


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel what still runs and wait for it, so that nothing outlives the call. A cancellation here is not lost."""
    for task in tasks:
        task.cancel()
    left = [task for task in tasks if not task.done()]
    if left:
        await asyncio.wait(left)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # Asked for, so that asyncio does not complain that nobody did.
