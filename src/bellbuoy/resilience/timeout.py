"""The timeout: cut a call off, and say honestly whether it can have had an effect.

Around it may stand an ambient deadline, which every timeout and retry inside respects and which can only shrink.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, current_task, get_running_loop
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import get_ident
from time import monotonic
from typing import Any, ClassVar, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import DeadlineExceeded, TimeoutExceeded
from bellbuoy.resilience.events import CallTimedOut, Events
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.timer import EXACT_BELOW_S, NOWHERE, TICKS_PER_S, Alarm, Watch, Wheel, wheel_of

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Ambient:
    clock: Clock
    at: float


_ambient: ContextVar[_Ambient | None] = ContextVar("bellbuoy_deadline", default=None)


@contextmanager
def deadline(after_s: float, *, clock: Clock | None = None) -> Iterator[None]:
    """Everything inside has to be done within `after_s` seconds, or earlier if a deadline further out says so.

    It interrupts nothing by itself: timeouts inside are shortened to it, retries do not wait beyond it, and calls that
    would begin after it are refused with DeadlineExceeded. It holds in tasks that are started inside, too.
    """
    clock = clock or SystemClock()
    left = remaining_s()
    shortest = after_s if left is None else min(after_s, left)
    token = _ambient.set(_Ambient(clock, clock.monotonic() + shortest))
    try:
        yield
    finally:
        _ambient.reset(token)


def remaining_s() -> float | None:
    """Seconds until the ambient deadline, negative once it has passed; None when there is none."""
    ambient = _ambient.get()
    return None if ambient is None else ambient.at - ambient.clock.monotonic()


def _within(ambient: _Ambient, limit_s: float) -> float:
    """`limit_s`, or less where the deadline comes earlier; raises DeadlineExceeded when it has passed."""
    left_s = ambient.at - ambient.clock.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the deadline had passed before the call could start")
    return min(limit_s, left_s)


def never_started(error: CancelledError) -> None:
    """Mark a cancellation that met a call while it waited for admission, so that a timeout can say it never began."""
    error.never_started = True  # type: ignore[attr-defined]


def surely_started(error: BaseException) -> None:
    """Take the mark of `never_started` away: an earlier attempt of the same call has run."""
    if getattr(error, "never_started", False):
        error.never_started = False  # type: ignore[attr-defined]


def _served(task: asyncio.Task[Any]) -> int:
    """Requests to cancel `task` that it has seen. One still on its way to the next await must not be taken for ours."""
    return task.cancelling() - int(getattr(task, "_must_cancel", False))


class Timeout:
    """Cuts calls off after `timeout_s` seconds of `clock`.

    Args:
        timeout_s: seconds a call may take; the ambient deadline may shorten it.
        clock: what measures them.
        name: in events.
        on_event: told of each call that was cut off.
    """

    kind: ClassVar[str] = "timeout"

    __slots__ = ("_clock", "_system", "_wheel", "events", "name", "timeout_s")

    def __init__(
        self,
        timeout_s: float,
        *,
        clock: Clock | None = None,
        name: str = "timeout",
        on_event: Callable[[CallTimedOut], None] | None = None,
    ) -> None:
        self.configure(timeout_s)
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._clock: Clock = clock or SystemClock()
        self._system = isinstance(self._clock, SystemClock)
        self._wheel: Wheel = NOWHERE

    def configure(self, timeout_s: float) -> None:
        """Cut calls that begin from now on off after `timeout_s` seconds."""
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be greater than 0, got {timeout_s}")
        self.timeout_s = timeout_s

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` with a limit.

        Raises:
            TimeoutExceeded: the limit passed and `fn` was cancelled. `started` False: it was still waiting for
                admission. True: what it had begun may have taken effect.
            DeadlineExceeded: the ambient deadline had passed already; `fn` was not called.

        A TimeoutError that `fn` raises itself passes as it is. A cancellation from outside passes as such, also when
        it comes in the same moment as the limit, or came before this call.
        """
        limit_s = self.timeout_s
        if (ambient := _ambient.get()) is not None:
            limit_s = _within(ambient, limit_s)
        # Asking for the running loop takes a system call, so the one of the last call is tried first. It is the right
        # one when it is running a task in this thread.
        wheel = self._wheel
        task = current_task(wheel.loop) if wheel.thread == get_ident() else None
        if task is None:
            wheel, task = self._bind()
        cancelling = task.cancelling() and _served(task)
        watch = Watch(task)
        if self._system and limit_s >= EXACT_BELOW_S:
            index = int((monotonic() + limit_s) * TICKS_PER_S) + 1
            bucket = wheel.buckets.get(index) or wheel.add(index)
            bucket[watch] = None
            alarm = None
        else:
            bucket, alarm = None, Alarm(self._clock, limit_s, watch.ring)
        try:
            return await fn(*args, **kwargs)
        except CancelledError as error:
            # Ours alone: taking it back leaves as many requests as there were before.
            if watch.rang:
                watch.rang = False
                if task.uncancel() <= cancelling:
                    raise self._exceeded(limit_s, error) from None
            raise
        finally:
            if bucket is not None:
                bucket.pop(watch, None)
            else:
                alarm.cancel()  # type: ignore[union-attr]
            if watch.rang:  # The call ended in another way after it was cancelled: the request is served.
                task.uncancel()

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)

    def _bind(self) -> tuple[Wheel, asyncio.Task[Any]]:
        loop = get_running_loop()
        task = current_task(loop)
        assert task is not None, "a timeout needs a task to cancel"
        self._wheel = wheel = wheel_of(loop)
        return wheel, task

    def _exceeded(self, limit_s: float, error: asyncio.CancelledError) -> TimeoutExceeded:
        started = not getattr(error, "never_started", False)
        self.events.emit(CallTimedOut(self.name, self._clock.time(), limit_s, started))
        what = "no answer within" if started else "not admitted within"
        return TimeoutExceeded(f"{what} {round(limit_s, 3)} s", started=started)
