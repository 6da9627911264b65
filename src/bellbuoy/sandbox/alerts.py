"""The stand-ins for the systems that wake people: PagerDuty's Events API v2, Slack's incoming webhooks, Jira Cloud v3.

Facts: https://developer.pagerduty.com/docs/send-alert-event, https://docs.slack.dev/messaging/sending-messages-using-
incoming-webhooks, https://developer.atlassian.com/cloud/jira/platform/rest/v3/ for issues and search.
"""

from __future__ import annotations

import secrets
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec

from bellbuoy.sandbox.faults import ErrorTable, Refuse, Row
from bellbuoy.sandbox.http import Exchange, HttpAnswer, HttpRequest
from bellbuoy.sandbox.received import Item
from bellbuoy.sandbox.station import HttpStation, Surroundings, Verdict, text

EVENT_BYTES_MAX = 524_288
DEDUP_KEY_CHARS_MAX = 255
SUMMARY_CHARS_MAX = 1_024
_INCIDENTS_MAX = 10_000

_JSON = (("content-type", "application/json"),)
_TEXT = (("content-type", "text/plain; charset=utf-8"),)
_encode = msgspec.json.Encoder().encode


def decoded(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty one for anything else."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def retry_after(refuse: Refuse) -> tuple[tuple[str, str], ...]:
    """The header that says when to come back, where the fault says so."""
    return () if refuse.retry_after_s is None else (("retry-after", f"{refuse.retry_after_s:g}"),)


class PagerDuty(HttpStation):
    """PagerDuty's Events API: events with one `dedup_key` make one incident until it is resolved."""

    name: ClassVar[str] = "pagerduty"
    table: ClassVar[ErrorTable] = ErrorTable(
        rows={
            "invalid_event": Row(400, "Event object is invalid", "invalid event"),
            "invalid_routing_key": Row(400, "Invalid routing key", "invalid event"),
            "forbidden": Row(403, "Forbidden", "forbidden"),
            "not_found": Row(404, "Not Found", "not found"),
            "too_large": Row(413, "Event exceeds the size limit of 512 KB", "invalid event"),
            "throttled": Row(429, "Requests for this service are arriving too quickly.", "throttle exceeded"),
            "internal": Row(500, "Internal Server Error", "error"),
            "unavailable": Row(503, "Service Unavailable", "error"),
        },
        outage="unavailable",
        error_rate="internal",
        quota="throttled",
        bad_credentials="forbidden",
        unregistered="invalid_routing_key",
    )

    def __init__(self, surroundings: Surroundings, *, routing_key: str) -> None:
        super().__init__(surroundings)
        self._routing_key = routing_key
        self.incidents: dict[str, str] = {}
        """State by dedup key: `triggered`, `acknowledged` or `resolved`."""

    def judge(self, exchange: Exchange) -> Verdict:
        request = exchange.request
        event = decoded(request.body)
        payload = event.get("payload")
        payload = payload if isinstance(payload, dict) else {}
        key = text(event.get("dedup_key")) or secrets.token_hex(16)
        action = text(event.get("event_action")) or ""
        item = Item(
            provider=self.name,
            at=0.0,
            id=key,
            endpoint=action,
            collapse_id=key,
            item_id=key,
            title=text(payload.get("summary")),
            priority=text(payload.get("severity")),
            data=payload or None,
            status=202,
        )
        found = self._check(request, event, payload, action)
        if found is not None:
            refuse = Refuse(found[0], self.table.rows[found[0]])
            item.status, item.error = refuse.row.status, refuse.code
            return Verdict(self._say(refuse, found[1]), item)
        item.delivered = True
        self._move(key, action)
        body = {"status": "success", "message": "Event processed", "dedup_key": key}
        return Verdict(HttpAnswer(202, _encode(body), _JSON), item)

    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        return self._say(refuse, refuse.row.message)

    def _say(self, refuse: Refuse, why: str) -> HttpAnswer:
        body = {"status": refuse.row.label or "error", "message": refuse.row.message, "errors": [why]}
        return HttpAnswer(refuse.row.status, _encode(body), _JSON + retry_after(refuse))

    def _move(self, key: str, action: str) -> None:
        # A trigger of an open incident is added to it; only a resolved one is opened anew.
        if action == "trigger" and self.incidents.get(key) in (None, "resolved"):
            self.incidents[key] = "triggered"
        elif action == "acknowledge" and self.incidents.get(key) == "triggered":
            self.incidents[key] = "acknowledged"
        elif action == "resolve" and key in self.incidents:
            self.incidents[key] = "resolved"
        while len(self.incidents) > _INCIDENTS_MAX:
            del self.incidents[next(iter(self.incidents))]

    def _check(
        self, request: HttpRequest, event: dict[str, Any], payload: dict[str, Any], action: str
    ) -> tuple[str, str] | None:
        """(code, what is wrong) of an event that is not taken."""
        if request.path != "/v2/enqueue" or request.method != "POST":
            return "not_found", "Not Found"
        if len(request.body) > EVENT_BYTES_MAX:
            return "too_large", "the event is larger than 512 KB"
        if event.get("routing_key") != self._routing_key:
            return "invalid_routing_key", "Invalid routing key"
        problem = _event_problem(event, action) or (_payload_problem(payload) if action == "trigger" else None)
        return None if problem is None else ("invalid_event", problem)


def _event_problem(event: dict[str, Any], action: str) -> str | None:
    if action not in ("trigger", "acknowledge", "resolve"):
        return "'event_action' must be one of trigger, acknowledge, resolve"
    key = event.get("dedup_key")
    if action != "trigger" and not key:
        return "'dedup_key' is missing or blank"
    if key is not None and (not isinstance(key, str) or len(key) > DEDUP_KEY_CHARS_MAX):
        return "'dedup_key' must be a string of at most 255 characters"
    return None


def _payload_problem(payload: dict[str, Any]) -> str | None:
    for name in ("summary", "source"):
        if not isinstance(payload.get(name), str) or not payload[name]:
            return f"'payload.{name}' is missing or blank"
    if len(payload["summary"]) > SUMMARY_CHARS_MAX:
        return "'payload.summary' is longer than 1024 characters"
    if payload.get("severity") not in ("critical", "error", "warning", "info"):
        return "'payload.severity' must be one of critical, error, warning, info"
    return None


class Slack(HttpStation):
    """One incoming webhook of Slack; it has no deduplication."""

    name: ClassVar[str] = "slack"
    table: ClassVar[ErrorTable] = ErrorTable(
        rows={
            "invalid_payload": Row(400, "invalid_payload"),
            "no_text": Row(400, "no_text"),
            "invalid_token": Row(403, "invalid_token"),
            "action_prohibited": Row(403, "action_prohibited"),
            "no_service": Row(404, "no_service"),
            "channel_not_found": Row(404, "channel_not_found"),
            "channel_is_archived": Row(410, "channel_is_archived"),
            "rate_limited": Row(429, "rate_limited"),
            "rollup_error": Row(500, "rollup_error"),
            "service_unavailable": Row(503, "service_unavailable"),
        },
        outage="service_unavailable",
        error_rate="rollup_error",
        quota="rate_limited",
        bad_credentials="invalid_token",
        unregistered="channel_not_found",
    )

    def __init__(self, surroundings: Surroundings, *, path: str) -> None:
        super().__init__(surroundings)
        self._path = path

    def judge(self, exchange: Exchange) -> Verdict:
        request = exchange.request
        content = decoded(request.body)
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            form = parse_qs(request.body.decode("utf-8", "replace"))
            content = decoded(form.get("payload", [""])[0].encode())
        key = request.headers.get("x-bellbuoy-id") or request.headers.get("idempotency-key")
        item = Item(
            provider=self.name,
            at=0.0,
            id=secrets.token_hex(8),
            endpoint="webhook",
            collapse_id=key,
            item_id=key,
            title=text(content.get("text")),
            data=content or None,
        )
        code = self._check(request, content)
        if code is not None:
            refuse = Refuse(code, self.table.rows[code])
            item.status, item.error = refuse.row.status, code
            return Verdict(self.refusal(refuse, request), item)
        item.delivered = True
        return Verdict(HttpAnswer(200, b"ok", _TEXT), item)

    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(refuse.row.status, refuse.code.encode(), _TEXT + retry_after(refuse))

    def _check(self, request: HttpRequest, content: dict[str, Any]) -> str | None:
        if request.path != self._path or request.method != "POST":
            return "no_service"
        if not content:
            return "invalid_payload"
        return None if content.get("text") or content.get("blocks") or content.get("attachments") else "no_text"
