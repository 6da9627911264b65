"""A provider's rate: kept over all workers, kept alone when they cannot agree, and never taken for a failure."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bellbuoy.adapters.memory_shared import MemoryRateLimit
from bellbuoy.clock import ManualClock
from bellbuoy.delivery.pace import WAIT_S_MAX, Pace
from bellbuoy.errors import Unavailable
from tests.support.flow import Flow, to_email


class Limit(MemoryRateLimit):
    away = False

    async def reserve(self, name: str, *, rate_per_s: float, burst: int, wait_s_max: float) -> float | None:
        if self.away:
            raise Unavailable("away")
        return await super().reserve(name, rate_per_s=rate_per_s, burst=burst, wait_s_max=wait_s_max)


def paces(clock: ManualClock, shared: Limit, rate_per_s: float) -> list[Pace]:
    return [
        Pace("smtp", rate_per_s=rate_per_s, shared=shared, alone=MemoryRateLimit(clock=clock), clock=clock)
        for _ in range(2)
    ]


async def taken(clock: ManualClock, workers: list[Pace], each: int, within_s: float) -> list[bool]:
    turns = [asyncio.create_task(worker.turn()) for worker in workers for _ in range(each)]
    await clock.advance(within_s)
    ended = [turn.result() for turn in turns if turn.done()]
    await clock.advance(10.0)
    await asyncio.gather(*turns)
    return ended


async def test_workers_share_the_rate_or_keep_to_it_alone() -> None:
    clock = ManualClock()
    shared = Limit(clock=clock)
    workers = paces(clock, shared, 2.0)
    assert await taken(clock, workers, 2, 0.9) == [True, True]
    shared.away = True
    assert await taken(clock, workers, 2, 0.9) == [True] * 4


async def test_a_rate_that_was_far_too_low_holds_nothing_back_once_it_is_another() -> None:
    clock = ManualClock()
    shared = Limit(clock=clock)
    assert await paces(clock, shared, 0.001)[0].turn()
    assert not await paces(clock, shared, 0.001)[0].turn()
    assert await paces(clock, shared, 100.0)[0].turn()


async def test_who_would_wait_too_long_is_told_so() -> None:
    clock = ManualClock()
    workers = paces(clock, Limit(clock=clock), 1.0)[:1]
    ended = await taken(clock, workers, 10, WAIT_S_MAX)
    assert sorted(ended) == [False] * 7 + [True] * 3


async def test_a_burst_comes_out_at_the_rate_and_the_breaker_hears_of_nothing(tmp_path: Path) -> None:
    async with Flow(tmp_path) as flow:
        flow.lanes["smtp"].pace = paces(flow.clock, Limit(clock=flow.clock), 1.0)[0]
        ids = [await flow.send(to_email()) for _ in range(8)]
        await flow.pass_time(3.0)
        assert 3 <= len(flow.providers["smtp"].sent) <= 4
        await flow.pass_time(30.0)
        assert len(flow.providers["smtp"].sent) == 8
        records = [await flow.record(one) for one in ids]
        assert {record.status for record in records} == {"delivered"}
        assert {len(record.deliveries[0].attempts) for record in records} == {1}
        assert flow.lanes["smtp"].breaker.state == "closed"
