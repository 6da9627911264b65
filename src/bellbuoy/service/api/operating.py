"""The documents of the part of the HTTP interface that is for operators."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from bellbuoy.model.change import ChangeStatus, ValueKind
from bellbuoy.model.operation import IncidentStatus, Scope
from bellbuoy.model.recipient import Identifier, Locale


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
    """A key. A `replaced` one is no good now, and has not ended: a start that has it at hand makes it good again."""

    id: str
    name: str
    scopes: list[Scope]
    created_at: str
    revoked_at: str | None
    replaced: bool


class NewKeyView(KeyView):
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


class FlagHistoryView(FlagView):
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


class SettingHistoryView(SettingView):
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


class TemplateHistoryView(TemplateView):
    history: list[VersionView]


class TemplateLine(Struct):
    """A template without its texts: `locales` are those that it has."""

    name: str
    locales: list[str]
    version: int
    changed_at: str | None
    changed_by: str | None
    status: ChangeStatus | None


class TemplatesView(Struct):
    items: list[TemplateLine]


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

    keys: Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=2_000)] = field(
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
    """How far a chain of the audit log was, when that was recorded last; up to `forgotten` it has none any more."""

    chain: str
    n: int
    hash: str
    at: str
    where: str
    forgotten: int | None


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
