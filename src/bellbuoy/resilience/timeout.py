"""The timeout: cut a call off, and say honestly that its result is unknown."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.errors import TimeoutExceeded

P = ParamSpec("P")
T = TypeVar("T")


class Alarm:
    """Calls `ring` after `delay_s` seconds of a clock unless it is cancelled first."""

    __slots__ = ("_handle", "_task")

    def __init__(self, clock: Clock, delay_s: float, ring: Callable[[], Any]) -> None:
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


async def _after(clock: Clock, delay_s: float, ring: Callable[[], Any]) -> None:
    await clock.sleep(delay_s)
    ring()


class Timeout:
    """Cuts calls off after `timeout_s` seconds of `clock`."""

    def __init__(self, timeout_s: float, *, clock: Clock | None = None) -> None:
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be greater than 0, got {timeout_s}")
        self.timeout_s = timeout_s
        self._clock: Clock = clock or SystemClock()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` with a limit.

        Raises:
            TimeoutExceeded: the limit passed; `fn` was cancelled, and what it had begun may have taken effect.

        A TimeoutError that `fn` raises itself passes as it is. A cancellation from outside passes as such, also when it
        comes in the same moment as the limit.
        """
        task = asyncio.current_task()
        assert task is not None
        rang = False
        cancelling = task.cancelling()

        def ring() -> None:
            nonlocal rang
            rang = True
            task.cancel()

        alarm = Alarm(self._clock, self.timeout_s, ring)
        try:
            return await fn(*args, **kwargs)
        except asyncio.CancelledError:
            # Ours alone: uncancel leaves as many requests as there were before.
            if rang and task.uncancel() <= cancelling:
                rang = False
                raise TimeoutExceeded(f"no answer within {self.timeout_s} s") from None
            raise
        finally:
            alarm.cancel()
            if rang:
                task.uncancel()
