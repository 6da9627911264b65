"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from typing import Any

from bellbuoy.errors import (
    BellbuoyError,
    Conflict,
    ExecutionRejected,
    Full,
    Invalid,
    NotFound,
    Unavailable,
)
from bellbuoy.intake.validate import NotJson
from bellbuoy.service.api.exchange import HttpError, Reply, encode, retry_after

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

CODES = {
    "not_json": "the body is not JSON",
    "disconnected": "the client went away before the body was whole",
    "request_timeout": "the body did not come in time",
    "unauthorized": "no API key, or one that is not known",
    "forbidden": "the key lacks the scope",
    "not_found": "there is no such thing",
    "method_not_allowed": "the path exists and does not take this method",
    "conflict": "the thing is not in a state that allows this",
    "body_too_large": "the body is over its limit",
    "unsupported_media_type": "the body's media type is not understood",
    "invalid": "the request is JSON and not valid; `errors` says where",
    "payload_too_large": "no push provider would take a message of this size",
    "idempotency_key_reused": "the key came with another request before",
    "rate_limited": "too much at once; nothing was accepted",
    "read_only": "the ledger is away, or the mode is pinned; users, devices, keys and flags cannot be changed",
    "accepting_stopped": "an operator has stopped the acceptance of notifications",
    "store_full": "no home has room; nothing was accepted",
    "store_unavailable": "no home could be reached; nothing was accepted",
    "internal": "a defect of ours; it is logged",
}
"""Every `code` that the API answers with."""

_STATUS: tuple[tuple[type[BellbuoyError], int], ...] = (
    (NotJson, 400),
    (Invalid, 422),
    (NotFound, 404),
    (Conflict, 409),
    (ExecutionRejected, 429),
    (Full, 503),
    (Unavailable, 503),
)
_DEFAULT_WAIT_S = {429: 1.0, 503: 5.0}


_AWAY = {
    "store_full": "a store that this needs has no room at the moment",
    "store_unavailable": "a store that this needs does not answer, or may not know yet",
}
"""What clients are told of stores; hosts, files and the drivers' words are for those who operate the service."""


def problem(error: BellbuoyError, *, operator: bool = False) -> Reply:
    """The answer that tells a client, or an operator, about `error`."""
    status = (
        error.status if isinstance(error, HttpError) else next((s for t, s in _STATUS if isinstance(error, t)), 500)
    )
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    headers |= retry_after(error.retry_after_s or _DEFAULT_WAIT_S.get(status))
    content = document(error, status, operator=operator)
    return Reply(status, encode(content), b"application/problem+json", headers)


def document(error: BellbuoyError, status: int, *, operator: bool = False) -> dict[str, Any]:
    """The problem as a document."""
    away = isinstance(error, (Full, Unavailable)) and not operator
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": _detail(error, status, away=away),
        "code": error.code if status != 500 else "internal",
        "retryable": status in (408, 429, 503),
    }
    hint = "GET /v1/health says what is wrong" if away else error.hint
    if hint:
        content["hint"] = hint
    if isinstance(error, Invalid):
        content["errors"] = [{"path": path, "message": message} for path, message in error.errors]
    return content


def _detail(error: BellbuoyError, status: int, *, away: bool) -> str:
    if status == 500:
        return "an unexpected error; it is logged"
    return _AWAY.get(error.code, _AWAY["store_unavailable"]) if away else str(error)
