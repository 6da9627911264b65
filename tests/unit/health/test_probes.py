"""Probes: what an answer, an error and silence mean."""

from __future__ import annotations

import asyncio

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import Full, Unavailable
from bellbuoy.health.probes import GIVE_UP_S, Probe, ProbeSettings


class Dependency:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.asked = 0
        self.cancelled = 0

    async def ask(self) -> None:
        self.asked += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def probe_of(dependency: Dependency, clock: ManualClock, **more: object) -> Probe:
    return Probe(
        "it",
        dependency.ask,
        is_down=lambda error: not isinstance(error, Full),
        settings=ProbeSettings(0.5, 1.0),
        clock=clock,
        **more,  # type: ignore[arg-type]
    )


async def test_before_the_first_answer_nothing_is_known(clock: ManualClock) -> None:
    assert probe_of(Dependency(), clock).looks_bad(clock.monotonic()) is None


async def test_an_answer_is_good_and_an_error_bad_but_not_one_that_says_no(clock: ManualClock) -> None:
    dependency = Dependency()
    probe = probe_of(dependency, clock)
    await probe.once()
    assert probe.looks_bad(clock.monotonic()) is False
    dependency.error = Unavailable("away")
    await probe.once()
    assert (probe.looks_bad(clock.monotonic()), probe.failure) == (True, "store_unavailable")
    dependency.error = Full("no room")
    await probe.once()
    assert probe.looks_bad(clock.monotonic()) is False


async def test_silence_is_bad_after_its_time_and_given_up_after_a_longer_one(clock: ManualClock) -> None:
    dependency = Dependency()
    probe = probe_of(dependency, clock)
    running = asyncio.create_task(probe.run())
    await clock.advance(0.1)
    assert probe.looks_bad(clock.monotonic()) is False
    dependency.gate = asyncio.Event()
    await clock.advance(0.5)
    assert probe.looks_bad(clock.monotonic()) is False
    await clock.advance(1.0)
    assert probe.looks_bad(clock.monotonic()) is True
    await clock.advance(GIVE_UP_S)
    assert dependency.cancelled == 1
    assert (probe.looks_bad(clock.monotonic()), probe.failure) == (True, "no_answer")
    dependency.gate.set()
    await clock.advance(1.0)
    assert probe.looks_bad(clock.monotonic()) is False
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_it_asks_at_its_interval_and_not_while_traffic_tells(clock: ManualClock) -> None:
    dependency, busy = Dependency(), False
    probe = probe_of(dependency, clock, spared=lambda: busy)
    running = asyncio.create_task(probe.run())
    for _ in range(20):
        await clock.advance(0.5)
    assert 20 <= dependency.asked <= 22
    busy, before = True, dependency.asked
    dependency.error = Unavailable("away")
    for _ in range(20):
        await clock.advance(0.5)
    assert dependency.asked == before
    assert probe.looks_bad(clock.monotonic()) is False
    running.cancel()


async def test_a_probe_that_is_cancelled_cancels_what_it_asked(clock: ManualClock) -> None:
    dependency = Dependency()
    dependency.gate = asyncio.Event()
    running = asyncio.create_task(probe_of(dependency, clock).run())
    await clock.advance(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    assert dependency.cancelled == 1
