"""Notifications in MongoDB: accepting them, finding them, writing down what became of them.

Whoever writes a record names what was seen of it: a worker its fence, everybody else the `version`, a name that every
write of the record gives it anew. So a write that was overtaken finds nothing to write to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence

from msgspec import Struct
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from bellbuoy.adapters.mongodb.database import CONFLICTS_MAX, Database, Document, Session, busy
from bellbuoy.adapters.mongodb.documents import accepted, changed, decode, parse_stamp, written
from bellbuoy.adapters.mongodb.faults import DUPLICATE_KEY, codes
from bellbuoy.adapters.mongodb.group import Group
from bellbuoy.errors import LeaseLost, NotFound
from bellbuoy.model import transitions
from bellbuoy.model.delivery import NotificationStatus, ProviderName, Record
from bellbuoy.ports.ledger import Offer, Page, Taken

TRIES_MAX = 10
"""How often a write that was overtaken looks again at what is there now."""

DOUBTFUL_MAX = 10_000
"""Claims that are remembered because nobody here knows whether they came about."""

SEEN = {"record": 1, "version": 1, "owner": 1}
_ALWAYS: Document = {}
_UNTOLD: Document = {"cancelling": {"$exists": False}}


class Write(Struct, frozen=True):
    """What a worker wants written; see `bellbuoy.ports.ledger.NotificationLedger.save`."""

    record: Record
    fence: int
    now: float
    due_at: float | None
    held: Sequence[ProviderName]
    release: bool


class _Known(Exception):
    """One of the ids was accepted by somebody else at this moment."""


class Notifications:
    """The part of the ledger that holds notifications; see `bellbuoy.ports.ledger.NotificationLedger`."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._accepts: Group[Sequence[Offer], list[Taken]] = Group(self._accept, weight=len)
        self._saves: Group[Write, bool] = Group(self._save, key=lambda row: row.record.id)
        # Leases that may exist although nobody works under them: claims of which we never heard, and notifications
        # whose sender gave up waiting. They are not renewed, so they end by themselves.
        self._doubtful_claims: deque[str] = deque(maxlen=DOUBTFUL_MAX)
        self._orphans: deque[str] = deque(maxlen=DOUBTFUL_MAX)

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        try:
            taken = await self._accepts.put(offers)
        except asyncio.CancelledError:
            # It may be written all the same, and nobody will take it over.
            self._orphans.extend(offer.record.id for offer in offers if offer.owner is not None)
            raise
        if self._orphans:
            new = {one.record.id for one in taken if one.kind == "new"}
            self._orphans = deque((i for i in self._orphans if i not in new), DOUBTFUL_MAX)
        return taken

    async def get(self, notification_id: str, tenant: str | None = None) -> Record:
        where = {"_id": notification_id} | ({} if tenant is None else {"tenant": tenant})
        found = await self._db.run(lambda: self._db.notifications.find_one(where, {"record": 1}))
        if found is None:
            raise NotFound(f"there is no notification {notification_id}")
        return decode(found["record"])

    async def page(
        self,
        tenant: str,
        *,
        status: NotificationStatus | None,
        user_id: str | None,
        limit: int,
        cursor: str | None,
    ) -> Page:
        where: Document = {"tenant": tenant}
        if status is not None:
            where["status"] = status
        if user_id is not None:
            where["user_id"] = user_id
        if cursor is not None:
            where["order"] = {"$lt": parse_stamp(cursor)}
        find = self._db.notifications.find(where, {"record": 1, "order": 1}).sort("order", -1).limit(limit + 1)
        found = await self._db.run(find.to_list)
        more = len(found) > limit
        return Page([decode(one["record"]) for one in found[:limit]], found[limit - 1]["order"] if more else None)

    async def save(
        self,
        record: Record,
        fence: int,
        *,
        now: float,
        due_at: float | None,
        held: Sequence[ProviderName],
        release: bool,
    ) -> bool:
        return await self._saves.put(Write(record, fence, now, due_at, held, release))

    async def cancel(self, notification_id: str, tenant: str, *, now: float) -> Record:
        async def end() -> Record:
            for _ in range(TRIES_MAX):
                found = await self._db.notifications.find_one({"_id": notification_id, "tenant": tenant}, SEEN)
                if found is None:
                    raise NotFound(f"there is no notification {notification_id}")
                record, update = self._cancelled(decode(found["record"]), now)
                if await self._changed(found, update):
                    return record
            raise busy()

        return await self._db.run(end)

    def _cancelled(self, record: Record, now: float) -> tuple[Record, Document]:
        """The record as it is answered, and the update that cancels it. Raises Conflict."""
        if transitions.cancel(record, now):
            # Its worker holds the record, or died with it. Whoever writes next is told before anything further.
            return record, {"$set": {"cancelling": True}}
        return record, changed(record, token=self._db.stamp())

    async def aclose(self) -> None:
        """Write what was handed over, then close the connections. Safe to call twice."""
        await self._accepts.aclose()
        await self._saves.aclose()
        await self._db.aclose()

    async def _changed(self, seen: Document, update: Document, also: Document = _ALWAYS) -> bool:
        """Write to a notification if its record is still the one that was seen; whether it was."""
        where = {"_id": seen["_id"], "version": seen["version"], **also}
        return (await self._db.notifications.update_one(where, update)).matched_count == 1

    # Accepting, many callers at a time.

    async def _accept(self, groups: Sequence[Sequence[Offer]], within_s: float) -> list[list[Taken]]:
        token = self._db.stamp()
        try:
            return await self._db.run(lambda: self._accept_as(token, groups), within_s=within_s)
        except BaseException:
            self._doubtful_claims.append(token)
            raise

    async def _accept_as(self, token: str, groups: Sequence[Sequence[Offer]]) -> list[list[Taken]]:
        orders: dict[str, str] = {}
        for _ in range(TRIES_MAX):
            known = await self._known([offer.record.id for offers in groups for offer in offers])
            results, fresh = _sorted(groups, known, token)
            documents = [
                accepted(one, order=orders.setdefault(one.record.id, self._db.stamp()), token=token) for one in fresh
            ]
            if not fresh or await self._inserted(documents, alone=len(groups) == 1):
                return results
        raise busy()

    async def _known(self, ids: Iterable[str]) -> dict[str, Document]:
        find = self._db.notifications.find(
            {"_id": {"$in": list(dict.fromkeys(ids))}}, {"body_hash": 1, "version": 1, "record": 1}
        )
        return {one["_id"]: one async for one in find}

    async def _inserted(self, documents: list[Document], *, alone: bool) -> bool:
        """Put notifications and their acceptances in; False when one of the ids is there already."""
        log = [{"_id": one["_id"], "tenant": one["tenant"], "at": one["accepted_at"]} for one in documents]

        async def insert(session: Session) -> None:
            try:
                await self._db.notifications.insert_many(documents, session=session)
                await self._db.accepted.insert_many(log, session=session)
            except BulkWriteError as error:
                if DUPLICATE_KEY in codes(error):
                    raise _Known from None
                raise

        # A group is soon taken apart: one id that a dead process holds in an open transaction must not stop the others.
        try:
            await self._db.transaction(insert, conflicts_max=CONFLICTS_MAX if alone else 2)
        except _Known:
            return False
        return True

    # Saving, many workers' tasks at a time.

    async def _save(self, rows: Sequence[Write], within_s: float) -> Sequence[bool | Exception]:
        return await self._db.run(lambda: self._save_all(rows), within_s=within_s)

    async def _save_all(self, rows: Sequence[Write]) -> Sequence[bool | Exception]:
        token = self._db.stamp()
        writes = [UpdateOne({"_id": row.record.id, "fence": row.fence, **_UNTOLD}, _update(row, token)) for row in rows]
        done = await self._db.notifications.bulk_write(writes)
        if done.matched_count == len(rows):
            return [False] * len(rows)
        find = self._db.notifications.find(
            {"_id": {"$in": [row.record.id for row in rows]}, "version": token}, {"_id": 1}
        )
        ours = {one["_id"] async for one in find}
        return [False if row.record.id in ours else await self._save_told(row, token) for row in rows]

    async def _save_told(self, row: Write, token: str) -> bool | Exception:
        """Write a record whose sender has cancelled it, or find that the lease is lost; returns as `save`, or why not.

        While an attempt was under way it could not be cancelled; the write that gives the lease back is when it can.
        """
        record, due_at, held = row.record, row.due_at, row.held
        mine = {"_id": record.id, "fence": row.fence}
        if await self._db.notifications.find_one({**mine, "cancelling": True}, {"_id": 1}) is not None:
            if row.release:
                transitions.cancel_open(record, row.now)
                due_at, held = transitions.due_at(record), transitions.held_for(record)
            update = written(record, due_at=due_at, held=held, token=token, release=row.release)
            done = await self._db.notifications.update_one(mine, update)
            if done.matched_count:
                return True
        return LeaseLost(f"the lease on {record.id} went to another worker")


def _update(row: Write, token: str) -> Document:
    return written(row.record, due_at=row.due_at, held=row.held, token=token, release=row.release)


def _sorted(
    groups: Sequence[Sequence[Offer]], known: dict[str, Document], token: str
) -> tuple[list[list[Taken]], list[Offer]]:
    """What becomes of each offer, and those that are to be inserted; one that repeats an id gets what is there."""
    there = {i: (one["body_hash"], decode(one["record"])) for i, one in known.items()}
    # What an earlier try of this very write has put in without hearing of it.
    ours = {i for i, one in known.items() if one["version"] == token}
    fresh: list[Offer] = []
    results: list[list[Taken]] = []
    for offers in groups:
        taken = []
        for offer in offers:
            found = there.get(offer.record.id)
            if found is None or offer.record.id in ours:
                if found is None:
                    fresh.append(offer)
                ours.discard(offer.record.id)
                there[offer.record.id] = (offer.body_hash, offer.record)
                taken.append(Taken("new", offer.record))
            else:
                taken.append(Taken("same" if found[0] == offer.body_hash else "other", found[1]))
        results.append(taken)
    return results, fresh
