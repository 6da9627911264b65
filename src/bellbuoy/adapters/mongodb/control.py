"""What operating the cluster has to remember, in MongoDB; see `bellbuoy.ports.control.ControlStore`."""

from __future__ import annotations

from collections.abc import Sequence

from pymongo.errors import DuplicateKeyError

from bellbuoy.adapters.mongodb.database import Database, Document
from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict
from bellbuoy.ports.control import DOCUMENT_BYTES_MAX, Kept, Kind


class MongoControlStore:
    """Implements `bellbuoy.ports.control.ControlStore` over the ledger's database, which it does not own.

    Args:
        database: of the ledger.
        clock: for the times of writes.
    """

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    async def read(self, kind: Kind, id: str) -> Kept | None:
        found = await self._db.run(lambda: self._db.control.find_one({"_id": _id(kind, id)}))
        return _kept(found) if found else None

    async def page(self, kind: Kind, *, limit: int) -> Sequence[Kept]:
        find = self._db.control.find({"kind": kind}).sort([("at", -1), ("_id", -1)]).limit(limit)
        return [_kept(one) for one in await self._db.run(find.to_list)]

    async def write(self, kind: Kind, id: str, data: bytes, *, version: int) -> Kept:
        if len(data) > DOCUMENT_BYTES_MAX:
            raise ValueError(f"the document has {len(data)} bytes, at most {DOCUMENT_BYTES_MAX} are kept")
        written = Kept(id, version + 1, self._clock.time(), data)
        # The stamp tells a write that is repeated after a lost answer from one of somebody else.
        stamp = self._db.stamp()
        document = {"kind": kind, "version": written.version, "at": written.at, "data": data, "stamp": stamp}

        async def put() -> None:
            where = {"_id": _id(kind, id)}
            if version == 0:
                try:
                    await self._db.control.insert_one({**where, **document})
                except DuplicateKeyError:
                    await self._ours(kind, id, version, stamp)
                return
            done = await self._db.control.replace_one({**where, "version": version}, document)
            if not done.matched_count:
                await self._ours(kind, id, version, stamp)

        await self._db.run(put)
        return written

    async def _ours(self, kind: Kind, id: str, version: int, stamp: str) -> None:
        found = await self._db.control.find_one({"_id": _id(kind, id)})
        if found is None or found["stamp"] != stamp:
            there = found["version"] if found else 0
            raise Conflict(f"the {kind} {id} has version {there} by now, not {version}")

    async def delete(self, kind: Kind, id: str, *, version: int) -> None:
        async def remove() -> None:
            done = await self._db.control.delete_one({"_id": _id(kind, id), "version": version})
            if not done.deleted_count:
                found = await self._db.control.find_one({"_id": _id(kind, id)}, {"version": 1})
                if found is not None:
                    raise Conflict(f"the {kind} {id} has version {found['version']} by now, not {version}")

        await self._db.run(remove)

    async def aclose(self) -> None:
        """Nothing: the ledger closes its database."""


def _id(kind: Kind, id: str) -> Document:
    """A document's name; the order of the fields is part of it."""
    return {"kind": kind, "id": id}


def _kept(found: Document) -> Kept:
    return Kept(found["_id"]["id"], found["version"], found["at"], bytes(found["data"]))
