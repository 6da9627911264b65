"""What only the journal has comes to the ledger once it is back, once, and whoever kept it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.adapters.journal import FileJournal, claim_folder
from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Full, Unavailable
from bellbuoy.intake.heal import Healing, HealingSettings
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from tests.support.flow import RecordingTelemetry
from tests.support.house import AWAY, House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    yield made
    await made.homes.aclose()


async def test_it_goes_to_the_ledger_once(house: House) -> None:
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a")])
    with pytest.raises(Unavailable):
        await house.healing.heal()
    assert len(house.homes.kept) == 1
    house.ledger.failure = None
    assert await house.healing.heal() == 1
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
            await house.healing.heal()
    await house.healing.heal()
    assert (await house.homes.books()).accepted == 1


async def test_one_key_that_two_cut_off_nodes_took_is_one_notification(house: House) -> None:
    house.ledger.failure = AWAY
    await house.homes.accept([house.offer("a", b"here")])
    house.ledger.failure = None
    await house.ledger.ledger.accept([house.offer("a", b"there")])
    await house.healing.heal()
    books = await house.homes.books()
    assert (books.accepted, books.difference) == (1, 0)
    assert "idempotency_conflict" in [name for name, _ in house.telemetry.events]


async def test_that_there_is_room_again_is_found_although_nobody_sends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = asyncio.create_task(house.healing.run())
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


async def test_the_loop_heals_and_waits_for_more(house: House) -> None:
    running = asyncio.create_task(house.healing.run())
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
    healing = Healing(homes, settings=HealingSettings(), clock=clock, telemetry=RecordingTelemetry())
    await healing.load()
    assert (await homes.get("a")).id == "a"
    assert await healing.heal() == 1
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
    await again.healing.load()
    told = ("journal_damaged", {"count": 1, "files": [f"journal/{segment.stem}.damaged"]})
    assert told in again.telemetry.events
    assert ("journal_damaged", "journal") in again.telemetry.issues
    assert await again.healing.heal() == 2
    assert {(await again.homes.get(name)).id for name in ("a", "c")} == {"a", "c"}
    await again.homes.aclose()
