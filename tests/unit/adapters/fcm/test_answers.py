"""Every row of FCM's error table, and the answers that only look like one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bellbuoy.adapters.fcm.answers import classify
from bellbuoy.errors import (
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)

NOW = 1_800_000_000.0
BAD_TOKEN = "The registration token is not a valid FCM registration token"


def body(status: str = "", code: str | None = None, message: str = "m", **more: Any) -> bytes:
    error: dict[str, Any] = {"code": 0, "message": message, "status": status, **more}
    if code is not None:
        error["details"] = [
            {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": "x"}]},
            {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code},
        ]
    return json.dumps({"error": error}).encode()


@pytest.mark.parametrize(
    ("http", "answer", "kind", "code"),
    [
        # The FCM error code comes first.
        (400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT", BAD_TOKEN), RecipientGone, "INVALID_ARGUMENT"),
        (400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT", "ttl"), Permanent, "INVALID_ARGUMENT"),
        (404, body("NOT_FOUND", "UNREGISTERED"), RecipientGone, "UNREGISTERED"),
        (403, body("PERMISSION_DENIED", "SENDER_ID_MISMATCH"), RecipientGone, "SENDER_ID_MISMATCH"),
        (401, body("UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), CredentialRejected, "THIRD_PARTY_AUTH_ERROR"),
        (429, body("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), Transient, "QUOTA_EXCEEDED"),
        (500, body("INTERNAL", "INTERNAL"), Transient, "INTERNAL"),
        (503, body("UNAVAILABLE", "UNAVAILABLE"), Transient, "UNAVAILABLE"),
        # What FCM leaves unspecified, or we do not know, is decided by the rest.
        (500, body("INTERNAL", "UNSPECIFIED_ERROR"), Transient, "UNSPECIFIED_ERROR"),
        (400, body("", "UNSPECIFIED_ERROR"), Permanent, "UNSPECIFIED_ERROR"),
        (503, body("", "BRAND_NEW"), Transient, "BRAND_NEW"),
        # Then the status.
        (401, body("UNAUTHENTICATED"), CredentialRejected, "UNAUTHENTICATED"),
        (403, body("PERMISSION_DENIED"), CredentialRejected, "PERMISSION_DENIED"),
        (400, body("INVALID_ARGUMENT", message=BAD_TOKEN), Permanent, "INVALID_ARGUMENT"),
        (404, body("NOT_FOUND"), CredentialRejected, "NOT_FOUND"),
        (429, body("RESOURCE_EXHAUSTED"), Transient, "RESOURCE_EXHAUSTED"),
        (503, body("UNAVAILABLE"), Transient, "UNAVAILABLE"),
        (500, body("INTERNAL"), Transient, "INTERNAL"),
        # Then HTTP, whoever answered.
        (400, b"", Permanent, None),
        (401, b"<html>", CredentialRejected, "UNAUTHENTICATED"),
        (403, b"[]", CredentialRejected, "PERMISSION_DENIED"),
        (404, b"no such page", CredentialRejected, None),
        (
            404,
            body("NOT_FOUND", message="Requested entity was not found. UNREGISTERED"),
            CredentialRejected,
            "NOT_FOUND",
        ),
        (405, b"", CredentialRejected, None),
        (301, b"", CredentialRejected, None),
        (204, b"", CredentialRejected, None),
        (408, b"", Transient, None),
        (413, b"", Permanent, None),
        (429, b"slow down", Transient, None),
        (500, b"\xff\xfe", Transient, None),
        (502, b"<html>", Transient, None),
        (503, b'{"error": "text"}', Transient, None),
        (504, b"", OutcomeUnknown, None),
    ],
)
def test_every_row(http: int, answer: bytes, kind: type[ProviderError], code: str | None) -> None:
    error = classify(http, answer, None, NOW)
    assert type(error) is kind
    assert error.error_code == code
    assert error.provider_status == http


def test_only_a_detail_of_fcms_own_type_counts() -> None:
    details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "errorCode": "UNREGISTERED"}]
    error = classify(404, body("NOT_FOUND", details=details), None, NOW)
    assert isinstance(error, CredentialRejected)


def test_another_senders_token_is_set_aside_and_not_gone() -> None:
    error = classify(403, body("PERMISSION_DENIED", "SENDER_ID_MISMATCH"), None, NOW)
    assert isinstance(error, RecipientGone)
    assert error.quarantine
    gone = classify(404, body("NOT_FOUND", "UNREGISTERED"), None, NOW)
    assert isinstance(gone, RecipientGone)
    assert not gone.quarantine
    assert gone.since is None


@pytest.mark.parametrize(
    ("http", "code", "retry_after", "wait_s", "throttled"),
    [
        (429, "QUOTA_EXCEEDED", None, 60.0, True),
        (429, "QUOTA_EXCEEDED", "7", 7.0, True),
        (429, "QUOTA_EXCEEDED", "rubbish", 60.0, True),
        (503, "UNAVAILABLE", None, None, False),
        (503, "UNAVAILABLE", "30", 30.0, False),
        (503, "UNAVAILABLE", "Fri, 15 Jan 2027 08:02:00 GMT", 120.0, False),
        (500, "INTERNAL", "12", 12.0, False),
        (500, "INTERNAL", None, None, False),
    ],
)
def test_the_wait_is_what_fcm_asks_for(
    http: int, code: str, retry_after: str | None, wait_s: float | None, throttled: bool
) -> None:
    error = classify(http, body("", code), retry_after, NOW)
    assert isinstance(error, Transient)
    assert error.retry_after_s == wait_s
    assert error.throttled is throttled


def test_errors_repeat_nothing_that_fcm_said_in_prose() -> None:
    said = "token e1bG:APA91-secret of someone@example.com"
    for http in (400, 401, 403, 404, 429, 500, 503):
        for code in (None, "INVALID_ARGUMENT", "UNREGISTERED", "SENDER_ID_MISMATCH"):
            error = classify(http, body("INVALID_ARGUMENT", code, said), None, NOW)
            assert "secret" not in f"{error} {error.hint} {error.error_code}"
