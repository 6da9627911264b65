"""Ask a dependency regularly to do a real operation, so that its end is known without traffic.

Silence is an answer too: an operation that has not ended after `silent_s` counts as bad at every look until it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bellbuoy.clock import Clock, within
from bellbuoy.errors import code_of

GIVE_UP_S = 10.0
"""After so long an operation without an end is cancelled and begun anew."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """How a dependency is probed.

    Args:
        interval_s: seconds between two probes.
        silent_s: seconds without an end after which a probe counts as bad.
    """

    interval_s: float = 0.4
    silent_s: float = 0.6


class Probe:
    """One dependency's probe.

    Args:
        name: the dependency's.
        ask: does the operation; returns when it was done.
        is_down: whether an error of `ask` means that the dependency is down, rather than that it says no.
        settings: how often.
        spared: whether real traffic has just succeeded, so that asking would tell nothing new; None never spares.
        clock: for waits and ages.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], Awaitable[object]],
        *,
        is_down: Callable[[Exception], bool],
        settings: ProbeSettings,
        clock: Clock,
        spared: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self._ask = ask
        self._is_down = is_down
        self._settings = settings
        self._spared = spared
        self._clock = clock
        self._asked_at: float | None = None
        self._answered = False
        self.failure: str | None = None  # Why it looks down, None when it does not.
        self.refusal: str | None = None  # What it said no with, None when it did not.
        self.latency_ms: float | None = None

    def looks_bad(self, now: float) -> bool | None:
        """Whether the dependency looks down at `now`, in monotonic seconds; None before the first answer."""
        if self._asked_at is not None and now - self._asked_at >= self._settings.silent_s:
            return True
        return None if not self._answered else self.failure is not None

    async def run(self) -> None:
        """Ask again and again, until cancelled."""
        while True:
            if self._spared is not None and self._spared():
                self._answered, self.failure = True, None
            else:
                await self.once()
            await self._clock.sleep(self._settings.interval_s)

    async def once(self) -> None:
        """Ask once; never raises but CancelledError."""
        self._asked_at = began = self._clock.monotonic()
        asking = asyncio.ensure_future(self._ask())
        try:
            await within(asking, GIVE_UP_S, clock=self._clock)
            self._judge(asking, began)
        finally:
            asking.cancel()
            self._asked_at = None

    def _judge(self, asking: asyncio.Future[object], began: float) -> None:
        self._answered, self.refusal = True, None
        if not asking.done():
            self.failure = "no_answer"
            return
        error = asking.exception() if not asking.cancelled() else None
        if error is not None and not isinstance(error, Exception):
            raise error
        if error is None or not self._is_down(error):
            self.failure, self.refusal = None, code_of(error) if error is not None else None
            self.latency_ms = (self._clock.monotonic() - began) * 1000
        else:
            self.failure = code_of(error)
