"""Leases in MongoDB: who works on what, until when, and what waits for whom.

A claim is three steps: find what is due, lease it under a token where it is still due, read back what bears the token.
Of several workers that found the same only one can lease it, since the server changes one document at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from pymongo import UpdateMany

from bellbuoy.adapters.mongodb.database import Document, busy
from bellbuoy.adapters.mongodb.documents import NO_LEASE, UNLEASED, changed, decode
from bellbuoy.adapters.mongodb.notifications import SEEN, TRIES_MAX, Notifications
from bellbuoy.adapters.mongodb.schema import NAMED, POSITIVE
from bellbuoy.errors import Busy
from bellbuoy.model.delivery import ProviderName
from bellbuoy.model.merge import merge
from bellbuoy.model.notification import URGENCY
from bellbuoy.ports.ledger import QUEUED, Account, Claim, Offer

ABSORBED_AT_ONCE = 16
"""Accounts that are taken in at the same time."""

ROUNDS_MAX = 20
"""How often a claim looks again because others were faster; it then returns what it has."""


class Leases(Notifications):
    """Hands notifications out; see `bellbuoy.ports.ledger.NotificationLedger`."""

    async def claim(self, owner: str, *, now: float, lease_s: float, limit: int) -> list[Claim]:
        token = self._db.stamp()
        try:
            return await self._db.run(lambda: self._claim(owner, token, now, now + lease_s, limit))
        except BaseException:
            # Leased to us, perhaps, and nobody here knows of what: it must not be renewed.
            self._doubtful_claims.append(token)
            raise

    async def take_over(self, owner: str, offers: Sequence[Offer], *, now: float, lease_s: float) -> list[Claim | None]:
        leased = [msgspec.structs.replace(one, owner=owner, due_at=now + lease_s) for one in offers]
        taken = await self.accept(leased)
        found: dict[str, Claim] = {}
        there = [one.record.id for one in taken if one.kind != "new"]
        if there:
            token = self._db.stamp()
            try:
                found = await self._db.run(lambda: self._lease(there, owner, token, now, now + lease_s))
            except BaseException:
                self._doubtful_claims.append(token)
                raise
        return [Claim(one.record, 1) if one.kind == "new" else found.get(one.record.id) for one in taken]

    async def _lease(self, ids: list[str], owner: str, token: str, now: float, until: float) -> dict[str, Claim]:
        lease = {"$set": {"owner": owner, "claim": token, "due_at": until}, "$inc": {"fence": 1}}
        # What the one leases the other does not find. As one condition with an $or, not every server looks by the id.
        queued: Document = {"_id": {"$in": ids}, "owner": QUEUED, "due_at": {**POSITIVE}}
        due: Document = {"_id": {"$in": ids}, "due_at": {"$lte": now}}
        await self._db.notifications.bulk_write([UpdateMany(queued, lease), UpdateMany(due, lease)])
        find = self._db.notifications.find({"_id": {"$in": ids}, "claim": token}, {"fence": 1, "record": 1})
        return {one["_id"]: Claim(decode(one["record"]), one["fence"]) async for one in find}

    async def absorb(self, accounts: Sequence[Account], *, now: float) -> list[Account]:
        places = asyncio.Semaphore(ABSORBED_AT_ONCE)

        async def absorb(account: Account) -> None:
            # Each by itself, so that one that somebody holds does not stop the others; they are written together.
            await self.accept([Offer(account.record, account.body_hash, account.due_at or now)])
            async with places:
                await self._db.run(lambda: self._absorb(account, now))

        results = await asyncio.gather(*(absorb(account) for account in accounts), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Busy):
                raise result
        return [one for one, result in zip(accounts, results, strict=True) if result is not None]

    async def _absorb(self, account: Account, now: float) -> None:
        for _ in range(TRIES_MAX):
            found = await self._db.notifications.find_one({"_id": account.record.id}, SEEN)
            if found is None:
                return  # Forgotten meanwhile, since it was over and old.
            record = merge(decode(found["record"]), account.record, now)
            if await self._changed(found, changed(record, token=self._db.stamp(), busy_until=account.due_at)):
                return
        raise busy()

    async def _claim(self, owner: str, token: str, now: float, until: float, limit: int) -> list[Claim]:
        lease = {"$set": {"owner": owner, "claim": token, "due_at": until}, "$inc": {"fence": 1}}
        seen: list[str] = []
        count = 0
        for _ in range(ROUNDS_MAX):
            found = await self._due(now, limit - count)
            if not found:
                break
            seen += found
            where = {"_id": {"$in": found}, "due_at": {"$lte": now}}
            done = await self._db.notifications.update_many(where, lease)
            count += done.matched_count
            if done.matched_count == len(found):
                break
        if not count:
            return []
        find = self._db.notifications.find({"_id": {"$in": seen}, "claim": token}, {"fence": 1, "record": 1})
        ours = {one["_id"]: Claim(decode(one["record"]), one["fence"]) async for one in find}
        return [ours[one] for one in dict.fromkeys(seen) if one in ours]

    async def _due(self, now: float, limit: int) -> list[str]:
        """What is due, urgent first, then the longest due."""
        found: list[str] = []
        for priority in URGENCY.values():
            if len(found) >= limit:
                break
            where = {"priority": priority, "due_at": {**POSITIVE, "$lte": now}}
            find = self._db.notifications.find(where, {"_id": 1}).sort("due_at", 1).limit(limit - len(found))
            found += [one["_id"] async for one in find]
        return found

    async def abandon(self, notification_id: str, fence: int, *, due_at: float) -> None:
        where = {"_id": notification_id, "fence": fence, "owner": {"$exists": True}}
        update = {"$set": {"due_at": due_at}, "$unset": NO_LEASE}
        await self._db.run(lambda: self._db.notifications.update_one(where, update))

    async def renew(self, owner: str, *, until: float) -> int:
        where: Document = {"owner": owner}
        if self._doubtful_claims:
            where["claim"] = {"$nin": list(self._doubtful_claims)}
        if self._orphans:
            where["_id"] = {"$nin": list(self._orphans)}
        update = {"$set": {"due_at": until}}
        return (await self._db.run(lambda: self._db.notifications.update_many(where, update))).matched_count

    async def hand_back(self, owner: str | None, *, now: float) -> int:
        where = {"owner": {**NAMED} if owner is None else owner}
        update = {"$set": {"due_at": now}, "$unset": NO_LEASE, "$inc": {"fence": 1}}
        return (await self._db.run(lambda: self._db.notifications.update_many(where, update))).matched_count

    async def release_held(self, provider: ProviderName, *, now: float, limit: int) -> int:
        waiting = {"held": provider, **UNLEASED}
        find = self._db.notifications.find(waiting, {"_id": 1}).sort([("priority", 1), ("order", 1)]).limit(limit)
        ids = [one["_id"] for one in await self._db.run(find.to_list)]
        if not ids:
            return 0
        where = {"_id": {"$in": ids}, **waiting}
        update = {"$set": {"due_at": now}, "$unset": {"held": ""}}
        return (await self._db.run(lambda: self._db.notifications.update_many(where, update))).matched_count

    async def held(self) -> dict[str, int]:
        steps: list[Document] = [
            {"$match": {"held": {**NAMED}}},
            {"$project": {"held": 1}},
            {"$unwind": "$held"},
            {"$group": {"_id": "$held", "n": {"$sum": 1}}},
        ]
        return {one["_id"]: one["n"] for one in await self._aggregate(steps)}

    async def next_due(self) -> float | None:
        firsts: list[float] = []
        for priority in URGENCY.values():
            where = {"priority": priority, "due_at": {**POSITIVE}}
            find = self._db.notifications.find(where, {"due_at": 1}).sort("due_at", 1).limit(1)
            firsts += [one["due_at"] for one in await self._db.run(find.to_list)]
        return min(firsts, default=None)

    async def backlog(self, *, now: float) -> tuple[int, float | None]:
        steps: list[Document] = [
            {"$match": {"priority": {"$in": list(URGENCY.values())}, "due_at": {**POSITIVE, "$lte": now}, **UNLEASED}},
            {"$group": {"_id": None, "n": {"$sum": 1}, "oldest": {"$min": "$accepted_at"}}},
        ]
        found = await self._aggregate(steps)
        return (found[0]["n"], found[0]["oldest"]) if found else (0, None)

    async def _aggregate(self, steps: list[Document]) -> list[Document]:
        async def gather() -> list[Document]:
            return await (await self._db.notifications.aggregate(steps)).to_list()

        return await self._db.run(gather)
