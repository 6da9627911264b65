"""The books: what was accepted against what became of it, both counted from one snapshot."""

from __future__ import annotations

from bellbuoy.adapters.mongodb.database import Collection, Database, Document, Session
from bellbuoy.adapters.mongodb.schema import POSITIVE
from bellbuoy.model.operation import Books

_LISTED_MAX = 100


class Accounts:
    """Counts; see `bellbuoy.ports.ledger.NotificationLedger.books`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def books(self, tenant: str | None = None) -> Books:
        mine: Document = {} if tenant is None else {"tenant": tenant}

        async def count(session: Session) -> Books:
            log, notifications = self._db.accepted, self._db.notifications
            by_status = [{"$match": mine}, {"$group": {"_id": "$status", "n": {"$sum": 1}}}]
            counts = {one["_id"]: one["n"] for one in await _all(notifications, by_status, session)}
            doubted = {**mine, "duplicates": {**POSITIVE}}
            total: list[Document] = [{"$match": doubted}, {"$group": {"_id": None, "n": {"$sum": "$duplicates"}}}]
            duplicates = [one["n"] for one in await _all(notifications, total, session)]
            return Books.balanced(
                await log.count_documents(mine, session=session),
                counts,
                missing=await _lonely(log, notifications, mine, session),
                unknown=await _lonely(notifications, log, mine, session),
                duplicates=sum(duplicates),
            )

        return await self._db.snapshot(count)

    async def difference(self) -> int:
        async def count(session: Session) -> int:
            accepted = await self._db.accepted.count_documents({}, session=session)
            return accepted - await self._db.notifications.count_documents({}, session=session)

        return await self._db.snapshot(count)


async def _lonely(one: Collection, other: Collection, mine: Document, session: Session) -> list[str]:
    """Ids in one collection that the other does not have, a few of them."""
    steps: list[Document] = [
        {"$match": mine},
        {"$project": {"_id": 1}},
        {
            "$lookup": {
                "from": other.name,
                "localField": "_id",
                "foreignField": "_id",
                "pipeline": [{"$project": {"_id": 1}}],
                "as": "found",
            }
        },
        {"$match": {"found": []}},
        {"$limit": _LISTED_MAX},
    ]
    return [found["_id"] for found in await _all(one, steps, session)]


async def _all(collection: Collection, steps: list[Document], session: Session) -> list[Document]:
    return await (await collection.aggregate(steps, session=session)).to_list()
