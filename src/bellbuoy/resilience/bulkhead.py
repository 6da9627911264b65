"""The bulkhead: so many calls at once, so many waiting, and no more, so that one dependency cannot take everything."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import BulkheadFull
from bellbuoy.resilience.events import CallRefused, Events
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.timeout import never_started
from bellbuoy.resilience.timer import Alarm

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Bulkhead:
    """Admits calls in order of their priority, and within one first come, first served.

    Args:
        name: in refusals and events.
        concurrency_max: calls at once.
        queue_max: calls that may wait; the next is refused at once.
        wait_s_max: seconds a call may wait before it is refused, None for as long as it takes.
        priorities: how many priorities there are; 0 is the most urgent.
        clock: for the wait.
        on_event: told of each refusal.
    """

    kind: ClassVar[str] = "bulkhead"

    __slots__ = ("_active", "_clock", "_limit", "_queue_max", "_queues", "_wait_s_max", "_waiting", "events", "name")

    def __init__(
        self,
        name: str,
        *,
        concurrency_max: int,
        queue_max: int = 0,
        wait_s_max: float | None = None,
        priorities: int = 3,
        clock: Clock | None = None,
        on_event: Callable[[CallRefused], None] | None = None,
    ) -> None:
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._active = 0
        self._waiting = 0
        self._clock: Clock = clock or SystemClock()
        # It keeps the order of arrival, and a waiter who leaves takes itself out at once and leaves nothing behind.
        self._queues: tuple[OrderedDict[asyncio.Future[bool], None], ...]
        self._queues = tuple(OrderedDict() for _ in range(priorities))
        self.configure(concurrency_max=concurrency_max, queue_max=queue_max, wait_s_max=wait_s_max)

    @property
    def free(self) -> int:
        """Places that nobody holds."""
        return max(0, self._limit - self._active)

    @property
    def active(self) -> int:
        """Calls that run."""
        return self._active

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return self._waiting

    @property
    def concurrency_max(self) -> int:
        """How many calls may run at once."""
        return self._limit

    def configure(self, *, concurrency_max: int, queue_max: int, wait_s_max: float | None) -> None:
        """Go by other numbers from now on. Running calls go on; with fewer places, new ones wait until enough ended."""
        if concurrency_max < 1 or queue_max < 0 or (wait_s_max is not None and not wait_s_max > 0):
            raise ValueError("concurrency_max must be at least 1, queue_max at least 0, wait_s_max greater than 0")
        self._queue_max = queue_max
        self._wait_s_max = wait_s_max
        self.resize(concurrency_max)

    def resize(self, concurrency_max: int) -> None:
        """Change only the number of places."""
        self._limit = concurrency_max
        while self._waiting and self._active < self._limit:
            self._grant()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` when there is a place, with the middle priority.

        Raises and cancels as `call_at` does.
        """
        # No waiter can be there while a place is free: places are handed over, not left to whoever comes first.
        if self._active < self._limit:
            self._active += 1
        else:
            await self._wait(len(self._queues) // 2)
        try:
            return await fn(*args, **kwargs)
        finally:
            if self._waiting:
                self._give_back()
            else:
                self._active -= 1

    async def call_at(self, priority: int, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` when there is a place and nobody more urgent waits; `priority` 0 is the most urgent.

        Raises:
            BulkheadFull: the line is full, or the wait was too long; `fn` was not called.

        Cancellation: a waiting call leaves the line, a running one gives its place back; no place is ever lost.
        """
        if self._active < self._limit:
            self._active += 1
        else:
            await self._wait(priority)
        try:
            return await fn(*args, **kwargs)
        finally:
            self._give_back()

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)

    async def _wait(self, priority: int) -> None:
        if self._waiting >= self._queue_max:
            raise self._refusal(f"{self.name} is full, with {self._waiting} calls waiting")
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        queue = self._queues[priority]
        queue[place] = None
        self._waiting += 1
        alarm = Alarm(self._clock, self._wait_s_max, lambda: self._too_late(place)) if self._wait_s_max else None
        try:
            granted = await place
        except asyncio.CancelledError as error:
            # The place may have been granted in the same turn of the loop in which the wait was cancelled.
            if place.done() and not place.cancelled() and place.result():
                self._give_back()
            never_started(error)
            raise
        finally:
            if place in queue:
                del queue[place]
                self._waiting -= 1
            if alarm is not None:
                alarm.cancel()
        if not granted:
            raise self._refusal(f"no place with {self.name} within {self._wait_s_max} s")

    def _too_late(self, place: asyncio.Future[bool]) -> None:
        if not place.done():
            place.set_result(False)

    def _refusal(self, message: str) -> BulkheadFull:
        self.events.emit(CallRefused(self.name, self._clock.time(), BulkheadFull.code))
        return BulkheadFull(message, retry_after_s=1.0)

    def _give_back(self) -> None:
        self._active -= 1
        if self._active < self._limit:
            self._grant()

    def _grant(self) -> None:
        """Hand a free place to who is next in line, if anybody is."""
        for queue in self._queues:
            while queue:
                place, _ = queue.popitem(last=False)
                self._waiting -= 1
                if not place.done():
                    place.set_result(True)
                    self._active += 1
                    return
