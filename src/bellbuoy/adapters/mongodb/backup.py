"""Backing up the MongoDB ledger while it is written, and putting it back together in an empty database.

A copy reads every collection in turn, so what is written meanwhile may be in it or not. The changes of that time go
into the copy too, and make it the state of its end exactly: a change is the values of fields, so applying one that is
in already does no harm. That is how mongodump with its oplog does it.

Where changes end is marked with a write of ours: what was committed before it comes before it in the change stream, so
once the mark has come nothing is missing. Where they begin is looked up in the oplog, before and after: a change stream
that is told to begin at a time which the oplog has forgotten raises nothing and begins later.

Sources: the MongoDB manual on change streams, `startAtOperationTime` and `updateDescription`.
"""

from __future__ import annotations

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import bson
from bson import Timestamp
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import OperationFailure

from bellbuoy.adapters.mongodb.database import SCAN_S, Database, Document
from bellbuoy.clock import Clock
from bellbuoy.errors import Gap, Unavailable
from bellbuoy.ports.archive import Change, Changes, Snapshot

PAGE = 1_000
"""Documents read at a time; each page has a deadline of its own."""

QUIET_S = 300.0
"""Seconds after which a change that changes nothing is noted, so that the oplog does not forget a quiet database."""

WAIT_MS = 1_000
"""How long the server may wait for the next change before it says that there is none yet."""

COPIED_BYTES = 16 * 1024 * 1024
"""Changes that are read at a time while a copy is made."""

CHANGES_FILE = "changes.bson"
OWN = "meta"
"""The collection that is not copied: it is about this database, its schema and its timeline, and no other."""

_TIMELINE = {"_id": "timeline"}
_MARK = {"_id": "mark"}
_RAW: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument)
_UNAUTHORIZED = 13
_HISTORY_LOST = {280, 286}  # ChangeStreamFatalError, ChangeStreamHistoryLost.
_CHANGED = ("insert", "update", "replace", "delete")


class MongoSource:
    """Implements `bellbuoy.ports.archive.Source`.

    Args:
        database: the ledger's.
        clock: for when nothing happens.

    It reads `local.oplog.rs`, so its user needs `read` on the database `local`.
    """

    name = "ledger"
    often = False
    guarantee = (
        "the state after every change that a majority had by the second asked for, in the order of the oplog; "
        "changes of one transaction all or none"
    )

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    async def full(self, folder: Path) -> Snapshot:
        """See `Source.full`."""
        timeline = await self._timeline()
        begin = await self._number_now()
        files = []
        for name in await self._collections():
            files.append(f"{name}.bson")
            with (folder / files[-1]).open("wb") as file:
                async for page in self._pages(name):
                    await asyncio.to_thread(file.write, page)
        mark, end, number = await self._mark(), None, begin
        with (folder / CHANGES_FILE).open("wb") as file:
            while end is None:
                found, end = await self._read(number, mark, bytes_max=COPIED_BYTES)
                await asyncio.to_thread(file.write, b"".join(change.data for change in found))
                number = found[-1].number if found else number
        return Snapshot(timeline, end, _at(end), [*files, CHANGES_FILE])

    async def position(self) -> tuple[str, int] | None:
        """See `Source.position`."""
        return await self._timeline(), await self._number_now()

    async def changes(self, after: int, *, bytes_max: int) -> Changes:
        """See `Source.changes`."""
        timeline, mark = await self._timeline(), await self._mark()
        found, end = await self._read(after, mark, bytes_max=bytes_max)
        last = found[-1].number if found else after
        if end is None:
            return Changes(timeline, after, last, _at(last), found, more=True)
        if _at(end) - _at(last) > QUIET_S:
            found.append(Change(end, _at(end), _encode([])))
            last = end
        return Changes(timeline, after, last, _at(end), found)

    async def shipped(self, timeline: str, upto: int) -> None:
        """The oplog keeps its changes for as long as it has room, whoever has read them."""

    async def renew(self) -> None:
        """See `Source.renew`."""
        fresh = {"$set": {"timeline": uuid.uuid4().hex}}
        await self._db.run(lambda: self._db.meta.update_one(_TIMELINE, fresh, upsert=True))

    async def aclose(self) -> None:
        """The ledger closes its connections."""

    async def _timeline(self) -> str:
        made = {"$setOnInsert": {"timeline": uuid.uuid4().hex}}

        async def find() -> str:
            found = await self._db.meta.find_one(_TIMELINE)
            if found is None:
                await self._db.meta.update_one(_TIMELINE, made, upsert=True)
                found = await self._db.meta.find_one(_TIMELINE)
            return str(found["timeline"]) if found else ""

        return await self._db.run(find)

    async def _mark(self) -> str:
        """Write something that is seen in the change stream after all that was committed before it."""
        mark = uuid.uuid4().hex
        await self._db.run(lambda: self._db.meta.update_one(_MARK, {"$set": {"mark": mark}}, upsert=True))
        return mark

    async def _number_now(self) -> int:
        """The number of a mark: a majority has it and all before it, and what is committed later has a greater one.

        The very end of the oplog would not do: a majority may not have that yet, and so a read may not show it.
        """
        await self._mark()
        where = {"ns": f"{self._db.database.name}.{OWN}", "$or": [{"o2._id": "mark"}, {"o._id": "mark"}]}
        found = await self._oplog(where, newest=True)
        if found is None:
            raise Unavailable("MongoDB shows no oplog: it is not a replica set")
        return _number(found["ts"])

    async def _oplog(self, where: Document, *, newest: bool = False) -> Document | None:
        """The first entry of the oplog like this, or the last. Raises Unavailable when it may not be read."""

        async def find() -> Document | None:
            try:
                return await self._db.oplog.find_one(where, {"ts": 1}, sort=[("$natural", -1 if newest else 1)])
            except OperationFailure as error:
                if error.code == _UNAUTHORIZED:
                    raise Unavailable(
                        "MongoDB does not let us read its oplog, so whether changes are missing cannot be told",
                        hint="grant the user of [ledger] url the role read on the database local",
                    ) from None
                raise

        return await self._db.run(find, within_s=SCAN_S)

    async def _collections(self) -> list[str]:
        names = await self._db.run(self._db.database.list_collection_names)
        return sorted(name for name in names if name != OWN and not name.startswith("system."))

    async def _pages(self, name: str) -> AsyncIterator[bytes]:
        collection: Any = self._db.database.get_collection(name, codec_options=_RAW)
        where: Document = {}
        while True:
            find = collection.find(where).sort("_id", 1).limit(PAGE)
            page: list[RawBSONDocument] = await self._db.run(functools.partial(find.to_list, PAGE), within_s=SCAN_S)
            if page:
                yield b"".join(one.raw for one in page)
            if len(page) < PAGE:
                return
            where = {"_id": {"$gt": page[-1]["_id"]}}

    async def _read(self, after: int, mark: str, *, bytes_max: int) -> tuple[list[Change], int | None]:
        """The changes after one until a mark, about `bytes_max` bytes, and the mark's number where it was reached.

        Raises Gap when some are no longer there.
        """
        await self._check(after)
        groups: dict[int, list[Document]] = {}

        async def read() -> int | None:
            groups.clear()
            size = 0
            stream = await self._db.database.watch(
                start_at_operation_time=_stamp(after), max_await_time_ms=WAIT_MS, batch_size=PAGE
            )
            async with stream:
                async for event in stream:
                    number = _number(event["clusterTime"])
                    if size >= bytes_max and number not in groups:
                        return None
                    if event.get("ns", {}).get("coll") == OWN:
                        if _is_mark(event, mark):
                            return number
                    elif number > after:
                        told = _told(event)
                        groups.setdefault(number, []).append(told)
                        size += len(bson.encode(told))
            return None

        try:
            end = await self._db.run(read, within_s=SCAN_S)
        except OperationFailure as error:
            if error.code in _HISTORY_LOST:
                raise _gap(after) from None
            raise
        await self._check(after)
        return [Change(number, _at(number), _encode(events)) for number, events in sorted(groups.items())], end

    async def _check(self, after: int) -> None:
        """Whether the oplog still has the change that came last; what came before it may be gone.

        Raises:
            Gap: it has not.
            Unavailable: the oplog may not be read.
        """
        found = await self._oplog({"ts": {"$gte": _stamp(after)}})
        if found is None or _number(found["ts"]) != after:
            raise _gap(after)


def _gap(after: int) -> Gap:
    return Gap(
        f"the oplog no longer has the change {after}, so what came after it may be missing",
        hint="make the oplog larger, or [backup] ship_s shorter; a full backup begins anew",
    )


def _is_mark(event: Document, mark: str) -> bool:
    written = event.get("fullDocument") or event.get("updateDescription", {}).get("updatedFields", {})
    return bool(written.get("mark") == mark)


def _told(event: Document) -> Document:
    """What has to be done to make the same change again. Raises Gap for what is no change of a document."""
    kind = event["operationType"]
    if kind not in _CHANGED:
        raise Gap(f"a collection was changed as a whole: {kind}", hint="a full backup begins anew")
    told: Document = {"op": kind, "in": event["ns"]["coll"], "id": event["documentKey"]["_id"]}
    if kind in ("insert", "replace"):
        told["document"] = event["fullDocument"]
    elif kind == "update":
        how = event["updateDescription"]
        told["set"] = how["updatedFields"]
        told["unset"] = how["removedFields"]
        told["cut"] = how.get("truncatedArrays") or []
    return told


def _encode(events: Sequence[Document]) -> bytes:
    return bson.encode({"events": list(events)})


def _number(stamp: Timestamp) -> int:
    return int(stamp.time) << 32 | int(stamp.inc)


def _stamp(number: int) -> Timestamp:
    return Timestamp(number >> 32, number & 0xFFFFFFFF)


def _at(number: int) -> float:
    """A change's epoch second; those of one second follow each other by microseconds, in their order."""
    return (number >> 32) + min(number & 0xFFFFFFFF, 999_999) / 1e6
