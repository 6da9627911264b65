"""Whether things are worse since a change: evidence for worse, evidence for as good, and all else unclear."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bellbuoy.model.change import Figures
from bellbuoy.recovery.judge import Bounds, judge, lower_end

BOUNDS = Bounds()
FCM = frozenset({"fcm"})
GOOD = {"fcm": Figures(1_000, 10, 0.2)}


def verdict(after: Figures | None, *, before: Figures | None = GOOD["fcm"], ended: bool = True) -> str:
    return judge(
        {"fcm": before} if before else {}, {"fcm": after} if after else {}, BOUNDS, concerned=FCM, ended=ended
    ).is_


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (Figures(1_000, 10, 0.2), "as_good"),
        (Figures(1_000, 55, 0.2), "as_good"),
        (Figures(1_000, 65, 0.2), "unclear"),
        (Figures(1_000, 100, 0.2), "worse"),
        (Figures(5, 5, 0.2), "worse"),
        (Figures(2, 2, 0.2), "unclear"),
        (Figures(19, 0, 0.2), "unclear"),
        (Figures(1_000, 10, 0.39), "as_good"),
        (Figures(1_000, 10, 0.41), "worse"),
        (Figures(1_000, 10, None), "unclear"),
        (None, "unclear"),
    ],
)
def test_the_bounds(after: Figures | None, expected: str) -> None:
    assert verdict(after) == expected


def test_a_small_latency_may_grow_by_any_factor() -> None:
    assert verdict(Figures(1_000, 0, 0.09), before=Figures(1_000, 0, 0.001)) == "as_good"


def test_latencies_are_compared_at_the_end_and_errors_at_once() -> None:
    assert verdict(Figures(1_000, 10, 9.0), ended=False) == "as_good"
    assert verdict(Figures(1_000, 500, 0.2), ended=False) == "worse"


@pytest.mark.parametrize("before", [None, Figures(19, 0, 0.1)])
def test_without_a_before_nothing_can_be_said(before: Figures | None) -> None:
    assert verdict(Figures(1_000, 1_000, 9.0), before=before) == "unclear"


def test_another_dependency_than_the_one_concerned_is_no_evidence_that_it_is_well() -> None:
    ledger = {"ledger": Figures(1_000, 0, 0.1)}
    assert judge(ledger, ledger, BOUNDS, concerned=FCM, ended=True).is_ == "unclear"
    assert judge(ledger, {"ledger": Figures(99, 99, 0.1)}, BOUNDS, concerned=FCM, ended=True).is_ == "worse"


def test_what_fell_silent_is_never_a_success() -> None:
    before = GOOD | {"sms": Figures(50, 0, 0.1)}
    assert judge(before, GOOD, BOUNDS, concerned=FCM, ended=True).is_ == "unclear"


def test_a_rate_that_may_be_chance_hides_no_latency_that_is_worse() -> None:
    before = {"fcm": Figures(20, 15, 0.25)}
    assert judge(before, {"fcm": Figures(20, 17, 1.0)}, BOUNDS, concerned=FCM, ended=True).is_ == "worse"


figures = st.builds(
    lambda calls, share, p95: Figures(calls, int(calls * share), p95),
    st.integers(0, 5_000),
    st.floats(0, 1),
    st.none() | st.floats(0.001, 100),
)


@given(figures, st.booleans())
def test_what_is_the_same_as_before_is_never_worse(same: Figures, ended: bool) -> None:
    assert judge({"fcm": same}, {"fcm": same}, BOUNDS, concerned=FCM, ended=ended).is_ != "worse"


@given(figures, figures, st.integers(1, 500))
@example(Figures(20, 0, 1.0), Figures(20, 0, 3.0), 2)
def test_more_failures_never_make_it_better(before: Figures, after: Figures, more: int) -> None:
    order = ("as_good", "unclear", "worse")
    failing = Figures(after.calls, min(after.calls, after.failures + more), after.p95_s)
    assert order.index(verdict(failing, before=before)) >= order.index(verdict(after, before=before))


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_lower_end_is_at_most_the_rate(calls: int, share: float) -> None:
    failures = int(calls * share)
    assert -1e-9 <= lower_end(failures, calls) <= failures / calls + 1e-9


def test_the_lower_end_is_wilsons() -> None:
    # 10 of 100 at z = 2.58, by hand: (0.1 + 0.0332820 - 2.58 * sqrt(0.0009 + 0.0001664)) / 1.066564.
    assert lower_end(10, 100) == pytest.approx(0.0459698, abs=1e-5)
