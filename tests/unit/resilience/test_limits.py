"""Adaptive limits and timeouts, throttling and the rate limit."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BulkheadFull, RateLimited, TimeoutExceeded, Transient
from bellbuoy.resilience import (
    AdaptiveLimit,
    AdaptiveThrottle,
    AdaptiveTimeout,
    Aimd,
    Gradient,
    LimitChanged,
    RateLimit,
)
from bellbuoy.resilience.adaptive_timeout import Latencies
from bellbuoy.resilience.window import CountWindow, TimeWindow, Totals
from tests.unit.resilience.support import fail, hang, ok, settle


def test_aimd_grows_by_one_a_round_and_shrinks_by_a_share() -> None:
    limit = Aimd(initial=10, limit_max=12)
    for n in range(11):
        limit.ended(n, 0.1, 10, dropped=False)
    assert limit.limit == 11
    for n in range(100):
        limit.ended(n, 0.1, 12, dropped=False)
    assert limit.limit == 12
    assert limit.ended(200.0, 0.1, 12, dropped=True) == 10


def test_aimd_takes_calls_lost_together_for_one_sign() -> None:
    limit = Aimd(initial=100)
    for n in range(50):
        limit.ended(10.0 + n / 100, 1.0, 100, dropped=True)
    assert limit.limit == 90


@pytest.mark.parametrize("algorithm", [Aimd(initial=20), Gradient(initial=20)])
def test_limits_hold_while_the_application_needs_less(algorithm: Aimd | Gradient) -> None:
    for n in range(1_000):
        algorithm.ended(n / 10, 0.1, 5, dropped=False)
    assert algorithm.limit == 20


def test_gradient_stays_near_what_the_dependency_takes() -> None:
    limit = Gradient(initial=20, limit_max=10_000)
    for n in range(50_000):
        # It takes 30 calls at once; what comes on top waits in its queue and only adds to the latency.
        taken_s = 0.1 * max(1.0, limit.limit / 30)
        limit.ended(n / 10, taken_s, limit.limit, dropped=False)
        assert limit.limit < 80
    assert limit.limit >= 30


def test_gradient_accepts_a_new_normal_when_it_sees_it_without_load() -> None:
    limit = Gradient(window_s=1.0)
    limit.ended(0.0, 0.1, 10, dropped=False)
    limit.ended(2.0, 0.4, 10, dropped=False)
    assert limit.baseline_s < 0.13
    for n in range(2_000):
        limit.ended(3.0 + n, 0.4, 1, dropped=False)
    assert limit.baseline_s == pytest.approx(0.4, rel=0.01)


def test_gradient_baseline_is_bounded_by_the_least_latency() -> None:
    limit = Gradient(window_s=60.0)
    limit.ended(0.0, 0.1, 20, dropped=False)
    for n in range(500):
        limit.ended(1 + n / 10, 5.0, 20, dropped=False)
    assert limit.baseline_s <= 0.2


def test_gradient_minds_drops() -> None:
    limit = Gradient(initial=20)
    for n in range(10):
        limit.ended(n, 0.1, 20, dropped=True)
    assert limit.limit < 10


async def test_adaptive_limit_bounds_calls_and_learns() -> None:
    clock, events = ManualClock(), list[LimitChanged]()
    limit = AdaptiveLimit("them", Aimd(initial=2, decrease=0.8), clock=clock, on_event=events.append)
    calls = [asyncio.create_task(limit.call(hang)) for _ in range(2)]
    await settle()
    with pytest.raises(BulkheadFull):
        await limit.call(ok)
    for call in calls:
        call.cancel()
    await settle()
    assert limit.limit == 2  # A cancelled call says nothing.
    await asyncio.gather(*(limit.call(asyncio.sleep, 0) for _ in range(2)))
    assert limit.limit == 2
    with pytest.raises(ConnectionError):
        await limit.call(fail)
    with pytest.raises(ConnectionError):
        await limit.call(fail)
    assert (limit.limit, [(one.was, one.limit) for one in events]) == (1, [(2, 1)])


def test_a_timeout_cannot_ratchet_down() -> None:
    latencies = Latencies(60.0)
    for _ in range(95):
        latencies.add(0.0, 0.1)
    assert latencies.quantile_s(0.99) == pytest.approx(0.1, rel=0.11)
    for _ in range(5):
        latencies.add(0.0, math.inf)
    assert latencies.quantile_s(0.99) == math.inf
    assert latencies.quantile_s(0.9) == pytest.approx(0.1, rel=0.11)
    latencies.add(200.0, 0.5)
    assert latencies.count == 1


async def test_adaptive_timeout_follows_latency_within_bounds() -> None:
    clock = ManualClock()
    timeout = AdaptiveTimeout(timeout_s_min=0.5, timeout_s_max=10.0, clock=clock)

    async def work(taken_s: float) -> None:
        clock._move(taken_s)

    assert timeout.timeout_s == 10.0
    for _ in range(32):
        await timeout.call(work, 1.0)
    assert 2.0 <= timeout.timeout_s <= 2.3
    call = asyncio.create_task(timeout.call(hang))
    await clock.advance(2.3)
    assert isinstance(call.exception(), TimeoutExceeded)
    assert timeout.timeout_s == 10.0  # More than one in a hundred was cut off: nobody knows how long they take.
    await clock.advance(200.0)
    for _ in range(64):
        await timeout.call(work, 0.001)
    assert timeout.timeout_s == 0.5


async def test_throttle_lets_everything_through_while_all_is_well() -> None:
    throttle = AdaptiveThrottle("them", clock=ManualClock(), rng=Random(1))
    for _ in range(100):
        await throttle.call(ok)
    for _ in range(90):
        with pytest.raises(ConnectionError):
            await throttle.call(fail)
    assert throttle.refusal_share == 0.0


async def test_throttle_follows_its_formula() -> None:
    throttle = AdaptiveThrottle("them", clock=ManualClock(), rng=Random(1))
    made = refused = 0
    for _ in range(1_000):
        try:
            await throttle.call(fail)
        except RateLimited:
            refused += 1
        except ConnectionError:
            made += 1
    assert throttle.refusal_share == 1_000 / 1_001
    assert made < 30  # About the harmonic number of 1,000.
    assert refused == 1_000 - made


async def test_rate_limit_spaces_calls_and_allows_bursts() -> None:
    clock = ManualClock()
    limit = RateLimit("them", rate_per_s=10.0, burst=3, clock=clock)
    for _ in range(5):
        for _ in range(3):
            assert await limit.call(ok) == "fine"
        with pytest.raises(RateLimited) as refusal:
            await limit.call(ok)
        assert refusal.value.retry_after_s == pytest.approx(0.1)
        await clock.advance(0.1, turns=0)
        assert await limit.call(ok) == "fine"
        await clock.advance(10.0, turns=0)


async def test_rate_limit_makes_calls_wait_their_turn() -> None:
    clock, done = ManualClock(), list[float]()
    limit = RateLimit("them", rate_per_s=2.0, wait_s_max=10.0, clock=clock)

    async def note() -> None:
        done.append(clock.monotonic() - 1_000.0)

    calls = [asyncio.create_task(limit.call(note)) for _ in range(5)]
    await settle()
    calls[4].cancel()
    await settle()
    calls[4] = asyncio.create_task(limit.call(note))  # Takes the turn that was given back.
    await clock.advance(10.0)
    assert done == [0.0, 0.5, 1.0, 1.5, 2.0]


async def test_a_throttled_call_holds_the_others_back() -> None:
    clock = ManualClock()
    limit = RateLimit("them", rate_per_s=10.0, burst=5, clock=clock, recover_s=100.0)
    with pytest.raises(Transient):
        await limit.call(fail, Transient("busy", throttled=True, retry_after_s=20.0))
    assert limit.share == 0.5
    with pytest.raises(RateLimited) as refusal:
        await limit.call(ok)
    assert refusal.value.retry_after_s == pytest.approx(20.0)
    await clock.advance(20.0, turns=0)
    assert await limit.call(ok) == "fine"
    assert limit.share == pytest.approx(0.7)


def test_windows_agree_with_counting() -> None:
    rng = Random(4)
    by_count, by_time = CountWindow(7), TimeWindow(10.0, buckets=10)
    calls = list[tuple[float, int, int]]()
    now = 0.0
    for _ in range(2_000):
        now += rng.choice([0.0, 0.3, 2.0, 15.0]) * rng.random()
        failed, slow = rng.randrange(2), rng.randrange(2)
        calls.append((now, failed, slow))
        by_count.add(now, 1, failed, slow)
        by_time.add(now, 1, failed, slow)
        last = calls[-7:]
        assert by_count.totals(now) == Totals(len(last), sum(c[1] for c in last), sum(c[2] for c in last))
        recent = [c for c in calls[-500:] if int(c[0]) > int(now) - 10]
        assert by_time.totals(now) == Totals(len(recent), sum(c[1] for c in recent), sum(c[2] for c in recent))
