"""How a record and its deliveries change state; every change of state in the product is one of these functions.

Pure: a record, a time in epoch seconds and words for the timeline go in, the changed record comes out. The states of
a delivery and who moves it:

    pending ──start──> sending ──delivered──────> delivered
                          │ ├──fail─────────────> failed
                          │ ├──leave_uncertain──> uncertain
                          │ └──retry────────────> retrying ──start──> sending
    pending, retrying ──hold, wait──> the same, later
    pending, retrying ──give_way────> cancelled | uncertain, and another delivery in its place
    pending, retrying ──finish_open─> cancelled | expired
    pending, retrying ──suppress────> cancelled | uncertain
    failed (exhausted) ──revive─────> pending
    failed (gone) ──reconsider──────> retrying
"""

from __future__ import annotations

from typing import Literal

from bellbuoy.errors import Conflict
from bellbuoy.model.delivery import (
    ATTEMPTS_KEPT,
    Attempt,
    Delivery,
    DeliveryStatus,
    NotificationStatus,
    ProviderName,
    Receipt,
    Record,
)


def start(delivery: Delivery, now: float) -> Attempt:
    """Record an attempt that is about to be made."""
    attempt = Attempt(n=delivery.tries + 1, started_at=now)
    _make_room(delivery)
    delivery.attempts.append(attempt)
    delivery.status = "sending"
    delivery.due_at = None
    return attempt


def _make_room(delivery: Delivery) -> None:
    """Forget one attempt of a long row: never the first ten, the last, the first doubt, or what a limit counts."""
    if len(delivery.attempts) < ATTEMPTS_KEPT:
        return
    doubt = next((a for a in delivery.attempts if a.outcome == "uncertain"), None)
    for attempt in delivery.attempts[10:-1]:
        counts = attempt.n > delivery.spared and (attempt.counted or attempt.outcome == "uncertain")
        if not counts and attempt is not doubt:
            delivery.attempts.remove(attempt)
            return


def unstart(delivery: Delivery, now: float) -> None:
    """Take back an attempt that was refused before it ran; it is due again at once."""
    delivery.attempts.pop()
    delivery.status = "retrying" if delivery.attempts else "pending"
    delivery.due_at = now


def hold(record: Record, delivery: Delivery, now: float, wait_s: float, why: str) -> None:
    """Let a delivery wait for its provider, `wait_s` seconds or until the provider recovers.

    One that was to be sent now or never has missed its moment and expires.
    """
    if record.once:
        end(delivery, "expired")
        record.note(now, "expired", f"{delivery.provider}: {why}, and it was to be sent now or never")
        return
    if delivery.held != why:
        record.note(now, "held", f"{delivery.provider}: {why}")
    delivery.held = why
    delivery.due_at = now + wait_s


def give_way(record: Record, delivery: Delivery, now: float, to: ProviderName) -> None:
    """Another provider brings it to the same device, since this one is down."""
    record.note(now, "diverted", f"{delivery.provider} is down, {to} reaches the same device")
    end(delivery, "uncertain" if _doubted(delivery) else "cancelled")


def wait(delivery: Delivery, now: float, wait_s: float) -> None:
    """Let a delivery wait `wait_s` seconds for a place; nothing is wrong with it or its provider."""
    delivery.held = None
    delivery.due_at = now + wait_s


def delivered(record: Record, delivery: Delivery, receipt: Receipt, now: float, latency_ms: float) -> None:
    """The provider took it: the notification is delivered, and channels other than this one are not needed."""
    attempt = delivery.attempts[-1]
    attempt.outcome = "delivered"
    attempt.latency_ms = latency_ms
    attempt.provider_status = receipt.provider_status
    attempt.provider_message_id = receipt.message_id
    end(delivery, "delivered")
    if record.status != "delivered":
        record.status = "delivered"
        record.code = None
        record.note(now, "delivered", f"{delivery.provider} accepted it")
    for other in record.deliveries:
        if other.step != delivery.step and other.status in ("pending", "retrying"):
            end(other, "cancelled")


def fail(record: Record, delivery: Delivery, now: float, *, exhausted: bool, why: str) -> None:
    """The delivery will not be made; `exhausted` when only because it has run out of attempts."""
    if _doubted(delivery):
        leave_uncertain(record, delivery, now, f"{why}, and an earlier attempt may have been delivered")
        return
    end(delivery, "failed")
    delivery.exhausted = exhausted
    record.note(now, "exhausted" if exhausted else "delivery_failed", f"{delivery.provider}: {why}")


def leave_uncertain(record: Record, delivery: Delivery, now: float, why: str) -> None:
    """Whether it was delivered is not known, and nobody will try again."""
    end(delivery, "uncertain")
    record.note(now, "uncertain", f"{delivery.provider}: {why}")


def retry(record: Record, delivery: Delivery, now: float, wait_s: float, why: str, *, held: str | None) -> None:
    """Try again in `wait_s` seconds; `held` names what is wrong with the provider, None when nothing is."""
    if record.once:
        end(delivery, "expired")
        record.note(now, "expired", f"{delivery.provider}: {why}, and it was to be sent now or never")
        return
    delivery.status = "retrying"
    delivery.due_at = now + wait_s
    delivery.held = held
    record.note(now, "held" if held else "retry", f"{delivery.provider}: {why}, next in {wait_s:.1f} s")


def cancel(record: Record, now: float) -> bool:
    """Cancel everything that is not sent, as far as that can be done without the worker of an attempt under way.

    Returns:
        True when nothing was changed, since such a worker has to be told.

    Raises:
        Conflict: nothing is left to cancel.
    """
    under_way = any(d.status == "sending" for d in record.deliveries)
    if record.over or (under_way and record.once):
        raise Conflict(f"nothing is left to cancel: it is {record.status}")
    if not under_way:
        cancel_open(record, now)
    return under_way


def cancel_open(record: Record, now: float) -> None:
    """Cancel everything that is not being sent at this moment."""
    if record.final:
        record.note(now, "cancelled", "the sender cancelled what was not sent yet")
    finish_open(record, now, "cancelled", "the sender cancelled it")


def finish_open(record: Record, now: float, status: Literal["cancelled", "expired"], why: str) -> None:
    """End what waits and enter no further channel; what is being sent ends by itself and then concludes the record."""
    for delivery in record.deliveries:
        if delivery.status in ("pending", "retrying"):
            end(delivery, "uncertain" if status == "expired" and _doubted(delivery) else status)
    if record.final:
        return
    record.note(now, status, why)
    if record.chain is not None:
        record.chain = record.chain[: record.step + 1]
    if record.deliveries:
        conclude(record, now)
    else:
        record.status = status


def suppress(record: Record, now: float, why: str) -> None:
    """The recipient wants none of this: end what waits and enter no further channel."""
    for delivery in record.deliveries:
        if delivery.status in ("pending", "retrying"):
            end(delivery, "uncertain" if _doubted(delivery) else "cancelled")
    record.note(now, "suppressed", why)
    if record.final:
        return
    record.status = "uncertain" if any(d.status == "uncertain" for d in record.deliveries) else "suppressed"
    record.code = "category_opted_out"


def postpone(record: Record, now: float, until: float, why: str) -> None:
    """Send nothing more before `until` epoch seconds; what has no delivery yet is routed anew then."""
    record.not_before = until
    record.note(now, "scheduled", why)
    if not record.final:
        record.status = "scheduled"
    if not record.deliveries:
        record.chain = None
    for delivery in record.deliveries:
        if delivery.status in ("pending", "retrying"):
            wait(delivery, until, 0.0)


def revive(record: Record, delivery: Delivery, now: float, due_at: float) -> None:
    """Bring an exhausted delivery back with a fresh count of attempts; it is due at `due_at` epoch seconds."""
    delivery.spared = delivery.tries
    delivery.status = "pending"
    delivery.exhausted = False
    delivery.due_at = due_at
    record.status = "accepted"
    record.code = None
    record.replays += 1
    record.note(now, "replayed", f"{delivery.provider}: brought back from the dead letters")


def reconsider(record: Record, delivery: Delivery, now: float, wait_s: float) -> bool:
    """Bring back a delivery whose endpoint was called gone when that is not to be believed; it waits for its provider.

    Returns:
        False when nothing was changed: it failed for another reason, or is too late, or its notification ended
        otherwise meanwhile.
    """
    gone = delivery.status == "failed" and delivery.attempts[-1:] and delivery.attempts[-1].outcome == "recipient_gone"
    late = record.once or now >= record.expires_at
    if not gone or late or (record.final and record.status != "failed"):
        return False
    delivery.attempts[-1].counted = False
    delivery.status = "retrying"
    delivery.due_at = now + wait_s
    delivery.held = "credential_rejected"
    record.status = "accepted"
    record.code = None
    record.note(now, "reconsidered", f"{delivery.provider}: many tokens were called gone at once, so none is believed")
    conclude(record, now)
    return True


def conclude(record: Record, now: float) -> None:
    """Give the record the status that its deliveries add up to."""
    if record.final or record.chain is None:
        return
    if not record.deliveries:
        if record.not_before is None or record.not_before <= now:
            record.status, record.code = "failed", "no_route"
            record.note(now, "failed", "no_route: every endpoint was gone when its turn came")
        return
    still_open = [d for d in record.deliveries if d.open]
    if still_open:
        held = all(d.held and d.status != "sending" for d in still_open)
        record.status = "queued" if held else "delivering"
        return
    record.status = _final_status(record)
    last = next((d.attempts[-1] for d in reversed(record.deliveries) if d.attempts), None)
    record.code = last.error_code if last else "no_route" if record.status == "failed" else None
    record.note(now, record.status, record.code or "nothing was sent")


_WORST_FIRST: tuple[tuple[DeliveryStatus, NotificationStatus], ...] = (
    ("uncertain", "uncertain"),
    ("cancelled", "cancelled"),
    ("expired", "expired"),
    ("failed", "failed"),
)


def _final_status(record: Record) -> NotificationStatus:
    """What a record is called whose deliveries are all over and none of them delivered."""
    statuses = {d.status for d in record.deliveries}
    if "uncertain" not in statuses and any(d.exhausted for d in record.deliveries):
        return "dead_lettered"
    return next(name for status, name in _WORST_FIRST if status in statuses)


def due_at(record: Record) -> float | None:
    """The epoch second at which the record needs a worker next, None when never."""
    if record.final and record.status != "delivered":
        return None
    times = [d.due_at for d in record.deliveries if d.open and d.due_at is not None]
    if record.status != "delivered":
        if not any(d.open for d in record.deliveries):
            # Somebody must begin, or go on to the next channel where a stop or quiet hours came in between.
            times.append(record.accepted_at)
        elif _fallback_at(record) is not None:
            times.append(_fallback_at(record) or 0.0)
    if not times:
        return None
    first = max(min(times), record.not_before or 0.0)
    return first if record.once else min(first, record.expires_at)


def _fallback_at(record: Record) -> float | None:
    late = record.request.fallback_after_s
    if late is None or record.step_at is None or not record.chain or record.step + 1 >= len(record.chain):
        return None
    return record.step_at + late


def held_for(record: Record) -> tuple[ProviderName, ...]:
    """The providers that the record waits for, each once."""
    return tuple(dict.fromkeys(d.provider for d in record.deliveries if d.open and d.held))


def _doubted(delivery: Delivery) -> bool:
    """Whether an attempt of it may have been delivered without anybody knowing."""
    return any(attempt.outcome == "uncertain" for attempt in delivery.attempts)


def end(delivery: Delivery, status: DeliveryStatus) -> None:
    """Nothing more becomes of it."""
    delivery.status = status
    delivery.due_at = None
    delivery.held = None
