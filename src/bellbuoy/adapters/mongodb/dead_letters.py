"""Dead letters in MongoDB; see `bellbuoy.ports.ledger.DeadLetterLedger`.

They lie in the document of their notification, so that one write buries them, and one brings a delivery back and takes
it off the list. They are walked through in the order in which their notifications were buried.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import islice

import msgspec
from pymongo import UpdateOne

from bellbuoy.adapters.mongodb.database import SCAN_S, Document, busy
from bellbuoy.adapters.mongodb.documents import UNLEASED, changed, decode
from bellbuoy.adapters.mongodb.notifications import SEEN, TRIES_MAX, Notifications
from bellbuoy.adapters.mongodb.schema import POSITIVE
from bellbuoy.errors import Invalid, NotFound
from bellbuoy.model import transitions
from bellbuoy.model.dead_letters import ABSENT, BUSY, EXPIRED, GONE, refusal
from bellbuoy.model.delivery import Record
from bellbuoy.model.operation import DeadLetter, Discarded, Replayed, Skip
from bellbuoy.ports.ledger import SKIPPED_MAX, Verdict

EXAMINED_MAX = 50_000
"""Dead letters that one replay looks at."""

_decode_letter = msgspec.json.Decoder(DeadLetter).decode
_decode_cursor = msgspec.json.Decoder(tuple[float, str, str]).decode
_BURIED: Document = {"buried_at": {**POSITIVE}}
_PAGE = 200


class DeadLetters(Notifications):
    """Deliveries that have run out of attempts."""

    async def dead_letters(
        self, tenant: str, *, provider: str | None, error_code: str | None, limit: int, cursor: str | None
    ) -> tuple[list[DeadLetter], str | None]:
        after = _parse(cursor) if cursor is not None else None
        match = _match(provider=provider, error_code=error_code)

        async def find() -> list[tuple[str, Document]]:
            return [one async for one in _first(self._letters(tenant, match, after=after), limit + 1)]

        found = await self._db.run(find)
        letters = [_decode_letter(one["letter"]) for _, one in found[:limit]]
        return letters, found[limit - 1][0] if len(found) > limit else None

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
        async def bring_back() -> Replayed:
            skipped: list[Skip] = []
            unknown: list[Skip] = []
            if ids is not None:
                there = {one["id"]: one async for _, one in self._letters(tenant, {"id": {"$in": list(ids)}})}
                unknown = [Skip(i, ABSENT) for i in ids if i not in there]
                found = [there[i] for i in dict.fromkeys(ids) if i in there]
            else:
                match = _match(provider=provider, error_code=error_code)
                late = self._letters(tenant, {**match, "expires_at": {"$lte": now}})
                skipped = [Skip(one["id"], EXPIRED) async for _, one in _first(late, SKIPPED_MAX)]
                live = self._letters(tenant, {**match, "expires_at": {"$gt": now}})
                found = [one async for _, one in _first(live, EXAMINED_MAX)]
            replayed = 0
            for one in found:
                if replayed == limit:
                    break
                due_at = now + (replayed / rate_per_s if rate_per_s else 0.0)
                why = await self._revive(one["of"], one["id"], now, due_at, dry_run=dry_run)
                if why is None:
                    replayed += 1
                elif ids is not None or len(skipped) < SKIPPED_MAX:
                    skipped.append(Skip(one["id"], why))
            return Replayed(replayed + len(skipped), replayed, skipped + unknown, dry_run)

        return await self._db.run(bring_back, within_s=SCAN_S)

    async def reconsider(self, verdicts: Sequence[Verdict], *, now: float, wait_s: float) -> list[Verdict]:
        async def bring_back() -> list[Verdict]:
            return [one for one in verdicts if not await self._reconsidered(one, now, wait_s)]

        return await self._db.run(bring_back)

    async def discard(self, tenant: str, letter_id: str) -> None:
        async def remove() -> None:
            where = {"tenant": tenant, **_BURIED, "letters.id": letter_id}
            done = await self._db.notifications.update_one(where, _taken_off([letter_id]))
            if not done.matched_count:
                raise NotFound(f"there is no dead letter {letter_id}")
            await self._tidy(tenant)

        await self._db.run(remove)

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
        match = _match(provider=provider, error_code=error_code)
        if ids is not None:
            match["id"] = {"$in": list(ids)}
        if expired:
            match["expires_at"] = {"$lte": now}

        async def remove() -> Discarded:
            matched = await self._count(tenant, match)
            if dry_run:
                return Discarded(matched, min(matched, limit), dry_run)
            found = [(one["of"], one["id"]) async for _, one in _first(self._letters(tenant, match), limit)]
            for page in _pages(found):
                writes = [UpdateOne({"_id": of, "letters.id": one}, _taken_off([one])) for of, one in page]
                await self._db.notifications.bulk_write(writes)
            await self._tidy(tenant)
            return Discarded(matched, len(found), dry_run)

        return await self._db.run(remove, within_s=SCAN_S)

    async def dead_letter_count(self) -> int:
        return await self._db.run(lambda: self._count(None, {}), within_s=SCAN_S)

    async def _letters(
        self, tenant: str, match: Document, *, after: tuple[float, str, str] | None = None
    ) -> AsyncIterator[tuple[str, Document]]:
        """A tenant's dead letters that match, each with its cursor and, in `of`, its notification's id."""
        where: Document = {"tenant": tenant, **_BURIED}
        if match:
            where["letters"] = {"$elemMatch": match}
        if after is not None:
            # The notification of the last letter once more: it may have others behind that.
            same = {"buried_at": after[0], "_id": {"$gte": after[1]}}
            where["$or"] = [{"buried_at": {"$gt": after[0]}}, same]
        order = [("buried_at", 1), ("_id", 1)]
        async for found in self._db.notifications.find(where, {"buried_at": 1, "letters": 1}, batch_size=_PAGE).sort(
            order
        ):
            letters = [one for one in found["letters"] if _matches(one, match)]
            if after is not None and found["_id"] == after[1]:
                passed = next((n + 1 for n, one in enumerate(found["letters"]) if one["id"] == after[2]), 0)
                letters = [one for one in found["letters"][passed:] if _matches(one, match)]
            for one in letters:
                cursor = msgspec.json.encode((found["buried_at"], found["_id"], one["id"])).hex()
                yield cursor, {**one, "of": found["_id"]}

    async def _count(self, tenant: str | None, match: Document) -> int:
        inside = {f"letters.{name}": value for name, value in match.items()}
        steps: list[Document] = [
            {"$match": {**_BURIED, **({} if tenant is None else {"tenant": tenant})}},
            {"$project": {"letters": 1}},
            {"$unwind": "$letters"},
            {"$match": inside},
            {"$count": "n"},
        ]
        found = await (await self._db.notifications.aggregate(steps)).to_list()
        return found[0]["n"] if found else 0

    async def _tidy(self, tenant: str) -> None:
        """Take emptied lists of dead letters out of the index; until then they only cost a look."""
        where = {"tenant": tenant, **_BURIED, "letters": []}
        await self._db.notifications.update_many(where, {"$unset": {"letters": "", "buried_at": ""}})

    async def _revive(self, of: str, letter_id: str, now: float, due_at: float, *, dry_run: bool) -> str | None:
        """Bring one back and take it off the list in the same write; returns why not, None when it was."""
        for _ in range(TRIES_MAX):
            found = await self._db.notifications.find_one({"_id": of}, {**SEEN, "letters": 1})
            if found is None:
                return GONE
            record = decode(found["record"])
            why = refusal(record, letter_id, due_at, owned="owner" in found)
            if why is not None or dry_run:
                return why
            transitions.revive(record, next(d for d in record.deliveries if d.id == letter_id), now, due_at)
            update = {
                **changed(record, token=self._db.stamp()),
                **_taken_off([letter_id]),
            }
            if all(one["id"] == letter_id for one in found.get("letters", [])):
                # Nobody can add one before this write, since that would give the record another version.
                update["$unset"] |= {"letters": "", "buried_at": ""}
                del update["$pull"]
            if await self._changed(found, update, UNLEASED):
                return None
        return BUSY

    async def _reconsidered(self, verdict: Verdict, now: float, wait_s: float) -> bool:
        """Bring one back if it still failed; False when a worker has its notification now."""
        for _ in range(TRIES_MAX):
            found = await self._db.notifications.find_one({"_id": verdict[0]}, SEEN)
            if found is None:
                return True
            if "owner" in found:
                return False
            record: Record = decode(found["record"])
            delivery = next((d for d in record.deliveries if d.id == verdict[1]), None)
            if delivery is None or not transitions.reconsider(record, delivery, now, wait_s):
                return True
            if await self._changed(found, changed(record, token=self._db.stamp()), UNLEASED):
                return True
        raise busy()


def _match(*, provider: str | None, error_code: str | None) -> Document:
    given = {"provider": provider, "error_code": error_code}
    return {name: value for name, value in given.items() if value is not None}


def _matches(letter: Document, match: Document) -> bool:
    """Whether this letter is one of those for which its notification was found."""
    for name, wanted in match.items():
        if isinstance(wanted, str):
            fits = letter[name] == wanted
        elif "$in" in wanted:
            fits = letter[name] in wanted["$in"]
        else:
            fits = letter[name] <= wanted["$lte"] if "$lte" in wanted else letter[name] > wanted["$gt"]
        if not fits:
            return False
    return True


def _taken_off(letter_ids: Sequence[str]) -> dict[str, Document]:
    return {"$pull": {"letters": {"id": {"$in": list(letter_ids)}}}}


async def _first(found: AsyncIterator[tuple[str, Document]], limit: int) -> AsyncIterator[tuple[str, Document]]:
    if limit <= 0:
        return
    count = 0
    async for one in found:
        yield one
        count += 1
        if count == limit:
            return


def _pages(found: Iterable[tuple[str, str]]) -> Iterable[list[tuple[str, str]]]:
    rest = iter(found)
    while page := list(islice(rest, _PAGE)):
        yield page


def _parse(cursor: str) -> tuple[float, str, str]:
    try:
        return _decode_cursor(bytes.fromhex(cursor))
    except ValueError:
        raise Invalid("the cursor is not one of ours", errors=[("cursor", "take it from next_cursor")]) from None
