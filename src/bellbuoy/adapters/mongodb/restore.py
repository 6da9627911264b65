"""Putting a copy of the MongoDB ledger, and the changes after it, into a database that nobody uses."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import bson
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError

from bellbuoy.adapters.mongodb import schema
from bellbuoy.adapters.mongodb.backup import CHANGES_FILE, OWN, PAGE
from bellbuoy.adapters.mongodb.database import CALL_S, SCAN_S, Database, Document
from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, Damaged
from bellbuoy.ports.archive import Change

Write = InsertOne[Any] | ReplaceOne[Any] | UpdateOne | DeleteOne


class MongoPlace:
    """Implements `bellbuoy.ports.archive.Place`.

    Args:
        url: of the database, which is empty.
        clock: the ledger's.
        replace: whether what is in the database makes way.

    Raises:
        ConfigurationError: the URL is not valid.
    """

    name = "ledger"

    def __init__(self, url: str, *, clock: Clock, replace: bool = False) -> None:
        self.url = url
        self._db = Database(url, clock=clock)
        self._replace = replace

    async def begin(self, folder: Path) -> None:
        """See `Place.begin`."""
        if not (folder / CHANGES_FILE).exists():
            raise Damaged("the copy of ledger is not one of a MongoDB")
        await self._empty()
        for path in sorted(folder.glob("*.bson")):
            if path.name == CHANGES_FILE:
                continue
            async for page in _pages(path):
                await self._put(path.stem, [InsertOne(one) for one in page])
        # These happened while the copy was made, so it has some of them already.
        async for page in _pages(folder / CHANGES_FILE):
            events = [event for one in page for event in bson.decode(one.raw)["events"]]
            await self._replay(events, strict=False)

    async def apply(self, changes: Sequence[Change]) -> None:
        """See `Place.apply`."""
        for start in range(0, len(changes), PAGE):
            some = changes[start : start + PAGE]
            try:
                events = [event for one in some for event in bson.decode(one.data)["events"]]
            except InvalidBSON:
                raise Damaged(f"the changes {some[0].number} to {some[-1].number} cannot be read") from None
            if not await self._replay(events, strict=True):
                raise Damaged(f"one of the changes {some[0].number} to {some[-1].number} of ledger does not fit")

    async def finish(self, timeline: str) -> None:
        """See `Place.finish`."""
        set_to = {"$set": {"timeline": timeline}}

        async def sign() -> None:
            await schema.prepare(self._db.database)
            await self._db.meta.update_one({"_id": "timeline"}, set_to, upsert=True)

        await self._db.raw(sign, within_s=schema.BUILD_S)

    async def discard(self) -> None:
        """Take away what was put there, after a proof."""
        await self._db.raw(lambda: self._db.database.client.drop_database(self._db.database.name), within_s=SCAN_S)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._db.aclose()

    async def _empty(self) -> None:
        database = self._db.database
        names = await self._db.raw(database.list_collection_names, within_s=CALL_S)
        there = [name for name in names if not name.startswith("system.")]
        if there and not self._replace:
            raise Conflict(
                f"the database {database.name} is not empty",
                hint="restore into another with --to-ledger, or replace this one with --force",
            )
        for name in there:
            await self._db.raw(functools.partial(database.drop_collection, name), within_s=SCAN_S)

    async def _put(self, name: str, writes: Sequence[Write]) -> tuple[int, int]:
        """Make writes to a collection in order; how many found their document, and how many made it."""
        collection = self._db.database[name]
        try:
            done = await self._db.raw(lambda: collection.bulk_write(writes, ordered=True), within_s=SCAN_S)
        except BulkWriteError as error:
            code = (error.details.get("writeErrors") or [{}])[0].get("code", "")
            raise Damaged(f"what was copied of {name} does not fit together ({code})") from None
        return done.matched_count, done.upserted_count

    async def _replay(self, events: Sequence[Document], *, strict: bool) -> bool:
        """Make changes again; with `strict`, whether each met the document that it changed."""
        by_collection: dict[str, list[Document]] = {}
        for event in events:
            if event["in"] != OWN:
                by_collection.setdefault(event["in"], []).append(event)
        sound = True
        for name, mine in by_collection.items():
            writes = [write for event in mine for write in _writes(event)]
            expected = sum(1 for write in writes if not isinstance(write, DeleteOne))
            matched, made = await self._put(name, writes)
            sound = sound and matched + made == expected
        return sound or not strict


def _writes(event: Document) -> Iterator[Write]:
    """The writes that make a change again; making one twice does no harm."""
    where = {"_id": event["id"]}
    if event["op"] == "delete":
        yield DeleteOne(where)
    elif event["op"] in ("insert", "replace"):
        yield ReplaceOne(where, event["document"], upsert=True)
    else:
        # An array is cut to its length before its elements are set: one update cannot do both.
        for cut in event["cut"]:
            yield UpdateOne(where, {"$push": {cut["field"]: {"$each": [], "$slice": cut["newSize"]}}})
        fields: Document = {"$set": event["set"]} if event["set"] else {}
        if event["unset"]:
            fields["$unset"] = dict.fromkeys(event["unset"], "")
        if fields:
            yield UpdateOne(where, fields)


async def _pages(path: Path) -> AsyncIterator[list[RawBSONDocument]]:
    """The documents of a file, some at a time. Raises Damaged where it is not whole."""
    page: list[RawBSONDocument] = []
    with path.open("rb") as file:
        while head := await asyncio.to_thread(file.read, 4):
            size = int.from_bytes(head, "little", signed=True)
            rest = file.read(max(0, size - 4))
            if size < 5 or len(rest) != size - 4:
                raise Damaged(f"the copy {path.name} is not whole")
            try:
                page.append(RawBSONDocument(head + rest))
            except InvalidBSON:
                raise Damaged(f"the copy {path.name} cannot be read") from None
            if len(page) >= PAGE:
                yield page
                page = []
    if page:
        yield page
