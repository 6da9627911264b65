"""Whether the ledger takes writes, known from its real work and from a probe that is made at most once a second."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from bellbuoy.clock import Clock
from bellbuoy.errors import Full, StoreError
from bellbuoy.ports.ledger import Ledger, Offer, Taken

FRESH_S = 1.0
"""How old a probe may be and still answer: each is an fsync, and whoever can reach the port may ask."""

REFUSAL_S = 10.0
"""How long a refused write counts when no other follows: without traffic only the probe can find out."""


class WatchedLedger:
    """A ledger that remembers when it refused a write for lack of room; everything else passes through.

    A probe's one small row still fits where a record no longer does, so what the real writes met says more.

    Args:
        ledger: what is watched.
        clock: for the age of what was seen.
    """

    def __init__(self, ledger: Ledger, *, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._refusals: dict[str, tuple[float, Full]] = {}
        self._probing = asyncio.Lock()
        self._probed_at = float("-inf")
        self._failure: StoreError | None = None
        self._latency_ms: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        """Put notifications in."""
        try:
            taken = await self._ledger.accept(offers)
        except Full as error:
            self._refusals["accept"] = (self._clock.monotonic(), error)
            raise
        if self._refusals:
            self._refusals.pop("accept", None)
        return taken

    async def save(self, *args: Any, **kwargs: Any) -> bool:
        """Write a claimed notification."""
        try:
            asked = await self._ledger.save(*args, **kwargs)
        except Full as error:
            self._refusals["save"] = (self._clock.monotonic(), error)
            raise
        if self._refusals:
            self._refusals.pop("save", None)
        return asked

    async def check(self) -> float | None:
        """How long the last probe took, in milliseconds; however many ask, one probe runs at a time.

        Raises:
            Full: it has no room, for the probe or for the last real write of its kind.
            Unavailable: it cannot be read or written.
        """
        async with self._probing:
            if self._clock.monotonic() - self._probed_at >= FRESH_S:
                await self._probe()
        for at, error in self._refusals.values():
            if self._clock.monotonic() - at < REFUSAL_S:
                raise error
        if self._failure is not None:
            raise self._failure
        return self._latency_ms

    async def _probe(self) -> None:
        began = self._clock.monotonic()
        try:
            await self._ledger.probe()
        except StoreError as error:
            self._failure, self._latency_ms = error, None
        else:
            self._failure, self._latency_ms = None, (self._clock.monotonic() - began) * 1000
        self._probed_at = self._clock.monotonic()
