"""One record from two that describe the same notification and did not know of each other.

While the ledger is away a worker goes on from what it has, so in the end there may be two accounts of what was done.
Nothing that either tells of is lost: every attempt stays, and what was delivered stays delivered. Merging is
idempotent, and which of the two comes first makes no difference to deliveries and status.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from bellbuoy.model import transitions
from bellbuoy.model.delivery import TIMELINE_MAX, Attempt, Delivery, Entry, Record

SENT_TWICE = "sent_twice"
"""The event in a timeline that says so."""

_RANK = {"pending": 0, "sending": 1, "retrying": 2, "expired": 3, "cancelled": 4, "failed": 5, "uncertain": 6}


def merge(one: Record, other: Record, now: float) -> Record:
    """What both records tell, as one; neither is changed.

    Args:
        one, other: records of the same id.
        now: epoch seconds, for the timeline where the status changes.
    """
    base, rest = sorted((one, other), key=_progress, reverse=True)
    merged = copy.deepcopy(base)
    theirs = {delivery.id: delivery for delivery in rest.deliveries}
    merged.deliveries = [
        _delivery(ours, theirs.pop(ours.id)) if ours.id in theirs else ours for ours in merged.deliveries
    ]
    merged.deliveries += [copy.deepcopy(delivery) for delivery in theirs.values()]
    merged.deliveries.sort(key=lambda delivery: (delivery.step, delivery.id))
    merged.homes = tuple(sorted({*one.homes, *other.homes}))
    merged.replays = max(one.replays, other.replays)
    merged.timeline = _timeline(one.timeline, other.timeline, _twice(merged))
    if any(d.status == "delivered" for d in merged.deliveries):
        merged.status, merged.code = "delivered", None
        for delivery in merged.deliveries:
            if delivery.status in ("pending", "retrying"):
                transitions.end(delivery, "cancelled")
    transitions.conclude(merged, now)
    return merged


def due_after(record: Record, suggested: float | None) -> float | None:
    """The epoch second at which a merged record needs a worker, None when never.

    Args:
        suggested: when the one who wrote it last thought so: where an attempt is under way, when it must have ended.
    """
    if any(delivery.status == "sending" for delivery in record.deliveries):
        return suggested
    return transitions.due_at(record)


def _progress(record: Record) -> tuple[object, ...]:
    """The record that compares greater knows more."""
    return (
        record.status == "delivered",
        record.replays,
        record.final,
        record.step,
        sum(delivery.tries for delivery in record.deliveries),
        record.chain is not None,
        record.last_at,
        record.status,
    )


def _delivery(one: Delivery, other: Delivery) -> Delivery:
    base = copy.deepcopy(max(one, other, key=_knowledge))
    base.attempts = _attempts(one.attempts, other.attempts)
    return base


def _knowledge(delivery: Delivery) -> tuple[object, ...]:
    return (
        delivery.status == "delivered",
        delivery.spared,
        not delivery.open,
        sum(1 for attempt in delivery.attempts if attempt.outcome is not None),
        delivery.tries,
        _RANK.get(delivery.status, 9),
        delivery.due_at or 0.0,
    )


def _attempts(one: Sequence[Attempt], other: Sequence[Attempt]) -> list[Attempt]:
    """Every attempt once, in the order in which they were begun, with its outcome where one of the two knows it."""
    found: dict[float, Attempt] = {}
    for attempt in (*one, *other):
        seen = found.get(attempt.started_at)
        if seen is None or (seen.outcome is None and attempt.outcome is not None):
            found[attempt.started_at] = attempt
    ordered = [copy.copy(found[at]) for at in sorted(found)]
    for n, attempt in enumerate(ordered):
        attempt.n = max(attempt.n, ordered[n - 1].n + 1 if n else 1)
    return ordered


def _twice(record: Record) -> list[Entry]:
    """A line for every attempt that was made after the delivery had been delivered."""
    found: list[Entry] = []
    for delivery in record.deliveries:
        first = next((attempt.n for attempt in delivery.attempts if attempt.outcome == "delivered"), None)
        why = f"{delivery.provider}: by two workers that could not know of each other while the ledger was away"
        found += [Entry(a.started_at, SENT_TWICE, why) for a in delivery.attempts if first is not None and a.n > first]
    return found


def _timeline(*timelines: Sequence[Entry]) -> list[Entry]:
    entries = sorted(
        {entry for timeline in timelines for entry in timeline}, key=lambda entry: (entry.at, entry.event, entry.detail)
    )
    # As with one timeline that is full: the oldest after the first ten make room.
    return entries if len(entries) <= TIMELINE_MAX else entries[:10] + entries[10 - TIMELINE_MAX :]
