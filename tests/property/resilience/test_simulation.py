"""Fleets in virtual time: an outage is not multiplied, and a recovery is not stampeded."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen
from bellbuoy.resilience import BreakerSettings, CircuitBreaker, Retry, RetryBudget, RetrySettings


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
