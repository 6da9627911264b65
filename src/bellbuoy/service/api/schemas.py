"""The documents of the HTTP interface that are not the model's own: what OpenAPI describes and handlers decode."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from bellbuoy.model.delivery import DeliveryStatus, NotificationStatus, Outcome
from bellbuoy.model.notification import Content, OnUncertain, Priority
from bellbuoy.model.recipient import (
    DEVICES_MAX,
    Channel,
    Device,
    Email,
    Endpoint,
    Identifier,
    Locale,
    Phone,
    Platform,
    Preferences,
    PushProvider,
    Recipient,
    Token,
)

BATCH_MAX = 1_000


class ProblemPlace(Struct):
    path: str
    message: str


class Problem(Struct, omit_defaults=True):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    hint: str | UnsetType = UNSET
    errors: list[ProblemPlace] | UnsetType = UNSET


class Links(Struct):
    self: str
    explain: str | UnsetType = UNSET


class AcceptedView(Struct):
    id: str
    status: Literal["accepted", "scheduled", "queued"]
    homes: list[str]
    degraded: list[str]
    links: Links


class Batch(Struct, forbid_unknown_fields=True):
    """Each entry is checked alone, so that one bad notification does not stop the others."""

    notifications: Annotated[list[Any], Meta(min_length=1, max_length=BATCH_MAX)]


class BatchResult(Struct):
    id: str | UnsetType = UNSET
    status: str | UnsetType = UNSET
    error: Problem | UnsetType = UNSET


class BatchView(Struct):
    accepted: int
    rejected: int
    results: list[BatchResult]


class AttemptView(Struct):
    n: int
    started_at: str
    latency_ms: float | None
    outcome: Outcome | None
    provider_status: int | None
    error_code: str | None
    provider_message_id: str | None


class DeliveryView(Struct):
    id: str
    channel: Channel
    provider: str
    endpoint: str
    device_id: str | None
    status: DeliveryStatus
    held: str | None
    next_attempt_at: str | None
    attempts: list[AttemptView]


class NotificationView(Struct):
    id: str
    status: NotificationStatus
    code: str | None
    recipient: Recipient
    content: Content
    channels: list[Channel] | None
    priority: Priority
    category: str | None
    collapse_key: str | None
    ttl_s: int | None
    send_at: str | None
    fallback_after_s: float | None
    on_uncertain: OnUncertain
    accepted_at: str
    expires_at: str
    not_before: str | None
    deliveries: list[DeliveryView]
    links: Links


class NotificationPage(Struct):
    items: list[NotificationView]
    next_cursor: str | None


class TimelineView(Struct):
    at: str
    event: str
    detail: str


class NextView(Struct):
    at: str
    what: str
    why: str


class ExplanationView(Struct):
    id: str
    status: NotificationStatus
    timeline: list[TimelineView]
    next: NextView | None


class UserPut(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A recipient. `devices` left out keeps those that are there; given, it replaces them all."""

    user_id: Identifier | None = None
    email: Email | None = None
    phone: Phone | None = None
    locale: Locale | None = None
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"
    preferences: Preferences = field(default_factory=Preferences)
    devices: Annotated[list[Device], Meta(max_length=DEVICES_MAX)] | None = None


class DevicePut(Struct, forbid_unknown_fields=True, omit_defaults=True):
    platform: Platform
    provider: PushProvider
    token: Token
    device_id: Identifier | None = None
    alternate: Endpoint | None = None


class DeviceView(Struct):
    device_id: str
    platform: Platform
    provider: PushProvider
    token: str
    registered_at: str
    invalidated_at: str | None
    invalid_because: str | None
    alternate: Endpoint | UnsetType = UNSET


class UserView(Struct):
    user_id: str
    email: str | None
    phone: str | None
    locale: str | None
    timezone: str
    preferences: Preferences
    devices: list[DeviceView]


class DevicesView(Struct):
    items: list[DeviceView]


class UsersResult(Struct):
    user_id: str | UnsetType = UNSET
    error: Problem | UnsetType = UNSET


class UsersView(Struct):
    accepted: int
    rejected: int
    results: list[UsersResult]


class DeadLetterView(Struct):
    id: str
    notification_id: str
    channel: Channel
    provider: str
    endpoint: str
    attempts: int
    error_code: str | None
    provider_status: int | None
    at: str


class DeadLetterPage(Struct):
    items: list[DeadLetterView]
    next_cursor: str | None


class ReplayFilter(Struct, forbid_unknown_fields=True):
    provider: str | None = None
    error_code: str | None = None
    ids: Annotated[list[str], Meta(max_length=10_000)] | None = None


class ReplayPost(Struct, forbid_unknown_fields=True):
    """Which to replay: all that match `filter`. `rate_per_s` None brings them back at once."""

    filter: ReplayFilter = field(default_factory=ReplayFilter)
    dry_run: bool = False
    rate_per_s: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000


class SkipView(Struct):
    id: str
    why: str


class ReplayedView(Struct):
    matched: int
    replayed: int
    skipped: list[SkipView]
    dry_run: bool


class DiscardFilter(ReplayFilter, forbid_unknown_fields=True):
    """`expired` narrows it to those that have outlived their time to live."""

    expired: bool = False


class DiscardPost(Struct, forbid_unknown_fields=True):
    """Which to take off the list: all that match `filter`, which must narrow unless it is a `dry_run`."""

    filter: DiscardFilter = field(default_factory=DiscardFilter)
    dry_run: bool = False
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 10_000


class DiscardedView(Struct):
    matched: int
    discarded: int
    dry_run: bool


class TombstoneView(Struct):
    user_id: str
    device_id: str
    provider: str
    because: str
    at: str
    restored_at: str | None


class TombstonesView(Struct):
    items: list[TombstoneView]


class RestorePost(Struct, forbid_unknown_fields=True):
    """Which tombstones to take back; None does not narrow. `since` is RFC 3339 or None for all."""

    user_id: str | None = None
    provider: PushProvider | None = None
    since: str | None = None


class RestoredView(Struct):
    restored: int
