"""What type checkers see; `make lint` is what can fail here, and running it shows that the forms exist."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import assert_type

from bellbuoy.resilience import (
    FCM,
    AdaptiveLimit,
    AdaptiveThrottle,
    AdaptiveTimeout,
    Attempt,
    BreakerSettings,
    Bulkhead,
    Chaos,
    CircuitBreaker,
    Event,
    Events,
    EventStream,
    Fallback,
    Guard,
    Hedge,
    LastGood,
    MemoryStore,
    Permit,
    RateLimit,
    Reschedule,
    Reservation,
    Retry,
    RetryBudget,
    RetrySettings,
    SharedBreaker,
    SharedCircuit,
    SharedStore,
    Snapshot,
    State,
    Timeout,
    Verdict,
    classify,
    deadline,
    remaining_s,
    retry_after_of,
    retryable,
)
from bellbuoy.resilience.testing import instant


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
    assert_type(await Chaos().call(double, 1), float)


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


async def test_what_policies_say_of_themselves() -> None:
    guard, breaker, limit = Guard("g"), CircuitBreaker("b"), AdaptiveLimit("l")
    assert_type(guard.breaker, CircuitBreaker | None)
    assert_type(guard.bulkhead, Bulkhead | None)
    assert_type(guard.retry, Retry | None)
    assert_type(guard.timeout, Timeout | None)
    assert_type(breaker.state, State)
    assert_type(breaker.retry_after_s, float | None)
    assert_type(breaker.settings, BreakerSettings)
    assert_type(breaker.events, Events)
    assert_type(FCM.replace(timeout_s=1.0), BreakerSettings)
    assert_type(limit.limit, int)
    assert_type(limit.algorithm.ended(0.0, 0.1, 1, dropped=False), int)
    assert_type(Bulkhead("b", concurrency_max=1).free, int)
    assert_type(AdaptiveThrottle("t").refusal_share, float)
    assert_type(RateLimit("r", rate_per_s=1.0).reserve(), float)
    assert_type(AdaptiveTimeout(timeout_s_min=1.0, timeout_s_max=2.0).timeout_s, float)
    assert_type(RetryBudget().reserve(), Reservation | None)
    assert_type(RetryBudget().available, float)
    assert_type(RetrySettings().delay_s(1, Random()), float)


async def test_the_functions() -> None:
    assert_type(classify(None), Verdict)
    assert_type(retry_after_of(ConnectionError()), float | None)
    assert_type(retryable(ConnectionError()), bool)
    with deadline(1.0) as nothing, instant() as neither:
        assert_type(nothing, None)
        assert_type(neither, None)
        assert_type(remaining_s(), float | None)


async def test_shared_state() -> None:
    store: SharedStore = MemoryStore()
    assert_type(await store.read("b"), SharedCircuit)
    assert_type(await store.publish("b", State.OPEN, 1.0, 0), bool)
    assert_type(await store.lease_probe("b", "me", 1.0), bool)
    shared = SharedBreaker(CircuitBreaker("b"), store, owner="me")
    assert_type(shared.breaker, CircuitBreaker)
    await shared.sync()


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
    assert_type(stream, EventStream)
    assert_type(breaker.events.listen(print), Callable[[], None])
    breaker.isolate()
    assert_type(await anext(stream), Event)
