"""The shared ledger: all parts of the system of record over one MongoDB database."""

from __future__ import annotations

from bellbuoy.adapters.mongodb.backup import MongoSource
from bellbuoy.adapters.mongodb.books import Accounts
from bellbuoy.adapters.mongodb.control import MongoControlStore
from bellbuoy.adapters.mongodb.database import Database
from bellbuoy.adapters.mongodb.dead_letters import DeadLetters
from bellbuoy.adapters.mongodb.leases import Leases
from bellbuoy.adapters.mongodb.registry import Keys, Registry
from bellbuoy.adapters.mongodb.retention import Retention
from bellbuoy.clock import Clock


class MongoLedger(Leases, DeadLetters, Accounts, Registry, Keys, Retention):
    """The system of record that several machines share; implements `bellbuoy.ports.ledger.Ledger`.

    A write returns when a majority of the replica set has it in its journal, so it survives the loss of a minority of
    the members and a power cut of all. Every call ends within `CALL_S` seconds, those that count or replay everything
    within `SCAN_S`. Nothing is connected before the first call. `control` keeps what operating the cluster has to
    remember, in the same database; `source` is what backups are taken of.

    Args:
        url: `mongodb://` or `mongodb+srv://`, with the database's name, `bellbuoy` where it has none.
        clock: for the probe, and the order in which things were written.

    Raises:
        ConfigurationError: the URL is not valid. Later, from any call: the server refuses our credentials, is not a
            replica set, or a newer Bellbuoy wrote the database.
    """

    def __init__(self, url: str, *, clock: Clock) -> None:
        database = Database(url, clock=clock)
        for part in (Leases, Accounts, Registry, Keys, Retention):
            part.__init__(self, database)
        self._clock = clock
        self.source = MongoSource(database, clock=clock)
        self.control = MongoControlStore(database, clock=clock)

    @property
    def where(self) -> str:
        """The server's hosts, without credentials."""
        return self._db.where

    async def examine(self, *, fix: bool) -> list[str] | None:
        """The indexes that are missing, None where nothing was made yet; with `fix` everything is made first.

        Raises:
            ConfigurationError, Unavailable: nothing can be looked at.
        """
        return await self._db.examine(fix=fix)

    async def shrink(self) -> None:
        """Nothing: it keeps nothing here."""

    async def reconnect(self) -> None:
        """Begin with new connections."""
        self._db.reconnect()

    async def probe(self) -> None:
        """Write a document and read it back; raises Full or Unavailable when that fails."""
        now = self._clock.time()

        async def put_and_get() -> None:
            await self._db.meta.replace_one({"_id": "probe"}, {"at": now}, upsert=True)
            await self._db.meta.find_one({"_id": "probe"})

        await self._db.run(put_and_get)
