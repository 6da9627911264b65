"""Deleting what is over and old from MongoDB; see `bellbuoy.ports.ledger.Ledger.forget`."""

from __future__ import annotations

from bellbuoy.adapters.mongodb.database import Collection, Database, Document, Session
from bellbuoy.adapters.mongodb.documents import decode, parse_stamp
from bellbuoy.ports.ledger import Forgotten


class Retention:
    """Forgets notifications, with their dead letters, and tombstones."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def forget(self, *, before: float, limit: int, cursor: str | None) -> Forgotten:
        where: Document = {} if cursor is None else {"order": {"$gt": parse_stamp(cursor)}}
        seen = {"order": 1, "accepted_at": 1, "due_at": 1, "owner": 1, "record": 1}

        async def delete(session: Session) -> Forgotten:
            find = self._db.notifications.find(where, seen, session=session).sort("order", 1).limit(limit)
            found = await find.to_list()
            gone = [one["_id"] for one in found if one["accepted_at"] < before and _over(one, before)]
            stale = self._db.tombstones.find({"at": {"$lt": before}}, {"_id": 1}, session=session).sort("_id", 1)
            tombstones = [one["_id"] for one in await stale.limit(limit).to_list()]
            for collection, ids in (
                (self._db.notifications, gone),
                (self._db.accepted, gone),
                (self._db.tombstones, tombstones),
            ):
                await _delete(collection, ids, session)
            # They lie in the order of their acceptance, so after a look that saw nothing old there is nothing old.
            more = len(found) == limit and any(one["accepted_at"] < before for one in found)
            return Forgotten(len(gone), len(tombstones), found[-1]["order"] if more else None)

        return await self._db.change(delete)


def _over(found: Document, before: float) -> bool:
    if "due_at" in found or "owner" in found:
        return False
    record = decode(found["record"])
    return record.over and record.last_at < before


async def _delete(collection: Collection, ids: list[str], session: Session) -> None:
    if ids:
        await collection.delete_many({"_id": {"$in": ids}}, session=session)
