"""Entering takes several bad looks, leaving a clean while, and coming and going makes few changes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.health.hysteresis import Hysteresis, Patience

PATIENCE = Patience(enter_looks=3, leave_s=5.0, leave_s_max=300.0, calm=6.0)


def test_it_is_entered_after_the_third_bad_look_in_a_row() -> None:
    one = Hysteresis(PATIENCE)
    assert [one.look(bad, float(n)) for n, bad in enumerate([True, True, False, True, True, True])] == [False] * 5 + [
        True
    ]
    assert one.since == 5.0


def test_certain_evidence_needs_no_second_look() -> None:
    assert Hysteresis(PATIENCE).look(True, 0.0, certain=True)


def test_it_is_left_after_a_clean_while() -> None:
    one = Hysteresis(PATIENCE)
    one.look(True, 0.0, certain=True)
    assert one.look(False, 1.0)
    assert one.look(False, 5.9)
    assert not one.look(False, 6.0)
    assert one.since is None


def test_a_bad_look_begins_the_clean_while_anew() -> None:
    one = Hysteresis(PATIENCE)
    one.look(True, 0.0, certain=True)
    one.look(False, 1.0)
    one.look(True, 4.0)
    assert one.look(False, 5.0)
    assert one.look(False, 9.9)
    assert not one.look(False, 10.0)


def test_what_cannot_be_measured_is_no_evidence_either_way() -> None:
    one = Hysteresis(PATIENCE)
    for n in range(10):
        assert not one.look(None, float(n))
    one.look(True, 10.0, certain=True)
    one.look(False, 11.0)
    one.look(None, 12.0)
    assert one.look(False, 16.5), "the while in which nothing was seen was not clean"
    for n in range(100):
        assert one.look(None, 20.0 + n)


def test_a_relapse_doubles_the_clean_while_up_to_its_bound_and_calm_halves_it_back() -> None:
    one = Hysteresis(PATIENCE)
    now, waits = 0.0, []
    for _ in range(9):
        one.look(True, now, certain=True)
        began = now
        while one.look(False, now):
            now += 0.5
        waits.append(now - began)
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]
    now += 6 * 300.0
    one.look(True, now, certain=True)
    assert one.look(False, now)
    assert not one.look(False, now + 5.0)


def test_a_dependency_that_comes_and_goes_each_second_for_two_minutes_makes_one_change() -> None:
    one, changes, before = Hysteresis(PATIENCE), 0, False
    for tick in range(300):
        now = tick * 0.4
        after = one.look(int(now) % 2 == 0, now)
        changes += after != before
        before = after
    assert changes == 1


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans(), st.floats(0.01, 20.0)), max_size=200))
def test_it_never_changes_more_often_than_its_patience_allows(looks: list[tuple[bool | None, bool, float]]) -> None:
    one, now, left_at, entered_at = Hysteresis(PATIENCE), 0.0, None, None
    bad_in_a_row = 0
    for bad, certain, step in looks:
        now += step
        before = one.active
        after = one.look(bad, now, certain=certain)
        bad_in_a_row = bad_in_a_row + 1 if bad else bad_in_a_row if bad is None else 0
        if after and not before:
            assert bad
            assert certain or bad_in_a_row >= 3
            entered_at = now
        if before and not after:
            assert bad is False
            assert entered_at is not None
            assert now - entered_at >= PATIENCE.leave_s
            left_at = now
    assert left_at is None or left_at <= now
