"""A notification is safe in one home or the other, found in either, and in the ledger once in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.journal import FileJournal, claim_folder
from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Full, NotFound, StoreError, Unavailable
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient
from bellbuoy.ports.ledger import Offer
from bellbuoy.resilience import MONGODB, CircuitBreaker
from bellbuoy.service.watch import WatchedLedger
from tests.support.flow import RecordingTelemetry


class Breakable:
    """A ledger that fails when it is told to."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.failure: StoreError | None = None
        self.hang = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def accept(self, offers: Sequence[Offer]) -> Any:
        if self.hang:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return await self.ledger.accept(offers)


class House:
    def __init__(self, path: Path, kept_max: int = 1_000) -> None:
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.ledger = Breakable(SqliteLedger(path / "ledger.db", clock=self.clock, inline=True))
        self.journal = FileJournal(path / "journal", bytes_max=100_000)
        self.nudges = 0
        self.homes = Homes(
            WatchedLedger(self.ledger, clock=self.clock, breaker=CircuitBreaker("ledger", MONGODB, clock=self.clock)),
            Kept(self.journal, kept_max=kept_max, clock=self.clock),
            settings=HomesSettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.homes.nudge = self.nudged

    def nudged(self) -> None:
        self.nudges += 1

    def offer(self, name: str, body: bytes = b"h") -> Offer:
        now = self.clock.time()
        request = Request(recipient=Recipient(email="a@example.com"), content=Content(title="t"))
        record = Record(id=name, tenant="default", request=request, accepted_at=now, expires_at=now + 60)
        return Offer(record, body, now + 60.0, "w-1")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    yield made
    await made.homes.aclose()


AWAY = Unavailable("away")


async def test_the_ledger_alone_has_it_when_it_is_well(house: House) -> None:
    (taken,) = await house.homes.accept([house.offer("a")])
    assert (taken.kind, taken.record.homes) == ("new", ("ledger",))
    assert house.journal.state().pending == 0


@pytest.mark.parametrize(("failure", "issue"), [(AWAY, "database_down"), (Full("full"), "disk_full")])
async def test_the_journal_has_it_when_the_ledger_is_away(house: House, failure: StoreError, issue: str) -> None:
    house.ledger.failure = failure
    first, second = await house.homes.accept([house.offer("a"), house.offer("b")])
    assert (first.kind, first.record.homes) == ("new", ("journal",))
    assert second.kind == "new"
    assert house.journal.state().pending == 1  # One entry, so that it is all or none.
    assert (await house.homes.get("a")).id == "a"
    assert (await house.homes.get("a", "default")).id == "a"
    with pytest.raises(NotFound):
        await house.homes.get("a", "other")
    assert list(house.telemetry.issues) == [(issue, "homes")]


async def test_a_ledger_that_hangs_is_left_after_its_time(house: House) -> None:
    house.ledger.hang = True
    accepting = asyncio.create_task(house.homes.accept([house.offer("a")]))
    await house.clock.advance(5.1)
    (taken,) = await accepting
    assert taken.record.homes == ("journal",)


async def test_it_goes_to_the_ledger_once(house: House) -> None:
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a")])
    with pytest.raises(Unavailable):
        await house.homes.heal()
    assert len(house.homes.kept) == 1
    house.ledger.failure = None
    assert await house.homes.heal() == 1
    assert len(house.homes.kept) == house.journal.state().pending == 0
    assert house.nudges == 1
    record = await house.homes.get("a")
    assert record.homes == ("journal",)
    (claim,) = await house.homes.claim("w-2", now=house.clock.time(), lease_s=60.0, limit=10)
    assert claim.record.id == "a"  # Nobody had taken it over, so it is due at once.
    assert (await house.homes.books()).difference == 0
    assert not house.telemetry.issues


async def test_what_is_repeated_after_a_crash_is_there_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a")])
    house.ledger.failure = None

    async def crash(_number: int) -> None:
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(house.journal, "take_off", crash)
        with pytest.raises(RuntimeError):
            await house.homes.heal()
    await house.homes.heal()
    assert (await house.homes.books()).accepted == 1


async def test_one_key_is_one_notification_while_the_ledger_is_away(house: House) -> None:
    house.ledger.failure = AWAY
    results = await asyncio.gather(*(house.homes.accept([house.offer("a")]) for _ in range(50)))
    assert sorted(taken.kind for (taken,) in results) == ["new"] + ["same"] * 49
    assert house.journal.state().pending == 1
    (other,) = await house.homes.accept([house.offer("a", b"another body")])
    assert other.kind == "other"
    house.ledger.failure = None
    await house.clock.advance(30.0)  # The breaker lets it be tried again.
    mixed = await house.homes.accept([house.offer("a"), house.offer("b"), house.offer("a", b"x")])
    assert [taken.kind for taken in mixed] == ["same", "new", "other"]
    await house.homes.heal()
    (again,) = await house.homes.accept([house.offer("a")])
    assert (again.kind, again.record.homes) == ("same", ("journal",))


async def test_one_key_that_two_cut_off_nodes_took_is_one_notification(house: House) -> None:
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a", b"here")])
    house.ledger.failure = None
    await house.ledger.ledger.accept([house.offer("a", b"there")])
    await house.homes.heal()
    books = await house.homes.books()
    assert (books.accepted, books.difference) == (1, 0)
    assert "idempotency_conflict" in [name for name, _ in house.telemetry.events]


async def test_with_no_home_left_nothing_is_accepted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.ledger.failure = AWAY

    async def full(_data: bytes) -> int:
        raise Full("no room")

    with monkeypatch.context() as patch:
        patch.setattr(house.journal, "append", full)
        results = await asyncio.gather(
            *(house.homes.accept([house.offer("a")]) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, Unavailable) for result in results), results
        assert not house.homes.kept.ready()
    assert len(house.homes.kept) == 0
    with pytest.raises(NotFound):
        await house.homes.get("a")
    await house.homes.accept([house.offer("a")])
    assert house.homes.kept.ready()


async def test_that_there_is_room_again_is_found_although_nobody_sends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = asyncio.create_task(house.homes.run())
    house.ledger.failure = Full("no room")

    async def full(_data: bytes) -> int:
        raise Full("no room")

    with monkeypatch.context() as patch:
        patch.setattr(house.journal, "append", full)
        with pytest.raises(Full):
            await house.homes.accept([house.offer("a")])
    assert list(house.telemetry.issues) == [("disk_full", "homes")]
    house.ledger.failure = None
    async with asyncio.timeout(10):
        while house.telemetry.issues:
            await house.clock.advance(1.0)
            await asyncio.sleep(0.001)
    running.cancel()


async def test_it_keeps_no_more_than_it_may(tmp_path: Path) -> None:
    house = House(tmp_path, kept_max=2)
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a"), house.offer("b")])
    with pytest.raises(Unavailable):
        await house.homes.accept([house.offer("c")])
    await house.homes.aclose()


async def test_a_client_that_goes_away_takes_nothing_with_it(house: House) -> None:
    house.ledger.failure = AWAY
    first = asyncio.create_task(house.homes.accept([house.offer("a")]))
    await asyncio.sleep(0)
    second = asyncio.create_task(house.homes.accept([house.offer("a")]))
    await asyncio.sleep(0)
    first.cancel()
    (taken,) = await second
    assert taken.kind in ("same", "new")
    assert (await house.homes.get("a")).id == "a"


async def test_the_loop_heals_and_waits_for_more(house: House) -> None:
    running = asyncio.create_task(house.homes.run())
    house.ledger.failure = AWAY
    for name in ("a", "b"):
        await house.homes.accept([house.offer(name)])
        await house.clock.advance(3.0)
        assert len(house.homes.kept) == 1
        house.ledger.failure = None
        async with asyncio.timeout(5):
            while len(house.homes.kept):
                await house.clock.advance(1.0)
                await asyncio.sleep(0.001)
        house.ledger.failure = AWAY
    assert (await house.homes.books()).accepted == 2
    running.cancel()


async def test_what_ended_processes_left_is_found_and_healed(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a")])
    await house.homes.aclose()
    own, lock, left = claim_folder(tmp_path)
    assert (own, left) == (tmp_path / "0", [])
    lock.close()
    (tmp_path / "journal").rename(tmp_path / "1")
    own, lock, left = claim_folder(tmp_path)
    assert [folder for folder, _ in left] == [tmp_path / "1"]
    again, other_lock, none = claim_folder(tmp_path)
    assert (again, none) == (tmp_path / "2", [])
    clock = ManualClock()
    homes = Homes(
        SqliteLedger(tmp_path / "ledger.db", clock=clock, inline=True),
        Kept(FileJournal(own), left=[FileJournal(folder) for folder, _ in left], clock=clock),
        settings=HomesSettings(),
        clock=clock,
        telemetry=RecordingTelemetry(),
    )
    await homes.load()
    assert (await homes.get("a")).id == "a"
    assert await homes.heal() == 1
    assert (await homes.books()).accepted == 1
    await homes.aclose()
    for one in (lock, other_lock, *(held for _, held in left)):
        one.close()


async def test_what_could_not_be_read_back_is_told_and_the_rest_is_healed(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.ledger.failure = AWAY
    for name in ("a", "b", "c"):
        await house.homes.accept([house.offer(name)])
    await house.homes.aclose()
    [segment] = (tmp_path / "journal").glob("*.log")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    again = House(tmp_path)
    await again.homes.load()
    told = ("journal_damaged", {"count": 1, "files": [f"journal/{segment.stem}.damaged"]})
    assert told in again.telemetry.events
    assert ("journal_damaged", "journal") in again.telemetry.issues
    assert await again.homes.heal() == 2
    assert {(await again.homes.get(name)).id for name in ("a", "c")} == {"a", "c"}
    await again.homes.aclose()
