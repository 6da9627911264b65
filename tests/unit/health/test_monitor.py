"""The monitor: signs become issues, issues become modes, and whoever listens is told once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.health.hysteresis import Patience
from bellbuoy.health.mode import MODES, MODES_OF, modes_of
from bellbuoy.health.monitor import LOG_NAMES, Monitor, Sign
from bellbuoy.health.pins import Pins
from tests.support.flow import RecordingTelemetry


class World:
    """A monitor over signs that the test sets."""

    def __init__(self) -> None:
        self.signs: list[Sign] = []
        self.flags: set[str] = set()
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.monitor = Monitor(
            [self._all],
            patience=Patience(enter_looks=3, leave_s=5.0),
            interval_s=0.4,
            flags=lambda: frozenset(self.flags),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.changes = 0
        self.monitor.on_change.append(self._changed)

    def _all(self, now: float) -> Iterator[Sign]:
        yield from self.signs

    def _changed(self) -> None:
        self.changes += 1

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.monitor.step()
            await self.clock.advance(0.4)

    def told(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.telemetry.events if event == name]


@pytest.fixture
def world() -> World:
    return World()


async def test_an_issue_brings_its_modes_and_its_name_in_the_log(world: World) -> None:
    world.signs = [Sign("database_down", "ledger", True, "it is gone")]
    await world.look(2)
    assert (world.monitor.issues, dict(world.monitor.modes)) == ([], {})
    await world.look()
    assert world.monitor.issues == ["database_down"]
    assert set(world.monitor.modes) == {"read_only", "cache_only", "write_queue"}
    assert world.told("database_failure") == [{"service": "ledger", "why": "it is gone"}]
    assert [e["mode"] for e in world.told("degraded_mode_active")] == ["cache_only", "read_only", "write_queue"]
    assert world.telemetry.issues["database_down", "ledger"].detail == "it is gone"
    assert world.changes == 1


async def test_it_is_left_once_it_has_been_clean_and_that_is_told(world: World) -> None:
    world.signs = [Sign("apns_down", "apns", True, certain=True)]
    await world.look()
    assert set(world.monitor.modes) == {"hold_ios", "external_service_down"}
    world.signs = [Sign("apns_down", "apns", False)]
    await world.look(13)
    assert set(world.monitor.modes) == {"hold_ios", "external_service_down"}
    await world.look()
    assert (dict(world.monitor.modes), world.telemetry.issues) == ({}, {})
    assert {e["mode"]: e["lasted_s"] for e in world.told("degraded_mode_ended")} == {
        "external_service_down": pytest.approx(5.6, abs=0.5),
        "hold_ios": pytest.approx(5.6, abs=0.5),
    }
    assert world.changes == 2


async def test_what_is_no_longer_said_is_good_again(world: World) -> None:
    world.signs = [Sign("disk_full", "writes", True, certain=True)]
    await world.look()
    assert "disk_full" in world.monitor.modes
    world.signs = []
    await world.look(15)
    assert dict(world.monitor.modes) == {}


async def test_of_two_sources_the_graver_counts(world: World) -> None:
    world.signs = [
        Sign("fcm_down", "fcm", False, "its probe"),
        Sign("fcm_down", "fcm", True, "its breaker is open", certain=True),
        Sign("fcm_down", "fcm", None, "its meter"),
    ]
    await world.look()
    assert world.monitor.active == [("fcm_down", "fcm")]
    assert world.told("external_service_failure") == [{"service": "fcm", "why": "its breaker is open"}]


async def test_a_mode_stays_while_one_of_two_issues_does(world: World) -> None:
    both = [Sign("fcm_down", "fcm", True, certain=True), Sign("smtp_down", "smtp", True, certain=True)]
    world.signs = both
    await world.look()
    assert world.monitor.modes["external_service_down"] == ("fcm_down", "smtp_down")
    world.signs = both[1:]
    await world.look(15)
    assert dict(world.monitor.modes) == {"external_service_down": ("smtp_down",)}


async def test_flags_bring_their_modes_only_while_fcm_is_down(world: World) -> None:
    world.flags = {"email_fallback"}
    await world.look()
    assert dict(world.monitor.modes) == {}
    world.signs = [Sign("fcm_down", "fcm", True, certain=True)]
    await world.look()
    assert "email_fallback" in world.monitor.modes
    world.flags = set()
    await world.look()
    assert "email_fallback" not in world.monitor.modes


ISSUES = sorted(MODES_OF)


@given(st.lists(st.frozensets(st.sampled_from(ISSUES)), max_size=8), st.frozensets(st.sampled_from(ISSUES)))
async def test_in_whatever_order_issues_come_and_go_it_ends_in_the_same_place(
    path: list[frozenset[str]], end: frozenset[str]
) -> None:
    world = World()
    for issues in [*path, end]:
        world.signs = [Sign(issue, "x", True, certain=True) for issue in sorted(issues)]
        await world.look()
    # The longest clean while that so many relapses can ask for.
    await world.clock.advance(1.0)
    world.monitor.step()
    await world.clock.advance(5.0 * 2 ** len(path) + 1.0)
    await world.look()
    assert dict(world.monitor.modes) == modes_of(end, frozenset(), {})


async def test_a_source_that_fails_does_not_blind_the_monitor_for_ever(world: World) -> None:
    def broken(now: float) -> Iterator[Sign]:
        raise RuntimeError("a defect")
        yield

    world.monitor._sources.append(broken)
    running = asyncio.create_task(world.monitor.run())
    await world.clock.advance(0.4)
    assert world.told("health_failed")
    world.monitor._sources.remove(broken)
    world.signs = [Sign("sms_down", "sms", True, certain=True)]
    await world.clock.advance(0.4)
    assert world.monitor.issues == ["sms_down"]
    running.cancel()


async def test_the_listing_names_every_mode(world: World) -> None:
    world.signs = [Sign("sms_down", "sms", True, certain=True)]
    await world.look()
    listing = {mode.name: mode for mode in world.monitor.listing()}
    assert tuple(listing) == MODES
    assert listing["external_service_down"].active
    assert listing["external_service_down"].because == ("sms_down",)
    assert listing["external_service_down"].since is not None
    assert not listing["read_only"].active


async def test_pins_are_kept_and_followed_by_other_processes(world: World, tmp_path: Path) -> None:
    other = World()
    store = SqliteControlStore(tmp_path / "control.db", clock=world.clock)
    ours, theirs = (Pins(store, one.monitor, clock=world.clock, telemetry=one.telemetry) for one in (world, other))
    await ours.set("read_only", True, by="ann")
    await theirs.set("hold_ios", False, by="ben")
    assert world.told("mode_pinned") == [{"mode": "read_only", "pinned": True, "key": "ann"}]
    await ours.load()
    assert world.monitor.pins == other.monitor.pins == {"read_only": True, "hold_ios": False}
    assert set(world.monitor.modes) == {"read_only"}
    world.signs = [Sign("apns_down", "apns", True, certain=True)]
    await world.look()
    assert set(world.monitor.modes) == {"read_only", "external_service_down"}
    await ours.set("hold_ios", None, by="ann")
    assert set(world.monitor.modes) == {"read_only", "external_service_down", "hold_ios"}
    await store.aclose()


def test_what_begins_has_its_name_in_the_log() -> None:
    assert {"database_failure", "messagequeue_failure", "external_service_failure"} <= set(LOG_NAMES.values())
    assert {"high_latency_detected", "memory_pressure"} <= set(LOG_NAMES.values())
