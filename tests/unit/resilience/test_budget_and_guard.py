"""The retry budget, and policies put together."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import warnings
from collections.abc import Callable
from random import Random

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen, TimeoutExceeded
from bellbuoy.resilience import (
    AdaptiveThrottle,
    BreakerSettings,
    Bulkhead,
    Chaos,
    CircuitBreaker,
    CompositionWarning,
    Fallback,
    Guard,
    Hedge,
    LastGood,
    Policy,
    Retry,
    RetryBudget,
    RetrySettings,
    State,
    Timeout,
)
from tests.unit.resilience.support import fail, hang, ok, settle


def test_budget_is_a_share_of_the_calls_and_a_floor() -> None:
    budget = RetryBudget(ratio=0.2, per_second_min=0.5, window_s=10.0, clock=ManualClock())
    for _ in range(50):
        budget.called()
    granted = [budget.reserve() for _ in range(30)]
    assert sum(one is not None for one in granted) == 0.2 * 50 + 0.5 * 10


async def test_budget_forgets_after_its_window() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, clock=clock)
    first = budget.reserve()
    assert first is not None
    assert budget.reserve() is None
    first.release()
    assert budget.reserve() is None
    await clock.advance(10.0, turns=0)
    assert budget.reserve() is not None


def test_budget_bounds_what_runs_at_once() -> None:
    budget = RetryBudget(concurrency_max=2, clock=ManualClock())
    first, second = budget.reserve(), budget.reserve()
    assert first is not None
    assert second is not None
    assert budget.reserve() is None
    for _ in range(3):
        first.refund()
    assert budget.running == 1
    assert budget.reserve() is not None


async def test_the_guard_puts_policies_in_order() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker("them", BreakerSettings(5), clock=clock)
    bulkhead, timeout = Bulkhead("them", concurrency_max=1, clock=clock), Timeout(1.0, clock=clock)
    retry = Retry(RetrySettings(jitter_factor=0.0), clock=clock, rng=Random(1))
    guard = Guard("them", retry, bulkhead, breaker, timeout)
    assert (guard.retry, guard.bulkhead, guard.breaker, guard.timeout) == (retry, bulkhead, breaker, timeout)
    assert (guard.name, guard.policies) == ("them", (retry, bulkhead, breaker, timeout))
    assert await guard.call(ok, "x") == "x"
    call = asyncio.create_task(guard.call(hang))
    await settle()
    await clock.advance(1.0)
    assert (bulkhead.active, breaker.snapshot().failure_count) == (0, 1)  # It waits outside the bulkhead.
    await clock.advance(10.0)
    assert isinstance(call.exception(), TimeoutExceeded)
    assert breaker.snapshot().failure_count == 3


async def test_an_open_breaker_ends_the_retrying() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker("them", BreakerSettings(2), clock=clock)
    guard = Guard("them", Retry(RetrySettings(10), clock=clock), breaker)
    call = asyncio.create_task(guard.call(fail))
    await settle()
    await clock.advance(100.0)
    assert isinstance(call.exception(), CircuitOpen)
    assert breaker.snapshot().state is State.HALF_OPEN


async def test_an_empty_guard_and_a_decorated_function() -> None:
    assert await Guard("none").call(ok, "x") == "x"
    assert await Guard("none").call(ok, value="x") == "x"

    @Guard("them", Timeout(5.0))
    async def double(x: int) -> int:
        return 2 * x

    assert await double(3) == 6
    assert Guard("none").breaker is None


_make: dict[str, Callable[[], Policy]] = {
    "retry": Retry,
    "bulkhead": lambda: Bulkhead("b", concurrency_max=1),
    "breaker": lambda: CircuitBreaker("c"),
    "timeout": lambda: Timeout(1.0),
    "fallback": lambda: Fallback(repr),
    "cache": lambda: LastGood(repr, stale_s_max=1.0),
    "throttle": lambda: AdaptiveThrottle("t"),
    "hedge": lambda: Hedge(1.0),
    "chaos": Chaos,
}


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        ("breaker retry", "breaker around retry: the breaker sees one outcome for all attempts"),
        ("breaker timeout retry", "one outcome for all attempts"),
        ("bulkhead retry", "bulkhead around retry: a call keeps its place"),
        ("retry fallback", "retry around fallback: the fallback answers at the first failure"),
        ("breaker fallback", "breaker around fallback: the fallback hides failures, so the breaker never opens"),
        ("throttle fallback", "throttle around fallback: the fallback hides failures"),
        ("retry cache", "retry around cache: the last good answer hides failures"),
        ("breaker cache", "breaker around cache: the last good answer hides failures"),
        ("throttle cache", "throttle around cache: the last good answer hides failures"),
        ("cache fallback", "cache around fallback: the fallback's answer would be kept"),
        ("retry retry", "retry around retry: attempts multiply"),
        ("hedge retry", "hedge around retry: each try makes attempts of its own"),
        ("timeout breaker", "guard odd: timeout around breaker: .* counts no cancelled call"),
        ("timeout breaker bulkhead", "counts no cancelled call"),
        ("chaos breaker", "guard odd: chaos outside other policies"),
        ("breaker chaos timeout", "guard odd: chaos outside other policies"),
    ],
)
def test_orders_that_defeat_a_policy_are_warned_of(order: str, complaint: str) -> None:
    with pytest.warns(CompositionWarning, match=complaint) as found:
        Guard("odd", *(_make[name]() for name in order.split()))
    assert len(found) == 1
    assert found[0].filename == __file__  # It points at who built the guard.


def test_one_policy_twice_is_warned_of() -> None:
    timeout = Timeout(1.0)
    with pytest.warns(CompositionWarning, match="guard odd: the same policy stands in it twice"):
        Guard("odd", timeout, timeout)


@pytest.mark.parametrize(
    "order",
    [
        "fallback cache retry throttle bulkhead breaker timeout chaos",
        "timeout retry bulkhead",
        "breaker timeout",
        "timeout breaker timeout",
        "retry hedge",
    ],
)
def test_orders_that_make_sense_are_not(order: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Guard("fine", *(_make[name]() for name in order.split()))


async def test_ten_thousand_calls_half_of_them_cancelled_leave_nothing() -> None:
    from bellbuoy.resilience.timer import wheel_of

    bulkhead = Bulkhead("them", concurrency_max=500, queue_max=10_000, wait_s_max=60.0)
    budget = RetryBudget()
    breaker = CircuitBreaker("them", BreakerSettings(slow_call_s=60.0))
    guard = Guard("them", Retry(budget=budget), bulkhead, breaker, Timeout(30.0))
    rng = Random(3)
    loop = asyncio.get_running_loop()

    async def work() -> str:
        for _ in range(rng.randrange(5)):
            await asyncio.sleep(0)
        return "fine"

    async def ten_thousand() -> None:
        before = asyncio.all_tasks()
        calls = [asyncio.create_task(guard.call(work)) for _ in range(10_000)]
        await asyncio.sleep(0)
        doomed = rng.sample(calls, 5_000)
        for call in doomed[:2_500]:
            call.cancel()
        await asyncio.sleep(0)
        for call in doomed[2_500:]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(one == "fine" or isinstance(one, asyncio.CancelledError) for one in results)
        assert results.count("fine") >= 5_000
        assert (bulkhead.active, bulkhead.waiting, budget.running) == (0, 0, 0)
        assert breaker.snapshot().failure_count == 0
        assert asyncio.all_tasks() == before
        assert wheel_of(loop).watching == 0
        # The wheel's next tick and what the test runner itself has set; ten thousand calls would leave thousands.
        assert sum(not handle.cancelled() for handle in loop._scheduled) < 10  # type: ignore[attr-defined]

    async def alive_after_a_round() -> tuple[int, int]:
        """Objects and bytes."""
        await ten_thousand()
        await asyncio.sleep(0)  # The loop still holds the step that brought the results.
        # The wheel drops its empty ticks of 10 ms, and the loop its cancelled timers, when their time comes: here now.
        wheel = wheel_of(loop)
        if wheel._handle is not None:
            wheel._handle.cancel()
        wheel._tick()
        assert not wheel.buckets
        loop._scheduled[:] = [one for one in loop._scheduled if not one.cancelled()]  # type: ignore[attr-defined]
        gc.collect()
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        await alive_after_a_round()  # Afterwards what is kept for good is there.
        first = await alive_after_a_round()
        second = await alive_after_a_round()
    finally:
        tracemalloc.stop()
    # A hundredth of an object a call would be a hundred objects, and the least object takes 16 bytes.
    assert second[0] - first[0] < 100, f"{second[0] - first[0]} objects were left"
    assert second[1] - first[1] < 16 * 10_000, f"{second[1] - first[1]} bytes were left"
