from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.delivery.retention import Retention, RetentionSettings
from bellbuoy.errors import NotFound
from tests.support.flow import Flow, to_email

DAY_S = 86_400.0


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Flow]:
    async with Flow(tmp_path) as running:
        yield running


async def test_what_is_over_goes_after_its_time_and_a_defect_does_not_stop_it(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = [await flow.send(to_email(), f"key-{n}") for n in range(7)]
    later = await flow.send(to_email(send_at="2027-02-15T08:00:00Z"))
    await flow.pass_time(5)
    flow.clock.jump(DAY_S - 60)
    settings = RetentionSettings(keep_s=DAY_S, every_s=20, batch=3, pause_s=0)
    retention = Retention(ledger=flow.ledger, settings=settings, clock=flow.clock, telemetry=flow.telemetry)
    forget, broken = flow.ledger.forget, True

    async def defective(**kwargs: object) -> object:
        if broken:
            raise RuntimeError("a defect")
        return await forget(**kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(flow.ledger, "forget", defective)
    task = asyncio.create_task(retention.run())
    await flow.pass_time(25)
    assert "retention_failed" in flow.telemetry.names()
    broken = False
    await flow.pass_time(25)
    assert (await flow.books()).accepted == 8, "a day is not over yet"
    repeated = await flow.offer(to_email(), "key-0")
    assert getattr(repeated, "replayed", False)
    await flow.pass_time(40)
    task.cancel()
    for one in sent:
        with pytest.raises(NotFound):
            await flow.record(one)
    assert (await flow.record(later)).status == "scheduled"
    books = await flow.books()
    assert (books.accepted, books.pending, books.difference) == (1, 1, 0)
