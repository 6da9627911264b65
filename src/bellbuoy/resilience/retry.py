"""Retry: make a call again while that may help, and say why it was not made again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from random import Random
from types import TracebackType
from typing import Any, ClassVar, ParamSpec, TypeVar, cast

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import ExecutionRejected, OutcomeUnknown, TimeoutExceeded
from bellbuoy.resilience.backoff import RetrySettings, retryable
from bellbuoy.resilience.budget import Inside, Reservation, RetryBudget
from bellbuoy.resilience.classify import retry_after_of
from bellbuoy.resilience.events import Events, RetryExhausted, RetryScheduled
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.modes import CHANCE, is_instant
from bellbuoy.resilience.timeout import remaining_s, surely_started

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Reschedule:
    """The next attempt belongs into a durable queue: number `attempt`, not before `at` (epoch seconds).

    `error` is what the last one raised, None when it returned what `retry_on_result` does not accept.
    """

    at: float
    delay_s: float
    attempt: int
    error: BaseException | None


class Retry:
    """Makes a call again while that may help.

    Args:
        settings: the numbers, None for the defaults.
        name: in events and notes.
        retry_on: judges what was raised; the default is `retryable`.
        retry_on_result: judges what was returned, None when every result is good. A result that is still bad at the
            last attempt is returned.
        idempotent: False when repeating the call could do its work twice: then an attempt whose outcome is unknown is
            not repeated.
        budget: bounds extra attempts over all calls, None for no bound.
        clock, rng: time and chance.
        on_event: told of each wait and of the end.
    """

    kind: ClassVar[str] = "retry"

    __slots__ = (
        "_budget", "_clock", "_idempotent", "_on_error", "_on_result", "_rng", "events", "name",
        "settings",
    )  # fmt: skip

    def __init__(
        self,
        settings: RetrySettings | None = None,
        *,
        name: str = "retry",
        retry_on: Callable[[BaseException], bool] = retryable,
        retry_on_result: Callable[[Any], bool] | None = None,
        idempotent: bool = True,
        budget: RetryBudget | None = None,
        clock: Clock | None = None,
        rng: Random | None = None,
        on_event: Callable[[RetryScheduled | RetryExhausted], None] | None = None,
    ) -> None:
        self.settings = settings or RetrySettings()
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._on_error = retry_on
        self._on_result = retry_on_result
        self._idempotent = idempotent
        self._budget = budget
        self._clock: Clock = clock or SystemClock()
        self._rng = rng or CHANCE

    def configure(self, settings: RetrySettings) -> None:
        """Go by other numbers from the next failure on."""
        self.settings = settings

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn`, and again while that may help.

        Raises:
            what the last attempt raised, itself, with notes of the earlier ones.

        Cancellation: ends the wait or the attempt at once; an extra attempt that was not made is refunded.
        """
        if self._budget is not None:
            with self._budget.counted():
                return cast(T, await self._again(_Progress(self), None, fn, args, kwargs))
        try:
            result = await fn(*args, **kwargs)
        except Exception as error:
            progress = _Progress(self)
            wait_s = progress.failed(error)
        else:
            if self._on_result is None or not self._on_result(result):
                return result
            progress = _Progress(self)
            wait = progress.returned(result)
            if wait is None:
                return result
            wait_s = wait
        return cast(T, await self._again(progress, wait_s, fn, args, kwargs))

    async def call_or_reschedule(
        self, reschedule_after_s: float, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T | Reschedule:
        """`call`, but instead of waiting longer than `reschedule_after_s` seconds it returns a Reschedule.

        So a coroutine, its memory and its place in a bulkhead are not kept through a long back-off: a durable queue
        does the waiting and survives a restart.
        """
        progress = _Progress(self, reschedule_after_s)
        try:
            with self._budget.counted() if self._budget is not None else nullcontext():
                return cast(T, await self._again(progress, None, fn, args, kwargs))
        except _TooLong as too_long:
            return too_long.reschedule

    def call_sync(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """`call` for a function that is not asynchronous; waits with `time.sleep`."""
        progress = _Progress(self)
        if self._budget is not None:
            self._budget.called()
        try:
            while True:
                try:
                    result = fn(*args, **kwargs)
                except Exception as error:
                    wait_s = progress.failed(error)
                else:
                    wait = progress.returned(result)
                    if wait is None:
                        return result
                    wait_s = wait
                _sleep_sync(wait_s)
                progress.begun()
        finally:
            progress.refund()

    def __call__(self, fn: F) -> F:
        """Decorate a function, asynchronous or not."""
        return around(fn, self.call, self.call_sync)

    async def attempts(self) -> AsyncIterator[Attempt]:
        """The iterator form: `async for attempt in retry.attempts(): with attempt: ...`, for a block of code.

        The block is repeated while it raises what may be retried; the last error is raised from the block itself.
        """
        progress = _Progress(self)
        if self._budget is not None:
            self._budget.called()
        try:
            while True:
                attempt = Attempt(progress, self._budget)
                yield attempt
                if attempt.wait_s is None:
                    return
                await self._sleep(attempt.wait_s)
        finally:
            progress.refund()

    def attempts_sync(self) -> Iterator[Attempt]:
        """`attempts` for a block that is not asynchronous; waits with `time.sleep`."""
        progress = _Progress(self)
        if self._budget is not None:
            self._budget.called()
        try:
            while True:
                attempt = Attempt(progress, self._budget)
                yield attempt
                if attempt.wait_s is None:
                    return
                _sleep_sync(attempt.wait_s)
        finally:
            progress.refund()

    async def _again(
        self, progress: _Progress, wait_s: float | None, fn: Callable[..., Awaitable[Any]], args: Any, kwargs: Any
    ) -> Any:
        try:
            while True:
                if wait_s is not None:
                    await self._sleep(wait_s)
                    progress.begun()
                try:
                    result = await fn(*args, **kwargs)
                except Exception as error:
                    wait_s = progress.failed(error)
                else:
                    wait = progress.returned(result)
                    if wait is None:
                        return result
                    wait_s = wait
        except asyncio.CancelledError as error:
            if progress.attempt > 1:
                surely_started(error)
            raise
        finally:
            progress.refund()

    async def _sleep(self, wait_s: float) -> None:
        await self._clock.sleep(0.0 if is_instant() else wait_s)


def _sleep_sync(wait_s: float) -> None:
    if not is_instant():
        time.sleep(wait_s)


class _TooLong(Exception):
    """Carries a Reschedule out of the loop."""

    def __init__(self, reschedule: Reschedule) -> None:
        self.reschedule = reschedule


class Attempt:
    """One run of a block. `number` counts from 1; `wait_s` is set when it failed and another run will follow."""

    __slots__ = ("_inside", "_progress", "number", "wait_s")

    def __init__(self, progress: _Progress, budget: RetryBudget | None) -> None:
        self._inside = nullcontext() if budget is None else Inside(budget)
        self._progress = progress
        self.number = progress.attempt
        self.wait_s: float | None = None
        progress.begun()

    def __enter__(self) -> Attempt:
        self._inside.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._inside.__exit__(kind, error, traceback)
        if not isinstance(error, Exception):
            if error is None:
                self._progress.ended()
            return False
        wait_s = self._progress.judge(error)
        if wait_s is None:
            return False
        self.wait_s = wait_s
        return True


class _Progress:
    """One call on its way through its attempts."""

    __slots__ = ("_before_s", "_began", "_earlier", "_reschedule_after_s", "_reservation", "_retry", "attempt")

    def __init__(self, retry: Retry, reschedule_after_s: float | None = None) -> None:
        self._retry = retry
        self._reservation: Reservation | None = None
        self._earlier: str | None = None  # In words: the error itself would keep its frames alive.
        self._before_s: float | None = None
        self._reschedule_after_s = reschedule_after_s
        self.attempt = 1

    def begun(self) -> None:
        """The attempt that was reserved is being made."""
        self._began = True

    def ended(self) -> None:
        """The attempt is over."""
        if self._reservation is not None:
            self._reservation.release()

    def refund(self) -> None:
        """Whatever ends the call: give back what is still reserved."""
        if self._reservation is not None:
            if self._began:
                self._reservation.release()
            else:
                self._reservation.refund()

    def failed(self, error: Exception) -> float:
        """Seconds to wait before the next attempt; raises `error` itself when there is none."""
        wait_s = self.judge(error)
        if wait_s is None:
            raise error
        return self._short(wait_s, error)

    def judge(self, error: Exception) -> float | None:
        """Seconds to wait before the next attempt, None when this was the last."""
        self.ended()
        retry = self._retry
        if not retry._on_error(error) or not (retry._idempotent or _surely_undone(error)):
            self._give_up("final", error)
            return None
        wait_s = self._wait(error, retry_after_of(error))
        self._earlier = repr(error)
        return wait_s

    def returned(self, result: object) -> float | None:
        """Seconds to wait before the next attempt, None when `result` is to be returned."""
        self.ended()
        judge = self._retry._on_result
        if judge is None or not judge(result):
            return None
        asked = getattr(result, "retry_after_s", None)
        wait_s = self._wait(None, asked if isinstance(asked, (int, float)) else None)
        return None if wait_s is None else self._short(wait_s, None)

    def _short(self, wait_s: float, error: Exception | None) -> float:
        """`wait_s`, unless that is longer than is to be waited here: then the next attempt is somebody else's."""
        if self._reschedule_after_s is None or wait_s <= self._reschedule_after_s:
            return wait_s
        at = self._retry._clock.time() + wait_s
        raise _TooLong(Reschedule(at, wait_s, self.attempt, error)) from error

    def _wait(self, error: Exception | None, asked_s: float | None) -> float | None:
        retry = self._retry
        if self.attempt >= retry.settings.max_attempts:
            self._give_up("attempts", error)
            return None
        wait_s = retry.settings.delay_s(self.attempt, retry._rng, asked_s, before_s=self._before_s)
        left_s = remaining_s()
        if left_s is not None and wait_s >= left_s:
            self._give_up("deadline", error)
            return None
        if retry._budget is not None:
            self._reservation = retry._budget.reserve()
            if self._reservation is None:
                self._give_up("budget", error)
                return None
        retry.events.emit(RetryScheduled(retry.name, retry._clock.time(), self.attempt, wait_s, repr(error)))
        self._before_s = wait_s
        self._began = False
        self.attempt += 1
        return wait_s

    def _give_up(self, because: str, error: Exception | None) -> None:
        retry = self._retry
        if error is not None and (because != "final" or self.attempt > 1):
            earlier = f"; the one before raised {self._earlier}" if self._earlier else ""
            error.add_note(f"{retry.name}: gave up after attempt {self.attempt} ({because}){earlier}")
        retry.events.emit(RetryExhausted(retry.name, retry._clock.time(), self.attempt, because, repr(error)))


def _surely_undone(error: Exception) -> bool:
    """Whether the attempt cannot have had an effect, so that even what is not idempotent may be repeated."""
    if isinstance(error, TimeoutExceeded):
        return not error.started
    if isinstance(error, (ExecutionRejected, ConnectionRefusedError)):
        return True
    return not isinstance(error, (OutcomeUnknown, OSError))
