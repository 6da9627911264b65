"""Rates and quantiles over a sliding window, with bounded memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.health.meters import Meter, Meters


def test_with_too_few_calls_it_says_nothing_about_rates() -> None:
    meter = Meter(60.0, calls_min=20)
    for _ in range(19):
        meter.add(0.0, 1.0, failed=True)
    assert meter.reading(0.0).error_rate is None
    assert meter.reading(0.0).p95_s is None
    meter.add(0.0, 1.0, failed=True)
    assert meter.reading(0.0).error_rate == 1.0


def test_what_is_older_than_the_window_does_not_count() -> None:
    meter = Meter(60.0, calls_min=1)
    meter.add(3.0, 9.0, failed=True)
    meter.add(30.0, 0.01, failed=False, calls=9)
    assert meter.reading(54.0).error_rate == 0.1
    assert meter.reading(65.0).error_rate == 0.0
    assert meter.reading(65.0).calls == 9
    assert meter.reading(65.0).p99_s == pytest.approx(0.01, rel=0.1)
    assert meter.reading(500.0).calls == 0


def test_a_call_of_unknown_length_counts_and_does_not_bend_the_quantiles() -> None:
    meter = Meter(60.0, calls_min=1)
    meter.add(0.0, None, failed=True, calls=50)
    assert meter.reading(0.0).p95_s is None
    meter.add(0.0, 0.2, failed=False)
    assert meter.reading(0.0).p50_s == pytest.approx(0.2, rel=0.1)


@given(st.lists(st.floats(0.0005, 150.0), min_size=20, max_size=300))
def test_a_quantile_is_at_most_a_tenth_too_high_and_never_too_low(lengths: list[float]) -> None:
    meter = Meter(60.0, calls_min=20)
    for length in lengths:
        meter.add(0.0, length, failed=False)
    ordered = sorted(lengths)
    reading = meter.reading(0.0)
    for share, found in ((0.5, reading.p50_s), (0.95, reading.p95_s), (0.99, reading.p99_s)):
        exact = ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
        assert found is not None
        assert exact * 0.999 <= found <= max(0.001, exact) * 1.11


@given(st.integers(0, 2**32), st.integers(1, 400))
def test_its_sums_are_those_of_what_is_still_in_the_window(seed: int, count: int) -> None:
    rng = random.Random(seed)
    meter, now = Meter(12.0, buckets=12, calls_min=1), 100.0
    seen: list[tuple[float, bool]] = []
    for _ in range(count):
        now += rng.choice((0.0, 0.1, 1.0, 5.0, 30.0))
        failed = rng.random() < 0.5
        meter.add(now, 0.1, failed=failed)
        seen.append((now, failed))
        # The bucket being filled counts whole, so the window reaches back to the start of the eleventh before it.
        still = [bad for at, bad in seen if int(at) > int(now) - 12]
        reading = meter.reading(now)
        assert (reading.calls, reading.failures) == (len(still), sum(still))


def test_each_dependency_has_its_own_and_all_count_together() -> None:
    meters = Meters(60.0, calls_min=1)
    meters.add("fcm", 0.0, 0.1, failed=True)
    meters.add("apns", 0.0, 0.1, failed=False, calls=3)
    assert meters.of["fcm"].reading(0.0).error_rate == 1.0
    assert meters.of["apns"].reading(0.0).error_rate == 0.0
    assert meters.overall.reading(0.0).error_rate == 0.25
