"""What is measured before and since a change that a process hears of late."""

from __future__ import annotations

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.model.change import Figures
from bellbuoy.service.measures import REMEMBERED_S, ServiceMeasures
from bellbuoy.service.telemetry import ServiceTelemetry


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_harm_at_once_counts_as_after_the_change_for_one_that_hears_of_it_late(clock: ManualClock) -> None:
    telemetry = ServiceTelemetry(clock)
    measures = ServiceMeasures(telemetry, clock=clock)
    telemetry.measured("fcm", 0.1, failed=False, calls=50)
    measures.remember()
    await clock.advance(0.5)
    changed_at = clock.time()
    await clock.advance(0.1)
    telemetry.measured("fcm", 0.1, failed=True, calls=5)
    await clock.advance(0.4)
    measures.remember()
    before = measures.before(changed_at)
    assert before is not None
    assert (before["fcm"].calls, before["fcm"].failures) == (50, 0)
    measures.begin("c", changed_at, 120.0)
    measures.begin("c", changed_at, 120.0)
    telemetry.measured("fcm", 0.1, failed=True)
    assert (measures.since("c")["fcm"].calls, measures.since("c")["fcm"].failures) == (6, 6)
    measures.end("c")
    measures.end("c")
    assert measures.since("c") == {}


async def test_what_was_too_long_ago_is_not_remembered(clock: ManualClock) -> None:
    telemetry = ServiceTelemetry(clock)
    measures = ServiceMeasures(telemetry, clock=clock)
    assert measures.before(clock.time()) is None, "it was not there"
    changed_at = clock.time()
    telemetry.measured("fcm", 0.1, failed=True, calls=5)
    measures.remember()
    for _ in range(int(REMEMBERED_S) + 2):
        await clock.advance(1.0)
        measures.remember()
    assert measures.before(changed_at) is None
    measures.begin("c", changed_at, 120.0)
    assert measures.since("c") == {}


async def test_the_watch_forgets_nothing_until_its_end(clock: ManualClock) -> None:
    telemetry = ServiceTelemetry(clock)
    measures = ServiceMeasures(telemetry, clock=clock)
    measures.begin("c", clock.time(), 120.0)
    telemetry.measured("sms", 1.0, failed=False, calls=7)
    await clock.advance(120.0)
    assert measures.since("c")["sms"].calls == 7
    assert measures.now() == {}, "while the health's window has"
    assert isinstance(measures.since("c")["sms"], Figures)
