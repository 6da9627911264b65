"""The numbers that users rely on without writing them down, and the bounds of those that they do write."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from bellbuoy import resilience
from bellbuoy.clock import ManualClock
from bellbuoy.resilience import (
    AdaptiveLimit,
    AdaptiveThrottle,
    AdaptiveTimeout,
    Aimd,
    BreakerSettings,
    Bulkhead,
    Chaos,
    CircuitBreaker,
    CircuitOpened,
    Events,
    Fallback,
    Gradient,
    Hedge,
    LastGood,
    RateLimit,
    Retry,
    RetryBudget,
    RetrySettings,
    SharedBreaker,
    Timeout,
)
from bellbuoy.resilience.window import CountWindow, TimeWindow


def _numbers(kind: Callable[..., Any]) -> dict[str, Any]:
    plain = (int, float, str)
    return {
        name: one.default for name, one in inspect.signature(kind).parameters.items() if isinstance(one.default, plain)
    }


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (Aimd, {"initial": 10, "limit_min": 1, "limit_max": 200, "decrease": 0.9}),
        (
            Gradient,
            {"initial": 20, "limit_min": 1, "limit_max": 200, "tolerance": 1.5, "smoothing": 0.2,
             "inflation_max": 1.2, "window_s": 60.0},
        ),
        (AdaptiveLimit, {"queue_max": 0}),
        (AdaptiveTimeout, {"quantile": 0.99, "factor": 2.0, "window_s": 60.0, "calls_min": 20, "name": "timeout"}),
        (AdaptiveThrottle, {"k": 2.0, "window_s": 120.0}),
        (RateLimit, {"burst": 1, "wait_s_max": 0.0, "recover_s": 30.0}),
        (RetryBudget, {"ratio": 0.2, "per_second_min": 10.0, "window_s": 10.0}),
        (Bulkhead, {"queue_max": 0, "priorities": 3}),
        (CircuitBreaker, {"judge_results": False, "shadow": False}),
        (
            Chaos,
            {"failure_share": 0.0, "loss_share": 0.0, "delay_share": 0.0, "delay_s": 0.0, "hang_share": 0.0,
             "enabled": True},
        ),
        (CircuitOpened, {"reason": "failures", "shadow": False}),
        (Fallback, {"name": "fallback"}),
        (LastGood, {"fresh_s": 0.0, "size_max": 10_000, "name": "last good"}),
        (Hedge, {"attempts_max": 2, "name": "hedge"}),
        (Retry, {"name": "retry", "idempotent": True}),
        (SharedBreaker, {"interval_s": 1.0, "timeout_s": 0.5, "probing": True}),
        (Timeout, {"name": "timeout"}),
        (TimeWindow, {"buckets": 20}),
        (CircuitBreaker.stream, {"keep_max": 1_000}),
        (CircuitBreaker.open, {"reason": "shared"}),
        (Events.stream, {"keep_max": 1_000}),
        (
            RetrySettings,
            {"max_attempts": 3, "initial_delay_s": 1.0, "max_delay_s": 30.0, "backoff_multiplier": 2.0,
             "jitter_factor": 0.1, "delay_min_s": 0.1, "retry_after_s_max": 86_400.0, "jitter": "around"},
        ),
        (
            BreakerSettings,
            {"failure_threshold": 5, "recovery_timeout_s": 60.0, "monitoring_window_s": 300.0, "success_threshold": 3,
             "timeout_s": 10.0, "consecutive": False, "slow_call_ratio": 0.5, "minimum_calls": 10, "close_ratio": 1.0,
             "reopen_multiplier": 1.0, "recovery_timeout_s_max": 900.0, "recovery_jitter": 0.0, "ramp_s": 0.0,
             "ramp_start": 0.1},
        ),
    ],
)  # fmt: skip
def test_the_defaults(kind: Callable[..., Any], defaults: dict[str, Any]) -> None:
    assert _numbers(kind) == defaults


_NUMBERS = {
    "FCM": (5, 60, 300, 3, 10), "APNS": (3, 30, 180, 2, 15), "MONGODB": (8, 20, 120, 5, 5),
    "REDIS": (10, 10, 60, 3, 2), "RABBITMQ": (5, 10, 60, 3, 5), "SMTP": (10, 60, 300, 2, 30),
    "SMS": (5, 60, 300, 2, 15), "PAGERDUTY": (5, 20, 300, 2, 10), "SLACK": (5, 60, 300, 1, 10),
    "JIRA": (5, 120, 600, 1, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", _NUMBERS)
def test_the_ready_made_numbers_and_nothing_else(name: str) -> None:
    assert getattr(resilience, name) == BreakerSettings(*_NUMBERS[name])


def test_the_kinds_that_guards_reason_with() -> None:
    kinds = {
        kind.__name__: kind.kind
        for kind in (CircuitBreaker, Retry, Timeout, AdaptiveTimeout, Bulkhead, AdaptiveLimit, RateLimit,
                     AdaptiveThrottle, Fallback, LastGood, Hedge, Chaos, RetryBudget)
    }  # fmt: skip
    assert kinds == {
        "CircuitBreaker": "breaker", "Retry": "retry", "Timeout": "timeout", "AdaptiveTimeout": "timeout",
        "Bulkhead": "bulkhead", "AdaptiveLimit": "bulkhead", "RateLimit": "rate_limit", "AdaptiveThrottle": "throttle",
        "Fallback": "fallback", "LastGood": "cache", "Hedge": "hedge", "Chaos": "chaos", "RetryBudget": "budget",
    }  # fmt: skip


def _adaptive(**numbers: float) -> AdaptiveTimeout:
    return AdaptiveTimeout(**({"timeout_s_min": 1.0, "timeout_s_max": 1.0} | numbers))  # type: ignore[arg-type]


def _budget(**numbers: Any) -> RetryBudget:
    return RetryBudget(**numbers)


def _bulkhead(**numbers: Any) -> Bulkhead:
    return Bulkhead("b", **({"concurrency_max": 1} | numbers))


def _rate(**numbers: Any) -> RateLimit:
    return RateLimit("r", **({"rate_per_s": 1.0} | numbers))


def _cache(**numbers: Any) -> LastGood:
    return LastGood(str, **({"stale_s_max": 1.0} | numbers))


def _hedge(**numbers: Any) -> Hedge:
    return Hedge(**({"delay_s": 1.0} | numbers))


def _throttle(**numbers: Any) -> AdaptiveThrottle:
    return AdaptiveThrottle("t", **numbers)


@pytest.mark.parametrize(
    ("make", "name", "allowed", "refused"),
    [
        (BreakerSettings, "failure_threshold", [1], [0, -1]),
        (BreakerSettings, "recovery_timeout_s", [0.5], [0.0]),
        (BreakerSettings, "monitoring_window_s", [0.5], [0.0]),
        (BreakerSettings, "success_threshold", [1], [0]),
        (BreakerSettings, "timeout_s", [0.5], [0.0, math.nan]),
        (BreakerSettings, "slow_call_s", [0.5, None], [0.0]),
        (BreakerSettings, "minimum_calls", [1], [0]),
        (BreakerSettings, "window_calls", [1, None], [0]),
        (BreakerSettings, "recovery_timeout_s_max", [0.5], [0.0]),
        (BreakerSettings, "failure_ratio", [0.01, 1.0, None], [0.0, 1.01]),
        (BreakerSettings, "slow_call_ratio", [0.01, 1.0], [0.0, 1.01]),
        (BreakerSettings, "close_ratio", [0.01, 1.0], [0.0, 1.01]),
        (BreakerSettings, "ramp_start", [0.01, 1.0], [0.0, 1.01]),
        (BreakerSettings, "reopen_multiplier", [1.0, 1.5], [0.99]),
        (BreakerSettings, "recovery_jitter", [0.0, 0.5], [-0.01]),
        (BreakerSettings, "ramp_s", [0.0, 0.5], [-0.01]),
        (RetrySettings, "max_attempts", [1], [0]),
        (RetrySettings, "backoff_multiplier", [1.0, 1.5], [0.99]),
        (RetrySettings, "jitter_factor", [0.0, 1.0], [-0.01, 1.01]),
        (RetrySettings, "initial_delay_s", [0.0, 0.5], [-0.01, math.inf, math.nan]),
        (RetrySettings, "max_delay_s", [0.0, 0.5], [-0.01, math.inf]),
        (RetrySettings, "delay_min_s", [0.0, 0.5], [-0.01, math.inf]),
        (RetrySettings, "retry_after_s_max", [0.0, 0.5], [-0.01, math.inf]),
        (Aimd, "initial", [1, 10, 200], [0, 201]),
        (Aimd, "limit_min", [1, 10], [0, 11]),
        (Aimd, "limit_max", [10], [9]),
        (Aimd, "decrease", [0.01, 0.99], [0.0, 1.0]),
        (Gradient, "initial", [1, 200], [0, 201]),
        (Gradient, "limit_min", [1, 20], [0, 21]),
        (Gradient, "limit_max", [20], [19]),
        (Gradient, "tolerance", [1.0, 1.01], [0.99]),
        (Gradient, "smoothing", [0.01, 1.0], [0.0, 1.01]),
        (Gradient, "inflation_max", [1.0, 1.01], [0.99]),
        (Gradient, "window_s", [0.01], [0.0, -1.0]),
        (_adaptive, "timeout_s_min", [0.01, 1.0], [0.0, 1.01]),
        (_adaptive, "quantile", [0.01, 1.0], [0.0, 1.01]),
        (_adaptive, "factor", [1.0, 1.01], [0.99]),
        (_budget, "ratio", [0.0, 0.01], [-0.01]),
        (_budget, "per_second_min", [0.0, 0.01], [-0.01]),
        (_budget, "concurrency_max", [0, 1, None], [-1]),
        (_bulkhead, "concurrency_max", [1], [0]),
        (_bulkhead, "queue_max", [0], [-1]),
        (_bulkhead, "wait_s_max", [0.01, None], [0.0]),
        (_rate, "rate_per_s", [0.01], [0.0]),
        (_rate, "burst", [1], [0]),
        (_rate, "wait_s_max", [0.0, 0.01], [-0.01]),
        (_throttle, "k", [1.0, 1.01], [0.99]),
        (_cache, "stale_s_max", [0.01], [0.0]),
        (_cache, "fresh_s", [0.0, 0.01], [-0.01]),
        (_cache, "size_max", [1], [0]),
        (_hedge, "delay_s", [0.0, 0.01], [-0.01]),
        (_hedge, "attempts_max", [1], [0]),
        (Chaos, "failure_share", [0.0, 1.0], [-0.01, 1.01]),
        (Chaos, "loss_share", [0.0, 1.0], [-0.01, 1.01]),
        (Chaos, "delay_share", [0.0, 1.0], [-0.01, 1.01]),
        (Chaos, "hang_share", [0.0, 1.0], [-0.01, 1.01]),
        (Chaos, "delay_s", [0.0, 0.01], [-0.01]),
        (Timeout, "timeout_s", [0.01], [0.0, math.nan]),
        (CountWindow, "size", [1], [0]),
    ],
)
def test_the_bounds(make: Any, name: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        make(**{name: value})
    for value in refused:
        with pytest.raises(ValueError, match=rf"\b{name}\b"):
            make(**{name: value})


@pytest.mark.parametrize(("window_s", "buckets"), [(0.0, 20), (-1.0, 20), (1.0, 0)])
def test_the_bounds_of_a_window(window_s: float, buckets: int) -> None:
    TimeWindow(0.01, 1)
    with pytest.raises(ValueError):
        TimeWindow(window_s, buckets)


def test_settings_cannot_be_changed_in_place() -> None:
    for settings in (BreakerSettings(), RetrySettings()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, dataclasses.fields(settings)[0].name, 1)


async def test_a_budget_refunds_what_is_still_in_its_window() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, window_s=10.0, clock=clock)
    early = budget.reserve()
    assert early is not None
    await clock.advance(4.9, turns=0)
    early.refund()
    assert budget.available == 1.0
    late = budget.reserve()
    assert late is not None
    await clock.advance(5.0, turns=0)  # It may have left the window already, and is not given back twice.
    late.refund()
    assert budget.available == 0.0
    budget.called()
    assert (budget.running, budget._window.totals(clock.monotonic()).calls) == (0, 1)


class Fixed(Random):
    """Chance that always draws the same place between two bounds."""

    def __init__(self, place: float) -> None:
        super().__init__(1)
        self.place = place

    def random(self) -> float:
        return self.place

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * self.place


@pytest.mark.parametrize(
    ("jitter", "place", "wait_s"),
    [
        ("around", 0.0, 3.6), ("around", 1.0, 4.4), ("full", 0.25, 1.0), ("equal", 0.0, 2.0), ("equal", 1.0, 4.0),
        ("decorrelated", 0.0, 1.0), ("decorrelated", 1.0, 6.0),
    ],
)  # fmt: skip
def test_each_jitter_by_its_formula(jitter: Any, place: float, wait_s: float) -> None:
    assert RetrySettings(jitter=jitter).delay_s(3, Fixed(place), before_s=2.0) == pytest.approx(wait_s)


def test_a_wait_asked_for_is_spread_upwards() -> None:
    assert RetrySettings().delay_s(1, Fixed(1.0), 10.0) == pytest.approx(11.0)
    assert RetrySettings().delay_s(1, Fixed(0.0), 10.0) == pytest.approx(10.0)
