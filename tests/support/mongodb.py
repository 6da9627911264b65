"""A MongoDB to test with: the real one that BELLBUOY_TEST_MONGODB_URI names, else a stand-in of our own on loopback.

The stand-in, SecantusDB, speaks MongoDB's protocol as a replica set of one over a real storage engine. What it cannot
show is elections, replication lag and MongoDB's own speed.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from bellbuoy.service.drills import servers

REAL = os.environ.get("BELLBUOY_TEST_MONGODB_URI")
__all__ = ["REAL", "MongoServer", "database_of", "mongodb_base", "mongodb_url", "with_database"]


class MongoServer(servers.MongoServer):
    """As drills start it, with their limit for a transaction also where SecantusDB stands in."""

    def stand_in(self) -> list[str]:
        return [sys.executable, "-P", str(Path(__file__).with_name("secantusd.py")), str(servers.TRANSACTION_S_MAX)]


@pytest.fixture(scope="session")
def mongodb_base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the server that the tests of this process share, without a database."""
    if REAL is not None:
        yield REAL
        return
    server = MongoServer(tmp_path_factory.mktemp("mongodb"))
    try:
        server.start()
        yield server.uri("")
    finally:
        server.kill()


@pytest.fixture
def mongodb_url(mongodb_base: str) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"bellbuoy_{uuid.uuid4().hex[:16]}"
    yield with_database(mongodb_base, name)
    with pymongo.MongoClient[dict[str, Any]](mongodb_base) as client:
        client.drop_database(name)


def with_database(url: str, name: str) -> str:
    """The URL with another database; the credentials keep the one that they are checked against."""
    scheme, _, rest = url.partition("://")
    authority, _, behind = rest.partition("/")
    before, _, options = behind.partition("?")
    source = [f"authSource={before or 'admin'}"] if "@" in authority and "authSource=" not in options else []
    return f"{scheme}://{authority}/{name}" + ("?" + "&".join([*filter(None, [options]), *source])).rstrip("?")


def database_of(client: pymongo.MongoClient[dict[str, Any]]) -> Any:
    """The database that a client's URL names."""
    return client.get_default_database()
