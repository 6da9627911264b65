"""Merging two accounts of one notification: nothing told is lost, and neither order nor repetition matters."""

from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Receipt, Record
from bellbuoy.model.merge import merge
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient

NOW = 1_800_000_000.0
STEPS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(["delivered", "fail", "retry", "uncertain", "sending"])), max_size=4
)


def fresh() -> Record:
    request = Request(recipient=Recipient(email="a@example.com"), content=Content(title="t"))
    record = Record("a", "t", request, NOW, NOW + 100, chain=("email",))
    record.deliveries = [Delivery(f"d{n}", 0, "email", "smtp", f"{n}@example.com", due_at=NOW) for n in range(2)]
    return record


def account(steps: list[tuple[int, str]], begun: Record, at: float) -> Record:
    """What a worker made of a notification: what it tried in turn, and how that went."""
    record = copy.deepcopy(begun)
    for n, (which, how) in enumerate(steps):
        delivery = record.deliveries[which]
        now = at + n
        if delivery.status not in ("pending", "retrying"):
            continue
        attempt = transitions.start(delivery, now)
        if how == "delivered":
            transitions.delivered(record, delivery, Receipt(250), now, 1.0)
        elif how == "sending":
            continue
        else:
            attempt.outcome = {"fail": "permanent", "retry": "retryable", "uncertain": "uncertain"}[how]  # type: ignore[assignment]
            if how == "fail":
                transitions.fail(record, delivery, now, exhausted=False, why="x")
            else:
                transitions.retry(record, delivery, now, 5.0, "x", held=None)
        transitions.conclude(record, now)
    return record


def essence(record: Record) -> object:
    return (
        record.status,
        [(d.id, d.status, [(a.started_at, a.outcome) for a in d.attempts]) for d in record.deliveries],
        record.timeline,
    )


@given(STEPS, STEPS, STEPS)
def test_merging(shared: list[tuple[int, str]], here: list[tuple[int, str]], there: list[tuple[int, str]]) -> None:
    begun = account(shared, fresh(), NOW)
    one, other = account(here, begun, NOW + 10), account(there, begun, NOW + 20.5)
    before = copy.deepcopy((one, other))
    merged = merge(one, other, NOW + 30)
    assert (one, other) == before
    assert essence(merged) == essence(merge(other, one, NOW + 30))
    for source in (one, other):
        again = merge(merged, source, NOW + 40)
        assert essence(again) == essence(merged)
        for ours, theirs in zip(merged.deliveries, source.deliveries, strict=True):
            known = {attempt.started_at: attempt.outcome for attempt in ours.attempts}
            for attempt in theirs.attempts:
                assert attempt.started_at in known
                assert attempt.outcome in (None, known[attempt.started_at])
            if theirs.status == "delivered":
                assert ours.status == "delivered"
            assert [attempt.n for attempt in ours.attempts] == list(range(1, len(ours.attempts) + 1))
    if "delivered" in (one.status, other.status):
        assert merged.status == "delivered"
        assert transitions.due_at(merged) is None or any(d.status == "sending" for d in merged.deliveries)
    assert merged.possible_duplicates >= max(one.possible_duplicates, other.possible_duplicates)
