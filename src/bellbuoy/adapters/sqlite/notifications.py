"""Notifications in SQLite: accepting them, handing them out under leases, writing down what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

import msgspec

from bellbuoy.adapters.sqlite.database import Connection, Database
from bellbuoy.adapters.sqlite.rows import chunks, values
from bellbuoy.errors import Invalid, LeaseLost, NotFound
from bellbuoy.model import transitions
from bellbuoy.model.dead_letters import letters_of, redeemed
from bellbuoy.model.delivery import PROVIDERS, NotificationStatus, ProviderName, Record
from bellbuoy.model.merge import SENT_TWICE, due_after, merge
from bellbuoy.model.notification import URGENCY
from bellbuoy.model.operation import Books
from bellbuoy.ports.ledger import QUEUED, Account, Claim, Offer, Page, Taken

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Record).decode

# The values of the column `held` that name a provider. There are few, so each is looked up in the index by itself, and
# the writer never walks over what waits for others.
_HOLDING = {
    provider: [
        ",".join(group)
        for size in range(1, len(PROVIDERS) + 1)
        for group in combinations(sorted(PROVIDERS), size)
        if provider in group
    ]
    for provider in PROVIDERS
}
_FIRST_OF = """SELECT * FROM (SELECT seq, priority FROM notifications
               WHERE held = ?{} AND owner IS NULL ORDER BY priority, seq LIMIT ?2)"""
_RELEASE = f"""UPDATE notifications SET held = NULL, due_at = ?1 WHERE seq IN (SELECT seq FROM (
               {" UNION ALL ".join(_FIRST_OF.format(n + 3) for n in range(2 ** (len(PROVIDERS) - 1)))}
               ) ORDER BY priority, seq LIMIT ?2)"""

_LISTED_MAX = 100
SaveRow = tuple[Record, int, float, float | None, Sequence[ProviderName], bool]


class Notifications:
    """The part of the ledger that holds notifications; see `bellbuoy.ports.ledger.NotificationLedger`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        taken: list[Taken] = await self._db.bulk(_accept, offers)
        return taken

    async def get(self, notification_id: str, tenant: str | None = None) -> Record:
        def find(connection: Connection) -> bytes | None:
            sql = "SELECT record FROM notifications WHERE id = ? AND (? IS NULL OR tenant = ?)"
            row = connection.execute(sql, (notification_id, tenant, tenant)).fetchone()
            return row[0] if row else None

        record = await self._db.read(find)
        if record is None:
            raise NotFound(f"there is no notification {notification_id}")
        try:
            return decode(record)
        except msgspec.MsgspecError:
            raise NotFound(
                f"the record of notification {notification_id} is damaged", hint="restore it from a backup"
            ) from None

    async def page(
        self,
        tenant: str,
        *,
        status: NotificationStatus | None,
        user_id: str | None,
        limit: int,
        cursor: str | None,
    ) -> Page:
        before = parse_cursor(cursor) if cursor is not None else 2**62
        where, bindings = "tenant = ? AND seq < ?", [tenant, before]
        if status is not None:
            where += " AND status = ?"
            bindings.append(status)
        if user_id is not None:
            where += " AND user_id = ?"
            bindings.append(user_id)
        sql = f"SELECT seq, record FROM notifications WHERE {where} ORDER BY seq DESC LIMIT ?"

        def find(connection: Connection) -> list[tuple[int, bytes]]:
            return connection.execute(sql, (*bindings, limit + 1)).fetchall()

        rows = await self._db.read(find, scan=True)
        more = len(rows) > limit
        found = filter(None, (_readable(record) for _, record in rows[:limit]))
        return Page(list(found), str(rows[limit - 1][0]) if more else None)

    async def claim(self, owner: str, *, now: float, lease_s: float, limit: int) -> list[Claim]:
        def take(connection: Connection) -> list[Claim]:
            found: list[tuple[int, bytes, int]] = []
            for priority in URGENCY.values():
                found += connection.execute(
                    """UPDATE notifications SET owner = ?1, fence = fence + 1, due_at = ?2 WHERE seq IN (
                         SELECT seq FROM notifications WHERE priority = ?3 AND due_at <= ?4 ORDER BY due_at LIMIT ?5
                       ) RETURNING fence, record, seq""",
                    (owner, now + lease_s, priority, now, limit - len(found)),
                ).fetchall()
                if len(found) >= limit:
                    break
            read = [(fence, _readable(record), seq) for fence, record, seq in found]
            _set_aside(connection, [seq for _, record, seq in read if record is None])
            return [Claim(record, fence) for fence, record, _ in read if record is not None]

        claims: list[Claim] = await self._db.write(take)
        return claims

    async def take_over(self, owner: str, offers: Sequence[Offer], *, now: float, lease_s: float) -> list[Claim | None]:
        def take(connection: Connection) -> list[Claim | None]:
            leased = [msgspec.structs.replace(one, owner=owner, due_at=now + lease_s) for one in offers]
            (taken,) = _accept(connection, [leased])
            return [
                Claim(one.record, 1) if one.kind == "new" else _lease(connection, one.record.id, owner, now, lease_s)
                for one in taken
            ]

        return await self._db.write(take)

    async def absorb(self, accounts: Sequence[Account], *, now: float) -> list[Account]:
        def take(connection: Connection) -> list[Account]:
            for one in accounts:
                _absorb(connection, one, now)
            return []

        return await self._db.write(take)

    async def save(
        self,
        record: Record,
        fence: int,
        *,
        now: float,
        due_at: float | None,
        held: Sequence[ProviderName],
        release: bool,
    ) -> bool:
        cancelling: bool = await self._db.bulk(_save, (record, fence, now, due_at, held, release))
        return cancelling

    async def abandon(self, notification_id: str, fence: int, *, due_at: float) -> None:
        def leave(connection: Connection) -> None:
            connection.execute(
                "UPDATE notifications SET owner = NULL, due_at = ? WHERE id = ? AND fence = ? AND owner IS NOT NULL",
                (due_at, notification_id, fence),
            )

        await self._db.write(leave)

    async def renew(self, owner: str, *, until: float) -> int:
        def move(connection: Connection) -> int:
            connection.execute("UPDATE notifications SET due_at = ? WHERE owner = ?", (until, owner))
            return connection.changes()

        return await self._db.write(move)

    async def hand_back(self, owner: str | None, *, now: float) -> int:
        def end(connection: Connection) -> int:
            which = "owner = ?2" if owner else "owner IS NOT NULL AND ?2 IS NULL"
            sql = f"UPDATE notifications SET owner = NULL, fence = fence + 1, due_at = ?1 WHERE {which}"
            connection.execute(sql, (now, owner))
            return connection.changes()

        return await self._db.write(end)

    async def release_held(self, provider: ProviderName, *, now: float, limit: int) -> int:
        def free(connection: Connection) -> int:
            connection.execute(_RELEASE, (now, limit, *_HOLDING[provider]))
            return connection.changes()

        return await self._db.write(free)

    async def held(self) -> dict[str, int]:
        def count(connection: Connection) -> dict[str, int]:
            sql = "SELECT held, count(*) FROM notifications WHERE held IS NOT NULL GROUP BY held"
            found: Counter[str] = Counter()
            for held, waiting in connection.execute(sql):
                found.update(dict.fromkeys(held.split(","), waiting))
            return dict(found)

        return await self._db.read(count)

    async def next_due(self) -> float | None:
        def find(connection: Connection) -> float | None:
            # One look-up in the index for each priority; a min() over all of them would walk it.
            sql = "SELECT min(due_at) FROM notifications WHERE priority = ? AND due_at IS NOT NULL"
            firsts = [connection.execute(sql, (p,)).fetchall()[0][0] for p in URGENCY.values()]
            return min((first for first in firsts if first is not None), default=None)

        return await self._db.read(find)

    async def cancel(self, notification_id: str, tenant: str, *, now: float) -> Record:
        def end(connection: Connection) -> Record:
            sql = "SELECT record FROM notifications WHERE id = ? AND tenant = ?"
            row = connection.execute(sql, (notification_id, tenant)).fetchone()
            if row is None:
                raise NotFound(f"there is no notification {notification_id}")
            record = decode(row[0])
            if transitions.cancel(record, now):
                # Its worker holds the record, or died with it. Whoever writes next is told before anything further.
                connection.execute("UPDATE notifications SET cancelling = 1 WHERE id = ?", (notification_id,))
                return record
            connection.execute(
                """UPDATE notifications SET status = ?, record = ?, due_at = ?, owner = NULL, held = NULL,
                     fence = fence + 1 WHERE id = ?""",
                (record.status, encode(record), transitions.due_at(record), notification_id),
            )
            return record

        return await self._db.write(end)

    async def books(self, tenant: str | None = None) -> Books:
        return await self._db.read(lambda connection: _books(connection, tenant), scan=True)

    async def difference(self) -> int:
        def count(connection: Connection) -> int:
            sql = "SELECT (SELECT count(*) FROM accepted) - (SELECT count(*) FROM notifications)"
            return int(connection.execute(sql).fetchall()[0][0])

        return await self._db.read(count, scan=True)

    async def backlog(self, *, now: float) -> tuple[int, float | None]:
        def count(connection: Connection) -> tuple[int, float | None]:
            sql = "SELECT count(*), min(accepted_at) FROM notifications WHERE due_at <= ? AND owner IS NULL"
            depth, oldest = connection.execute(sql, (now,)).fetchall()[0]
            return depth, oldest

        return await self._db.read(count, scan=True)


def _accept(connection: Connection, groups: Sequence[Sequence[Offer]]) -> list[list[Taken]]:
    """Insert the offers of many callers; one that repeats an id gets what is there."""
    known = _known(connection, [offer.record.id for offers in groups for offer in offers])
    fresh: list[Offer] = []
    results: list[list[Taken]] = []
    for offers in groups:
        result = []
        for offer in offers:
            there = known.get(offer.record.id)
            if there is None:
                known[offer.record.id] = (offer.body_hash, offer.record)
                fresh.append(offer)
                result.append(Taken("new", offer.record))
            else:
                kind = "same" if there[0] == offer.body_hash else "other"
                result.append(Taken(kind, there[1]))  # type: ignore[arg-type]
        results.append(result)
    for size, bindings in chunks([(o.record.id, o.record.tenant, o.record.accepted_at) for o in fresh]):
        connection.execute(f"INSERT INTO accepted VALUES {values(size, 3)}", bindings)
    for size, bindings in chunks([_row(offer) for offer in fresh]):
        connection.execute(
            f"""INSERT INTO notifications(id, tenant, user_id, status, priority, accepted_at, due_at, owner, fence,
                  body_hash, record) VALUES {values(size, 11)}""",
            bindings,
        )
    return results


def _readable(record: bytes) -> Record | None:
    """The record, None where it is damaged: one that cannot be read must not keep the others from being so."""
    try:
        return decode(record)
    except msgspec.MsgspecError:
        return None


def _set_aside(connection: Connection, damaged: Sequence[int]) -> None:
    """Never hand these out again; in the books they are among what waits for a person."""
    for seq in damaged:
        connection.execute(
            "UPDATE notifications SET status = 'dead_lettered', due_at = NULL, held = NULL, owner = NULL WHERE seq = ?",
            (seq,),
        )


def _lease(connection: Connection, notification_id: str, owner: str, now: float, lease_s: float) -> Claim | None:
    row = connection.execute(
        """UPDATE notifications SET owner = ?1, fence = fence + 1, due_at = ?2
           WHERE id = ?3 AND due_at IS NOT NULL AND (owner = ?4 OR due_at <= ?5) RETURNING fence, record""",
        (owner, now + lease_s, notification_id, QUEUED, now),
    ).fetchall()
    return Claim(decode(row[0][1]), row[0][0]) if row else None


def _absorb(connection: Connection, account: Account, now: float) -> None:
    there = connection.execute("SELECT record FROM notifications WHERE id = ?", (account.record.id,)).fetchall()
    if not there:
        _accept(connection, [[Offer(account.record, account.body_hash, account.due_at or now)]])
    record = merge(decode(there[0][0]), account.record, now) if there else account.record
    due_at = due_after(record, account.due_at)
    connection.execute(
        """UPDATE notifications SET status = ?, record = ?, due_at = ?, held = ?, owner = NULL, fence = fence + 1
           WHERE id = ?""",
        (record.status, encode(record), due_at, held_column(transitions.held_for(record)), record.id),
    )
    if redeemed(record):
        connection.execute("DELETE FROM dead_letters WHERE notification_id = ?", (record.id,))
    _bury(connection, [record])


def _known(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[bytes, Record]]:
    known: dict[str, tuple[bytes, Record]] = {}
    for size, bindings in chunks([(one,) for one in ids]):
        marks = ",".join("?" * size)
        sql = f"SELECT id, body_hash, record FROM notifications WHERE id IN ({marks})"
        for notification_id, body_hash, record in connection.execute(sql, bindings):
            known[notification_id] = (body_hash, decode(record))
    return known


def _row(offer: Offer) -> tuple[object, ...]:
    record = offer.record
    return (
        record.id,
        record.tenant,
        record.request.recipient.user_id,
        record.status,
        URGENCY[record.request.priority],
        record.accepted_at,
        offer.due_at,
        offer.owner,
        1 if offer.owner else 0,
        offer.body_hash,
        encode(record),
    )


def _save(connection: Connection, rows: Sequence[SaveRow]) -> list[bool | LeaseLost]:
    """Write many records; one whose fence is old is refused alone."""
    asked = {row[0] for row in connection.execute("SELECT id FROM notifications WHERE cancelling = 1")}
    flat = [_saved_row(row, asked) for row in rows]
    done = True
    for size, bindings in chunks(flat):
        connection.execute(
            f"""UPDATE notifications SET status = v.column3, due_at = v.column4, held = v.column5,
                  owner = CASE v.column6 WHEN 1 THEN NULL ELSE owner END,
                  cancelling = CASE v.column6 WHEN 1 THEN 0 ELSE cancelling END,
                  record = v.column7
                FROM (VALUES {values(size, 7)}) AS v
                WHERE id = v.column1 AND fence = v.column2""",
            bindings,
        )
        done = done and connection.changes() == size
    dead = [record for record, *_ in rows if record.status == "dead_lettered"]
    free = [record for record, *_ in rows if redeemed(record)]
    if done and not dead and not asked and not free:
        return [False] * len(rows)
    ours = _fenced(connection, [(record.id, fence) for record, fence, *_ in rows])
    _bury(connection, [record for record in dead if record.id in ours])
    for record in free:
        if record.id in ours:
            connection.execute("DELETE FROM dead_letters WHERE notification_id = ?", (record.id,))
    return [
        record.id in asked if record.id in ours else LeaseLost(f"the lease on {record.id} went to another worker")
        for record, *_ in rows
    ]


def _saved_row(row: SaveRow, asked: set[str]) -> tuple[object, ...]:
    record, fence, now, due_at, held, release = row
    if release and record.id in asked:
        # Its sender cancelled while an attempt was under way: this write is the first moment at which it can count.
        transitions.cancel_open(record, now)
        due_at, held = transitions.due_at(record), transitions.held_for(record)
    return record.id, fence, record.status, due_at, held_column(held), int(release), encode(record)


def held_column(providers: Sequence[ProviderName]) -> str | None:
    """The providers that a record waits for as its column holds them; `_HOLDING` finds each of them there."""
    return ",".join(sorted(providers)) or None


def _fenced(connection: Connection, pairs: Iterable[tuple[str, int]]) -> set[str]:
    sql = "SELECT 1 FROM notifications WHERE id = ? AND fence = ?"
    return {pair[0] for pair in pairs if connection.execute(sql, pair).fetchone()}


def _bury(connection: Connection, records: Iterable[Record]) -> None:
    """Put the exhausted deliveries of dead-lettered notifications among the dead letters."""
    for record in records:
        for letter in letters_of(record):
            connection.execute(
                """INSERT INTO dead_letters(id, notification_id, tenant, provider, error_code, expires_at, letter)
                   VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(id) DO NOTHING""",
                (
                    letter.id,
                    record.id,
                    record.tenant,
                    letter.provider,
                    letter.error_code,
                    record.expires_at,
                    encode(letter),
                ),
            )


def _books(connection: Connection, tenant: str | None) -> Books:
    """Count from one snapshot, so that what is accepted meanwhile is on both sides or on neither."""
    connection.execute("BEGIN")
    try:
        mine = "(?1 IS NULL OR tenant = ?1)"
        (accepted,) = connection.execute(f"SELECT count(*) FROM accepted WHERE {mine}", (tenant,)).fetchall()[0]
        counts: dict[str, int] = dict(
            connection.execute(
                f"SELECT status, count(*) FROM notifications WHERE {mine} GROUP BY status",
                (tenant,),
            ).fetchall()
        )
        lonely = (
            "SELECT id FROM {0} AS a WHERE "
            + mine
            + " AND NOT EXISTS (SELECT 1 FROM {1} AS b WHERE b.id = a.id) LIMIT ?2"
        )
        missing = connection.execute(lonely.format("accepted", "notifications"), (tenant, _LISTED_MAX)).fetchall()
        unknown = connection.execute(lonely.format("notifications", "accepted"), (tenant, _LISTED_MAX)).fetchall()
        doubted = connection.execute(
            f"""SELECT record FROM notifications WHERE {mine}
                  AND (instr(record, CAST('"outcome":"uncertain"' AS BLOB)) > 0
                    OR instr(record, CAST(?2 AS BLOB)) > 0)""",
            (tenant, f'"event":"{SENT_TWICE}"'),
        )
        duplicates = sum(record.possible_duplicates for row in doubted if (record := _readable(row[0])) is not None)
    finally:
        connection.execute("ROLLBACK")
    return Books.balanced(
        accepted,
        counts,
        missing=[row[0] for row in missing],
        unknown=[row[0] for row in unknown],
        duplicates=duplicates,
    )


def parse_cursor(cursor: str) -> int:
    if not cursor.isdigit() or len(cursor) > 18:
        raise Invalid("the cursor is not one of ours", errors=[("cursor", "take it from next_cursor")])
    return int(cursor)
