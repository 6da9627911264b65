"""The collections, their indexes and their version.

A notification is one document: the record as the same JSON that the embedded ledger keeps, opaque to the server, and
beside it only the fields that queries need. A field without a value is left out, and the indexes of those are partial,
so that what is over and done with weighs on none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pymongo import IndexModel
from pymongo.asynchronous.database import AsyncDatabase

from bellbuoy.errors import ConfigurationError

VERSION = 1
BUILD_S = 600.0
"""How long building indexes over what is there may take."""

_UP, _DOWN = 1, -1


POSITIVE: Mapping[str, object] = {"$gt": 0}
NAMED: Mapping[str, object] = {"$gt": ""}
"""That a number, or a text, is there: in these words, since a server need not see that others mean the same."""


def _index(
    name: str, *keys: tuple[str, int], where: str | None = None, above: Mapping[str, object] | None = None
) -> IndexModel:
    if where is None:
        return IndexModel(list(keys), name=name)
    return IndexModel(list(keys), name=name, partialFilterExpression={where: above})


INDEXES: Mapping[str, list[IndexModel]] = {
    "notifications": [
        _index("due", ("priority", _UP), ("due_at", _UP), where="due_at", above=POSITIVE),
        _index("held", ("held", _UP), ("priority", _UP), ("order", _UP), where="held", above=NAMED),
        _index("owner", ("owner", _UP), where="owner", above=NAMED),
        _index("newest", ("tenant", _UP), ("order", _DOWN)),
        _index("status", ("tenant", _UP), ("status", _UP), ("order", _DOWN)),
        _index("user", ("tenant", _UP), ("user_id", _UP), ("order", _DOWN), where="user_id", above=NAMED),
        _index("order", ("order", _UP)),
        _index("buried", ("tenant", _UP), ("buried_at", _UP), ("_id", _UP), where="buried_at", above=POSITIVE),
        _index("letter", ("tenant", _UP), ("letters.id", _UP), where="buried_at", above=POSITIVE),
        _index("doubted", ("duplicates", _UP), where="duplicates", above=POSITIVE),
    ],
    "control": [_index("newest", ("kind", _UP), ("at", _DOWN), ("_id", _DOWN))],
    "accepted": [_index("tenant", ("tenant", _UP))],
    "tombstones": [
        _index("newest", ("tenant", _UP), ("_id", _DOWN)),
        _index("age", ("at", _UP)),
    ],
}


async def prepare(database: AsyncDatabase[Any]) -> None:
    """Make what is missing in the database.

    Raises:
        ConfigurationError: a newer Bellbuoy wrote it.
    """
    found = await database["meta"].find_one({"_id": "schema"})
    check(found["version"] if found else None)
    for name, indexes in INDEXES.items():
        await database[name].create_indexes(indexes)
    if not found:
        await database["meta"].update_one({"_id": "schema"}, {"$max": {"version": VERSION}}, upsert=True)


def check(version: int | None) -> None:
    """Refuse a schema that this Bellbuoy does not know; None is a database that has none yet."""
    if version is not None and version > VERSION:
        raise ConfigurationError(
            f"the ledger has schema version {version}, this Bellbuoy knows {VERSION}",
            hint="run the Bellbuoy that wrote it, or a newer one",
        )


async def examine(database: AsyncDatabase[Any], *, fix: bool) -> list[str] | None:
    """The indexes that are missing, None where nothing was made yet; with `fix` everything is made first.

    Raises:
        ConfigurationError: a newer Bellbuoy wrote it, or the server is not a replica set.
    """
    hello = await database.client.admin.command("hello")
    if "setName" not in hello:
        raise ConfigurationError(
            "MongoDB is not a replica set, so it has no transactions",
            hint="start mongod with --replSet and run rs.initiate(); one member is enough",
        )
    found = await database["meta"].find_one({"_id": "schema"})
    check(found["version"] if found else None)
    if fix:
        await prepare(database)
    elif not found:
        return None
    missing = []
    for name, indexes in INDEXES.items():
        there = await database[name].index_information()
        missing += [f"{name}.{i.document['name']}" for i in indexes if i.document["name"] not in there]
    return missing
