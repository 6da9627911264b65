"""When a drill is called off, what its result means, and when it is due again."""

from __future__ import annotations

import pytest

from bellbuoy.continuity.catalogue import PLANNED
from bellbuoy.continuity.drill import (
    CHECKS,
    DAYS,
    STEADY,
    Check,
    Drill,
    DrillReport,
    Limits,
    Reading,
    Result,
    beyond,
    conclude,
    due,
    wanting,
)

DAY_S = 86_400.0
NOW = 1_800_000_000.0
HELD = Check("nothing_lost", "nothing is lost", True)


def reading(**fields: object) -> Reading:
    return Reading(1.0, 0.5, **{"sent": 100, "accepted": 100, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"refused": 3, "broken": 3}, "6% of the calls failed, more than 5%"),
        ({"p99_s": 10.5}, "p99 is 10.5 s, more than 10 s"),
        ({"pending": 20_001}, "20001 are pending, more than 20000"),
        ({"refused": 5, "p99_s": 10.0, "pending": 20_000}, None),
        ({"sent": 0, "accepted": 0}, None),
    ],
)
def test_a_limit_is_passed_when_it_is_beyond_and_not_when_it_is_unknown(
    fields: dict[str, object], limit: str | None
) -> None:
    assert beyond(reading(**fields), Limits()) == limit


def test_a_steady_state_has_no_failed_call() -> None:
    assert beyond(reading(), STEADY) is None
    assert beyond(reading(refused=1), STEADY) is not None


@pytest.mark.parametrize(
    ("checks", "aborted", "result"),
    [
        ([HELD], None, "passed"),
        ([HELD, Check("books_balance", "they do", False)], None, "failed"),
        ([HELD, Check("felt", "it was felt", False)], None, "inconclusive"),
        ([Check("felt", "it was felt", False), Check("nothing_lost", "nothing is lost", False)], None, "failed"),
        ([Check("steady", "it is well", False, "nothing was accepted")], None, "inconclusive"),
        ([HELD], "p99 is 11 s", "aborted"),
    ],
)
def test_a_result_follows_from_what_was_checked(checks: list[Check], aborted: str | None, result: Result) -> None:
    assert conclude(checks, aborted=aborted)[0] == result


def test_what_a_fault_makes_impossible_is_left_out() -> None:
    strict = Drill(name="d", stack="alone", hypothesis="h", fault="f")
    lenient = Drill(name="d", stack="alone", hypothesis="h", fault="f", allows=frozenset({"nothing_refused"}))

    def wanted(drill: Drill) -> dict[str, str]:
        found = wanting(
            drill,
            lost=["a", "b", "c", "d"],
            unexpected=[],
            secret=[],
            split=[],
            refused=2,
            wrong=[],
            not_found=[],
            undelivered={"expired": 1},
            books={"difference": 1, "missing": ["x"], "unknown": []},
            own=[Check("own", "its own", True)],
        )
        return {check.name: check.detail for check in found if not check.passed}

    assert wanted(strict) == {
        "nothing_lost": "a, b, c and 1 more",
        "nothing_refused": "2 calls",
        "all_delivered": "1 expired",
        "books_balance": "difference 1, missing ['x']",
    }
    assert "nothing_refused" not in wanted(lenient)


def report(drill: str, at: float, result: Result = "passed") -> DrillReport:
    return DrillReport(
        drill=drill, stack="alone", hypothesis="h", fault="f", by="ann", started_at=at, result=result, why="w"
    )


def test_a_drill_is_due_a_span_after_it_was_last_passed_and_failing_does_not_count() -> None:
    records = [report("a", NOW, "failed"), report("a", NOW - 10 * DAY_S), report("a", NOW - 40 * DAY_S)]
    (one,) = due({"monthly": ["a"]}, records, since=NOW - 400 * DAY_S)
    assert (one.last_at, one.last_result) == (NOW, "failed")
    assert one.due_at == NOW - 10 * DAY_S + DAYS["monthly"] * DAY_S
    assert not one.overdue(NOW)
    assert one.overdue(one.due_at)


def test_what_was_never_passed_is_waited_for_since_somebody_asked() -> None:
    (one,) = due({"annual": ["a"]}, [], since=NOW)
    assert (one.last_at, one.due_at) == (None, NOW + DAYS["annual"] * DAY_S)


def test_a_drill_that_is_planned_twice_goes_by_the_more_frequent() -> None:
    assert [one.every for one in due({"annual": ["a"], "monthly": ["a"]}, [], since=NOW)] == ["monthly"]


def test_every_drill_says_what_it_does_and_allows_only_what_is_checked() -> None:
    for drill in PLANNED.values():
        assert drill.hypothesis.endswith(".")
        assert drill.fault.endswith(".")
        assert drill.allows <= CHECKS.keys()
        assert drill.seconds <= 10.0
