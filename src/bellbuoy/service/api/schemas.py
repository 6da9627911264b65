"""The documents of the HTTP interface that are not the model's own: what OpenAPI describes and handlers decode."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from bellbuoy.model.change import ChangeStatus, ValueKind
from bellbuoy.model.delivery import DeliveryStatus, NotificationStatus, Outcome
from bellbuoy.model.notification import Content, OnUncertain, Priority
from bellbuoy.model.operation import IncidentStatus, Scope
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


class DependencyView(Struct):
    status: Literal["healthy", "degraded", "unhealthy", "off"]
    latency_ms: float | None
    breaker: str | None


class IssueView(Struct):
    name: str
    component: str
    detail: str
    since: str


class HealthView(Struct):
    status: Literal["healthy", "degraded", "unhealthy"]
    issues: list[str]
    modes: list[str]
    dependencies: dict[str, DependencyView]
    details: list[IssueView]


class BreakerView(Struct):
    name: str
    state: str
    failure_count: int
    success_count: int
    opened_at: str | None
    retry_after_s: float | None


class BreakersView(Struct):
    items: list[BreakerView]


class BreakerPost(Struct, forbid_unknown_fields=True):
    action: Literal["isolate", "close", "reset"]


class BooksView(Struct):
    accepted: int
    delivered: int
    failed: int
    expired: int
    cancelled: int
    suppressed: int
    dead_lettered: int
    uncertain: int
    pending: int
    difference: int
    missing: list[str]
    unknown: list[str]
    possible_duplicates: int


class KeyPost(Struct, forbid_unknown_fields=True):
    name: Identifier
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=4)]


class KeyView(Struct):
    id: str
    name: str
    scopes: list[Scope]
    created_at: str
    revoked_at: str | None


class NewKeyView(Struct):
    id: str
    name: str
    scopes: list[Scope]
    created_at: str
    revoked_at: str | None
    key: str


class KeysView(Struct):
    items: list[KeyView]


class StatusView(Struct):
    status: str


class ModePut(Struct, forbid_unknown_fields=True):
    """True holds it on, false holds it off, null lets it follow what is wrong."""

    pinned: bool | None


class ModeView(Struct):
    """A mode; `because` are the issues that it is active for, or `pinned`."""

    name: str
    active: bool
    pinned: bool | None
    since: str | None
    because: list[str]


class ModesView(Struct):
    """The modes of the process that answers, and which modes each process that it hears of works in."""

    items: list[ModeView]
    workers: dict[str, list[str]]


class StepView(Struct):
    """How a step went at the last attempt: pending, begun, done, failed, undone."""

    name: str
    status: str
    error: str | None


class EscalationView(Struct):
    target: str
    action: str
    status: str
    at: str
    reference: str | None


class IncidentView(Struct):
    """A failure; `attempts` counts those of its plan that have failed."""

    id: str
    issue: str
    component: str
    detail: str
    status: IncidentStatus
    plan: str | None
    steps: list[StepView]
    attempts: int
    next_attempt_at: str | None
    escalations: list[EscalationView]
    opened_at: str
    acknowledged_at: str | None
    acknowledged_by: str | None
    resolved_at: str | None
    resolved_by: str | None


class IncidentsView(Struct):
    items: list[IncidentView]


class VersionView(Struct):
    """One version of a value: who made it, and what came of the watch over it."""

    version: int
    value: Any
    changed_at: str
    changed_by: str
    status: ChangeStatus
    why: str


class FlagPut(Struct, forbid_unknown_fields=True):
    enabled: bool


class FlagView(Struct):
    """A flag: `enabled` as an operator set it, `effective` as it is, since a mode may turn it off."""

    name: str
    description: str | None
    enabled: bool
    effective: bool
    version: int
    changed_at: str | None
    changed_by: str | None
    status: ChangeStatus | None


class FlagsView(Struct):
    items: list[FlagView]


class FlagHistoryView(Struct):
    name: str
    description: str | None
    enabled: bool
    effective: bool
    version: int
    changed_at: str | None
    changed_by: str | None
    status: ChangeStatus | None
    history: list[VersionView]


class SettingPut(Struct, forbid_unknown_fields=True):
    """A number, or null for what is configured."""

    value: int | float | None


class SettingView(Struct):
    """A setting that may change while the service runs: `value` as it holds, `default` as it is configured."""

    name: str
    value: float | None
    default: float | None
    version: int
    changed_at: str | None
    changed_by: str | None
    status: ChangeStatus | None


class SettingsView(Struct):
    items: list[SettingView]


class SettingHistoryView(Struct):
    name: str
    value: float | None
    default: float | None
    version: int
    changed_at: str | None
    changed_by: str | None
    status: ChangeStatus | None
    history: list[VersionView]


Variant = Annotated[str, Meta(pattern="^(default|[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)$", max_length=35)]


class TemplateText(Struct, forbid_unknown_fields=True):
    """Jinja2 without loops within loops, calls and assignments; `docs/rollback.md` says what is left."""

    title: Annotated[str, Meta(max_length=1_000)] = ""
    body: Annotated[str, Meta(max_length=8_000)] = ""


class TemplatePut(Struct, forbid_unknown_fields=True):
    """The texts by locale; `default` is for all others."""

    locales: Annotated[dict[Variant, TemplateText], Meta(min_length=1, max_length=30)]


class TemplateView(Struct):
    name: str
    locales: dict[str, TemplateText]
    version: int
    changed_at: str | None
    changed_by: str | None
    status: ChangeStatus | None


class RenderPost(Struct, forbid_unknown_fields=True):
    """What a template is filled in with; without a locale, or one that it does not have, it is the default's."""

    data: dict[str, Any] = field(default_factory=dict)
    locale: Locale | None = None


class RenderedView(Struct):
    title: str
    body: str
    locale: str
    version: int


class ChangeView(Struct):
    """A change of a flag, a setting or a template; null stands for what the service does by itself."""

    id: str
    kind: ValueKind
    name: str
    version: int
    value_before: Any
    value: Any
    changed_at: str
    changed_by: str
    status: ChangeStatus
    why: str
    decided_at: str | None
    decided_by: str | None


class ChangesView(Struct):
    items: list[ChangeView]


class IsolatePost(Struct, forbid_unknown_fields=True):
    """What ends and what stops. `keys` by their ids, or `all_keys` but the one that asks."""

    keys: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=10_000)] = field(
        default_factory=list
    )
    all_keys: bool = False
    stop_sending: bool = False
    stop_accepting: bool = False


class RevokedView(Struct):
    id: str
    name: str
    revoked_at: str


class HeadView(Struct):
    """How far a chain of the audit log was, when that was recorded last."""

    chain: str
    n: int
    hash: str
    at: str
    where: str


class BreachView(Struct):
    """`everywhere` is false while the ledger has not been told yet, so that only this machine goes by it."""

    sending_stopped: bool
    accepting_stopped: bool
    everywhere: bool
    revoked: list[RevokedView]
    heads: list[HeadView]


class IsolatedView(BreachView):
    """`ended` are the keys that were ended now, or had been."""

    ended: list[str]
