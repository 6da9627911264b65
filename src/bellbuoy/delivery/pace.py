"""The rate at which a provider is called, over all workers where they can agree, else by each worker for itself."""

from __future__ import annotations

import asyncio

from bellbuoy.clock import Clock
from bellbuoy.errors import StoreError
from bellbuoy.ports.shared import RateLimit

ASK_S = 0.1
"""Seconds for agreeing with the others; then the worker goes by its own count."""

WAIT_S_MAX = 2.0
"""Longest wait, in seconds, with a place among the attempts under way; who has to wait longer waits in the ledger."""


class Pace:
    """One provider's rate. Waiting for it is no failure and nothing that a breaker hears of.

    Args:
        name: the provider's.
        rate_per_s: attempts a second; after a pause a tenth of a second's worth may begin at once.
        shared: counts over all workers.
        alone: counts this worker's, for when `shared` does not answer.
        clock: waits.
    """

    def __init__(self, name: str, *, rate_per_s: float, shared: RateLimit, alone: RateLimit, clock: Clock) -> None:
        # Places are taken at a rate: those of one that was far too low would hold back what goes by the next for hours.
        self._places = f"{name}:{rate_per_s:g}"
        self.rate_per_s = rate_per_s
        self._shared = shared
        self._alone = alone
        self._clock = clock

    async def turn(self) -> bool:
        """Wait until the next attempt may begin; False when that would take too long, and then no place was taken."""
        try:
            async with asyncio.timeout(ASK_S):
                wait_s = await self._reserve(self._shared)
        except (StoreError, TimeoutError):
            wait_s = await self._reserve(self._alone)
        if wait_s is None:
            return False
        if wait_s > 0:
            await self._clock.sleep(wait_s)
        return True

    async def _reserve(self, limit: RateLimit) -> float | None:
        burst = max(1, int(self.rate_per_s / 10))
        return await limit.reserve(self._places, rate_per_s=self.rate_per_s, burst=burst, wait_s_max=WAIT_S_MAX)
