"""Dead letters in SQLite; see `bellbuoy.ports.ledger.DeadLetterLedger`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from bellbuoy.adapters.sqlite.database import Connection, Database
from bellbuoy.adapters.sqlite.notifications import decode, encode, held_column, parse_cursor
from bellbuoy.errors import NotFound
from bellbuoy.model import transitions
from bellbuoy.model.dead_letters import ABSENT, EXPIRED, GONE, refusal
from bellbuoy.model.operation import DeadLetter, Discarded, Replayed, Skip
from bellbuoy.ports.ledger import SKIPPED_MAX, Verdict

_decode_letter = msgspec.json.Decoder(DeadLetter).decode


class DeadLetters:
    """Deliveries that have run out of attempts."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def dead_letters(
        self, tenant: str, *, provider: str | None, error_code: str | None, limit: int, cursor: str | None
    ) -> tuple[list[DeadLetter], str | None]:
        after = parse_cursor(cursor) if cursor is not None else 0

        def find(connection: Connection) -> list[tuple[int, bytes]]:
            return connection.execute(
                f"SELECT seq, letter FROM dead_letters WHERE {_MATCH} AND seq > ?4 ORDER BY seq LIMIT ?5",
                (tenant, provider, error_code, after, limit + 1),
            ).fetchall()

        rows = await self._db.read(find, scan=True)
        letters = [_decode_letter(letter) for _, letter in rows[:limit]]
        return letters, str(rows[limit - 1][0]) if len(rows) > limit else None

    async def replay(
        self,
        tenant: str,
        *,
        ids: Sequence[str] | None,
        provider: str | None,
        error_code: str | None,
        now: float,
        rate_per_s: float | None,
        dry_run: bool,
        limit: int,
    ) -> Replayed:
        def bring_back(connection: Connection) -> Replayed:
            named = None if ids is None else _named(connection, tenant, ids)
            unknown = [Skip(i, ABSENT) for i in ids or () if i not in (named or {})]
            skipped = _expired(connection, tenant, provider, error_code, now) if named is None else []
            found = _live(connection, tenant, provider, error_code, now) if named is None else named.items()
            replayed = 0
            for letter_id, notification_id in found:
                if replayed == limit:
                    break
                due_at = now + (replayed / rate_per_s if rate_per_s else 0.0)
                why = _revive(connection, letter_id, notification_id, now, due_at, dry_run=dry_run)
                if why is None:
                    replayed += 1
                elif named is not None or len(skipped) < SKIPPED_MAX:
                    skipped.append(Skip(letter_id, why))
            return Replayed(replayed + len(skipped), replayed, skipped + unknown, dry_run)

        return await self._db.write(bring_back)

    async def reconsider(self, verdicts: Sequence[Verdict], *, now: float, wait_s: float) -> list[Verdict]:
        def bring_back(connection: Connection) -> list[Verdict]:
            return [one for one in verdicts if not _reconsidered(connection, one, now, wait_s)]

        return await self._db.write(bring_back)

    async def discard(self, tenant: str, letter_id: str) -> None:
        def remove(connection: Connection) -> None:
            connection.execute("DELETE FROM dead_letters WHERE tenant = ? AND id = ?", (tenant, letter_id))
            if not connection.changes():
                raise NotFound(f"there is no dead letter {letter_id}")

        await self._db.write(remove)

    async def discard_many(
        self,
        tenant: str,
        *,
        ids: Sequence[str] | None,
        provider: str | None,
        error_code: str | None,
        expired: bool,
        now: float,
        dry_run: bool,
        limit: int,
    ) -> Discarded:
        wanted = None if ids is None else encode(ids).decode()
        where = f"""{_MATCH} AND (?4 IS NULL OR expires_at <= ?4)
                    AND (?5 IS NULL OR id IN (SELECT value FROM json_each(?5)))"""
        bindings = (tenant, provider, error_code, now if expired else None, wanted)

        def remove(connection: Connection) -> Discarded:
            sql = f"SELECT count(*) FROM dead_letters WHERE {where}"
            (matched,) = connection.execute(sql, bindings).fetchall()[0]
            if not dry_run:
                connection.execute(
                    f"""DELETE FROM dead_letters WHERE seq IN (
                          SELECT seq FROM dead_letters WHERE {where} ORDER BY seq LIMIT ?6)""",
                    (*bindings, limit),
                )
            return Discarded(matched, min(matched, limit), dry_run)

        return await self._db.write(remove)

    async def dead_letter_count(self) -> int:
        def count(connection: Connection) -> int:
            return int(connection.execute("SELECT count(*) FROM dead_letters").fetchall()[0][0])

        return await self._db.read(count)


_PAGE = 500
EXAMINED_MAX = 50_000
"""Dead letters that one replay looks at, so that the writer is not kept for long by many that cannot come back."""

_MATCH = "tenant = ?1 AND (?2 IS NULL OR provider = ?2) AND (?3 IS NULL OR error_code = ?3)"


def _named(connection: Connection, tenant: str, ids: Sequence[str]) -> dict[str, str]:
    """Those of `ids` that are there: the dead letter's id and its notification's."""
    sql = "SELECT id, notification_id FROM dead_letters WHERE tenant = ? AND id = ?"
    return dict(row for one in dict.fromkeys(ids) for row in connection.execute(sql, (tenant, one)))


def _expired(
    connection: Connection, tenant: str, provider: str | None, error_code: str | None, now: float
) -> list[Skip]:
    """What matches and has outlived its time to live, oldest first."""
    sql = f"SELECT id FROM dead_letters WHERE {_MATCH} AND expires_at <= ?4 ORDER BY seq LIMIT ?5"
    rows = connection.execute(sql, (tenant, provider, error_code, now, SKIPPED_MAX)).fetchall()
    return [Skip(letter_id, EXPIRED) for (letter_id,) in rows]


def _live(
    connection: Connection, tenant: str, provider: str | None, error_code: str | None, now: float
) -> Iterator[tuple[str, str]]:
    """(dead letter's id, notification's id) of what matches and is not expired, oldest first, a page at a time."""
    sql = f"""SELECT seq, id, notification_id FROM dead_letters
              WHERE {_MATCH} AND expires_at > ?4 AND seq > ?5 ORDER BY seq LIMIT {_PAGE}"""
    after = 0
    for _ in range(EXAMINED_MAX // _PAGE):
        rows = connection.execute(sql, (tenant, provider, error_code, now, after)).fetchall()
        for _, letter_id, notification_id in rows:
            yield letter_id, notification_id
        if len(rows) < _PAGE:
            return
        after = rows[-1][0]


def _revive(
    connection: Connection, letter_id: str, notification_id: str, now: float, due_at: float, *, dry_run: bool
) -> str | None:
    """Bring one back and take it off the dead letters in the same transaction; returns why not, None when it was."""
    row = connection.execute("SELECT record, owner FROM notifications WHERE id = ?", (notification_id,)).fetchone()
    if row is None:
        return GONE
    record = decode(row[0])
    refused = refusal(record, letter_id, due_at, owned=row[1] is not None)
    if refused or dry_run:
        return refused
    delivery = next(d for d in record.deliveries if d.id == letter_id)
    transitions.revive(record, delivery, now, due_at)
    connection.execute(
        """UPDATE notifications SET status = ?, due_at = ?, owner = NULL, held = NULL, fence = fence + 1, record = ?
           WHERE id = ?""",
        (record.status, transitions.due_at(record), encode(record), notification_id),
    )
    connection.execute("DELETE FROM dead_letters WHERE id = ?", (letter_id,))
    return None


def _reconsidered(connection: Connection, verdict: Verdict, now: float, wait_s: float) -> bool:
    """Bring one back if it still failed; False when a worker has its notification now."""
    notification_id, delivery_id = verdict
    row = connection.execute("SELECT record, owner FROM notifications WHERE id = ?", (notification_id,)).fetchone()
    if row is None:
        return True
    record = decode(row[0])
    delivery = next((d for d in record.deliveries if d.id == delivery_id), None)
    if row[1] is not None:
        return False
    if delivery is not None and transitions.reconsider(record, delivery, now, wait_s):
        connection.execute(
            "UPDATE notifications SET status = ?, due_at = ?, held = ?, fence = fence + 1, record = ? WHERE id = ?",
            (
                record.status,
                transitions.due_at(record),
                held_column(transitions.held_for(record)),
                encode(record),
                notification_id,
            ),
        )
    return True
