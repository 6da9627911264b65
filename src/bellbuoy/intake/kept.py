"""What only this process's journal has: notifications that no other home took, and accounts of what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import StoreError, Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.ports.journal import Journal
from bellbuoy.ports.ledger import Account, Offer, Taken


class Accepted(Struct, frozen=True, tag="accepted"):
    """An entry of the journal: notifications that were accepted together."""

    offers: list[Offer]


class Done(Struct, frozen=True, tag="done"):
    """An entry of the journal: what was done about a notification."""

    account: Account


Entry = Accepted | Done
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class _Waiting(Struct):
    """A notification that only the journal has. `safe` ends with the number of its entry, or with why it has none."""

    offer: Offer
    safe: asyncio.Future[int]


class Kept:
    """The journal with what its notifications are in memory, to be found by their ids.

    Args:
        journal: this process's own.
        left: journals that ended processes left; `load` brings what is in them into this one.
        kept_max: notifications that only the journal may have.
        write_s_max: seconds in which the journal must have written an entry.
        clock: for the bounds.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        left: Sequence[Journal] = (),
        kept_max: int = 100_000,
        write_s_max: float = 5.0,
        clock: Clock,
    ) -> None:
        self._journal = journal
        self._left = left
        self._kept_max = kept_max
        self._write_s_max = write_s_max
        self._clock = clock
        self._there: dict[str, _Waiting] = {}
        self._refused = False  # Whether the journal refused the last entry.
        self.wake = asyncio.Event()  # Set while there is something to give to another home.

    def __contains__(self, notification_id: str) -> bool:
        return notification_id in self._there

    def __len__(self) -> int:
        return len(self._there)

    def pending(self) -> int:
        """Entries of the journal that no other home has yet."""
        return self._journal.state().pending

    def damage(self) -> tuple[int, list[str]]:
        """How many entries could not be read back, of this journal and of those that were left, and what keeps them."""
        states = [journal.state() for journal in (self._journal, *self._left)]
        return sum(state.damaged for state in states), sorted(name for state in states for name in state.kept)

    def ready(self) -> bool:
        """Whether the journal would take something, as far as the last time tells."""
        return not self._refused

    def find(self, notification_id: str) -> Record | None:
        """A record that only the journal has, None when it does not have it (yet)."""
        waiting = self._there.get(notification_id)
        return waiting.offer.record if waiting is not None and waiting.safe.done() else None

    async def put(self, offers: Sequence[Offer], why: StoreError) -> list[Taken]:
        """Put notifications into the journal as one entry, all or none. Raises `why` when it has no room either."""
        if len(self._there) + len(offers) > self._kept_max:
            raise why
        safe: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        safe.add_done_callback(seen)
        fresh: list[Offer] = []
        earlier: set[int] = set()
        for at, offer in enumerate(offers):
            if offer.record.id in self._there:
                earlier.add(at)
                continue
            kept = _at_home(offer)
            self._there[offer.record.id] = _Waiting(kept, safe)
            fresh.append(kept)
        # The entry is written whether or not its client waits for it: others may ask with the same key meanwhile.
        if fresh:
            await asyncio.shield(asyncio.ensure_future(self._write(fresh, safe, why)))
        taken = iter(fresh)
        return [
            await self.again(offer, why) if at in earlier else Taken("new", next(taken).record)
            for at, offer in enumerate(offers)
        ]

    async def again(self, offer: Offer, why: StoreError) -> Taken:
        """What an offer gets whose id is here. Raises `why` when it was not kept after all."""
        waiting = self._there.get(offer.record.id)
        if waiting is None:
            raise why
        await asyncio.shield(waiting.safe)
        return Taken("same" if waiting.offer.body_hash == offer.body_hash else "other", waiting.offer.record)

    async def note(self, account: Account) -> None:
        """Write down what was done. Raises Unavailable when there is no room or the disk does not answer."""
        try:
            await self._append(Done(account))
        except (StoreError, TimeoutError) as error:
            self._refused = True
            raise Unavailable("no home takes the outcome", retry_after_s=1.0) from error
        self._refused = False
        self.wake.set()

    async def load(self) -> None:
        """Find again what an earlier process left; before anything else.

        Raises:
            Full: there is no room to bring what others left into this journal; theirs are as they were.
        """
        for journal in self._left:
            while entries := await journal.read(limit=200):
                await asyncio.gather(*(self._journal.append(entry.data) for entry in entries))
                await journal.take_off(entries[-1].number)
            await journal.aclose()
        for one in await self._journal.read(limit=self._kept_max):
            entry = _decode(one.data)
            for offer in entry.offers if isinstance(entry, Accepted) else ():
                safe: asyncio.Future[int] = asyncio.get_running_loop().create_future()
                safe.set_result(one.number)
                self._there[offer.record.id] = _Waiting(offer, safe)
        if self.pending():
            self.wake.set()

    async def oldest(self, limit: int) -> tuple[list[Entry], int]:
        """The oldest entries, and the number of the last of them."""
        entries = await self._journal.read(limit=limit)
        return [_decode(one.data) for one in entries], entries[-1].number if entries else 0

    async def let_go(self, entries: Sequence[Entry], last: int) -> None:
        """Another home has these entries, up to the number `last`."""
        await self._journal.take_off(last)
        for entry in entries:
            for offer in entry.offers if isinstance(entry, Accepted) else ():
                waiting = self._there.get(offer.record.id)
                if waiting is not None and waiting.safe.done() and waiting.safe.result() <= last:
                    del self._there[offer.record.id]
        if not self.pending():
            self.wake.clear()

    async def aclose(self) -> None:
        """Write what was handed over, then close the journal."""
        await self._journal.aclose()

    async def _write(self, offers: list[Offer], safe: asyncio.Future[int], why: StoreError) -> None:
        try:
            number = await self._append(Accepted(offers))
        except (StoreError, TimeoutError):
            for offer in offers:
                del self._there[offer.record.id]
            self._refused = True
            safe.set_exception(why)
            raise why from None
        self._refused = False
        safe.set_result(number)
        self.wake.set()

    async def _append(self, entry: Entry) -> int:
        async with asyncio.timeout(self._write_s_max):
            return await self._journal.append(_encode(entry))


def _at_home(offer: Offer) -> Offer:
    """The offer as the journal keeps it: nobody has taken it over, and its record says where it is."""
    record = offer.record
    record.homes = ("journal",)
    record.note(record.accepted_at, "journaled", "no other home could take it, so it is safe in the journal first")
    due_at = max(record.accepted_at, record.not_before or 0.0)
    return msgspec.structs.replace(offer, due_at=due_at, owner=None)


def seen(future: asyncio.Future[Any]) -> None:
    """Look at how it ended, so that a failure for which nobody waits is no surprise to the loop."""
    if not future.cancelled():
        future.exception()
