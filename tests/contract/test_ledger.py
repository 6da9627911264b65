"""One suite for every ledger: what `bellbuoy.ports.ledger` promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, Protocol

import apsw
import msgspec
import pymongo
import pytest

from bellbuoy.adapters.memory import CachedLedger
from bellbuoy.adapters.mongodb import MongoLedger
from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict, Invalid, LeaseLost, NotFound
from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Receipt, Record
from bellbuoy.model.notification import Request
from bellbuoy.model.operation import ApiKey, Tombstone
from bellbuoy.model.recipient import Device, RegisteredDevice, User
from bellbuoy.ports.ledger import QUEUED, Account, Claim, Ledger, Offer

NOW = 1_800_000_000.0
REQUEST = msgspec.convert({"recipient": {"user_id": "u"}, "content": {"title": "t"}}, Request)


class Home(Protocol):
    """Where a ledger keeps what it has: it can be opened again, and robbed."""

    def open(self) -> Any: ...

    def steal(self, which: Literal["notifications", "accepted"], notification_id: str) -> None: ...


class SqliteHome:
    def __init__(self, path: Path, *, inline: bool = False) -> None:
        self._path, self._inline = path, inline

    def open(self) -> SqliteLedger:
        return SqliteLedger(self._path, clock=ManualClock(), inline=self._inline)

    def steal(self, which: str, notification_id: str) -> None:
        thief = apsw.Connection(str(self._path))
        thief.execute(f"DELETE FROM {which} WHERE id = ?", (notification_id,))
        thief.close()


class CachedHome(SqliteHome):
    def open(self) -> Any:
        return CachedLedger(super().open(), users_max=2)


class MongoHome:
    def __init__(self, url: str) -> None:
        self._url = url

    def open(self) -> MongoLedger:
        return MongoLedger(self._url, clock=ManualClock())

    def steal(self, which: str, notification_id: str) -> None:
        with pymongo.MongoClient[dict[str, Any]](self._url) as thief:
            thief.get_default_database()[which].delete_one({"_id": notification_id})


@pytest.fixture(params=["sqlite", "sqlite-inline", "cached", "mongodb"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    if request.param == "mongodb":
        return MongoHome(request.getfixturevalue("mongodb_url"))
    kind = CachedHome if request.param == "cached" else SqliteHome
    return kind(tmp_path / "l.db", inline=request.param == "sqlite-inline")


@pytest.fixture
async def ledger(home: Home) -> AsyncIterator[Ledger]:
    store = home.open()
    yield store
    await store.aclose()


def offer(notification_id: str, *, tenant: str = "t", hash_: bytes = b"h", due_at: float = NOW, **fields: Any) -> Offer:
    request = msgspec.structs.replace(REQUEST, **{k: fields.pop(k) for k in ("priority",) if k in fields})
    owner = fields.pop("owner", None)
    accepted_at = fields.pop("accepted_at", NOW)
    record = Record(notification_id, tenant, request, accepted_at, NOW + 100, **fields)
    return Offer(record, hash_, due_at, owner)


async def accept(ledger: Ledger, *ids: str, **fields: Any) -> None:
    assert {t.kind for t in await ledger.accept([offer(i, **fields) for i in ids])} == {"new"}


async def claim(ledger: Ledger, owner: str = "w", *, now: float = NOW, limit: int = 10) -> list[Claim]:
    return await ledger.claim(owner, now=now, lease_s=30, limit=limit)


async def save(
    ledger: Ledger, one: Claim, *, due_at: float | None = None, held: tuple[Any, ...] = (), release: bool = True
) -> bool:
    return await ledger.save(one.record, one.fence, now=NOW, due_at=due_at, held=held, release=release)


def exhausted(record: Record) -> None:
    delivery = Delivery(f"d-{record.id}", 0, "sms", "sms", "+15551234567", due_at=NOW)
    record.chain = ("sms",)
    record.deliveries.append(delivery)
    transitions.start(delivery, NOW).error_code = "20500"
    transitions.fail(record, delivery, NOW, exhausted=True, why="20500")
    transitions.conclude(record, NOW)


async def test_what_was_accepted_is_there_and_only_for_its_tenant(ledger: Ledger) -> None:
    await accept(ledger, "a")
    assert (await ledger.get("a", "t")).request == REQUEST
    assert (await ledger.get("a")).id == "a"
    with pytest.raises(NotFound):
        await ledger.get("a", "other")
    with pytest.raises(NotFound):
        await ledger.get("b")


async def test_an_id_is_accepted_once(ledger: Ledger) -> None:
    taken = await asyncio.gather(*(ledger.accept([offer("a", hash_=b"same")]) for _ in range(30)))
    assert sorted(t.kind for (t,) in taken) == ["new"] + ["same"] * 29
    (other,) = await ledger.accept([offer("a", hash_=b"other")])
    assert other.kind == "other"
    both = await ledger.accept([offer("b", hash_=b"1"), offer("b", hash_=b"1"), offer("b", hash_=b"2")])
    assert [t.kind for t in both] == ["new", "same", "other"]
    assert (await ledger.books()).accepted == 2


async def test_due_work_is_claimed_once_urgent_first(ledger: Ledger) -> None:
    await ledger.accept([offer("low", priority="low"), offer("high", priority="high"), offer("normal")])
    await ledger.accept([offer("later", due_at=NOW + 50)])
    assert [c.record.id for c in await claim(ledger, limit=2)] == ["high", "normal"]
    assert [c.record.id for c in await claim(ledger)] == ["low"]
    assert await claim(ledger) == []
    assert await ledger.next_due() == NOW + 30
    many = [f"m-{n}" for n in range(50)]
    await accept(ledger, *many)
    claims = await asyncio.gather(*(claim(ledger, f"w-{n}") for n in range(10)))
    assert sorted(c.record.id for some in claims for c in some) == sorted(many)


async def test_a_lease_that_ended_is_claimed_by_another_and_its_holder_is_refused(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (first,) = await claim(ledger, "w-1")
    assert await claim(ledger, "w-2", now=NOW + 29) == []
    (second,) = await claim(ledger, "w-2", now=NOW + 30)
    assert second.fence > first.fence
    first.record.status = "failed"
    with pytest.raises(LeaseLost):
        await save(ledger, first)
    assert (await ledger.get("a")).status == "accepted"
    second.record.status = "delivered"
    await save(ledger, second)
    assert (await ledger.get("a")).status == "delivered"


async def test_one_refused_write_does_not_harm_its_neighbours(ledger: Ledger) -> None:
    await accept(ledger, *(f"n-{i}" for i in range(80)))
    claims = await claim(ledger, limit=100)
    stale = Claim(claims[40].record, claims[40].fence - 1)
    for one in claims:
        one.record.status = "delivered"
    results = await asyncio.gather(
        *(save(ledger, stale if i == 40 else one) for i, one in enumerate(claims)), return_exceptions=True
    )
    assert [i for i, r in enumerate(results) if isinstance(r, LeaseLost)] == [40]
    assert (await ledger.books()).delivered == 79


async def test_leases_are_renewed_and_handed_back(ledger: Ledger) -> None:
    await accept(ledger, "a", "b")
    await claim(ledger, "w-1")
    assert await ledger.renew("w-1", until=NOW + 90) == 2
    assert await claim(ledger, "w-2", now=NOW + 89) == []
    assert await ledger.hand_back("w-1", now=NOW) == 2
    assert len(await claim(ledger, "w-2")) == 2
    assert await ledger.hand_back("w-1", now=NOW) == 0
    assert await ledger.hand_back(None, now=NOW) == 2


async def test_an_offer_with_an_owner_is_leased_to_it(ledger: Ledger) -> None:
    await accept(ledger, "a", owner="w-1", due_at=NOW + 60)
    assert await claim(ledger, "w-2") == []
    assert not await save(ledger, Claim(await ledger.get("a"), 1), due_at=NOW + 60, release=False)
    assert await ledger.renew("w-1", until=NOW + 70) == 1


async def test_what_is_held_is_released_in_order_and_bounds(ledger: Ledger) -> None:
    for name, priority in (("one", "normal"), ("two", "normal"), ("urgent", "high")):
        await ledger.accept([offer(name, priority=priority)])
    for one in await claim(ledger):
        await save(ledger, one, due_at=NOW + 900, held=("fcm",))
    assert await ledger.held() == {"fcm": 3}
    assert await ledger.release_held("apns", now=NOW, limit=9) == 0
    assert await ledger.release_held("fcm", now=NOW, limit=2) == 2
    assert [c.record.id for c in await claim(ledger)] == ["urgent", "one"]
    assert await ledger.held() == {"fcm": 1}


async def test_what_waits_for_two_providers_is_released_by_either(ledger: Ledger) -> None:
    await accept(ledger, "both", "other-both", "apns-only")
    await accept(ledger, "urgent", priority="high")
    waits: dict[str, tuple[Any, ...]] = {"apns-only": ("apns",), "urgent": ("sms", "apns")}
    for one in await claim(ledger):
        await save(ledger, one, due_at=NOW + 900, held=waits.get(one.record.id, ("fcm", "apns")))
    assert await ledger.held() == {"fcm": 2, "apns": 4, "sms": 1}
    assert await ledger.release_held("smtp", now=NOW, limit=9) == 0
    assert await ledger.release_held("apns", now=NOW, limit=2) == 2
    assert [c.record.id for c in await claim(ledger)] == ["urgent", "both"]
    assert await ledger.release_held("fcm", now=NOW, limit=9) == 1
    assert [c.record.id for c in await claim(ledger)] == ["other-both"]
    assert await ledger.held() == {"apns": 1}


async def test_cancelling(ledger: Ledger) -> None:
    await accept(ledger, "waiting", "leased", "sending")
    claims = {c.record.id: c for c in await claim(ledger)}
    await save(ledger, claims["waiting"], due_at=NOW + 60)
    assert (await ledger.cancel("waiting", "t", now=NOW)).status == "cancelled"
    with pytest.raises(Conflict):
        await ledger.cancel("waiting", "t", now=NOW)
    with pytest.raises(NotFound):
        await ledger.cancel("waiting", "other", now=NOW)
    # Claimed and not begun: the claim is void at once.
    await ledger.cancel("leased", "t", now=NOW)
    with pytest.raises(LeaseLost):
        await save(ledger, claims["leased"])
    # Under way: its worker hears of it at its next write, and nothing further is tried.
    record = claims["sending"].record
    record.chain = ("sms", "email")
    delivery = Delivery("d", 0, "sms", "sms", "+15551234567", due_at=NOW)
    record.deliveries.append(delivery)
    transitions.start(delivery, NOW)
    assert not await save(ledger, claims["sending"], due_at=NOW + 30, release=False)
    await ledger.cancel("sending", "t", now=NOW)
    transitions.retry(record, delivery, NOW, 5.0, "busy", held=None)
    assert await save(ledger, claims["sending"], due_at=NOW + 5)
    assert (await ledger.get("sending")).status == "cancelled"
    assert await claim(ledger, now=NOW + 1_000) == []
    assert (await ledger.books()).cancelled == 3


async def test_what_one_device_has_is_cancelled_for_the_others(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger)
    record = one.record
    record.chain = ("push",)
    record.deliveries += [Delivery(d, 0, "push", "apns", d, due_at=NOW) for d in ("has", "waits")]
    transitions.start(record.deliveries[0], NOW)
    transitions.delivered(record, record.deliveries[0], Receipt(200), NOW, 1.0)
    await save(ledger, one, due_at=NOW + 60)
    found = await ledger.cancel("a", "t", now=NOW)
    assert (found.status, [d.status for d in found.deliveries]) == ("delivered", ["delivered", "cancelled"])
    assert await claim(ledger, now=NOW + 1_000) == []
    with pytest.raises(Conflict):
        await ledger.cancel("a", "t", now=NOW)
    books = await ledger.books()
    assert (books.delivered, books.difference) == (1, 0)


async def test_a_cancel_after_a_crash_during_an_attempt_is_heard_by_the_next_worker(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger, "w-1")
    one.record.chain = ("sms",)
    delivery = Delivery("d", 0, "sms", "sms", "+15551234567", due_at=NOW)
    one.record.deliveries.append(delivery)
    transitions.start(delivery, NOW)
    await save(ledger, one, due_at=NOW + 30, release=False)
    await ledger.hand_back(None, now=NOW)
    await ledger.cancel("a", "t", now=NOW)
    (again,) = await claim(ledger, "w-2")
    again.record.deliveries[0].status = "retrying"
    again.record.deliveries[0].due_at = NOW
    assert await save(ledger, again, due_at=NOW + 30, release=False)


async def test_an_abandoned_claim_comes_back(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger, "w-1")
    await ledger.abandon("a", one.fence - 1, due_at=NOW)
    assert await claim(ledger, "w-2") == []
    await ledger.abandon("a", one.fence, due_at=NOW + 5)
    assert await ledger.renew("w-1", until=NOW + 99) == 0
    assert await claim(ledger, "w-2") == []
    assert [c.record.id for c in await claim(ledger, "w-2", now=NOW + 5)] == ["a"]


async def test_a_sibling_s_dead_letter_never_takes_a_notification_from_its_worker(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger)
    record = one.record
    record.chain = ("push",)
    record.deliveries = [Delivery(f"d-{n}", 0, "push", "fcm", "token", due_at=NOW) for n in range(3)]
    for delivery in record.deliveries:
        transitions.start(delivery, NOW)
    for delivery in record.deliveries:
        transitions.fail(record, delivery, NOW, exhausted=True, why="503")
    transitions.conclude(record, NOW)
    await save(ledger, one)

    async def replay(letter_id: str) -> Any:
        return await ledger.replay(
            "t", ids=[letter_id], provider=None, error_code=None, now=NOW, rate_per_s=None, dry_run=False, limit=9
        )

    assert (await replay("d-0")).replayed == 1
    (again,) = await claim(ledger)
    busy = await replay("d-1")
    assert (busy.replayed, busy.skipped[0].why.startswith("another delivery")) == (0, True)
    transitions.start(again.record.deliveries[0], NOW)
    transitions.delivered(again.record, again.record.deliveries[0], Receipt(200), NOW, 1.0)
    await save(ledger, again)
    assert (await ledger.get("a")).status == "delivered"
    assert await ledger.dead_letter_count() == 0


def called_gone(record: Record) -> None:
    record.chain = ("push",)
    delivery = Delivery(f"d-{record.id}", 0, "push", "fcm", "token", due_at=NOW)
    record.deliveries.append(delivery)
    transitions.start(delivery, NOW).outcome = "recipient_gone"
    transitions.fail(record, delivery, NOW, exhausted=False, why="UNREGISTERED")
    transitions.conclude(record, NOW)


async def test_what_was_wrongly_called_gone_waits_for_its_provider(ledger: Ledger) -> None:
    await accept(ledger, "a", "busy", "late")
    claims = {one.record.id: one for one in await claim(ledger)}
    for name, one in claims.items():
        called_gone(one.record)
        assert one.record.status == "failed"
        if name == "late":
            one.record.expires_at = NOW
        await save(ledger, one, release=name != "busy", due_at=NOW + 30 if name == "busy" else None)
    verdicts = [(name, f"d-{name}") for name in ("a", "busy", "late", "unknown")]
    assert await ledger.reconsider(verdicts, now=NOW, wait_s=300) == [("busy", "d-busy")]
    assert await ledger.reconsider([("a", "d-a")], now=NOW, wait_s=300) == []
    record = await ledger.get("a")
    assert (record.status, record.deliveries[0].held, record.code) == ("queued", "credential_rejected", None)
    assert (await ledger.get("late")).status == "failed"
    assert await ledger.held() == {"fcm": 1}
    assert await claim(ledger) == []
    assert await ledger.release_held("fcm", now=NOW, limit=9) == 1
    assert [one.record.id for one in await claim(ledger)] == ["a"]
    assert (await ledger.books()).difference == 0


async def test_a_dead_letter_can_be_discarded(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger)
    exhausted(one.record)
    await save(ledger, one)
    with pytest.raises(NotFound):
        await ledger.discard("other", "d-a")
    await ledger.discard("t", "d-a")
    assert await ledger.dead_letter_count() == 0
    assert (await ledger.get("a")).status == "dead_lettered"


async def test_a_cancel_during_an_attempt_that_delivers_comes_too_late(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger)
    one.record.chain = ("sms",)
    delivery = Delivery("d", 0, "sms", "sms", "+15551234567", due_at=NOW)
    one.record.deliveries.append(delivery)
    transitions.start(delivery, NOW)
    await save(ledger, one, due_at=NOW + 30, release=False)
    await ledger.cancel("a", "t", now=NOW)
    transitions.delivered(one.record, delivery, Receipt(201), NOW, 1.0)
    await save(ledger, one)
    assert (await ledger.get("a")).status == "delivered"


async def test_pages_hold_everything_once_newest_first(ledger: Ledger) -> None:
    await accept(ledger, *(f"n-{i:02}" for i in range(25)))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await ledger.page("t", status=None, user_id="u", limit=10, cursor=cursor)
        seen += [r.id for r in page.records]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"n-{i:02}" for i in reversed(range(25))]
    assert (await ledger.page("t", status="delivered", user_id=None, limit=10, cursor=None)).records == []
    assert (await ledger.page("other", status=None, user_id=None, limit=10, cursor=None)).records == []
    with pytest.raises(Invalid):
        await ledger.page("t", status=None, user_id=None, limit=10, cursor="1; DROP TABLE notifications")


async def test_dead_letters_come_back_once(ledger: Ledger) -> None:
    await accept(ledger, "a", "b", "old", due_at=NOW)
    for one in await claim(ledger):
        exhausted(one.record)
        if one.record.id == "old":
            one.record.expires_at = NOW - 1
        assert one.record.status == "dead_lettered"
        await save(ledger, one)
    assert await ledger.dead_letter_count() == 3
    letters, cursor = await ledger.dead_letters("t", provider="sms", error_code="20500", limit=2, cursor=None)
    assert len(letters) == 2
    assert cursor is not None
    assert "+1555" not in letters[0].endpoint

    async def replay(*, dry_run: bool = False, tenant: str = "t", rate: float | None = None) -> tuple[int, int, int]:
        done = await ledger.replay(
            tenant, ids=None, provider="sms", error_code=None, now=NOW, rate_per_s=rate, dry_run=dry_run, limit=10
        )
        return done.matched, done.replayed, len(done.skipped)

    assert await replay(tenant="other") == (0, 0, 0)
    assert await replay(dry_run=True) == (3, 2, 1)
    assert await ledger.dead_letter_count() == 3
    results = await asyncio.gather(*(replay() for _ in range(10)))
    assert sum(r[1] for r in results) == 2
    assert await ledger.dead_letter_count() == 1
    await claim(ledger)
    await bury(ledger, "c", "d")
    assert await replay(rate=0.1) == (3, 2, 1)
    assert len(await claim(ledger, now=NOW)) == 1, "the second is due only ten seconds later"
    assert len(await claim(ledger, now=NOW + 10)) == 1
    assert (await ledger.books()).difference == 0


async def bury(ledger: Ledger, *ids: str, expires_at: float = NOW + 100) -> None:
    """Make each of these notifications a dead letter."""
    await accept(ledger, *ids)
    for one in await claim(ledger, limit=len(ids)):
        exhausted(one.record)
        one.record.expires_at = expires_at
        await save(ledger, one)


async def test_expired_dead_letters_do_not_stand_in_the_way_of_a_limited_replay(ledger: Ledger) -> None:
    await bury(ledger, *(f"old-{n}" for n in range(30)), expires_at=NOW - 1)
    await _leave_a_letter_that_cannot_be_replayed(ledger)
    await bury(ledger, "live-1", "live-2", "live-3")

    async def replay(limit: int, *, dry_run: bool = False, rate: float | None = None) -> Any:
        return await ledger.replay(
            "t", ids=None, provider=None, error_code=None, now=NOW, rate_per_s=rate, dry_run=dry_run, limit=limit
        )

    for dry_run in (True, False):
        done = await replay(2, dry_run=dry_run)
        assert (done.matched, done.replayed, len(done.skipped)) == (33, 2, 31)
        assert {s.why.partition(":")[0] for s in done.skipped} == {"expired", "the notification is uncertain"}
    assert {c.record.id for c in await claim(ledger)} == {"live-1", "live-2"}
    assert (await replay(2)).replayed == 1


async def _leave_a_letter_that_cannot_be_replayed(ledger: Ledger) -> None:
    """Two deliveries of one notification are dead letters; one is replayed, and its outcome stays unknown."""
    await accept(ledger, "doubted")
    (one,) = await claim(ledger)
    one.record.chain = ("push",)
    one.record.deliveries = [Delivery(f"d-{n}", 0, "push", "fcm", "token", due_at=NOW) for n in range(2)]
    for delivery in one.record.deliveries:
        transitions.start(delivery, NOW)
    for delivery in one.record.deliveries:
        transitions.fail(one.record, delivery, NOW, exhausted=True, why="503")
    transitions.conclude(one.record, NOW)
    await save(ledger, one)
    await ledger.replay(
        "t", ids=["d-0"], provider=None, error_code=None, now=NOW, rate_per_s=None, dry_run=False, limit=1
    )
    (again,) = await claim(ledger)
    transitions.start(again.record.deliveries[0], NOW)
    transitions.leave_uncertain(again.record, again.record.deliveries[0], NOW, "silence")
    transitions.conclude(again.record, NOW)
    assert again.record.status == "uncertain"
    await save(ledger, again)


async def test_what_is_skipped_is_listed_up_to_a_bound(ledger: Ledger) -> None:
    for group in range(4):
        await bury(ledger, *(f"old-{group}-{n}" for n in range(300)), expires_at=NOW - 1)
    done = await ledger.replay(
        "t", ids=None, provider=None, error_code=None, now=NOW, rate_per_s=None, dry_run=False, limit=10
    )
    assert (done.replayed, len(done.skipped)) == (0, 1_000)


async def test_dead_letters_are_discarded_by_a_filter(ledger: Ledger) -> None:
    await bury(ledger, "old-1", "old-2", "old-3", expires_at=NOW - 1)
    await bury(ledger, "live")

    async def discard(tenant: str = "t", *, dry_run: bool = False, limit: int = 10, **which: Any) -> tuple[int, int]:
        filters = {"ids": None, "provider": None, "error_code": None, "expired": False, **which}
        done = await ledger.discard_many(tenant, **filters, now=NOW, dry_run=dry_run, limit=limit)
        assert done.dry_run is dry_run
        return done.matched, done.discarded

    assert await discard(expired=True, dry_run=True) == (3, 3)
    assert await discard("other", expired=True) == (0, 0)
    assert await discard(provider="fcm") == (0, 0)
    assert await discard(provider="sms", error_code="20500", expired=True, limit=2) == (3, 2)
    assert await discard(ids=["d-live", "d-unknown"], expired=True) == (0, 0)
    assert await ledger.dead_letter_count() == 2
    assert await discard(ids=["d-live", "d-unknown"]) == (1, 1)
    assert await discard(error_code="20500") == (1, 1)
    assert await ledger.dead_letter_count() == 0
    assert (await ledger.books()).dead_lettered == 4


async def test_what_is_over_and_old_is_forgotten_from_both_sides_of_the_books(ledger: Ledger) -> None:
    await bury(ledger, "letter", expires_at=NOW + 100)
    await accept(ledger, *(f"done-{n}" for n in range(7)))
    for one in await claim(ledger):
        one.record.status = "delivered"
        one.record.note(NOW + 50 if one.record.id == "done-6" else NOW, "delivered", "fcm accepted it")
        await save(ledger, one)
    await accept(ledger, "leased", "held", "scheduled")
    claims = {one.record.id: one for one in await claim(ledger)}
    await save(ledger, claims["held"], due_at=NOW + 900, held=("fcm",))
    await save(ledger, claims["scheduled"], due_at=NOW + 9_000)
    await ledger.accept([offer("fresh", accepted_at=NOW + 50)])
    device = Device("d", "android", "fcm", "token")
    await ledger.put_device("t", "u", device, now=NOW)
    await ledger.invalidate([Tombstone("t", "u", "d", "fcm", at=NOW + 1, seen_at=NOW, because="UNREGISTERED")])

    assert await forget(ledger, before=NOW) == (0, 0)
    assert await forget(ledger, before=NOW + 20) == (7, 1)
    for gone in ("letter", "done-0"):
        with pytest.raises(NotFound):
            await ledger.get(gone)
    left = await ledger.page("t", status=None, user_id=None, limit=50, cursor=None)
    assert {record.id for record in left.records} == {"done-6", "leased", "held", "scheduled", "fresh"}
    assert await ledger.dead_letter_count() == 0
    assert await ledger.tombstones("t", limit=9) == []
    assert (await _user(ledger)).devices[0].invalidated_at == NOW + 1, "a forgotten tombstone wakes no token"
    (again,) = await ledger.accept([offer("done-0", hash_=b"another")])
    assert again.kind == "new"


async def forget(ledger: Ledger, *, before: float) -> tuple[int, int]:
    """Forget all that is old enough, three at a time; the books balance at every step."""
    notifications = tombstones = 0
    cursor: str | None = None
    while True:
        done = await ledger.forget(before=before, limit=3, cursor=cursor)
        assert done.notifications <= 3
        notifications, tombstones = notifications + done.notifications, tombstones + done.tombstones
        books = await ledger.books()
        assert (books.difference, await ledger.difference(), books.missing, books.unknown) == (0, 0, [], [])
        cursor = done.next_cursor
        if cursor is None:
            return notifications, tombstones


async def test_users_devices_and_tombstones(ledger: Ledger) -> None:
    device = Device("d", "android", "fcm", "token")
    user = User("u", email="a@example.com", devices=(RegisteredDevice(device, NOW),))
    assert await ledger.user("t", "u") is None
    await ledger.put_users("t", [user], now=NOW, keep_devices=[False])
    assert (await _user(ledger)).devices[0].device == device
    assert await ledger.user("other", "u") is None
    await ledger.put_users("t", [User("u", email="b@example.com")], now=NOW, keep_devices=[True])
    assert (await _user(ledger)).email == "b@example.com"
    assert len((await _user(ledger)).devices) == 1
    stone = Tombstone("t", "u", "d", "fcm", at=NOW + 5, seen_at=NOW + 1, because="UNREGISTERED")
    assert await ledger.invalidate([stone, stone]) == 1
    assert (await _user(ledger)).devices[0].invalidated_at == NOW + 5
    assert [s.because for s in await ledger.tombstones("t", limit=10)] == ["UNREGISTERED"]
    assert await ledger.restore("t", user_id="u", provider=None, since=0.0, now=NOW + 9) == 1
    assert (await _user(ledger)).devices[0].invalidated_at is None
    assert (await ledger.tombstones("t", limit=10))[0].restored_at == NOW + 9
    # A token that was put again after the attempt that found it gone is a new registration.
    await ledger.put_device("t", "u", device, now=NOW + 10)
    assert await ledger.invalidate([stone]) == 0
    await ledger.delete_device("t", "u", "d")
    with pytest.raises(NotFound):
        await ledger.delete_device("t", "u", "d")
    await ledger.delete_user("t", "u")
    assert await ledger.user("t", "u") is None
    with pytest.raises(NotFound):
        await ledger.delete_user("t", "u")


async def _user(ledger: Ledger) -> User:
    user = await ledger.user("t", "u")
    assert user is not None
    return user


async def test_a_user_has_only_so_many_devices(ledger: Ledger) -> None:
    for n in range(100):
        await ledger.put_device("t", "u", Device(f"d-{n}", "android", "fcm", "x"), now=NOW)
    with pytest.raises(Conflict):
        await ledger.put_device("t", "u", Device("one-more", "android", "fcm", "x"), now=NOW)
    await ledger.put_device("t", "u", Device("d-7", "android", "fcm", "y"), now=NOW)


async def test_keys_are_kept_as_hashes(ledger: Ledger) -> None:
    key = ApiKey("k", "ci", "t", ("send",), b"\x01" * 32, NOW)
    await ledger.put_key(key)
    await ledger.put_key(msgspec.structs.replace(key, revoked_at=NOW + 1))
    assert [(k.id, k.revoked_at) for k in await ledger.keys()] == [("k", NOW + 1)]
    more = [ApiKey(f"m-{n}", "ci", "t", (), bytes([n]) * 32, NOW, made_by="k") for n in range(3)]
    await ledger.put_keys(more)
    await ledger.put_keys([])
    assert [k.id for k in await ledger.keys()] == ["k", "m-0", "m-1", "m-2"]
    assert (await ledger.key("m-1"), await ledger.key("none")) == (more[1], None)


async def test_the_books_name_what_is_missing(ledger: Ledger, home: Home) -> None:
    await accept(ledger, "a", "b", "c")
    home.steal("notifications", "b")
    home.steal("accepted", "c")
    books = await ledger.books()
    assert (books.missing, books.unknown) == (["b"], ["c"])
    home.steal("notifications", "c")
    assert (await ledger.books()).difference == await ledger.difference() == 1


async def test_it_is_all_there_after_opening_again(home: Home) -> None:
    first = home.open()
    await accept(first, "a")
    await first.probe()
    await first.aclose()
    await first.aclose()
    second = home.open()
    assert (await second.get("a")).id == "a"
    assert await second.backlog(now=NOW) == (1, NOW)
    await second.aclose()


async def test_what_the_queue_brings_is_leased_to_one_who_asks(ledger: Ledger) -> None:
    await accept(ledger, "queued", owner=QUEUED, due_at=NOW + 30)
    await accept(ledger, "mine", owner="other", due_at=NOW + 30)
    await accept(ledger, "later", due_at=NOW + 30)
    await accept(ledger, "due")
    offers = [offer(i) for i in ("queued", "mine", "later", "due", "missing")]
    claims = await ledger.take_over("w", offers, now=NOW, lease_s=60)
    assert [one.record.id if one else None for one in claims] == ["queued", None, None, "due", "missing"]
    assert await ledger.take_over("x", offers, now=NOW, lease_s=60) == [None] * 5
    for one in claims:
        if one is not None:
            await save(ledger, one)
    assert (await ledger.books()).accepted == 5
    assert {one.record.id for one in await claim(ledger, now=NOW + 100)} == {"later", "mine"}
    assert (await ledger.books()).difference == 0


async def test_many_who_are_brought_the_same_get_it_once(ledger: Ledger) -> None:
    await accept(ledger, "a", owner=QUEUED, due_at=NOW + 30)
    offers = [offer("a"), offer("b")]
    results = await asyncio.gather(*(ledger.take_over(f"w{n}", offers, now=NOW, lease_s=60) for n in range(10)))
    for at in range(2):
        assert sum(1 for claims in results if claims[at] is not None) == 1


async def test_what_the_queue_does_not_bring_in_time_is_claimed(ledger: Ledger) -> None:
    await accept(ledger, "a", owner=QUEUED, due_at=NOW + 30)
    assert await claim(ledger) == []
    (one,) = await claim(ledger, now=NOW + 30)
    assert one.record.id == "a"
    assert await ledger.take_over("w", [offer("a")], now=NOW + 31, lease_s=60) == [None]


def done_elsewhere(record: Record, *, at: float = NOW) -> Account:
    """The account of a worker that delivered while the ledger was away."""
    delivery = Delivery(f"d-{record.id}", 0, "sms", "sms", "+15551234567", due_at=NOW)
    record.chain = ("sms",)
    record.deliveries.append(delivery)
    transitions.start(delivery, at)
    transitions.delivered(record, delivery, Receipt(201), at, 5.0)
    return Account(record, b"h", transitions.due_at(record))


async def test_what_was_done_while_it_was_away_is_taken_in_once(ledger: Ledger) -> None:
    await accept(ledger, "there", owner=QUEUED, due_at=NOW + 30)
    accounts = [done_elsewhere(offer(i).record) for i in ("there", "missing")]
    for _ in range(2):
        await ledger.absorb(accounts, now=NOW)
    for one in ("there", "missing"):
        record = await ledger.get(one)
        assert (record.status, len(record.deliveries[0].attempts)) == ("delivered", 1)
    books = await ledger.books()
    assert (books.accepted, books.delivered, books.difference, books.possible_duplicates) == (2, 2, 0, 0)
    assert await claim(ledger, now=NOW + 10_000) == []


async def test_what_was_done_twice_because_nobody_knew_is_counted(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger)
    twice = done_elsewhere(one.record, at=NOW + 5)
    await save(ledger, one)
    await ledger.absorb([done_elsewhere(offer("a").record)], now=NOW + 6)
    books = await ledger.books()
    assert (books.delivered, books.difference, books.possible_duplicates) == (1, 0, 1)
    assert len((await ledger.get("a")).deliveries[0].attempts) == 2
    assert twice.record.status == "delivered"


async def test_an_attempt_under_way_elsewhere_comes_due_when_it_must_have_ended(ledger: Ledger) -> None:
    record = offer("a").record
    record.chain = ("sms",)
    record.deliveries.append(Delivery("d-a", 0, "sms", "sms", "+15551234567", due_at=NOW))
    transitions.start(record.deliveries[0], NOW)
    await ledger.absorb([Account(record, b"h", NOW + 60)], now=NOW)
    assert await claim(ledger, now=NOW + 59) == []
    assert len(await claim(ledger, now=NOW + 60)) == 1


async def test_whoever_works_on_what_is_taken_in_loses_its_lease(ledger: Ledger) -> None:
    await accept(ledger, "a")
    (one,) = await claim(ledger)
    await ledger.absorb([done_elsewhere(offer("a").record)], now=NOW)
    with pytest.raises(LeaseLost):
        await save(ledger, one)


async def test_it_is_as_before_after_a_reconnection(ledger: Ledger) -> None:
    await ledger.accept([offer("a")])
    writing = asyncio.gather(*(ledger.accept([offer(f"w-{n}")]) for n in range(20)), return_exceptions=True)
    await ledger.reconnect()
    await writing
    await ledger.accept([offer("b")])
    await ledger.probe()
    assert {(await ledger.get(name)).id for name in ("a", "b")} == {"a", "b"}
    assert (await ledger.books()).difference == 0
