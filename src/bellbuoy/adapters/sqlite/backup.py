"""Backing up SQLite files while they are written, and putting them back together."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from bellbuoy.adapters.folders import sync
from bellbuoy.adapters.sqlite import changes as log
from bellbuoy.adapters.sqlite.database import BUSY_TIMEOUT_MS, Connection, Database
from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, Damaged, Full, Unavailable
from bellbuoy.ports.archive import Change, Changes, Snapshot

STEP_PAGES = 256
"""Pages copied in one step, a megabyte."""
PACE_S = 0.002
"""Rest after each step, so that the copy leaves the disk to others; for 8 GB that is a quarter of a minute."""

APPLY_CACHE_KIB = 128 * 1024
"""Of pages while changes are applied, since most of them change rows that were changed a moment before."""


class SqliteSource:
    """One SQLite file as a source: a copy of it, and every transaction after it.

    Implements `bellbuoy.ports.archive.Source`.

    Args:
        name: of the source.
        database: the file's, which records.
        clock: for times.
    """

    often = False
    guarantee = "the state after the last transaction that was committed by the second asked for, and no other"

    def __init__(self, name: str, database: Database, *, clock: Clock) -> None:
        self.name = name
        self._path = database.path
        self._db = database
        self._clock = clock

    async def full(self, folder: Path) -> Snapshot:
        """See `Source.full`."""
        path = folder / self._path.name

        def described() -> tuple[str, int, float]:
            copy(self._path, path)
            with contextlib.closing(_opened(path)) as connection:
                connection.execute("PRAGMA journal_mode = DELETE").fetchall()
                row = connection.execute("SELECT at FROM changes ORDER BY number DESC LIMIT 1").fetchone()
                return log.timeline(connection) or "", log.last_number(connection), row[0] if row else 0.0

        begun_at = self._clock.time()
        name, number, at = await asyncio.to_thread(described)
        if at - begun_at > log.SET_BACK_S_MAX:
            at = begun_at  # The clock was ahead at the last change, and was set back since.
        # Nothing was changed between its last change and the beginning of the copy, or that would be in it.
        return Snapshot(name, number, max(at, begun_at), [path.name])

    async def position(self) -> tuple[str, int] | None:
        """See `Source.position`."""

        def look(connection: Connection) -> tuple[str, int]:
            log.begin_timeline(connection)
            if log.kept_bytes(connection) > log.KEPT_BYTES_MAX:
                _renew(connection)
            return log.timeline(connection) or "", log.last_number(connection)

        return await self._db.write(look)

    async def changes(self, after: int, *, bytes_max: int) -> Changes:
        """See `Source.changes`."""
        return await self._db.write(
            lambda connection: log.read(connection, after, bytes_max=bytes_max, now=self._clock.time())
        )

    async def shipped(self, timeline: str, upto: int) -> None:
        """See `Source.shipped`."""
        await self._db.write(lambda connection: log.prune(connection, timeline, upto))

    async def renew(self) -> None:
        """See `Source.renew`."""
        await self._db.write(_renew)

    async def aclose(self) -> None:
        """It is whoever opened it who closes it."""


class SqlitePlace:
    """A file that a source of one SQLite file is restored into. Implements `bellbuoy.ports.archive.Place`.

    Args:
        name: of the source.
        path: the file, which is not there yet, in a folder that is; until `finish` it has another name.
        replace: whether a file that is there makes way.
    """

    def __init__(self, name: str, path: Path, *, replace: bool = False) -> None:
        self.name = name
        self.path = path.with_name(path.name + ".restoring")
        self._final = path
        self._replace = replace

    async def begin(self, folder: Path) -> None:
        """See `Place.begin`."""
        if self._final.exists() and not self._replace:
            raise Conflict(f"there is a {self._final.name} already", hint="restore into an empty directory, or --force")
        files = [path for path in folder.iterdir() if path.is_file()]
        if len(files) != 1:
            raise Damaged(f"the copy of {self.name} is no single file")
        await asyncio.to_thread(self._put, files[0])

    def _put(self, copied: Path) -> None:
        _remove(self.path)
        shutil.move(copied, self.path)
        self.path.chmod(0o600)
        with contextlib.closing(_opened(self.path)) as connection:
            try:
                (found,) = connection.execute("PRAGMA quick_check(1)").fetchall()[0]
            except apsw.Error as error:
                raise Damaged(f"the copy of {self.name} is no SQLite file that can be read: {error}") from None
            if found != "ok":
                raise Damaged(f"the copy of {self.name} is damaged: {found}")

    async def apply(self, changes: Sequence[Change]) -> None:
        """See `Place.apply`."""
        await asyncio.to_thread(self._apply, changes)

    def _apply(self, changes: Sequence[Change]) -> None:
        with contextlib.closing(_opened(self.path)) as connection:
            # A crash makes this place worth nothing whatever is on the disk; `finish` makes all of it durable at once.
            connection.execute("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF").fetchall()
            connection.execute(f"PRAGMA cache_size = -{APPLY_CACHE_KIB}; BEGIN").fetchall()
            for change in changes:
                try:
                    apsw.Changeset.apply(change.data, connection)
                except (apsw.FullError, apsw.IOError):
                    raise _no_room(self.path) from None
                except apsw.Error as error:
                    raise Damaged(f"change {change.number} of {self.name} does not fit: {error}") from None
            last = changes[-1]
            if _has(connection, "changes"):
                connection.execute("DELETE FROM changes")
                connection.execute("INSERT INTO changes VALUES (?, ?, x'')", (last.number, last.at))
            try:
                connection.execute("COMMIT").fetchall()
            except (apsw.FullError, apsw.IOError):
                raise _no_room(self.path) from None

    async def finish(self, timeline: str) -> None:
        """See `Place.finish`."""
        await asyncio.to_thread(self._finish, timeline)

    def _finish(self, timeline: str) -> None:
        with contextlib.closing(_opened(self.path)) as connection:
            if _has(connection, "timeline"):
                with connection:
                    log.end_timeline(connection)
                    log.begin_timeline(connection, timeline)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        sync(self.path)
        # What stands in a log beside the old file must not be taken for the new one's, nor be missing if we end here.
        with contextlib.suppress(apsw.Error):
            if self._final.exists():
                with contextlib.closing(_opened(self._final)) as old:
                    old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        _remove(self._final, *_BESIDE)
        self.path.rename(self._final)
        sync(self._final.parent)

    def discard(self) -> None:
        """Take away what was begun and not handed over."""
        _remove(self.path)


def _no_room(path: Path) -> Full:
    return Full(
        f"there is no room for the changes of {path.name}", hint="make room there, or take a directory on another disk"
    )


def copy(path: Path, to: Path) -> None:
    """Copy a SQLite file as it is at this moment, while others write to it.

    Raises:
        Unavailable: the file cannot be read.
        Full: there is no room for the copy.
    """
    try:
        with contextlib.closing(_opened(path)) as source, contextlib.closing(apsw.Connection(str(to))) as target:
            # A transaction that reads keeps one state for the whole copy; without it every write begins it anew.
            source.execute("BEGIN").fetchall()
            source.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            with target.backup("main", source, "main") as backup:
                while not backup.done:
                    backup.step(STEP_PAGES)
                    time.sleep(PACE_S)
            source.execute("ROLLBACK")
    except (apsw.FullError, apsw.IOError):
        raise Full(
            f"there is no room for a copy of {path.name}", hint="make room, or set [backup] scratch_dir"
        ) from None
    except apsw.Error as error:
        raise Unavailable(f"{path.name} cannot be copied: {error}", retry_after_s=10.0) from None


def _renew(connection: Connection) -> None:
    log.end_timeline(connection)
    log.begin_timeline(connection)


def _opened(path: Path) -> Any:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    return connection


def _has(connection: Connection, table: str) -> bool:
    sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    return connection.execute(sql, (table,)).fetchone() is not None


_BESIDE = ("-wal", "-shm", "-journal")


def _remove(path: Path, *suffixes: str) -> None:
    for suffix in suffixes or ("", *_BESIDE):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
