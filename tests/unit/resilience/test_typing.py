"""What type checkers see; `make lint` is what can fail here, and running it shows that the forms exist."""

from __future__ import annotations

from typing import assert_type

from bellbuoy.resilience import (
    AdaptiveLimit,
    AdaptiveThrottle,
    AdaptiveTimeout,
    Attempt,
    Bulkhead,
    Chaos,
    CircuitBreaker,
    Event,
    Fallback,
    Guard,
    Hedge,
    LastGood,
    Permit,
    RateLimit,
    Reschedule,
    Retry,
    Snapshot,
    Timeout,
)


async def double(x: int, *, plus: float = 0.0) -> float:
    return 2 * x + plus


def halve(x: int) -> float:
    return x / 2


async def test_calls_keep_the_type_of_the_result() -> None:
    assert_type(await Guard("g").call(double, 1, plus=0.5), float)
    assert_type(await CircuitBreaker("b").call(double, 1), float)
    assert_type(CircuitBreaker("b").call_sync(halve, 1), float)
    assert_type(await Retry().call(double, 1), float)
    assert_type(Retry().call_sync(halve, 1), float)
    assert_type(await Retry().call_or_reschedule(1.0, double, 1), float | Reschedule)
    assert_type(await Timeout(1.0).call(double, 1), float)
    assert_type(await AdaptiveTimeout(timeout_s_min=1.0, timeout_s_max=2.0).call(double, 1), float)
    assert_type(await Bulkhead("b", concurrency_max=1).call(double, 1), float)
    assert_type(await Bulkhead("b", concurrency_max=1).call_at(0, double, 1), float)
    assert_type(await AdaptiveLimit("l").call(double, 1), float)
    assert_type(await AdaptiveThrottle("t").call(double, 1), float)
    assert_type(await RateLimit("r", rate_per_s=1.0).call(double, 1), float)
    assert_type(await Hedge(1.0).call(double, 1), float)
    assert_type(await LastGood(int, stale_s_max=1.0).call(double, 1), float)
    assert_type(await Fallback[str](lambda error: "none").call(double, 1), float | str)


async def test_decorators_keep_the_signature() -> None:
    guarded = Guard("g", CircuitBreaker("b"))(double)
    assert_type(await guarded(1, plus=0.5), float)
    assert_type(Retry()(halve)(1), float)
    with_all = Timeout(1.0)(Retry()(CircuitBreaker("b")(double)))
    assert_type(await with_all(2), float)
    assert await with_all(2, plus=1.0) == 5.0
    assert_type(await AdaptiveTimeout(timeout_s_min=1.0, timeout_s_max=2.0)(double)(1), float)
    assert_type(await Bulkhead("b", concurrency_max=1)(double)(1), float)
    assert_type(await AdaptiveLimit("l")(double)(1), float)
    assert_type(await AdaptiveThrottle("t")(double)(1), float)
    assert_type(await RateLimit("r", rate_per_s=1.0)(double)(1), float)
    assert_type(await Hedge(1.0)(double)(1), float)
    assert_type(await LastGood(lambda x: x, stale_s_max=1.0)(double)(1), float)
    assert_type(await Fallback[float](lambda error: 0.0)(double)(1), float)
    assert_type(await Chaos()(double)(1), float)
    assert_type(CircuitBreaker("b")(halve)(1), float)


async def test_iterators_and_streams() -> None:
    async for attempt in Retry().attempts():
        assert_type(attempt, Attempt)
        with attempt as same:
            assert_type(same, Attempt)
    for attempt in Retry().attempts_sync():
        assert_type(attempt, Attempt)
    breaker = CircuitBreaker("b")
    assert_type(breaker.admit(), Permit)
    assert_type(breaker.snapshot(), Snapshot)
    stream = breaker.stream()
    breaker.isolate()
    assert_type(await anext(stream), Event)
