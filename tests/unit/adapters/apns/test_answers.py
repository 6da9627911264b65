"""Every reason APNs gives, and the answers that are not Apple's."""

from __future__ import annotations

import json

import pytest

from bellbuoy.adapters.apns import classify
from bellbuoy.errors import (
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)

NOW = 1_800_000_000.0
ROWS: list[tuple[int, str, type[ProviderError]]] = [
    (400, "BadDeviceToken", RecipientGone),
    (400, "DeviceTokenNotForTopic", RecipientGone),
    (400, "BadCollapseId", Permanent),
    (400, "BadExpirationDate", Permanent),
    (400, "BadMessageId", Permanent),
    (400, "BadPriority", Permanent),
    (400, "DuplicateHeaders", Permanent),
    (400, "InvalidPushType", Permanent),
    (400, "MissingDeviceToken", Permanent),
    (400, "PayloadEmpty", Permanent),
    (400, "BadTopic", CredentialRejected),
    (400, "MissingTopic", CredentialRejected),
    (400, "TopicDisallowed", CredentialRejected),
    (400, "IdleTimeout", Transient),
    (403, "ExpiredProviderToken", CredentialRejected),
    (403, "InvalidProviderToken", CredentialRejected),
    (403, "MissingProviderToken", CredentialRejected),
    (403, "BadCertificate", CredentialRejected),
    (403, "BadCertificateEnvironment", CredentialRejected),
    (403, "BadEnvironmentKeyInToken", CredentialRejected),
    (403, "Forbidden", CredentialRejected),
    (404, "BadPath", CredentialRejected),
    (405, "MethodNotAllowed", CredentialRejected),
    (410, "Unregistered", RecipientGone),
    (410, "ExpiredToken", RecipientGone),
    (413, "PayloadTooLarge", Permanent),
    (429, "TooManyRequests", Transient),
    (429, "TooManyProviderTokenUpdates", Transient),
    (500, "InternalServerError", Transient),
    (503, "ServiceUnavailable", Transient),
    (503, "Shutdown", Transient),
    (400, "SomethingNew", Permanent),
    (403, "SomethingNew", CredentialRejected),
    (500, "SomethingNew", Transient),
]


@pytest.mark.parametrize(("http", "reason", "kind"), ROWS)
def test_every_row(http: int, reason: str, kind: type[ProviderError]) -> None:
    error = classify(http, json.dumps({"reason": reason}).encode(), None, NOW)
    assert type(error) is kind
    assert error.error_code == reason
    assert error.provider_status == http
    if kind is CredentialRejected:
        assert error.hint


@pytest.mark.parametrize(
    ("http", "kind"),
    [
        (204, CredentialRejected),
        (302, CredentialRejected),
        (400, Permanent),
        (401, CredentialRejected),
        (403, CredentialRejected),
        (404, CredentialRejected),
        (405, CredentialRejected),
        (408, Transient),
        (410, Permanent),
        (413, Permanent),
        (429, Transient),
        (500, Transient),
        (502, Transient),
        (503, Transient),
        (504, OutcomeUnknown),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"reason": 7}', b"\xff"])
def test_an_answer_without_a_reason_goes_by_its_status(http: int, kind: type[ProviderError], body: bytes) -> None:
    error = classify(http, body, None, NOW)
    assert type(error) is kind
    assert error.error_code is None


def test_the_timestamp_of_a_gone_token_is_given_in_seconds() -> None:
    error = classify(410, b'{"reason":"Unregistered","timestamp":1799999999500}', None, NOW)
    assert isinstance(error, RecipientGone)
    assert error.since == 1_799_999_999.5
    bare = classify(410, b'{"reason":"Unregistered"}', None, NOW)
    assert isinstance(bare, RecipientGone)
    assert bare.since is None


@pytest.mark.parametrize(
    ("http", "reason", "retry_after", "wait_s", "throttled"),
    [
        (429, "TooManyRequests", None, 60.0, True),
        (429, "TooManyRequests", "5", 5.0, True),
        (429, "TooManyProviderTokenUpdates", None, 1200.0, True),
        (503, "ServiceUnavailable", None, None, False),
        (503, "Shutdown", "20", 20.0, False),
        (500, "InternalServerError", "Fri, 15 Jan 2027 08:02:00 GMT", 120.0, False),
        (400, "IdleTimeout", None, None, False),
    ],
)
def test_the_wait(http: int, reason: str, retry_after: str | None, wait_s: float | None, throttled: bool) -> None:
    error = classify(http, json.dumps({"reason": reason}).encode(), retry_after, NOW)
    assert isinstance(error, Transient)
    assert error.retry_after_s == wait_s
    assert error.throttled is throttled
