"""The embedded ledger: all parts of the system of record over one SQLite file."""

from __future__ import annotations

from pathlib import Path

from bellbuoy.adapters.sqlite.changes import Recorder, Unrecorded, begin_timeline, end_timeline
from bellbuoy.adapters.sqlite.database import Connection, Database
from bellbuoy.adapters.sqlite.dead_letters import DeadLetters
from bellbuoy.adapters.sqlite.notifications import Notifications
from bellbuoy.adapters.sqlite.registry import Keys, Registry
from bellbuoy.adapters.sqlite.retention import Retention
from bellbuoy.adapters.sqlite.schema import migrate
from bellbuoy.clock import Clock

RECORDED = ("accepted", "notifications", "dead_letters", "users", "tombstones", "keys")
"""The tables of what a backup keeps; the others are about this file."""


class SqliteLedger(Notifications, DeadLetters, Registry, Keys, Retention):
    """The system of record on one machine; implements `bellbuoy.ports.ledger.Ledger`.

    A write returns when its commit has been fsynced (`synchronous = FULL`), so it survives a power cut as far as the
    disk keeps its word.

    Args:
        path: the SQLite file; its folder exists.
        clock: for the probe, and the times of changes.
        capture: keep what each transaction changed, until it is in a backup; see `changes`.
        inline: no threads, for simulation; see `Database`.

    Raises:
        ConfigurationError: the file cannot be opened for writing, or a newer Bellbuoy wrote it.
        Full: the disk is full.
        Unavailable: the file is damaged.
    """

    def __init__(self, path: Path, *, clock: Clock, capture: bool = False, inline: bool = False) -> None:
        def prepare(connection: Connection) -> None:
            migrate(connection)
            (begin_timeline if capture else end_timeline)(connection)

        recorder = Recorder(RECORDED, clock=clock) if capture else Unrecorded
        database = Database(path, prepare, capture=recorder, inline=inline)
        for part in (Notifications, DeadLetters, Registry, Keys, Retention):
            part.__init__(self, database)
        self._clock = clock

    async def probe(self) -> None:
        """Write a row and read it back; raises Full or Unavailable when that fails."""
        now = self._clock.time()

        def put(connection: Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", (now,))

        def get(connection: Connection) -> float:
            return float(connection.execute("SELECT at FROM probe").fetchall()[0][0])

        await self._db.write(put)
        await self._db.read(get)

    @property
    def database(self) -> Database:
        """The file, for whoever backs it up."""
        return self._db

    async def shrink(self) -> None:
        """Empty SQLite's page caches."""
        await self._db.shrink()

    async def reconnect(self) -> None:
        """Open the file anew; raises Full or Unavailable when that fails."""
        await self._db.reopen()

    async def aclose(self) -> None:
        """Commit what was handed over, then close the file. Safe to call twice."""
        await self._db.aclose()
