"""Fleets in virtual time: an outage is not multiplied, and a recovery is not stampeded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen
from bellbuoy.resilience import BreakerSettings, CircuitBreaker, Hedge, Retry, RetryBudget, RetrySettings


@pytest.mark.parametrize("per_second_min", [0.0, 2.0])
@pytest.mark.parametrize("ratio", [0.1, 0.2])
@pytest.mark.parametrize("seed", [1, 2])
async def test_an_outage_is_multiplied_by_no_more_than_the_budget(
    seed: int, ratio: float, per_second_min: float
) -> None:
    clock, rng = ManualClock(), Random(seed)
    made = asked = 0

    async def down() -> None:
        nonlocal made
        made += 1
        raise ConnectionError

    windows = set[int]()
    budget = RetryBudget(ratio=ratio, per_second_min=per_second_min, window_s=10.0, clock=clock)
    retry = Retry(
        RetrySettings(max_attempts=5),
        budget=budget,
        clock=clock,
        rng=rng,
        on_event=lambda event: windows.add(int(clock.monotonic() // 10.0)),
    )
    calls = set[asyncio.Task[None]]()
    for _ in range(300):
        for _ in range(20):
            asked += 1
            calls.add(asyncio.create_task(retry.call(down)))
        await clock.advance(0.1, turns=3)
    await clock.advance(120.0, turns=3)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in results} == {ConnectionError}
    # Cut time into windows end to end. When the last retry of one is granted, the budget looks back over just that
    # window, so what was granted in it is at most the ratio of its calls and the floor's share of one window.
    assert asked < made <= asked * (1 + ratio) + per_second_min * 10.0 * len(windows)
    assert budget.running == 0


async def _through_call(retry: Retry, hedge: Hedge, fn: Callable[[], Awaitable[None]]) -> object:
    return await retry.call(hedge.call, fn)


async def _through_reschedule(retry: Retry, hedge: Hedge, fn: Callable[[], Awaitable[None]]) -> object:
    return await retry.call_or_reschedule(1_000.0, hedge.call, fn)


async def _through_block(retry: Retry, hedge: Hedge, fn: Callable[[], Awaitable[None]]) -> None:
    async for attempt in retry.attempts():
        with attempt:
            await hedge.call(fn)


@pytest.mark.parametrize("call", [_through_call, _through_reschedule, _through_block])
async def test_retries_and_hedges_share_a_budget(call: Callable[..., Coroutine[Any, Any, object]]) -> None:
    clock, rng = ManualClock(), Random(5)
    made = asked = 0

    async def slow_and_down() -> None:
        nonlocal made
        made += 1
        await clock.sleep(rng.uniform(0.1, 1.5))
        raise ConnectionError

    budget = RetryBudget(ratio=0.2, per_second_min=0.0, window_s=1_000.0, clock=clock)
    retry = Retry(RetrySettings(max_attempts=4), budget=budget, clock=clock, rng=rng)
    hedge = Hedge(0.5, attempts_max=3, budget=budget, clock=clock)
    calls = set[asyncio.Task[object]]()
    for _ in range(100):
        for _ in range(5):
            asked += 1
            calls.add(asyncio.create_task(call(retry, hedge, slow_and_down)))
        await clock.advance(0.2, turns=6)
    await clock.advance(120.0, turns=6)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(one) for one in results} == {ConnectionError}
    assert asked * 1.19 < made <= asked * 1.2
    assert budget.running == 0


async def test_what_a_call_starts_and_leaves_running_is_counted_by_itself() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=1.0, per_second_min=0.0, clock=clock)
    retry, hedge = Retry(budget=budget, clock=clock), Hedge(60.0, budget=budget, clock=clock)
    started = list[asyncio.Task[None]]()

    async def work() -> None:
        pass

    async def start() -> None:
        started.append(asyncio.create_task(hedge.call(work)))

    await retry.call(start)
    await started[0]
    assert budget.available == 2.0
    await hedge.call(work)  # Nor does it hold once the call is over.
    assert budget.available == 3.0
    retry.call_sync(lambda: None)
    other = Hedge(60.0, budget=RetryBudget(ratio=1.0, per_second_min=0.0, clock=clock), clock=clock)
    await retry.call(other.call, work)
    assert other._budget is not None
    assert (budget.available, other._budget.available) == (5.0, 1.0)


async def test_a_recovery_is_not_stampeded() -> None:
    clock = ManualClock()
    settings = BreakerSettings(3, 10.0, 60.0, 2, 5.0, ramp_s=20.0, ramp_start=0.1)
    breaker = CircuitBreaker("them", settings, clock=clock)
    offered_per_s, by_second = 100, list[int]()
    for _ in range(3):
        breaker.admit().failure(ConnectionError())
    await clock.advance(10.0, turns=0)
    for _ in range(25):
        admitted = 0
        for _ in range(offered_per_s):
            try:
                permit = breaker.admit()
            except CircuitOpen:
                continue
            admitted += 1
            permit.success()
        by_second.append(admitted)
        await clock.advance(1.0, turns=0)
    for second, admitted in enumerate(by_second):
        share = min(1.0, 0.1 + 0.9 * second / 20)
        assert admitted <= offered_per_s * share + settings.success_threshold + 1
    assert by_second == sorted(by_second)
    assert by_second[-1] == offered_per_s
