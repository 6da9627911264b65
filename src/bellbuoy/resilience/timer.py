"""One coarse timer for all timeouts of an event loop.

A timer of the event loop costs microseconds to set and cancel, and nearly all of them are cancelled. Here a call enters
itself into a bucket of 10 ms and takes itself out again; the loop has at most one timer, for the first bucket that is
not empty. A timeout is never early, and at most 10 ms late. Short ones, under 0.1 s, get an exact timer.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, ref

from bellbuoy.clock import Clock, SystemClock

TICKS_PER_S: Final = 100
EXACT_BELOW_S: Final = 0.1

_monotonic = time.monotonic


class Watch:
    """A task that is cancelled when its time is up; `rang` tells whether it was."""

    __slots__ = ("rang", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self.rang = False

    def ring(self) -> None:
        """The time is up."""
        self.rang = True
        self.task.cancel()


class Wheel:
    """The buckets of one event loop."""

    __slots__ = ("__weakref__", "_armed", "_handle", "_order", "buckets", "loop", "thread")

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: int) -> None:
        self.loop = loop
        self.thread = thread
        self.buckets: dict[int, dict[Watch, None]] = {}
        self._order: list[int] = []
        self._armed = 0
        self._handle: asyncio.TimerHandle | None = None

    @property
    def watching(self) -> int:
        """How many tasks are being watched."""
        return sum(map(len, self.buckets.values()))

    def add(self, index: int) -> dict[Watch, None]:
        """The bucket for the tick `index`, which is counted from the zero of the monotonic clock."""
        kept = self.buckets.get(index)
        if kept is not None:
            return kept
        bucket: dict[Watch, None] = {}
        self.buckets[index] = bucket
        heapq.heappush(self._order, index)
        if self._handle is None or index < self._armed:
            self._arm(index)
        return bucket

    def _arm(self, index: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed = index
        self._handle = self.loop.call_later(max(0.0, index / TICKS_PER_S - _monotonic()), self._tick)

    def _tick(self) -> None:
        self._handle = None
        now = _monotonic() * TICKS_PER_S
        order, buckets = self._order, self.buckets
        # An empty bucket needs no timer; whoever comes later to its tick makes a new one.
        while order and (order[0] <= now or not buckets[order[0]]):
            for watch in buckets.pop(heapq.heappop(order)):
                watch.ring()
        if order:
            self._arm(order[0])


# A wheel refers to its loop, so it must not be the value under that loop: the loop's own attribute would do, but uvloop
# has none to spare. The values therefore live in the policies that use them.
_wheels: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[Wheel]] = WeakKeyDictionary()


def wheel_of(loop: asyncio.AbstractEventLoop) -> Wheel:
    """The wheel that all policies on `loop` share."""
    reference = _wheels.get(loop)
    wheel = reference() if reference is not None else None
    if wheel is None:
        wheel = Wheel(loop, get_ident())
        _wheels[loop] = ref(wheel)
    wheel.thread = get_ident()
    return wheel


# A policy begins with this one, which belongs to no thread and so is never used.
NOWHERE: Final = Wheel(cast(Any, None), 0)


def _forget() -> None:
    for reference in list(_wheels.values()):
        wheel = reference()
        if wheel is not None:
            wheel.thread = 0
    _wheels.clear()


# In a forked child the parent's loop does not run, although its tasks look as if they did.
os.register_at_fork(after_in_child=_forget)


class Alarm:
    """Calls `ring` after `delay_s` seconds of any clock unless it is cancelled first."""

    __slots__ = ("_handle", "_task")

    def __init__(self, clock: Clock, delay_s: float, ring: Callable[[], object]) -> None:
        self._task: asyncio.Task[None] | None = None
        self._handle: asyncio.TimerHandle | None = None
        if isinstance(clock, SystemClock):
            self._handle = asyncio.get_running_loop().call_later(delay_s, ring)
        else:
            self._task = asyncio.create_task(_after(clock, delay_s, ring))

    def cancel(self) -> None:
        """It will not ring; after it rang this changes nothing."""
        if self._handle is not None:
            self._handle.cancel()
        if self._task is not None:
            self._task.cancel()


async def _after(clock: Clock, delay_s: float, ring: Callable[[], object]) -> None:
    await clock.sleep(delay_s)
    ring()
