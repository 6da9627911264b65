"""Deleting what is over and old from SQLite; see `bellbuoy.ports.ledger.Ledger.forget`."""

from __future__ import annotations

from collections.abc import Sequence

from bellbuoy.adapters.sqlite.database import Connection, Database
from bellbuoy.adapters.sqlite.notifications import decode, encode, parse_cursor
from bellbuoy.ports.ledger import Forgotten


class Retention:
    """Forgets notifications and tombstones."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def forget(self, *, before: float, limit: int, cursor: str | None) -> Forgotten:
        after = parse_cursor(cursor) if cursor is not None else 0

        def delete(connection: Connection) -> Forgotten:
            rows = connection.execute(
                """SELECT seq, id, accepted_at, due_at IS NULL AND owner IS NULL, record FROM notifications
                   WHERE seq > ? ORDER BY seq LIMIT ?""",
                (after, limit),
            ).fetchall()
            gone = [(seq, i) for seq, i, at, idle, record in rows if at < before and idle and _over(record, before)]
            _delete(connection, "dead_letters", "notification_id", [i for _, i in gone])
            _delete(connection, "notifications", "seq", [seq for seq, _ in gone])
            _delete(connection, "accepted", "id", [i for _, i in gone])
            connection.execute(
                "DELETE FROM tombstones WHERE seq IN (SELECT seq FROM tombstones WHERE at < ? ORDER BY seq LIMIT ?)",
                (before, limit),
            )
            tombstones = connection.changes()
            # Rows lie in the order of their acceptance, so after a look that saw nothing old there is nothing old.
            more = len(rows) == limit and any(row[2] < before for row in rows)
            return Forgotten(len(gone), tombstones, str(rows[-1][0]) if more else None)

        return await self._db.write(delete)


def _over(encoded: bytes, before: float) -> bool:
    record = decode(encoded)
    return record.over and record.last_at < before


def _delete(connection: Connection, table: str, column: str, keys: Sequence[object]) -> None:
    sql = f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))"  # Both are ours.
    connection.execute(sql, (encode(keys).decode(),))
