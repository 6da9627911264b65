"""The checker catches what it is there to catch."""

from __future__ import annotations

from typing import Any

from bellbuoy.continuity.history import check


def notification(
    key: str = "k", outcomes: tuple[str, ...] = ("delivered",), status: str = "delivered"
) -> dict[str, Any]:
    attempts = [{"n": n, "outcome": outcome} for n, outcome in enumerate(outcomes, 1)]
    delivery = {"id": f"d-{key}", "status": status, "attempts": attempts}
    return {
        "id": key,
        "status": status,
        "collapse_key": key,
        "content": {"title": f"t-{key}"},
        "deliveries": [delivery],
    }


HISTORY: list[dict[str, Any]] = [{"type": "invoke", "key": "k", "id": None}, {"type": "ok", "key": "k", "id": "k"}]
ONCE: dict[str, list[dict[str, Any]]] = {"fcm": [{"title": "t-k"}]}
TWICE: dict[str, list[dict[str, Any]]] = {"fcm": [{"title": "t-k"}] * 2}


def test_a_kept_promise_is_clean() -> None:
    report = check(HISTORY, [notification()], ONCE, {"d-k": 1})
    assert report.summary() == {
        "accepted": 1,
        "recovered": 0,
        "lost": 0,
        "unexpected": 0,
        "sent_after_delivered": 0,
        "calls_beyond_doubt": 0,
        "split": 0,
        "duplicates": 0,
    }


def test_a_lost_write_is_caught() -> None:
    assert check(HISTORY, [], ONCE, {}).lost == ["k"]
    assert check(HISTORY, [notification(status="delivering")], ONCE, {}).lost == ["k"]
    assert check(HISTORY, [], ONCE, {}).unexpected == ["t-k"]


def test_a_double_send_is_caught_unless_an_outcome_was_unknown() -> None:
    assert check(HISTORY, [notification()], TWICE, {}).calls_beyond_doubt == ["t-k"]
    honest = check(HISTORY, [notification(outcomes=("uncertain", "delivered"))], TWICE, {})
    assert (honest.calls_beyond_doubt, honest.duplicates) == ([], 1)


def test_a_send_after_delivery_is_caught() -> None:
    assert check(HISTORY, [notification(outcomes=("delivered", "delivered"))], TWICE, {"d-k": 1}).sent_after_delivered


def test_what_nobody_was_told_of_counts_as_recovered() -> None:
    assert check(HISTORY[:1], [notification()], ONCE, {}).recovered == 1


def test_a_key_with_two_ids_is_split() -> None:
    history = [*HISTORY, {"type": "ok", "key": "k", "id": "another"}]
    assert check(history, [], {}, {}).split == ["k"]


def test_what_a_provider_turned_away_was_no_delivery() -> None:
    items: list[dict[str, Any]] = [{"title": "t-k", "delivered": False}, {"title": "t-k"}]
    assert check(HISTORY, [notification()], {"fcm": items}, {}).calls_beyond_doubt == []
