"""Flags as a process knows them: from the store, pushed, held off by a mode, and without either store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from bellbuoy.adapters.control_values import ControlValues
from bellbuoy.adapters.memory_shared import MemoryFlags
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Unavailable
from bellbuoy.health.flags import FOLLOW_S, REFRESH_S, Flags
from bellbuoy.model.change import Valued, ValueKind, changed
from bellbuoy.ports.shared import FlagStore
from tests.support.flow import RecordingTelemetry


class AwayValues(ControlValues):
    """Values whose store can be away."""

    away = False

    async def all(self, kind: ValueKind) -> Sequence[Valued]:
        if self.away:
            raise Unavailable("away")
        return await super().all(kind)


class AwayFlags:
    """A Redis that is away."""

    async def read(self) -> Mapping[str, bool]:
        raise Unavailable("away")

    async def write(self, name: str, on: bool | None) -> None:
        raise Unavailable("away")

    def listen(self, changed: Callable[[], None]) -> None:
        """Nothing is ever heard."""


class World:
    """Processes that share a store."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.store = SqliteControlStore(path / "control.db", clock=self.clock, inline=True)
        self.values = AwayValues(self.store)
        self.shared: FlagStore = MemoryFlags()
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, *, pushed: bool) -> Flags:
        flags = Flags(self.values, self.shared, pushed=pushed, clock=self.clock, telemetry=self.telemetry)
        self.tasks.append(asyncio.create_task(flags.run()))
        await self.clock.advance(0.0)
        return flags

    async def set(self, name: str, on: bool) -> None:
        """Another process sets a flag in the store, and tells nobody."""
        await self.values.change("flag", name, lambda v: changed(v, on, at=1.0, by="k", watched=False))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await world.store.aclose()


async def test_what_nobody_has_set_is_off(world: World) -> None:
    flags = await world.start(pushed=False)
    assert not flags.is_on("email_fallback")
    assert not flags.is_on("whatever")
    assert flags.on() == set()
    assert [one.name for one in flags.listing()] == ["analytics_tracking", "email_fallback", "sms_fallback"]


async def test_without_a_push_a_flag_is_followed_within_a_second(world: World) -> None:
    flags = await world.start(pushed=False)
    await world.set("email_fallback", True)
    await world.clock.advance(FOLLOW_S)
    assert flags.on() == {"email_fallback"}


async def test_a_push_is_followed_at_once_and_a_lost_one_within_half_a_minute(world: World) -> None:
    one, other = await world.start(pushed=True), await world.start(pushed=True)
    await world.set("email_fallback", True)
    await one.changed("email_fallback", True)
    await world.clock.advance(0.0)
    assert other.is_on("email_fallback")
    await world.set("sms_fallback", True)
    await world.clock.advance(REFRESH_S - 1.0)
    assert not other.is_on("sms_fallback")
    await world.clock.advance(1.0)
    assert other.is_on("sms_fallback")


async def test_what_was_known_last_stays_while_the_store_is_away(world: World) -> None:
    flags = await world.start(pushed=False)
    await world.set("email_fallback", True)
    await world.clock.advance(FOLLOW_S)
    world.values.away = True
    await world.clock.advance(60.0)
    assert flags.is_on("email_fallback")
    assert "flags_not_read" in world.telemetry.names()
    world.values.away = False
    await world.set("email_fallback", False)
    await world.clock.advance(FOLLOW_S)
    assert not flags.is_on("email_fallback")


async def test_at_the_start_without_the_store_the_shared_flags_have_to_do(world: World) -> None:
    world.values.away = True
    await world.shared.write("sms_fallback", True)
    flags = await world.start(pushed=True)
    assert flags.on() == {"sms_fallback"}
    assert "sms_fallback" in [one.name for one in flags.listing()]


async def test_with_neither_all_are_off(world: World) -> None:
    world.values.away, world.shared = True, AwayFlags()
    flags = await world.start(pushed=True)
    assert flags.on() == set()
    world.values.away = False
    await world.set("sms_fallback", True)
    await world.clock.advance(REFRESH_S)
    assert flags.on() == {"sms_fallback"}
    await flags.changed("sms_fallback", True)
    assert flags.on() == {"sms_fallback"}, "who cannot be told looks for itself"


async def test_a_mode_holds_a_flag_off_without_changing_it(world: World) -> None:
    flags = await world.start(pushed=False)
    told: list[bool] = []
    flags.on_change.append(lambda: told.append(flags.is_on("analytics_tracking")))
    await world.set("analytics_tracking", True)
    await world.clock.advance(FOLLOW_S)
    flags.heed({"analytics_off", "small_batches"})
    flags.heed({"analytics_off"})
    assert flags.is_set("analytics_tracking")
    assert not flags.is_on("analytics_tracking")
    assert flags.on() == set()
    flags.heed(set())
    assert told == [True, False, True]
    because = [fields["because"] for name, fields in world.telemetry.events if name == "feature_flag_updated"]
    assert because == ["analytics_off", "mode_ended"]


async def test_a_mode_says_nothing_of_a_flag_that_is_off(world: World) -> None:
    flags = await world.start(pushed=False)
    flags.heed({"analytics_off"})
    flags.heed(set())
    assert "feature_flag_updated" not in world.telemetry.names()
