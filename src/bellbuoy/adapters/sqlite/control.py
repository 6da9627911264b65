"""What operating this machine has to remember, in a SQLite file of its own beside the ledger.

A file of its own, since it is needed most when the ledger is away. Several processes of one machine share it. It keeps
some room for itself, since that the disk is full is one of the things that have to be told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import apsw

from bellbuoy.adapters.sqlite import changes
from bellbuoy.adapters.sqlite.database import BUSY_TIMEOUT_MS, Connection, Database
from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict
from bellbuoy.ports.control import DOCUMENT_BYTES_MAX, Kept, Kind

RESERVE_BYTES = 2 * 1024 * 1024
"""Room for some hundred documents that is taken while there is some, in the file and in its write-ahead log."""
CHECKPOINT_PAGES = 64
"""Pages after which the log begins anew, far less than the room it has."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS control(
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, at REAL NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY(kind, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS control_newest ON control(kind, at);
CREATE TABLE IF NOT EXISTS passing(
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, at REAL NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY(kind, id)
) WITHOUT ROWID;
"""

RECORDED = ("control",)
"""The table of what a backup keeps. What is `passing` is about processes that run, and says nothing after a restore."""
_PASSING: frozenset[Kind] = frozenset({"lease", "backup"})


class SqliteControlStore:
    """Implements `bellbuoy.ports.control.ControlStore`.

    Args:
        path: the file; its folder exists.
        clock: for the times of writes.
        capture: keep what each transaction changed, until it is in a backup; see `changes`.
        inline: no threads, for simulation; see `Database`.

    Raises:
        ConfigurationError: the file cannot be opened for writing.
        Full, Unavailable: the disk is full, or the file is damaged.
    """

    def __init__(self, path: Path, *, clock: Clock, capture: bool = False, inline: bool = False) -> None:
        def prepare(connection: Connection) -> None:
            _prepare(connection)
            (changes.begin_timeline if capture else changes.end_timeline)(connection)

        recorder = changes.Recorder(RECORDED, clock=clock) if capture else changes.Unrecorded
        self._db = Database(path, prepare, capture=recorder, inline=inline)
        if not inline:
            with contextlib.suppress(apsw.Error):  # Without room for a reserve it works like any other file.
                _reserve(path)
        self._clock = clock

    async def read(self, kind: Kind, id: str) -> Kept | None:
        return await self._db.read(lambda connection: _find(connection, kind, id))

    async def page(self, kind: Kind, *, limit: int) -> Sequence[Kept]:
        sql = f"SELECT id, version, at, data FROM {_table(kind)} WHERE kind = ? ORDER BY at DESC, id DESC LIMIT ?"
        rows = await self._db.read(lambda connection: connection.execute(sql, (kind, limit)).fetchall())
        return [Kept(*row) for row in rows]

    async def write(self, kind: Kind, id: str, data: bytes, *, version: int) -> Kept:
        if len(data) > DOCUMENT_BYTES_MAX:
            raise ValueError(f"the document has {len(data)} bytes, at most {DOCUMENT_BYTES_MAX} are kept")
        written = Kept(id, version + 1, self._clock.time(), data)

        def put(connection: Connection) -> None:
            _check(connection, kind, id, version)
            connection.execute(
                f"INSERT OR REPLACE INTO {_table(kind)} VALUES (?, ?, ?, ?, ?)",
                (kind, id, written.version, written.at, written.data),
            )

        await self._db.write(put)
        return written

    async def delete(self, kind: Kind, id: str, *, version: int) -> None:
        def remove(connection: Connection) -> None:
            if _find(connection, kind, id) is not None:
                _check(connection, kind, id, version)
                connection.execute(f"DELETE FROM {_table(kind)} WHERE kind = ? AND id = ?", (kind, id))

        await self._db.write(remove)

    @property
    def database(self) -> Database:
        """The file, for whoever backs it up."""
        return self._db

    async def aclose(self) -> None:
        await self._db.aclose()


def _table(kind: Kind) -> str:
    return "passing" if kind in _PASSING else "control"


def _prepare(connection: Connection) -> None:
    connection.execute(_SCHEMA).fetchall()
    connection.execute(changes.SCHEMA).fetchall()
    kinds = ", ".join(f"'{kind}'" for kind in sorted(_PASSING))  # Of a file that has them where the others are.
    connection.execute(f"INSERT OR IGNORE INTO passing SELECT * FROM control WHERE kind IN ({kinds})").fetchall()
    connection.execute(f"DELETE FROM control WHERE kind IN ({kinds})").fetchall()
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}").fetchall()


def _reserve(path: Path) -> None:
    """Write much and delete it: the file keeps its pages and the log its length, and both are used again."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        connection.execute("INSERT OR REPLACE INTO control VALUES ('reserve', '', 0, 0, zeroblob(?))", (RESERVE_BYTES,))
        connection.execute("DELETE FROM control WHERE kind = 'reserve'")
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _find(connection: Connection, kind: Kind, id: str) -> Kept | None:
    sql = f"SELECT id, version, at, data FROM {_table(kind)} WHERE kind = ? AND id = ?"
    row = connection.execute(sql, (kind, id)).fetchone()
    return Kept(*row) if row else None


def _check(connection: Connection, kind: Kind, id: str, version: int) -> None:
    found = _find(connection, kind, id)
    there = found.version if found else 0
    if there != version:
        raise Conflict(f"the {kind} {id} has version {there} by now, not {version}")
