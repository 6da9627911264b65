"""Records as clients see them: times as RFC 3339, endpoints masked."""

from __future__ import annotations

from typing import Any

import msgspec

from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.model.operation import ApiKey, Books, DeadLetter, Incident, Mode, Tombstone
from bellbuoy.model.recipient import RegisteredDevice, User, masked
from bellbuoy.service.times import stamp


def accepted(record: Record) -> dict[str, Any]:
    """The answer to an acceptance; the same each time the same key asks."""
    return {
        "id": record.id,
        "status": record.answered,
        "homes": record.homes,
        "degraded": record.degraded,
        "links": {"self": f"/v1/notifications/{record.id}"},
    }


def notification(record: Record) -> dict[str, Any]:
    """A notification with its deliveries and their attempts."""
    request = record.request
    recipient = msgspec.to_builtins(request.recipient)
    if request.recipient.device is not None:
        recipient["device"]["token"] = masked(request.recipient.device.token)
    return {
        "id": record.id,
        "status": record.status,
        "code": record.code,
        "recipient": recipient,
        "content": msgspec.to_builtins(request.content),
        "channels": request.channels,
        "priority": request.priority,
        "category": request.category,
        "collapse_key": request.collapse_key,
        "ttl_s": request.ttl_s,
        "send_at": stamp(request.send_at.timestamp()) if request.send_at else None,
        "fallback_after_s": request.fallback_after_s,
        "on_uncertain": request.on_uncertain,
        "accepted_at": stamp(record.accepted_at),
        "expires_at": stamp(record.expires_at),
        "not_before": stamp(record.not_before),
        "deliveries": [_delivery(d) for d in record.deliveries],
        "links": {"self": f"/v1/notifications/{record.id}", "explain": f"/v1/notifications/{record.id}/explain"},
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.id,
        "channel": delivery.channel,
        "provider": delivery.provider,
        "endpoint": masked(delivery.endpoint),
        "device_id": delivery.device_id,
        "status": delivery.status,
        "held": delivery.held,
        "next_attempt_at": stamp(delivery.due_at),
        "attempts": [
            {
                "n": a.n,
                "started_at": stamp(a.started_at),
                "latency_ms": None if a.latency_ms is None else round(a.latency_ms, 3),
                "outcome": a.outcome,
                "provider_status": a.provider_status,
                "error_code": a.error_code,
                "provider_message_id": a.provider_message_id,
            }
            for a in delivery.attempts
        ],
    }


def explanation(record: Record, now: float) -> dict[str, Any]:
    """The causal timeline of a notification, and what happens next and why."""
    lines = [(e.at, e.event, e.detail) for e in record.timeline]
    for delivery in record.deliveries:
        where = f"{delivery.provider} to {masked(delivery.endpoint)}"
        for a in delivery.attempts:
            lines.append((a.started_at, "attempt_started", f"{where}, attempt {a.n}"))
            if a.outcome is not None:
                status = f" (status {a.provider_status})" if a.provider_status else ""
                code = f": {a.error_code}" if a.error_code else ""
                end = a.started_at + (a.latency_ms or 0.0) / 1000
                lines.append((end, f"attempt_{a.outcome}", f"{where}, attempt {a.n}{code}{status}"))
    # A stable sort keeps cause before effect where two have the same time.
    lines.sort(key=lambda line: line[0])
    timeline = [{"at": stamp(at), "event": event, "detail": detail} for at, event, detail in lines]
    return {"id": record.id, "status": record.status, "timeline": timeline, "next": _next(record, now)}


def _next(record: Record, now: float) -> dict[str, Any] | None:
    """What happens next, None when the story is over."""
    sending = next((d for d in record.deliveries if d.status == "sending"), None)
    if sending is not None:
        at = sending.attempts[-1].started_at
        return {"at": stamp(at), "what": f"{sending.provider} answers", "why": "an attempt is being made now"}
    due_at = transitions.due_at(record)
    if due_at is None:
        return None
    waiting = min(
        (d for d in record.deliveries if d.open and d.due_at is not None), key=lambda d: d.due_at or 0, default=None
    )
    if waiting is not None:
        what, why = _next_attempt(record, waiting, due_at)
    elif record.not_before is not None and record.not_before > now:
        what, why = "it is sent", _last(record, "scheduled") or "its send_at"
    else:
        what, why = "a worker claims it", "it is due"
    return {"at": stamp(max(due_at, now)), "what": what, "why": why}


def _next_attempt(record: Record, waiting: Delivery, due_at: float) -> tuple[str, str]:
    """What comes next for the delivery that waits, and why."""
    if waiting.held:
        return f"{waiting.provider} is tried again, sooner if it recovers", f"held: {waiting.held}"
    if not record.once and due_at >= record.expires_at:
        return "it expires", "its time to live ends before the next attempt"
    if waiting.due_at is not None and due_at < waiting.due_at:
        return "the next channel is tried", f"not delivered within {record.request.fallback_after_s} s"
    return f"{waiting.provider} is tried, attempt {waiting.tries + 1}", _last(record, "retry") or "it is due"


def _last(record: Record, event: str) -> str | None:
    return next((e.detail for e in reversed(record.timeline) if e.event == event), None)


def user(one: User) -> dict[str, Any]:
    """A recipient with its devices."""
    return {
        "user_id": one.user_id,
        "email": one.email,
        "phone": one.phone,
        "locale": one.locale,
        "timezone": one.timezone,
        "preferences": msgspec.to_builtins(one.preferences),
        "devices": [device(d) for d in one.devices],
    }


def device(one: RegisteredDevice) -> dict[str, Any]:
    """A device and whether its token is in use."""
    return {
        **msgspec.to_builtins(one.device),
        "registered_at": stamp(one.registered_at),
        "invalidated_at": stamp(one.invalidated_at),
        "invalid_because": one.invalid_because,
    }


def dead_letter(one: DeadLetter) -> dict[str, Any]:
    """A dead letter, its time as RFC 3339."""
    return {**msgspec.to_builtins(one), "at": stamp(one.at)}


def incident(one: Incident) -> dict[str, Any]:
    """An incident, its times as RFC 3339."""
    escalations = [{**msgspec.to_builtins(each), "at": stamp(each.at)} for each in one.escalations]
    return {
        "id": one.id,
        "issue": one.issue,
        "component": one.component,
        "detail": one.detail,
        "status": one.status,
        "plan": one.plan,
        "steps": msgspec.to_builtins(one.steps),
        "attempts": one.attempts,
        "next_attempt_at": stamp(one.next_at),
        "escalations": escalations,
        "opened_at": stamp(one.opened_at),
        "acknowledged_at": stamp(one.acknowledged_at),
        "acknowledged_by": one.acknowledged_by,
        "resolved_at": stamp(one.resolved_at),
        "resolved_by": one.resolved_by,
    }


def mode(one: Mode) -> dict[str, Any]:
    """A mode, its time as RFC 3339."""
    return {**msgspec.to_builtins(one), "since": stamp(one.since)}


def tombstone(one: Tombstone) -> dict[str, Any]:
    """An invalidated token."""
    return {
        "user_id": one.user_id,
        "device_id": one.device_id,
        "provider": one.provider,
        "because": one.because,
        "at": stamp(one.at),
        "restored_at": stamp(one.restored_at),
    }


def api_key(one: ApiKey) -> dict[str, Any]:
    """A key without its hash."""
    return {
        "id": one.id,
        "name": one.name,
        "scopes": one.scopes,
        "created_at": stamp(one.created_at),
        "revoked_at": stamp(one.revoked_at) if one.has_ended else None,
        "replaced": one.replaced,
    }


def books(one: Books) -> dict[str, Any]:
    """The books as they are."""
    return dict(msgspec.to_builtins(one))
