"""The bulkhead: its places, its line, and that none is ever lost."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BulkheadFull
from bellbuoy.resilience import Bulkhead, CallRefused
from tests.unit.resilience.support import fail, hang, ok, settle


def _bulkhead(clock: ManualClock | None = None, **numbers: Any) -> Bulkhead:
    wanted: dict[str, Any] = {"concurrency_max": 2, "queue_max": 3, "wait_s_max": 5.0} | numbers
    return Bulkhead("them", clock=clock or ManualClock(), **wanted)


async def test_bounds_what_runs_and_what_waits() -> None:
    bulkhead = _bulkhead()
    calls = [asyncio.create_task(bulkhead.call(hang)) for _ in range(5)]
    await settle()
    assert (bulkhead.active, bulkhead.waiting, bulkhead.free) == (2, 3, 0)
    with pytest.raises(BulkheadFull) as refusal:
        await bulkhead.call(ok)
    assert refusal.value.retry_after_s == 1.0
    calls[3].cancel()
    await settle()
    assert (bulkhead.active, bulkhead.waiting, sum(map(len, bulkhead._queues))) == (2, 2, 2)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (bulkhead.active, bulkhead.waiting, bulkhead.free) == (0, 0, 2)
    assert not any(bulkhead._queues)
    assert len(asyncio.all_tasks()) == 1  # Nor is anybody left who would have ended their wait.


async def test_first_come_first_served_within_a_priority() -> None:
    bulkhead, order = _bulkhead(concurrency_max=1, queue_max=10), list[str]()
    first = asyncio.create_task(bulkhead.call(hang))
    await settle()

    async def note(name: str) -> None:
        order.append(name)
        await asyncio.sleep(0)

    waiting = [
        asyncio.create_task(bulkhead.call_at(priority, note, name))
        for priority, name in [(2, "late"), (1, "b"), (1, "c"), (0, "urgent"), (1, "d")]
    ]
    await settle()
    first.cancel()
    await asyncio.gather(*waiting)
    assert order == ["urgent", "b", "c", "d", "late"]


async def test_a_call_without_a_priority_has_the_middle_one() -> None:
    bulkhead, order = _bulkhead(concurrency_max=1, priorities=5), list[str]()
    holder = asyncio.create_task(bulkhead.call(hang))
    await settle()

    async def note(*, name: str) -> None:
        order.append(name)

    waiting = [
        asyncio.create_task(bulkhead.call_at(3, note, name="less urgent")),
        asyncio.create_task(bulkhead.call(note, name="middle")),
        asyncio.create_task(bulkhead.call_at(1, note, name="more urgent")),
    ]
    await settle()
    holder.cancel()
    await asyncio.gather(*waiting)
    assert order == ["more urgent", "middle", "less urgent"]
    await bulkhead.call(note, name="at once")
    assert order[-1] == "at once"


async def test_waits_no_longer_than_allowed() -> None:
    clock, refusals = ManualClock(), list[CallRefused]()
    bulkhead = Bulkhead("them", concurrency_max=1, queue_max=1, wait_s_max=5.0, clock=clock, on_event=refusals.append)
    holder = asyncio.create_task(bulkhead.call(hang))
    await settle()
    call = asyncio.create_task(bulkhead.call(ok))
    await clock.advance(4.9)
    assert not call.done()
    await clock.advance(0.1)
    assert isinstance(call.exception(), BulkheadFull)
    assert [one.code for one in refusals] == ["bulkhead_full"]
    holder.cancel()
    await settle()
    assert await bulkhead.call(ok) == "fine"


async def test_a_place_granted_to_a_cancelled_call_goes_on_to_the_next() -> None:
    bulkhead = _bulkhead(concurrency_max=1)
    holder = asyncio.create_task(bulkhead.call(hang))
    await settle()
    granted, following = asyncio.create_task(bulkhead.call(ok)), asyncio.create_task(bulkhead.call(ok))
    await settle()
    holder.cancel()
    await asyncio.sleep(0)  # The holder ends and hands its place to `granted`, which has not run yet.
    await asyncio.sleep(0)
    granted.cancel()
    assert await following == "fine"
    await settle()
    assert (bulkhead.active, bulkhead.waiting) == (0, 0)


async def test_gives_the_place_back_when_the_call_fails() -> None:
    bulkhead = _bulkhead()
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await bulkhead.call(fail)
    assert bulkhead.free == 2


async def test_resized_while_in_use() -> None:
    bulkhead = _bulkhead(queue_max=10)
    calls = [asyncio.create_task(bulkhead.call(hang)) for _ in range(6)]
    await settle()
    bulkhead.configure(concurrency_max=4, queue_max=10, wait_s_max=None)
    await settle()
    assert (bulkhead.active, bulkhead.waiting) == (4, 2)
    bulkhead.resize(1)
    for call in calls[:3]:
        call.cancel()
    await settle()
    assert (bulkhead.active, bulkhead.waiting, bulkhead.free) == (1, 2, 0)
    calls[3].cancel()
    await settle()
    assert (bulkhead.active, bulkhead.waiting) == (1, 1)
    for call in calls[4:]:
        call.cancel()
    await settle()
    assert (bulkhead.active, bulkhead.waiting, bulkhead.free) == (0, 0, 1)


async def test_whole_after_very_many_random_cancels() -> None:
    clock, rng = ManualClock(), random.Random(11)
    bulkhead = Bulkhead("them", concurrency_max=7, queue_max=40, wait_s_max=3.0, clock=clock)
    running: list[asyncio.Task[str]] = []
    cancels = most = 0

    async def work() -> str:
        nonlocal most
        most = max(most, bulkhead.active)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if rng.random() < 0.1:
            await hang()
        return "fine"

    while cancels < 100_000:
        running += [asyncio.create_task(bulkhead.call_at(rng.randrange(3), work)) for _ in range(30)]
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        rng.shuffle(running)
        for task in running[:28]:
            cancels += task.cancel()
        running = [task for task in running[28:] if not task.done()]
        if rng.random() < 0.01:
            await clock.advance(3.0, turns=3)
    for task in running:
        task.cancel()
    await settle()
    assert (bulkhead.active, bulkhead.waiting, bulkhead.free) == (0, 0, 7)
    assert not any(bulkhead._queues)
    assert most <= 7


@pytest.mark.parametrize("wrong", [{"concurrency_max": 0}, {"queue_max": -1}, {"wait_s_max": 0.0}])
def test_numbers_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        _bulkhead(**wrong)
