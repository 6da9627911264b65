"""What takes the place of a push that its sender cancelled too late: a silent one under the same collapse id.

A provider that still holds the first for a device which is away keeps only the last message of a collapse id, so the
device gets the silent one instead. What a device shows already stays: neither FCM nor APNs can take that back.
"""

from __future__ import annotations

from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import DeviceAddress, PushProvider, Recipient

CANCELS = "bellbuoy.cancels"
"""The key in the silent message's data that names the notification it takes the place of, for the app to act on."""


def replacements(record: Record, now: float) -> list[tuple[str, Request]]:
    """The silent messages for what providers may still hold of a record at `now`, each with its delivery's id.

    Sources: APNs keeps the last notification of an `apns-collapse-id`; FCM replaces by `collapse_key` on Android, which
    is only ever the sender's own; web push replaces by its Topic (RFC 8030, 5.4).
    """
    left_s = int(record.expires_at - now)
    if record.once or left_s <= 0:
        return []
    return [
        (delivery.id, _silent(record, delivery, left_s))
        for delivery in record.deliveries
        if _may_be_held(delivery) and _can_be_replaced(record, delivery)
    ]


def _may_be_held(delivery: Delivery) -> bool:
    return delivery.status == "delivered" or any(attempt.outcome == "uncertain" for attempt in delivery.attempts)


def _can_be_replaced(record: Record, delivery: Delivery) -> bool:
    if delivery.provider not in ("fcm", "apns") or delivery.platform is None:
        return False
    if not record.request.content.title and not record.request.content.body:
        return False  # It is silent itself.
    by_sender = record.request.collapse_key is not None
    return by_sender or delivery.provider == "apns" or delivery.platform != "android"


def _silent(record: Record, delivery: Delivery, ttl_s: int) -> Request:
    assert delivery.platform is not None
    provider: PushProvider = "apns" if delivery.provider == "apns" else "fcm"
    return Request(
        recipient=Recipient(device=DeviceAddress(delivery.platform, provider, delivery.endpoint)),
        content=Content(data={CANCELS: record.id}),
        collapse_key=record.request.collapse_key or record.id,
        ttl_s=ttl_s,
        on_uncertain="stop",
    )
