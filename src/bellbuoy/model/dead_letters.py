"""What a notification's dead letters are, and when one may come back; a function of its record alone."""

from __future__ import annotations

from bellbuoy.model.delivery import Record
from bellbuoy.model.operation import DeadLetter
from bellbuoy.model.recipient import masked

EXPIRED = "expired: its time to live has ended"
ABSENT = "not among the dead letters"
GONE = "the notification is gone"
REPLAYED = "it was replayed before"
BUSY = "another delivery of this notification is being sent; try again in a moment"


def letters_of(record: Record) -> list[DeadLetter]:
    """The exhausted deliveries of a dead-lettered notification, in their order; none when it is not one."""
    if record.status != "dead_lettered":
        return []
    return [
        DeadLetter(
            id=delivery.id,
            notification_id=record.id,
            channel=delivery.channel,
            provider=delivery.provider,
            endpoint=masked(delivery.endpoint),
            attempts=delivery.tries,
            error_code=delivery.attempts[-1].error_code,
            provider_status=delivery.attempts[-1].provider_status,
            at=delivery.attempts[-1].started_at + (delivery.attempts[-1].latency_ms or 0.0) / 1000,
        )
        for delivery in record.deliveries
        if delivery.exhausted
    ]


def redeemed(record: Record) -> bool:
    """Whether one of its dead letters was replayed and delivered, so that the others wait for nothing any more."""
    return record.replays > 0 and record.status == "delivered"


def refusal(record: Record, letter_id: str, due_at: float, *, owned: bool) -> str | None:
    """Why this dead letter may not be brought back now, None when it may.

    Args:
        due_at: the epoch second at which it would be tried.
        owned: whether a worker holds a lease on the notification.
    """
    delivery = next((d for d in record.deliveries if d.id == letter_id), None)
    if delivery is None or not delivery.exhausted:
        return REPLAYED
    if owned or any(d.status == "sending" for d in record.deliveries):
        # Taking it from its worker would lose the outcome of what is being sent.
        return BUSY
    if record.status not in ("dead_lettered", "accepted", "delivering", "queued"):
        return f"the notification is {record.status}"
    if due_at >= record.expires_at:
        return EXPIRED
    return None
