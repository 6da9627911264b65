"""The bulkhead: so many calls at once, so many waiting, and no more, so that one dependency cannot take everything."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import BulkheadFull
from bellbuoy.resilience.timeout import Alarm

P = ParamSpec("P")
T = TypeVar("T")


class Bulkhead:
    """Admits calls in order of their priority, and within one first come, first served.

    Args:
        name: in refusals.
        concurrency_max: calls at once.
        queue_max: calls that may wait; the next is refused at once.
        wait_s_max: seconds a call may wait before it is refused.
        priorities: how many priorities there are; 0 is the most urgent.
        clock: for the wait.
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency_max: int,
        queue_max: int,
        wait_s_max: float,
        priorities: int = 3,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._free = concurrency_max
        self._queue_max = queue_max
        self._wait_s_max = wait_s_max
        self._clock: Clock = clock or SystemClock()
        self._queues: tuple[deque[asyncio.Future[bool]], ...] = tuple(deque() for _ in range(priorities))
        self._waiting = 0

    @property
    def free(self) -> int:
        """Places that nobody holds."""
        return self._free

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` when there is a place, with the middle priority.

        Raises and cancels as `call_at` does.
        """
        return await self.call_at(len(self._queues) // 2, fn, *args, **kwargs)

    async def call_at(self, priority: int, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` when there is a place and nobody more urgent waits; `priority` 0 is the most urgent.

        Raises:
            BulkheadFull: the line is full, or the wait was too long; `fn` was not called.

        Cancellation: a waiting call leaves the line, a running one gives its place back; no place is ever lost.
        """
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(priority)
        try:
            return await fn(*args, **kwargs)
        finally:
            self._give_back()

    async def _wait(self, priority: int) -> None:
        if self._waiting >= self._queue_max:
            raise BulkheadFull(f"{self.name} has {self._queue_max} calls waiting", retry_after_s=1.0)
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queues[priority].append(place)
        self._waiting += 1

        def refuse() -> None:
            if not place.done():
                place.set_result(False)

        alarm = Alarm(self._clock, self._wait_s_max, refuse)
        try:
            granted = await place
        except asyncio.CancelledError:
            # The place may have been granted in the same turn of the loop in which the wait was cancelled.
            if place.done() and not place.cancelled() and place.result():
                self._give_back()
            raise
        finally:
            self._waiting -= 1
            alarm.cancel()
        if not granted:
            raise BulkheadFull(f"no place with {self.name} within {self._wait_s_max} s", retry_after_s=1.0)

    def _give_back(self) -> None:
        for queue in self._queues:
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(True)
                    return
        self._free += 1
