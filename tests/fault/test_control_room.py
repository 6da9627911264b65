"""What operating has to remember finds room on a disk that has none: that it is full has to be told."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import SystemClock
from bellbuoy.errors import Full
from bellbuoy.model.operation import Issue
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.service.drills.small_disk import fill
from tests.support.flow import RecordingTelemetry

pytestmark = pytest.mark.fault


async def test_incidents_are_kept_on_a_full_disk(disk: Path) -> None:
    clock = SystemClock()
    store = SqliteControlStore(disk / "control.db", clock=clock)
    incidents = Incidents(store, store, clock=clock, rng=Random(1), telemetry=RecordingTelemetry())
    fill(disk / "ballast")
    issue = Issue("disk_full", "disk", "no room", clock.time())
    opened = 0
    try:
        for _ in range(2_000):
            one = await incidents.open(issue, first_after_s=None)
            await incidents.acknowledge(one.id, by="somebody")
            opened += 1
    except Full:
        pass
    assert opened >= 200
    assert len(await incidents.all(limit=500)) == min(opened, 500)
    (disk / "ballast").unlink()
    await incidents.open(issue, first_after_s=None)
    await store.aclose()
