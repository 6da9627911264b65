"""Which keys were used, as processes tell each other, for the time in which the ledger cannot say.

What is remembered is a fact: a home had confirmed that notification. So whoever finds it there need not put it anywhere
again. What is not found may have been used all the same, and is treated as it would be without this memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from bellbuoy.clock import Clock, within
from bellbuoy.errors import StoreError
from bellbuoy.ports.ledger import Offer, Taken
from bellbuoy.ports.shared import IdempotencyMemory, Remembered

ASK_S = 0.05
"""Seconds for asking the memory, and for telling it before an answer that only the queue stands behind."""

WAITING_MAX = 10_000
"""Confirmed notifications that the memory has not been told of yet; more, and the oldest are not told."""


class Recall:
    """The memory as the homes use it: never waited for longer than `ASK_S`, and never an error.

    Args:
        memory: what processes share.
        clock: for the bounds.
    """

    def __init__(self, memory: IdempotencyMemory, *, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._waiting: deque[Remembered] = deque(maxlen=WAITING_MAX)
        self._telling: asyncio.Task[None] | None = None

    async def find(self, offers: Sequence[Offer]) -> Mapping[str, Remembered]:
        """What is known of offers that came with a key."""
        ids = [offer.record.id for offer in offers if offer.body_hash]
        return await self._ask(ids) or {} if ids else {}

    async def may_know(self, notification_id: str) -> bool:
        """Whether a notification with this id, which came with a key, was confirmed; also where it does not answer."""
        found = await self._ask([notification_id])
        return found is None or notification_id in found

    async def _ask(self, ids: Sequence[str]) -> Mapping[str, Remembered] | None:
        asking = asyncio.ensure_future(self._memory.find(ids))
        await self._within(asking)
        return asking.result() if _answered(asking) else None

    async def tell(self, offers: Sequence[Offer]) -> None:
        """Only the queue has confirmed these, so what a repeat meets on another node hangs on this."""
        confirmed = [_remembered(offer.body_hash, offer) for offer in offers if offer.body_hash]
        if confirmed:
            await self._within(asyncio.ensure_future(self._memory.remember(confirmed)))

    def tell_soon(self, offers: Sequence[Offer], taken: Sequence[Taken]) -> None:
        """The ledger has confirmed these and knows them; the memory is for when it is away."""
        pairs = zip(offers, taken, strict=True)
        self._waiting.extend(
            _remembered(offer.body_hash, one) for offer, one in pairs if offer.body_hash and one.kind != "other"
        )
        if self._waiting and self._telling is None:
            self._telling = asyncio.create_task(self._tell_all(), name="recall")

    async def _tell_all(self) -> None:
        try:
            while self._waiting:
                some = [self._waiting.popleft() for _ in range(min(500, len(self._waiting)))]
                await self._memory.remember(some)
        except StoreError:
            self._waiting.clear()  # It does not remember these; that costs what it costs without a memory.
        finally:
            self._telling = None

    async def _within(self, asking: asyncio.Future[Any]) -> None:
        try:
            await within(asking, ASK_S, clock=self._clock)
        finally:
            asking.add_done_callback(_answered)
            asking.cancel()

    async def aclose(self) -> None:
        """Let what is being told be told."""
        if self._telling is not None:
            await asyncio.wait((self._telling,))


def _remembered(body_hash: bytes, one: Offer | Taken) -> Remembered:
    record = one.record
    return Remembered(record.id, body_hash, record.answered, tuple(record.homes), record.accepted_at)


def _answered(asking: asyncio.Future[Any]) -> bool:
    return asking.done() and not asking.cancelled() and asking.exception() is None
