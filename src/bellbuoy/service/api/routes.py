"""Every call of the HTTP interface in one table: who serves it, who may call it, what goes in and what comes out.

The router and `/openapi.json` are both made from it, so neither can say what the other does not do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from bellbuoy.model.notification import Request
from bellbuoy.model.operation import Scope
from bellbuoy.service.api import breach, incidents, notifications, operations, recipients, schemas, steering, templates
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, Reply

Handler = Callable[[Context, Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """One call.

    Args:
        scope: what its key needs; None when it needs no key.
        body: the type of its request body, None without one.
        ndjson: the type of one line, where the body may be NDJSON.
        answers: the type of each success; None for an empty one.
        problems: the other statuses it may answer with, besides those that its scope and body imply.
        query: the parameters it knows.
        headers: the request headers it reads.
        changes: whether it changes what only the ledger keeps, so that it is refused while that is away.
        accepts: whether it accepts notifications, which an operator may have stopped.
        fields: what of users it shows or changes, for the audit log.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None
    answers: dict[int, Any]
    body: Any = None
    ndjson: Any = None
    problems: tuple[int, ...] = ()
    query: dict[str, dict[str, Any]] = field(default_factory=dict)
    headers: tuple[str, ...] = ()
    changes: bool = False
    accepts: bool = False
    fields: tuple[str, ...] = ()
    media_type: str = "application/json"
    action: str = field(init=False, default="")

    def __post_init__(self) -> None:
        # Asked for with every request.
        object.__setattr__(self, "action", f"{self.method} {self.path}")

    @property
    def operates(self) -> bool:
        """Whether it is an operator's act, which the audit log has before it is answered."""
        return self.method != "GET" and self.scope in ("operate", "admin")

    @property
    def audited(self) -> bool:
        """Whether the audit log has it: all that operators do, and all that touches users or keys."""
        return bool(self.fields) or self.operates or self.scope == "admin"

    @property
    def statuses(self) -> tuple[int, ...]:
        """Every status other than success."""
        found = set(self.problems) | {500, 503}
        if self.scope is not None:
            found |= {401, 403, 422}
        if self.body is not None or self.ndjson is not None:
            found |= {400, 408, 413, 415, 422}
        return tuple(sorted(found))


_LIMIT = {"limit": {"type": "integer", "minimum": 1, "maximum": notifications.PAGE_MAX, "default": 50}}
_CURSOR = {"cursor": {"type": "string", "pattern": "^[0-9]{1,18}$"}}
_STATUS = {"status": {"type": "string", "enum": list(notifications.STATUSES)}}
_KEY = ("Idempotency-Key",)
_USER = ("email", "phone", "locale", "timezone", "preferences", "devices")
_DEVICES = ("devices",)
_SENT = ("notifications",)

ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/v1/notifications",
        notifications.send,
        "Send a notification",
        "send",
        {202: schemas.AcceptedView},
        body=Request,
        problems=(429,),
        headers=_KEY,
        accepts=True,
        fields=_SENT,
    ),
    Route(
        "POST",
        "/v1/notifications/batch",
        notifications.send_batch,
        "Send up to 1,000 notifications",
        "send",
        {200: schemas.BatchView},
        body=schemas.Batch,
        ndjson=Request,
        problems=(429,),
        headers=_KEY,
        accepts=True,
        fields=_SENT,
    ),
    Route(
        "GET",
        "/v1/notifications",
        notifications.page,
        "List notifications, newest first",
        "read",
        {200: schemas.NotificationPage},
        query={**_STATUS, "user_id": {"type": "string"}, **_LIMIT, **_CURSOR},
        fields=_SENT,
    ),
    Route(
        "GET",
        "/v1/notifications/{id}",
        notifications.get,
        "What became of a notification",
        "read",
        {200: schemas.NotificationView},
        problems=(404,),
        fields=_SENT,
    ),
    Route(
        "GET",
        "/v1/notifications/{id}/explain",
        notifications.explain,
        "Why, in order, and what happens next",
        "read",
        {200: schemas.ExplanationView},
        problems=(404,),
        fields=_SENT,
    ),
    Route(
        "POST",
        "/v1/notifications/{id}/cancel",
        notifications.cancel,
        "Cancel what has not been sent",
        "send",
        {200: schemas.NotificationView},
        problems=(404, 409),
        fields=_SENT,
    ),
    Route(
        "POST",
        "/v1/users/batch",
        recipients.put_users,
        "Write up to 1,000 users",
        "send",
        {200: schemas.UsersView},
        ndjson=schemas.UserPut,
        changes=True,
        fields=_USER,
    ),
    Route(
        "PUT",
        "/v1/users/{user_id}",
        recipients.put_user,
        "Write a user",
        "send",
        {200: schemas.UserView},
        body=schemas.UserPut,
        changes=True,
        fields=_USER,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}",
        recipients.get_user,
        "A user with devices",
        "read",
        {200: schemas.UserView},
        problems=(404,),
        fields=_USER,
    ),
    Route(
        "DELETE",
        "/v1/users/{user_id}",
        recipients.delete_user,
        "Forget a user",
        "send",
        {204: None},
        problems=(404,),
        changes=True,
        fields=_USER,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/devices",
        recipients.get_devices,
        "A user's devices",
        "read",
        {200: schemas.DevicesView},
        problems=(404,),
        fields=_DEVICES,
    ),
    Route(
        "PUT",
        "/v1/users/{user_id}/devices/{device_id}",
        recipients.put_device,
        "Add or replace a device",
        "send",
        {200: schemas.DeviceView},
        body=schemas.DevicePut,
        problems=(409,),
        changes=True,
        fields=_DEVICES,
    ),
    Route(
        "GET",
        "/v1/users/{user_id}/devices/{device_id}",
        recipients.get_device,
        "A device",
        "read",
        {200: schemas.DeviceView},
        problems=(404,),
        fields=_DEVICES,
    ),
    Route(
        "DELETE",
        "/v1/users/{user_id}/devices/{device_id}",
        recipients.delete_device,
        "Forget a device",
        "send",
        {204: None},
        problems=(404,),
        changes=True,
        fields=_DEVICES,
    ),
    Route(
        "GET",
        "/v1/dead-letters",
        operations.dead_letters,
        "Deliveries that ran out of attempts",
        "read",
        {200: schemas.DeadLetterPage},
        query={"provider": {"type": "string"}, "error_code": {"type": "string"}, **_LIMIT, **_CURSOR},
        fields=_SENT,
    ),
    Route(
        "DELETE",
        "/v1/dead-letters/{id}",
        operations.discard,
        "Take one off the list for good",
        "operate",
        {204: None},
        problems=(404,),
    ),
    Route(
        "POST",
        "/v1/dead-letters/replay",
        operations.replay_many,
        "Replay all that match",
        "operate",
        {200: schemas.ReplayedView},
        body=schemas.ReplayPost,
    ),
    Route(
        "POST",
        "/v1/dead-letters/discard",
        operations.discard_many,
        "Take all that match off the list for good",
        "operate",
        {200: schemas.DiscardedView},
        body=schemas.DiscardPost,
    ),
    Route(
        "POST",
        "/v1/dead-letters/{id}/replay",
        operations.replay_one,
        "Replay one",
        "operate",
        {200: schemas.ReplayedView},
        problems=(404, 409),
    ),
    Route(
        "GET",
        "/v1/tombstones",
        operations.tombstones,
        "Tokens that were called gone",
        "read",
        {200: schemas.TombstonesView},
        query=_LIMIT,
        fields=_DEVICES,
    ),
    Route(
        "POST",
        "/v1/tombstones/restore",
        operations.restore,
        "Take tokens back",
        "operate",
        {200: schemas.RestoredView},
        body=schemas.RestorePost,
    ),
    Route("GET", "/v1/health", operations.get_health, "Health of the service", "read", {200: schemas.HealthView}),
    Route("GET", "/v1/breakers", operations.breakers, "Circuit breakers", "read", {200: schemas.BreakersView}),
    Route(
        "POST",
        "/v1/breakers/{name}",
        operations.change_breaker,
        "Isolate, close or reset a breaker",
        "operate",
        {200: schemas.BreakerView},
        body=schemas.BreakerPost,
        problems=(404,),
    ),
    Route(
        "GET",
        "/v1/incidents",
        incidents.listing,
        "Failures, newest first, and what is tried about them",
        "read",
        {200: schemas.IncidentsView},
        query=_LIMIT,
    ),
    *(
        Route(
            "POST",
            f"/v1/incidents/{{id}}/{verb}",
            handler,
            summary,
            "operate",
            {200: schemas.IncidentView},
            problems=(404, 409),
        )
        for verb, handler, summary in (
            ("acknowledge", incidents.acknowledge, "A human has it in hand; nothing more is tried by itself"),
            ("resolve", incidents.resolve, "It is over"),
            ("retry", incidents.retry, "Try its plan again from the first attempt"),
        )
    ),
    Route("GET", "/v1/modes", operations.modes, "Modes of working", "read", {200: schemas.ModesView}),
    Route(
        "PUT",
        "/v1/modes/{name}",
        operations.pin_mode,
        "Hold a mode on or off, or let it follow what is wrong",
        "operate",
        {200: schemas.ModeView},
        body=schemas.ModePut,
        problems=(404, 409),
    ),
    Route("GET", "/v1/flags", steering.flags, "Flags", "read", {200: schemas.FlagsView}),
    Route(
        "GET",
        "/v1/flags/{name}",
        steering.flag,
        "A flag and who changed it when",
        "read",
        {200: schemas.FlagHistoryView},
        problems=(404,),
    ),
    Route(
        "PUT",
        "/v1/flags/{name}",
        steering.put_flag,
        "Switch a flag on or off",
        "operate",
        {200: schemas.FlagView},
        body=schemas.FlagPut,
        problems=(409,),
        changes=True,
    ),
    Route(
        "GET",
        "/v1/settings",
        steering.settings,
        "Settings that may change while the service runs",
        "read",
        {200: schemas.SettingsView},
    ),
    Route(
        "GET",
        "/v1/settings/{name}",
        steering.setting,
        "A setting and who changed it when",
        "read",
        {200: schemas.SettingHistoryView},
        problems=(404,),
    ),
    Route(
        "PUT",
        "/v1/settings/{name}",
        steering.put_setting,
        "Change a setting, or with null have it as configured",
        "operate",
        {200: schemas.SettingView},
        body=schemas.SettingPut,
        problems=(404, 409),
        changes=True,
    ),
    Route(
        "GET",
        "/v1/templates/{name}",
        templates.get,
        "A template of content",
        "read",
        {200: schemas.TemplateView},
        problems=(404,),
    ),
    Route(
        "PUT",
        "/v1/templates/{name}",
        templates.put,
        "Write a template of content",
        "operate",
        {200: schemas.TemplateView},
        body=schemas.TemplatePut,
        problems=(409,),
        changes=True,
    ),
    Route(
        "POST",
        "/v1/templates/{name}/render",
        templates.render,
        "Fill a template in; nothing is sent",
        "read",
        {200: schemas.RenderedView},
        body=schemas.RenderPost,
        problems=(404,),
    ),
    Route(
        "GET",
        "/v1/changes",
        steering.changes,
        "Changes of flags, settings and templates, newest first, and what came of each",
        "read",
        {200: schemas.ChangesView},
        query=_LIMIT,
    ),
    *(
        Route(
            "POST",
            f"/v1/changes/{{id}}/{verb}",
            handler,
            summary,
            "operate",
            {200: schemas.ChangeView},
            problems=(404, 409),
            changes=True,
        )
        for verb, handler, summary in (
            ("rollback", steering.roll_back, "Take a change back"),
            ("keep", steering.keep, "Leave a change, whatever its watch says"),
        )
    ),
    Route("GET", "/v1/audit", operations.audit, "The books", "read", {200: schemas.BooksView}),
    Route("GET", "/v1/keys", operations.keys, "API keys", "admin", {200: schemas.KeysView}),
    Route(
        "POST",
        "/v1/keys",
        operations.create_key,
        "Make an API key",
        "admin",
        {201: schemas.NewKeyView},
        body=schemas.KeyPost,
        changes=True,
    ),
    Route(
        "DELETE",
        "/v1/keys/{id}",
        operations.revoke_key,
        "Revoke an API key",
        "admin",
        {200: schemas.KeyView},
        problems=(404,),
        changes=True,
    ),
    Route("GET", "/v1/breach", breach.get, "How the service is isolated", "admin", {200: schemas.BreachView}),
    Route(
        "POST",
        "/v1/breach/isolate",
        breach.isolate,
        "End keys, stop sending, stop accepting, on every node",
        "admin",
        {200: schemas.IsolatedView},
        body=schemas.IsolatePost,
        problems=(404, 409),
    ),
    Route(
        "POST",
        "/v1/breach/lift",
        breach.lift,
        "Send and accept again; keys stay ended",
        "admin",
        {200: schemas.BreachView},
    ),
    Route("GET", "/livez", operations.live, "The process is alive", None, {200: schemas.StatusView}),
    Route("GET", "/readyz", operations.ready, "Notifications can be accepted", None, {200: schemas.StatusView}),
    Route(
        "GET",
        "/metrics",
        operations.metrics,
        "Prometheus metrics; without a key on loopback only",
        None,
        {200: str},
        problems=(401, 403),
        media_type="text/plain",
    ),
)
