"""Time and chance as arguments: everything that waits, stamps or draws lots is given a `Clock` and a `random.Random`.

`SystemClock` is the real thing. `ManualClock` moves only when told to, so that a test of an hour's back-off takes a
millisecond and never depends on luck; its sleepers wake in order of their deadlines.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """The three questions about time that Bellbuoy asks."""

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back. For durations, timeouts and breaker windows."""
        ...

    def time(self) -> float:
        """Seconds since the Unix epoch. For what is stored, shown or agreed with others; it may jump."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Return after `delay_s` seconds of this clock; at once (after one turn of the loop) when it is 0 or less."""
        ...


class SystemClock:
    """The machine's clocks and the event loop's timer."""

    # The functions themselves, not methods around them: breakers read the clock on every call.
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    sleep = staticmethod(asyncio.sleep)


class ManualClock:
    """A clock that stands still until `advance` is called.

    Args:
        monotonic_s: where the monotonic clock starts, in seconds.
        epoch_s: where the wall clock starts, in seconds since the Unix epoch.
    """

    def __init__(self, monotonic_s: float = 1_000.0, epoch_s: float = 1_800_000_000.0) -> None:
        self._monotonic = monotonic_s
        self._epoch = epoch_s
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._epoch

    def jump(self, delta_s: float) -> None:
        """Set the wall clock by `delta_s` seconds, forward or back, as an operator or NTP might; no sleeper notices."""
        self._epoch += delta_s

    async def sleep(self, delay_s: float) -> None:
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + delay_s, next(self._order), waiter))
        await waiter

    @property
    def next_wake_s(self) -> float | None:
        """Seconds until the first sleeper is due, None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return max(0.0, self._sleepers[0][0] - self._monotonic) if self._sleepers else None

    async def advance(self, delta_s: float, *, turns: int = 20) -> None:
        """Let `delta_s` seconds pass, waking sleepers in order and giving the loop `turns` turns around each."""
        await _turn(turns)  # Whoever was about to sleep does so first.
        end = self._monotonic + delta_s
        while True:
            wait = self.next_wake_s
            if wait is None or self._monotonic + wait > end:
                break
            self._move(wait)
            _, _, waiter = heapq.heappop(self._sleepers)
            waiter.set_result(None)
            await _turn(turns)
        self._move(end - self._monotonic)
        await _turn(turns)

    def _move(self, delta_s: float) -> None:
        self._monotonic += delta_s
        self._epoch += delta_s


async def _turn(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def within(asked: asyncio.Future[Any], wait_s: float, *, clock: Clock) -> None:
    """Return when `asked` is done, and after `wait_s` seconds at the latest; either way nobody cancels it."""
    patience = asyncio.ensure_future(clock.sleep(wait_s))
    try:
        await asyncio.wait((asked, patience), return_when=asyncio.FIRST_COMPLETED)
    finally:
        patience.cancel()


async def heard(event: asyncio.Event, wait_s: float, *, clock: Clock) -> None:
    """Return when the event is set, and after `wait_s` seconds at the latest."""
    waking = asyncio.ensure_future(event.wait())
    try:
        await within(waking, wait_s, clock=clock)
    finally:
        waking.cancel()
