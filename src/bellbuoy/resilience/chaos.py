"""Chaos: failures on purpose, drawn by a seed, to see that the policies around a call do what they promise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, ClassVar, ParamSpec, TypeVar

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.modes import CHANCE

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


class Chaos:
    """Stands innermost and makes a share of the calls fail, come late, hang, or be lost after they took effect.

    Args:
        failure_share: calls that fail with `error` without being made.
        loss_share: calls that are made and then fail with `error`, as when an answer is lost.
        delay_share, delay_s: calls that are made that many seconds later.
        hang_share: calls that neither are made nor end until they are cancelled.
        error: makes the error.
        rng: draws; the same seed makes the same trouble.
        clock: waits.
        enabled: whether it does anything; it may be set at any time.
    """

    kind: ClassVar[str] = "chaos"

    def __init__(
        self,
        *,
        failure_share: float = 0.0,
        loss_share: float = 0.0,
        delay_share: float = 0.0,
        delay_s: float = 0.0,
        hang_share: float = 0.0,
        error: Callable[[], Exception] = lambda: ConnectionError("chaos"),
        rng: Random | None = None,
        clock: Clock | None = None,
        enabled: bool = True,
    ) -> None:
        for name, share in [("failure", failure_share), ("loss", loss_share), ("delay", delay_share)]:
            if not 0 <= share <= 1:
                raise ValueError(f"{name}_share must lie between 0 and 1, got {share}")
        if not 0 <= hang_share <= 1 or delay_s < 0:
            raise ValueError("hang_share must lie between 0 and 1, delay_s must not be less than 0")
        self.failure_share = failure_share
        self.loss_share = loss_share
        self.delay_share = delay_share
        self.delay_s = delay_s
        self.hang_share = hang_share
        self.enabled = enabled
        self._error = error
        self._rng = rng or CHANCE
        self._clock: Clock = clock or SystemClock()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn`, or do what was drawn."""
        if not self.enabled:
            return await fn(*args, **kwargs)
        # All lots are drawn for each call, so that a share changed in one place does not shift the others' luck.
        hangs, fails, waits, loses = (self._rng.random() for _ in range(4))
        if hangs < self.hang_share:
            await asyncio.get_running_loop().create_future()
        if fails < self.failure_share:
            raise self._error()
        if waits < self.delay_share:
            await self._clock.sleep(self.delay_s)
        result = await fn(*args, **kwargs)
        if loses < self.loss_share:
            raise self._error()
        return result

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)
