"""What each transaction changed, kept in the same file by that transaction until it is in a backup.

A change is a patchset of SQLite's session extension: the new values of changed rows, and which rows are gone. It is
written in the transaction that it describes, so there is none without its change and no change without it. Its number
comes from the table, so several processes that write the same file make one row of numbers; a number that is missing
is a change that is missing. https://sqlite.org/sessionintro.html
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, cast

import apsw

from bellbuoy.adapters.sqlite.database import Connection
from bellbuoy.clock import Clock
from bellbuoy.errors import Gap
from bellbuoy.ports.archive import Change, Changes

SCHEMA = """
CREATE TABLE IF NOT EXISTS changes(number INTEGER PRIMARY KEY, at REAL NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS timeline(one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
"""

SET_BACK_S_MAX = 1.0
"""A clock that is set back by more than this ends the row of changes; less than that a restore may miss anyway."""

KEPT_BYTES_MAX = 1024 * 1024 * 1024
"""Of changes that no target has taken yet; beyond that they are given up for a new full copy, to spare the disk."""

_CHANGES_MAX = 10_000


class Recorder:
    """Records transactions; see `Database`.

    Args:
        tables: whose rows are the state; others are about the file.
        clock: for the times of changes.
    """

    def __init__(self, tables: Sequence[str], *, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock

    def __call__(self, connection: Connection) -> Recording:
        return Recording(connection, self._tables, self._clock)


class Recording:
    """The record of one transaction that has just begun."""

    def __init__(self, connection: Connection, tables: Sequence[str], clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self._session: Any = apsw.Session(cast(apsw.Connection, connection), "main")
        for table in tables:
            self._session.attach(table)

    def write(self) -> None:
        """Put it into the transaction; one that changed nothing leaves none."""
        if self._session.is_empty:
            return
        last = self._connection.execute("SELECT at FROM changes ORDER BY number DESC LIMIT 1").fetchone()
        now, before = self._clock.time(), last[0] if last else 0.0
        if before - now > SET_BACK_S_MAX:
            # Seconds come a second time, and one row of changes cannot tell which of the two is meant.
            end_timeline(self._connection)
            before = now
        # Never earlier than the change before it: the order of times is that of numbers.
        self._connection.execute(
            "INSERT INTO changes(at, data) VALUES (?, ?)", (max(now, before), self._session.patchset())
        )

    def close(self) -> None:
        """Watch no longer."""
        self._session.close()


class Unrecorded:
    """Stands for the record of a transaction that keeps none: it ends the row of changes, which would have a gap.

    Another process on the same file may record, and would go on as if nothing had happened in between.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self) -> None:
        """End the row, in the transaction that is in no change."""
        end_timeline(self._connection)

    def close(self) -> None:
        """There is nothing to let go of."""


def begin_timeline(connection: Connection, name: str | None = None) -> None:
    """Begin a row of changes where none has begun: under this name, None for a new one."""
    connection.execute("INSERT OR IGNORE INTO timeline VALUES (1, ?)", (name or uuid.uuid4().hex,))


def end_timeline(connection: Connection) -> None:
    """End the row of changes, since from now on something may change without a record.

    The last change stays, so that numbers go on from it.
    """
    if timeline(connection) is not None:
        connection.execute("DELETE FROM timeline")
        connection.execute("DELETE FROM changes WHERE number < (SELECT max(number) FROM changes)")


def timeline(connection: Connection) -> str | None:
    """The name of the row of changes, None where nothing is recorded."""
    row = connection.execute("SELECT id FROM timeline").fetchone()
    return row[0] if row else None


def last_number(connection: Connection) -> int:
    """The number of the last change, 0 when there was none."""
    return int(connection.execute("SELECT coalesce(max(number), 0) FROM changes").fetchall()[0][0])


def read(connection: Connection, after: int, *, bytes_max: int, now: float) -> Changes:
    """The changes after a number, for a connection that holds the lock for writing: nothing is under way then.

    Raises:
        Gap: one is missing, or there are more than are kept.
    """
    name, upto, size = timeline(connection) or "", after, 0
    found: list[Change] = []
    rows = connection.execute(
        "SELECT number, at, data FROM changes WHERE number > ? ORDER BY number LIMIT ?", (after, _CHANGES_MAX)
    )
    more = False
    try:
        for number, at, data in rows:
            if number != upto + 1:
                break
            if found and size + len(data) > bytes_max:
                more = True
                break
            found.append(Change(number, at, data))
            upto, size = number, size + len(data)
    finally:
        # One that is half read keeps the connection at this moment, and once another process has written it can write
        # no more; who holds the error that is raised below holds the cursor as well.
        rows.close(True)
    last = last_number(connection)
    if last < after or (last > upto and not more and len(found) < _CHANGES_MAX):
        raise Gap(f"change {upto + 1} is missing", hint="a full backup begins anew by itself")
    more = last > upto
    return Changes(name, after, upto, found[-1].at if more else max(now, found[-1].at if found else 0.0), found, more)


def prune(connection: Connection, name: str, upto: int) -> None:
    """Forget the changes of a timeline up to a number; the last one of all stays, so that numbers go on from it."""
    if timeline(connection) == name:
        connection.execute(
            "DELETE FROM changes WHERE number <= ? AND number < (SELECT max(number) FROM changes)", (upto,)
        )


def kept_bytes(connection: Connection) -> int:
    """The size of the changes that are kept."""
    return int(connection.execute("SELECT coalesce(sum(length(data)), 0) FROM changes").fetchall()[0][0])
