"""The homes of a notification: the ledger, and the journal when the ledger cannot take it.

What only the journal has is found by its id as if the ledger had it, and goes to the ledger, in the order in which it
came, as soon as the ledger takes writes again. Putting it there twice is harmless: the id is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import Full, NotFound, StoreError, Unavailable, code_of
from bellbuoy.model.delivery import Record
from bellbuoy.model.operation import Issue
from bellbuoy.ports.journal import Journal
from bellbuoy.ports.ledger import Ledger, Offer, Taken
from bellbuoy.ports.operations import Telemetry

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Offer]).decode


class HomesSettings(Struct, frozen=True):
    """The bounds of the journal as a home.

    Args:
        kept_max: notifications that only the journal may have; they are in memory too, to be found.
        journal_s_max: seconds in which the journal must have written an entry.
        batch: entries that go to the ledger at a time.
        pause_s: seconds between two batches, so that a ledger that is back is not pressed.
        wait_s: seconds until the next try when the ledger takes nothing.
    """

    kept_max: int = 100_000
    journal_s_max: float = 5.0
    batch: int = 200
    pause_s: float = 0.05
    wait_s: float = 1.0


class _Kept(Struct):
    """A notification that only the journal has. `safe` ends with the number of its entry, or with why it has none."""

    offer: Offer
    safe: asyncio.Future[int]


class Homes:
    """A ledger with a journal behind it; what it does not do itself passes through to the ledger.

    Args:
        ledger: the first home; it refuses with Unavailable what it does not take in time.
        journal: the last one.
        left: journals that ended processes left; what is in them goes into this one's.
        settings: the bounds.
        clock: for waiting.
        telemetry: is told of what happens.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        *,
        left: Sequence[Journal] = (),
        settings: HomesSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._ledger = ledger
        self._journal = journal
        self._left = left
        self.nudge: Callable[[], None] = _nobody  # Called when the ledger has got something to work on.
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._kept: dict[str, _Kept] = {}
        self._refused = False  # Whether the journal refused the last entry.
        self._wake = asyncio.Event()
        # Looked up for every notification, so found at once.
        self.save, self.claim = ledger.save, ledger.claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        """Put notifications into the ledger, or into the journal; when this returns they are durable.

        Raises:
            Full, Unavailable: neither could take them; nothing was confirmed.
        """
        if not self._kept:
            return await self._take(offers)
        fresh = [offer for offer in offers if offer.record.id not in self._kept]
        taken = iter(await self._take(fresh) if fresh else [])
        ids = {offer.record.id for offer in fresh}
        return [next(taken) if offer.record.id in ids else await self._again(offer) for offer in offers]

    async def get(self, notification_id: str, tenant: str | None = None) -> Record:
        """The record, wherever it is. Raises NotFound."""
        kept = self._kept.get(notification_id)
        if kept is None or not kept.safe.done():
            return await self._ledger.get(notification_id, tenant)
        if tenant is not None and kept.offer.record.tenant != tenant:
            raise NotFound(f"there is no notification {notification_id}")
        return kept.offer.record

    async def load(self) -> None:
        """Find again what an earlier process left; before anything else.

        Raises:
            Full: there is no room to bring what others left into this journal; theirs are as they were.
        """
        for journal in self._left:
            while entries := await journal.read(limit=self._settings.batch):
                await asyncio.gather(*(self._journal.append(entry.data) for entry in entries))
                await journal.take_off(entries[-1].number)
            await journal.aclose()
        for entry in await self._journal.read(limit=self._settings.kept_max):
            for offer in _decode(entry.data):
                safe: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                safe.set_result(entry.number)
                self._kept[offer.record.id] = _Kept(offer, safe)

    async def run(self) -> None:
        """Give the ledger what only the journal has, whenever there is something, until cancelled."""
        while True:
            if not self._journal.state().pending:
                self._wake.clear()
                await self._wake.wait()
            try:
                healed = await self.heal()
            except Exception as error:  # A defect too: what is in the journal must not stay there for ever.
                self._telemetry.event("heal_failed", code=code_of(error))
                await self._clock.sleep(self._settings.wait_s)
            else:
                await self._clock.sleep(self._settings.pause_s if healed else self._settings.wait_s)

    async def heal(self) -> int:
        """Give the ledger one batch; returns how many notifications it has now.

        Raises:
            Full, Unavailable: it takes nothing; all stays in the journal.
        """
        entries = await self._journal.read(limit=self._settings.batch)
        if not entries:
            return 0
        offers = [offer for entry in entries for offer in _decode(entry.data)]
        for offer, taken in zip(offers, await self._ledger.accept(offers), strict=True):
            if taken.kind == "other":
                # Two nodes that could not see each other took different requests under one key. One id is one
                # notification, and the ledger had the other one first.
                self._telemetry.event("idempotency_conflict", notification_id=offer.record.id)
        last = entries[-1].number
        await self._journal.take_off(last)
        for offer in offers:
            kept = self._kept.get(offer.record.id)
            if kept is not None and kept.safe.done() and kept.safe.result() <= last:
                del self._kept[offer.record.id]
        self._telemetry.clear_issue("database_down", "ledger")
        self._telemetry.event("journal_healed", count=len(offers), pending=self._journal.state().pending)
        self.nudge()
        return len(offers)

    def ready(self) -> bool:
        """Whether the journal would take what the ledger does not, as far as the last time tells."""
        return not self._refused

    def pending(self) -> int:
        """How many notifications only the journal has."""
        return len(self._kept)

    async def aclose(self) -> None:
        """Close the journal, then the ledger."""
        await self._journal.aclose()
        await self._ledger.aclose()

    # Taking.

    async def _take(self, offers: Sequence[Offer]) -> list[Taken]:
        try:
            return await self._ledger.accept(offers)
        except (Full, Unavailable) as error:
            since = self._clock.time()
            self._telemetry.raise_issue(Issue("database_down", "ledger", f"it takes nothing: {error.code}", since))
            return await self._keep(offers, error)

    async def _keep(self, offers: Sequence[Offer], why: StoreError) -> list[Taken]:
        """Put offers into the journal as one entry, all or none. Raises `why` when it has no room either."""
        if len(self._kept) + len(offers) > self._settings.kept_max:
            raise why
        safe: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        safe.add_done_callback(_seen)
        fresh: list[Offer] = []
        earlier: dict[int, Offer] = {}
        for at, offer in enumerate(offers):
            if offer.record.id in self._kept:
                earlier[at] = offer
                continue
            kept = _at_home(offer)
            self._kept[offer.record.id] = _Kept(kept, safe)
            fresh.append(kept)
        # The entry is written whether or not its client waits for it: others may ask with the same key meanwhile.
        if fresh:
            await asyncio.shield(asyncio.ensure_future(self._write(fresh, safe, why)))
        taken = iter(fresh)
        return [
            await self._again(offer) if at in earlier else Taken("new", next(taken).record)
            for at, offer in enumerate(offers)
        ]

    async def _write(self, offers: list[Offer], safe: asyncio.Future[int], why: StoreError) -> None:
        try:
            async with asyncio.timeout(self._settings.journal_s_max):
                number = await self._journal.append(_encode(offers))
        except (StoreError, TimeoutError):
            for offer in offers:
                del self._kept[offer.record.id]
            self._refused = True
            safe.set_exception(why)
            raise why from None
        self._refused = False
        safe.set_result(number)
        self._wake.set()

    async def _again(self, offer: Offer) -> Taken:
        """What an offer gets whose id only the journal has."""
        kept = self._kept.get(offer.record.id)
        if kept is None:  # It went to the ledger meanwhile, or was not kept after all.
            (taken,) = await self._take([offer])
            return taken
        await asyncio.shield(kept.safe)
        return Taken("same" if kept.offer.body_hash == offer.body_hash else "other", kept.offer.record)


def _nobody() -> None:
    """Nobody works here."""


def _at_home(offer: Offer) -> Offer:
    """The offer as the journal keeps it: nobody has taken it over, and its record says where it is."""
    record = offer.record
    record.homes = ("journal",)
    record.note(record.accepted_at, "journaled", "the ledger could not take it, so it is safe in the journal first")
    due_at = max(record.accepted_at, record.not_before or 0.0)
    return msgspec.structs.replace(offer, due_at=due_at, owner=None)


def _seen(safe: asyncio.Future[int]) -> None:
    """Look at how it ended, so that a failure for which nobody waits is no surprise to the loop."""
    if not safe.cancelled():
        safe.exception()
