"""Adaptive limits and timeouts, throttling and the rate limit."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BulkheadFull, Permanent, RateLimited, TimeoutExceeded, Transient
from bellbuoy.resilience import (
    AdaptiveLimit,
    AdaptiveThrottle,
    AdaptiveTimeout,
    Aimd,
    BreakerSettings,
    Bulkhead,
    CallRefused,
    CallTimedOut,
    Gradient,
    LimitChanged,
    RateLimit,
    Timeout,
)
from bellbuoy.resilience.adaptive_timeout import Latencies
from bellbuoy.resilience.testing import instant
from bellbuoy.resilience.trip import same_window, window_of
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


def test_aimd_grows_once_half_of_the_limit_is_in_use() -> None:
    limit = Aimd(initial=4, decrease=0.95)
    assert limit.ended(0.0, 0.1, 2, dropped=False) == 4
    assert limit.ended(1.0, 0.1, 4, dropped=True) == 4  # 95 % of 4.25, where 95 % of 4 would make it 3.


def test_aimd_takes_a_slow_call_for_a_dropped_one() -> None:
    limit = Aimd(initial=10, slow_s=1.0)
    assert limit.ended(1.0, 1.0, 1, dropped=False) == 10
    assert limit.ended(3.0, 1.1, 1, dropped=False) == 9
    assert Aimd(initial=3, limit_min=3).ended(1.0, 0.1, 3, dropped=True) == 3


def test_aimd_cuts_again_for_a_call_that_began_after_the_last_cut() -> None:
    limit = Aimd(initial=100)
    limit.ended(10.0, 1.0, 100, dropped=True)
    assert limit.ended(10.9, 1.0, 100, dropped=True) == 90
    assert limit.ended(11.0, 1.0, 100, dropped=True) == 81


@pytest.mark.parametrize("algorithm", [Aimd(initial=20), Gradient(initial=20)])
def test_limits_hold_while_the_application_needs_less(algorithm: Aimd | Gradient) -> None:
    for n in range(1_000):
        algorithm.ended(n / 10, 0.1, 9, dropped=False)
    assert algorithm.limit == 20


def test_gradient_stays_near_what_the_dependency_takes() -> None:
    limit = Gradient(initial=20, limit_max=10_000)
    for n in range(50_000):
        # It takes 30 calls at once; what comes on top waits in its queue and only adds to the latency.
        taken_s = 0.1 * max(1.0, limit.limit / 30)
        limit.ended(n / 10, taken_s, limit.limit, dropped=False)
        assert limit.limit < 80
    assert limit.limit >= 30


def test_gradient_by_its_formula() -> None:
    # Nothing is slower than usual: room for a queue of the square root is added, half of it at once.
    assert Gradient(initial=16, smoothing=0.5).ended(0.0, 0.1, 16, dropped=False) == 18
    assert Gradient(initial=16, smoothing=1.0, tolerance=1.0).ended(0.0, 0.1, 16, dropped=False) == 20
    assert Gradient(initial=16, smoothing=1.0, limit_max=17).ended(0.0, 0.1, 16, dropped=False) == 17
    # Half of the limit is in use, and then less.
    assert Gradient(initial=16, smoothing=1.0).ended(0.0, 0.1, 8, dropped=False) == 20
    assert Gradient(initial=16, smoothing=1.0).ended(0.0, 0.1, 7, dropped=False) == 16


@pytest.mark.parametrize(("taken_s", "limit_min", "limit"), [(1.0, 1, 11), (10.0, 1, 10), (10.0, 12, 12)])
def test_gradient_follows_the_latency_down_and_halves_at_most(taken_s: float, limit_min: int, limit: int) -> None:
    gradient = Gradient(initial=16, smoothing=1.0, limit_min=limit_min)
    assert gradient.ended(0.0, 0.1, 16, dropped=False) == 20
    assert gradient.baseline_s == 0.1
    # 1 s: the latest latency is 0.8 * 0.1 + 0.2 * 1, the baseline 0.99 * 0.1 + 0.01 * 1, and 20 * 1.5 * 0.109 / 0.28.
    assert gradient.ended(1.0, taken_s, 20, dropped=False) == limit


def test_gradient_cuts_what_it_has_grown_to() -> None:
    gradient = Gradient(initial=16, smoothing=1.0)
    gradient.ended(0.0, 0.1, 16, dropped=False)
    assert gradient.ended(1.0, 0.1, 20, dropped=True) == 18


@pytest.mark.parametrize(
    ("limit_min", "running", "accepted"), [(1, 2, True), (1, 3, False), (5, 5, True), (5, 6, False)]
)
def test_gradient_measures_anew_once_a_window_and_without_load(limit_min: int, running: int, accepted: bool) -> None:
    gradient = Gradient(window_s=10.0, limit_min=limit_min)
    gradient.ended(0.0, 0.1, 1, dropped=False)
    for n in range(1_000):
        gradient.ended(n / 101, 0.4, 1, dropped=False)
    assert gradient.baseline_s == pytest.approx(0.12)
    gradient.ended(10.0, 0.4, running, dropped=False)
    assert gradient.baseline_s == pytest.approx(0.4 if accepted else 0.12, rel=0.01)
    gradient.ended(19.8, 0.2, 1, dropped=False)
    gradient.ended(19.9, 0.4, 1, dropped=False)
    assert gradient.baseline_s == pytest.approx(0.24 if accepted else 0.12)


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


async def test_adaptive_limit_is_told_how_each_call_went() -> None:
    told = list[tuple[float, float, int, bool]]()

    class Told(Aimd):
        def ended(self, now: float, taken_s: float, running: int, *, dropped: bool) -> int:
            told.append((now, taken_s, running, dropped))
            return self.limit

    clock = ManualClock(monotonic_s=0.0)
    limit = AdaptiveLimit("them", Told(), clock=clock)

    async def work(*, error: Exception | None = None) -> str:
        await clock.sleep(2.0)
        return await (fail(error) if error else ok())

    errors = [None, Transient("429", throttled=True), ConnectionError(), Permanent("400"), RateLimited("here")]
    calls = [asyncio.create_task(limit.call(work, error=error)) for error in errors]
    await settle()
    await clock.advance(2.0)
    assert [type(call.exception()) for call in calls[1:]] == [Transient, ConnectionError, Permanent, RateLimited]
    assert calls[0].result() == "fine"
    assert told == [(2.0, 2.0, 1, False), (2.0, 2.0, 2, True), (2.0, 2.0, 3, True), (2.0, 2.0, 4, False)]


async def test_adaptive_limit_grows_and_has_a_line() -> None:
    clock = ManualClock()
    limit = AdaptiveLimit("them", Aimd(initial=1), queue_max=1, wait_s_max=5.0, clock=clock)
    calls = [asyncio.create_task(limit.call(hang)) for _ in range(2)]
    await settle()
    with pytest.raises(BulkheadFull, match="them"):
        await limit.call(ok)
    assert not calls[1].done()
    await clock.advance(5.0)
    assert isinstance(calls[1].exception(), BulkheadFull)
    calls[0].cancel()
    await settle()
    assert await limit.call(ok, value="well") == "well"
    assert limit.limit == 2
    assert AdaptiveLimit("them").limit == Gradient().limit


def test_latencies_are_known_within_a_tenth_and_never_too_low() -> None:
    assert (Latencies(60.0).count, Latencies(60.0).quantile_s(0.5)) == (0, math.inf)
    for taken_s in (1e-6, 0.013, 0.1, 0.77, 3.0, 41.0, 1_000.0):
        latencies = Latencies(60.0)
        latencies.add(0.0, taken_s)
        assert taken_s <= latencies.quantile_s(1.0) * (1 + 1e-9) <= taken_s * 1.1 * (1 + 2e-9)
    instantly = Latencies(60.0)
    instantly.add(0.0, 0.0)
    assert 1e-6 <= instantly.quantile_s(1.0) * (1 + 1e-9) <= 1.1e-6


def test_latencies_of_the_current_and_the_last_window_count() -> None:
    latencies = Latencies(10.0)
    latencies.add(0.0, 1.0)
    latencies.add(9.9, 9.0)
    latencies.add(10.0, 1.0)
    assert latencies.count == 3
    assert latencies.quantile_s(0.66) == pytest.approx(1.0, rel=0.1)  # The two of 1 s are in two windows.
    assert latencies.quantile_s(0.67) >= 9.0
    latencies.add(20.0, 1.0)
    assert latencies.count == 2
    latencies.add(39.9, 1.0)
    assert latencies.count == 2
    latencies.add(60.0, 1.0)  # The window that would have been the last one saw nothing.
    assert latencies.count == 1


@pytest.mark.parametrize(("before_s", "after_s"), [(1.0, 9.0), (9.0, 1.0)])
def test_a_latency_of_one_window_is_not_counted_in_the_other(before_s: float, after_s: float) -> None:
    latencies = Latencies(10.0)
    latencies.add(0.0, before_s)
    latencies.add(10.0, after_s)
    assert latencies.quantile_s(0.5) < 2.0
    assert latencies.quantile_s(0.51) >= 9.0


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


async def test_adaptive_timeout_waits_for_enough_calls_and_tells() -> None:
    clock, cut = ManualClock(), list[CallTimedOut]()
    timeout = AdaptiveTimeout(
        timeout_s_min=0.5, timeout_s_max=10.0, factor=3.0, calls_min=16, clock=clock, name="them", on_event=cut.append
    )

    async def work(*, taken_s: float) -> str:
        clock._move(taken_s)
        return "done"

    for _ in range(15):
        assert await timeout.call(work, taken_s=1.0) == "done"
    assert timeout.timeout_s == 10.0
    await timeout.call(work, taken_s=1.0)
    assert 3.0 <= timeout.timeout_s <= 3.3
    with pytest.raises(ConnectionError):
        await timeout.call(fail)
    call = asyncio.create_task(timeout.call(hang))
    await clock.advance(3.3)
    assert isinstance(call.exception(), TimeoutExceeded)
    assert [(one.name, one.started) for one in cut] == [("them", True)]
    timeout.events.emit(cut[0])
    assert len(cut) == 2
    assert (timeout.name, timeout._latencies.count) == ("them", 17)  # The failure says nothing of how long calls take.


async def test_adaptive_timeout_learns_nothing_from_a_call_that_never_began() -> None:
    clock = ManualClock()
    timeout = AdaptiveTimeout(timeout_s_min=0.5, timeout_s_max=1.0, calls_min=1, clock=clock)
    bulkhead = Bulkhead("them", concurrency_max=1, queue_max=1, clock=clock)
    holder = asyncio.create_task(bulkhead.call(hang))
    waiting = asyncio.create_task(timeout.call(bulkhead.call, ok))
    await settle()
    await clock.advance(1.0)
    assert isinstance(waiting.exception(), TimeoutExceeded)
    assert timeout._latencies.count == 0
    holder.cancel()
    await settle()


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


@pytest.mark.parametrize(
    ("error", "calls", "refused"),
    [
        (None, 1, 0),
        (ConnectionError(), 1, 1),
        (Transient("429", throttled=True), 1, 1),
        (Permanent("400"), 1, 0),
        (RateLimited("here"), 0, 0),
        (asyncio.CancelledError(), 0, 0),
    ],
)
async def test_throttle_counts_what_was_asked_and_accepted(
    error: BaseException | None, calls: int, refused: int
) -> None:
    clock = ManualClock()
    throttle = AdaptiveThrottle("them", window_s=10.0, clock=clock)

    async def work(*, raises: BaseException | None) -> str:
        return await (fail(raises) if raises else ok())

    if error is None:
        assert await throttle.call(work, raises=None) == "fine"
    else:
        with pytest.raises(type(error)):
            await throttle.call(work, raises=error)
    assert throttle._window.totals(clock.monotonic()) == Totals(calls, refused, 0)
    await clock.advance(10.0, turns=0)
    assert throttle._window.totals(clock.monotonic()).calls == 0


class Lot(Random):
    """Draws what it is told to."""

    drawn = 0.0

    def random(self) -> float:
        return self.drawn


async def test_throttle_refuses_with_the_probability_of_its_formula() -> None:
    clock, lot, told = ManualClock(), Lot(), list[CallRefused]()
    throttle = AdaptiveThrottle("them", clock=clock, rng=lot, on_event=told.append)
    for _ in range(2):
        lot.drawn = 0.99
        with pytest.raises(ConnectionError):
            await throttle.call(fail)
    assert throttle.refusal_share == 2 / 3
    lot.drawn = 0.66
    with pytest.raises(RateLimited) as refusal:
        await throttle.call(ok)
    assert (refusal.value.retry_after_s, told) == (1.0, [CallRefused("them", clock.time(), "rate_limited")])
    assert throttle.refusal_share == 3 / 4  # What was refused here was asked for, too.
    lot.drawn = 0.75
    assert await throttle.call(ok) == "fine"
    assert throttle.refusal_share == (4 - 2 * 1) / 5


async def test_rate_limit_tells_and_passes_arguments() -> None:
    clock, told = ManualClock(), list[CallRefused]()
    limit = RateLimit("them", rate_per_s=4.0, clock=clock, on_event=told.append)
    assert await limit.call(ok, value="well") == "well"
    with pytest.raises(RateLimited, match="them takes 4 calls a second"):
        await limit.call(ok)
    assert told == [CallRefused("them", clock.time(), "rate_limited")]
    with instant():
        limit.configure(rate_per_s=4.0, burst=1, wait_s_max=60.0)
        assert await limit.call(ok) == "fine"
    limit.configure(rate_per_s=100.0, burst=1, wait_s_max=60.0)
    assert limit.reserve() == pytest.approx(0.5)  # The two turns of a quarter that were used stay used.


async def test_rate_limit_halves_when_it_is_throttled_and_recovers() -> None:
    clock = ManualClock()
    limit = RateLimit("them", rate_per_s=10.0, clock=clock)
    assert limit.share == 1.0
    with pytest.raises(Transient):
        await limit.call(fail, Transient("busy", throttled=True))
    assert limit.share == 0.5
    await clock.advance(7.5, turns=0)
    assert limit.share == pytest.approx(0.75)
    assert limit.reserve() == 0.0  # Nobody said for how long, so nothing was held back.
    await clock.advance(7.5, turns=0)
    assert limit.share == 1.0
    for _ in range(10):
        limit.throttled()
    assert limit.share == 0.05
    slow = RateLimit("them", rate_per_s=10.0, wait_s_max=60.0, clock=clock)
    slow.throttled()
    assert [slow.reserve(), slow.reserve()] == pytest.approx([0.0, 0.2])  # At half the rate a turn is twice as long.
    with pytest.raises(ConnectionError):
        await limit.call(fail)
    assert limit.share == 0.05


async def test_rate_limit_is_held_for_the_longest_that_was_asked() -> None:
    clock = ManualClock()
    limit = RateLimit("them", rate_per_s=10.0, wait_s_max=60.0, clock=clock)
    limit.throttled(20.0)
    limit.throttled(5.0)
    assert limit.reserve() == 20.0
    await clock.advance(30.0, turns=0)
    limit.throttled(5.0)
    assert limit.reserve() == 5.0


async def test_a_turn_is_given_back_as_it_was_taken_and_was_never_begun() -> None:
    clock = ManualClock()
    limit = RateLimit("them", rate_per_s=10.0, wait_s_max=60.0, clock=clock)
    await limit.call(ok)
    call = asyncio.create_task(Timeout(0.05, clock=clock).call(limit.call, ok))
    await settle()
    limit.throttled()
    await clock.advance(0.05)
    error = call.exception()
    assert isinstance(error, TimeoutExceeded)
    assert not error.started
    assert limit.reserve() == pytest.approx(0.05)  # What is left of the first turn, which is 0.1 s.


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


@pytest.mark.parametrize("window", [CountWindow(3), TimeWindow(3.0, buckets=3)])
def test_a_cleared_window_begins_anew(window: CountWindow | TimeWindow) -> None:
    for now in range(5):
        window.add(now, 1, 1, 1)
    window.clear()
    assert window.totals(4.0) == Totals(0, 0, 0)
    for now in range(5, 11):
        window.add(now, 1, 0, 1)
        window.add(now, 1, 1, 0)
    assert window.totals(10.0) == (Totals(3, 2, 1) if isinstance(window, CountWindow) else Totals(6, 3, 3))


def test_windows_are_kept_while_they_are_of_the_size_asked_for() -> None:
    by_time, by_count = BreakerSettings(monitoring_window_s=60.0), BreakerSettings(window_calls=5)
    for settings, other in [(by_time, by_count), (by_count, by_time)]:
        window = window_of(settings)
        assert same_window(window, settings) is window
        assert type(same_window(window, other)) is type(window_of(other))
    window = window_of(by_count)
    assert same_window(window, by_count.replace(monitoring_window_s=5.0)) is window
    wider = same_window(window, by_count.replace(window_calls=6))
    assert isinstance(wider, CountWindow)
    assert wider.size == 6
    longer = same_window(window_of(by_time), by_time.replace(monitoring_window_s=90.0))
    assert isinstance(longer, TimeWindow)
    assert longer.window_s == 90.0
