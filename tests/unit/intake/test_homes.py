"""A notification is safe in one home or the other, found in either, and in the ledger once in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.errors import Full, NotFound, StoreError, Unavailable
from tests.support.house import AWAY, House


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    yield made
    await made.homes.aclose()


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
    await house.healing.heal()
    (again,) = await house.homes.accept([house.offer("a")])
    assert (again.kind, again.record.homes) == ("same", ("journal",))


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
