"""Locks over a control store, by clocks that do not agree."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.adapters.control_locks import ControlLocks
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock


class World:
    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.store = SqliteControlStore(path, clock=self.clock)
        self.locks = ControlLocks(self.store, clock=self.clock)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "control.db")
    yield made
    await made.store.aclose()


async def test_one_has_the_lock_until_its_lease_ends(world: World) -> None:
    first = await world.locks.acquire("x", "one", lease_s=60.0)
    assert first is not None
    await world.clock.advance(59)
    assert await world.locks.acquire("x", "two", lease_s=60.0) is None
    assert await world.locks.renew(first, lease_s=60.0)
    await world.clock.advance(59)
    assert await world.locks.acquire("x", "two", lease_s=60.0) is None
    await world.clock.advance(2)
    second = await world.locks.acquire("x", "two", lease_s=60.0)
    assert second is not None
    assert second.fence > first.fence
    assert not await world.locks.renew(first, lease_s=60.0)
    assert not await world.locks.release(first)
    assert await world.locks.release(second)
    assert not await world.locks.release(second)


async def test_a_clock_that_is_ahead_for_a_moment_leaves_no_lock_behind(world: World) -> None:
    lock = await world.locks.acquire("x", "one", lease_s=60.0)
    assert lock is not None
    world.clock.jump(601.0)
    assert not await world.locks.release(lock), "its time was over by then"
    world.clock.jump(-601.0)
    assert await world.locks.acquire("x", "two", lease_s=60.0) is not None


async def test_a_lease_that_a_clock_which_was_ahead_wrote_holds_up_nobody(world: World) -> None:
    world.clock.jump(601.0)
    assert await world.locks.acquire("x", "ended meanwhile", lease_s=60.0) is not None
    world.clock.jump(-601.0)
    assert await world.locks.acquire("x", "two", lease_s=60.0) is not None


async def test_a_clock_that_is_ahead_by_less_than_a_lease_is_believed(world: World) -> None:
    world.clock.jump(50.0)
    assert await world.locks.acquire("x", "one", lease_s=60.0) is not None
    world.clock.jump(-50.0)
    assert await world.locks.acquire("x", "two", lease_s=60.0) is None
