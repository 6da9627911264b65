"""Turn what the sender asked and the recipient allows into a chain of deliveries.

Pure: the same record, recipient and time always give the same route.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Message, Record
from bellbuoy.model.identity import derived
from bellbuoy.model.recipient import Channel, QuietHours, User
from bellbuoy.model.routes import CALM, Address, Circumstances, allowed, chain_of, endpoints, every_address

_NAMESPACE = uuid.UUID("6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569")


def route(record: Record, user: User | None, now: float) -> None:
    """Decide the chain of channels, or that there is nothing to send.

    Sets `chain`, and a final status where there is one: `suppressed` when the recipient opted out of the category,
    `failed` with code `no_route` when there is nowhere to send.

    Args:
        record: not yet routed.
        user: the recipient, None when the request names no user or one that is unknown.
        now: epoch seconds.
    """
    if _opted_out(record, user):
        record.chain = ()
        transitions.suppress(record, now, _opting_out(record))
        return
    record.locale = user.locale if user else None
    record.chain, refused = chain_of(record.request, user)
    if not record.chain:
        record.status = "failed"
        record.code = "no_route"
        record.note(now, "failed", "no_route: " + (refused or "the recipient has no usable endpoint"))
        return
    record.note(now, "routed", " then ".join(record.chain))


def look_again(record: Record, user: User | None, now: float, at: Circumstances = CALM) -> None:
    """Hold what was decided against what the recipient is and allows now, before anything more is sent.

    Time has passed since the record was routed: a retry, a hold, an earlier channel. A category that was opted out of
    ends what is open. An endpoint that is no longer the recipient's gets nothing more; where a new token or address has
    taken its place that one gets the notification, else the chain goes on without it.

    Args:
        record: routed before; none of its deliveries is `sending`.
        user: the recipient as it is now, None when the request names no user or one that is deleted.
        now: epoch seconds.
        at: how the service works at the moment.
    """
    if record.request.recipient.user_id is None:
        return
    if _opted_out(record, user):
        transitions.suppress(record, now, _opting_out(record))
        return
    for delivery in [d for d in record.deliveries if d.open]:
        there = every_address(record.request, user, delivery.channel)
        if any(address[:2] == (delivery.provider, delivery.endpoint) for address in there):
            continue
        transitions.fail(record, delivery, now, exhausted=False, why=_gone(user, delivery))
        for address in endpoints(record.request, user, delivery.channel, at):
            if address[3] == delivery.device_id:
                _add(record, delivery.step, delivery.channel, address, now)


def _gone(user: User | None, delivery: Delivery) -> str:
    """Why an endpoint is no longer the recipient's, in words for the timeline."""
    if user is None:
        return "the user was deleted meanwhile"
    if delivery.channel not in allowed(user):
        return f"the recipient no longer allows {delivery.channel}"
    if delivery.channel != "push":
        return "the recipient's address was changed or removed meanwhile"
    known = next((d for d in user.devices if d.device.device_id == delivery.device_id), None)
    if known is None:
        return "the device was deleted meanwhile"
    same = known.device.token == delivery.endpoint and known.device.provider == delivery.provider
    return "the token was invalidated meanwhile" if same else "the device's token was replaced meanwhile"


def wait_for_quiet_hours(record: Record, user: User | None, now: float) -> bool:
    """Whether the recipient's quiet hours keep the record back at `now`; if so it is scheduled for their end.

    What has no delivery yet is routed anew then, since a night is long.
    """
    if user is None or user.preferences.quiet_hours is None or record.request.priority == "high":
        return False
    end = quiet_until(user.preferences.quiet_hours, user.timezone, now)
    if end is None:
        return False
    why = f"quiet hours until {user.preferences.quiet_hours.end} in {user.timezone}"
    transitions.postpone(record, now, end, why)
    return True


def _opted_out(record: Record, user: User | None) -> bool:
    category = record.request.category
    return user is not None and category is not None and user.preferences.categories.get(category) is False


def _opting_out(record: Record) -> str:
    return f"the recipient opted out of the category {record.request.category!r}"


def enter_step(record: Record, user: User | None, now: float, at: Circumstances = CALM) -> bool:
    """Make the deliveries of the present step; False when it leads nowhere any more.

    A delivery's id is derived from the notification, the step and the endpoint, so that working a step out twice gives
    the same deliveries, and a provider that knows the id sees one message.
    """
    assert record.chain is not None
    channel = record.chain[record.step]
    record.step_at = now
    found = False
    for address in endpoints(record.request, user, channel, at):
        _add(record, record.step, channel, address, now)
        found = True
    return found


def divert(record: Record, user: User | None, delivery: Delivery, now: float, at: Circumstances) -> bool:
    """Send what a provider that is down would have brought to a device by its alternate; whether there is one.

    A delivery that may have been made is left where it is when its sender wants no second one.
    """
    if delivery.device_id is None or not at.diverting or delivery.provider != "fcm":
        return False
    if delivery.doubts and record.request.on_uncertain == "stop":
        return False
    for address in endpoints(record.request, user, delivery.channel, at):
        if address[3] == delivery.device_id and address[0] != delivery.provider:
            transitions.give_way(record, delivery, now, address[0])
            _add(record, delivery.step, delivery.channel, address, now)
            return True
    return False


def _add(record: Record, step: int, channel: Channel, address: Address, now: float) -> None:
    provider, endpoint, platform, device_id, registered_at = address
    delivery_id = derived(_NAMESPACE, f"{record.id}/{step}/{provider}/{endpoint}")
    if any(d.id == delivery_id for d in record.deliveries):
        return
    record.deliveries.append(
        Delivery(
            id=delivery_id,
            step=step,
            channel=channel,
            provider=provider,
            endpoint=endpoint,
            platform=platform,
            device_id=device_id,
            registered_at=registered_at,
            due_at=now,
        )
    )


def message_for(record: Record, delivery: Delivery, now: float) -> Message:
    """What the provider is handed for one attempt of `delivery` at `now` epoch seconds."""
    request = record.request
    return Message(
        delivery_id=delivery.id,
        notification_id=record.id,
        endpoint=delivery.endpoint,
        content=request.content,
        expires_at=0.0 if record.once else record.expires_at,
        ttl_s=0 if record.once else max(0, int(record.expires_at - now)),
        platform=delivery.platform,
        priority=request.priority,
        collapse_key=request.collapse_key,
        category=request.category,
        locale=record.locale,
    )


def quiet_until(quiet: QuietHours, timezone: str, at: float) -> float | None:
    """The epoch second at which quiet hours end, None when `at` (epoch seconds) is not within them.

    The hours are wall-clock hours of the recipient's zone, so a night with a clock change is as long as its clock says.
    An unknown zone counts as UTC.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError):
        zone = ZoneInfo("UTC")
    local = datetime.fromtimestamp(at, zone)
    start, end = _minutes(quiet.start), _minutes(quiet.end)
    minute = local.hour * 60 + local.minute
    if start == end:
        return None
    within = start <= minute < end if start < end else minute >= start or minute < end
    if not within:
        return None
    day = local.date() + timedelta(days=1) if minute >= end else local.date()
    wake = datetime(day.year, day.month, day.day, end // 60, end % 60, tzinfo=zone)
    return wake.astimezone(UTC).timestamp()


def _minutes(clock_time: str) -> int:
    return int(clock_time[:2]) * 60 + int(clock_time[3:])
