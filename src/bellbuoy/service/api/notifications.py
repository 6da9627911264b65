"""Sending notifications and asking what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from bellbuoy.errors import BellbuoyError, Invalid
from bellbuoy.intake.accept import Accepted
from bellbuoy.intake.validate import check, parse, parse_request
from bellbuoy.model.delivery import NotificationStatus
from bellbuoy.model.notification import BODY_BYTES_MAX, Request
from bellbuoy.service.api import views
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import JSON_TYPES, NDJSON_TYPES, Call, HttpError, Reply, encode
from bellbuoy.service.api.problems import document, problem
from bellbuoy.service.api.schemas import BATCH_MAX, Batch

BATCH_BYTES_MAX = 8 * 1024 * 1024
PAGE_MAX = 1_000
STATUSES: tuple[str, ...] = get_args(NotificationStatus)

_batch = msgspec.json.Decoder(Batch)


async def send(context: Context, call: Call) -> Reply:
    """`POST /v1/notifications`."""
    key = idempotency_key(call)
    request = parse_request(await call.body(BODY_BYTES_MAX))
    _touch(call, [request])
    (result,) = await context.intake.accept(call.key.tenant, [(request, key)])
    if isinstance(result, Invalid):
        raise result
    headers = {"Location": f"/v1/notifications/{result.record.id}"}
    if result.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Reply.json(views.accepted(result.record), 202, headers)


async def send_batch(context: Context, call: Call) -> Reply:
    """`POST /v1/notifications/batch`: up to 1,000, each with its own result, in the order they came."""
    key = idempotency_key(call)
    body = await call.body(BATCH_BYTES_MAX, JSON_TYPES | NDJSON_TYPES)
    results: list[Any] = []
    good: list[tuple[int, Request]] = []
    for index, entry in enumerate(_entries(call, body)):
        try:
            good.append((index, _request(entry)))
            results.append(None)
        except BellbuoyError as error:
            results.append({"error": _document(error)})
    _touch(call, [request for _, request in good])
    # No header can hold a NUL, so an entry's key is never that of a single request.
    keyed = [(request, None if key is None else f"{key}\0{index}") for index, request in good]
    for (index, _), answer in zip(good, await context.intake.accept(call.key.tenant, keyed), strict=True):
        results[index] = (
            {"id": answer.record.id, "status": answer.record.answered}
            if isinstance(answer, Accepted)
            else {"error": _document(answer)}
        )
    accepted = sum(1 for result in results if "id" in result)
    return Reply.json({"accepted": accepted, "rejected": len(results) - accepted, "results": results})


def _entries(call: Call, body: bytes) -> list[Any]:
    """The batch's entries: lines as bytes, or what the JSON array holds."""
    if call.content_type not in NDJSON_TYPES:
        return parse(body, _batch).notifications
    lines = [line for line in body.splitlines() if line.strip()]
    if not 1 <= len(lines) <= BATCH_MAX:
        raise Invalid("the batch is not valid", errors=[("$", f"Expected 1 to {BATCH_MAX} lines, got {len(lines)}")])
    return lines


def _request(entry: Any) -> Request:
    if len(entry if isinstance(entry, bytes) else encode(entry)) > BODY_BYTES_MAX:
        raise HttpError(413, "body_too_large", f"the notification is over {BODY_BYTES_MAX} bytes")
    if isinstance(entry, bytes):
        return parse_request(entry)
    try:
        request = msgspec.convert(entry, Request)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        raise Invalid("the notification is not valid", errors=[(path.removesuffix("`") or "$", message)]) from None
    check(request)
    return request


def _document(error: BellbuoyError) -> dict[str, Any]:
    return document(error, problem(error).status)


async def get(context: Context, call: Call) -> Reply:
    """`GET /v1/notifications/{id}`."""
    call.query()
    record = await context.ledger.get(call.path("id"), call.key.tenant)
    _touch(call, [record.request])
    return Reply.json(views.notification(record))


async def page(context: Context, call: Call) -> Reply:
    """`GET /v1/notifications`."""
    query = call.query("status", "user_id", "limit", "cursor")
    status: Any = query.get("status")
    if status is not None and status not in STATUSES:
        raise Invalid("the query is not valid", errors=[("status", "Expected one of the statuses of a notification")])
    found = await context.ledger.page(
        call.key.tenant,
        status=status,
        user_id=query.get("user_id"),
        limit=limit_of(query),
        cursor=query.get("cursor"),
    )
    _touch(call, [record.request for record in found.records])
    return Reply.json({"items": [views.notification(r) for r in found.records], "next_cursor": found.next_cursor})


async def explain(context: Context, call: Call) -> Reply:
    """`GET /v1/notifications/{id}/explain`."""
    call.query()
    record = await context.ledger.get(call.path("id"), call.key.tenant)
    _touch(call, [record.request])
    return Reply.json(views.explanation(record, context.clock.time()))


async def cancel(context: Context, call: Call) -> Reply:
    """`POST /v1/notifications/{id}/cancel`."""
    call.query()
    record = await context.cancellation.cancel(call.path("id"), call.key.tenant)
    _touch(call, [record.request])
    return Reply.json(views.notification(record))


def _touch(call: Call, requests: Sequence[Request]) -> None:
    """Have the audit log say whom these are for; who was addressed directly has no name there."""
    call.users = [r.recipient.user_id for r in requests if r.recipient.user_id is not None]
    call.unnamed = len(requests) - len(call.users)


def idempotency_key(call: Call) -> str | None:
    """The Idempotency-Key, quoted or not, None without one. Raises Invalid when it is not 1 to 255 characters."""
    raw = call.header(b"idempotency-key")
    if raw is None:
        return None
    value = raw.strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    if not 1 <= len(value) <= 255:
        raise Invalid(
            "the Idempotency-Key is not valid",
            errors=[("Idempotency-Key", "Expected 1 to 255 characters, quoted or not")],
        )
    return value


def limit_of(query: dict[str, str], most: int = PAGE_MAX) -> int:
    """The `limit` of a page, 50 without one. Raises Invalid when it is not 1 to `most`."""
    text = query.get("limit", "50")
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= most):
        raise Invalid("the query is not valid", errors=[("limit", f"Expected a number from 1 to {most}")])
    return int(text)
