"""What FCM's answers mean, as one pure function.

Source: Firebase's "ErrorCode" reference for `projects.messages` and its guide to scaling and retrying; the order of
trust is the FCM error code, then the status of the Google API error, then the HTTP status.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from bellbuoy.adapters.transport import retry_after_s
from bellbuoy.errors import (
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)

QUOTA_WAIT_S = 60.0
"""Seconds to wait after QUOTA_EXCEEDED without a Retry-After; FCM refills its quota by the minute."""

REFRESHABLE = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
"""Error codes of a `CredentialRejected` that a new OAuth token may cure."""

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_TOKEN = "not a valid fcm registration token"  # noqa: S105  # What FCM says, not a secret.


class _Detail(Struct):
    type: str = msgspec.field(default="", name="@type")
    errorCode: str = ""


class _Error(Struct):
    message: str = ""
    status: str = ""
    details: list[_Detail] = msgspec.field(default_factory=list)


class _Body(Struct):
    error: _Error


_decode = msgspec.json.Decoder(_Body).decode


def classify(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer other than 200 means for the delivery.

    A token is called gone only on FCM's own word, an FcmError detail. A bare 404 or 400 may come from a wrong project
    id or from a proxy, and must never empty the registry of tokens.

    Args:
        http: the HTTP status.
        body: the answer's body, whatever it is.
        retry_after: the Retry-After header, None when there was none.
        now: epoch seconds, for a Retry-After that is a date.
    """
    try:
        error = _decode(body).error
    except msgspec.MsgspecError:
        error = _Error()
    code = next((d.errorCode for d in error.details if d.type == _FCM_ERROR and d.errorCode), None)
    wait_s = retry_after_s(retry_after, now)
    if code is not None:
        gone = _about_token(code, http, error.message)
        if gone is not None:
            return gone
        # UNSPECIFIED_ERROR and codes that are not known yet say nothing; the rest of the answer may.
        if code in _MEANING:
            return _MEANING[code](http, code, wait_s)
    if error.status in _MEANING:
        return _MEANING[error.status](http, error.status if code is None else code, wait_s)
    return _by_http(http, code or error.status or None, wait_s)


def _about_token(code: str, http: int, message: str) -> RecipientGone | None:
    if code == "UNREGISTERED":
        return RecipientGone("FCM no longer knows the token", provider_status=http, error_code=code)
    if code == "INVALID_ARGUMENT" and _BAD_TOKEN in message.lower():
        return RecipientGone("FCM says it never gave out this token", provider_status=http, error_code=code)
    if code == "SENDER_ID_MISMATCH":
        return RecipientGone(
            "the token belongs to another sender",
            quarantine=True,
            provider_status=http,
            error_code=code,
            hint="the app was built with another Firebase project; check providers.fcm.project_id",
        )
    return None


def _by_http(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    if http == 504:
        return OutcomeUnknown("a gateway before FCM had no answer in time", provider_status=http, error_code=code)
    if http >= 500 or http == 408:
        meaning = _transient
    elif http in (401, 403):
        meaning = _denied
    elif http in (404, 405) or http < 400:
        meaning = _misconfigured
    else:
        meaning = _throttled if http == 429 else _permanent
    return meaning(http, code, wait_s)


def _permanent(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    return Permanent("FCM refused the message as it stands", provider_status=http, error_code=code)


def _transient(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    return Transient(f"FCM failed with HTTP {http}", provider_status=http, error_code=code, retry_after_s=wait_s)


def _throttled(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    return Transient(
        "FCM's quota is used up",
        throttled=True,
        provider_status=http,
        error_code=code,
        retry_after_s=QUOTA_WAIT_S if wait_s is None else wait_s,
    )


def _denied(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    if code not in REFRESHABLE:
        code = "UNAUTHENTICATED" if http == 401 else "PERMISSION_DENIED"
    return CredentialRejected(
        "FCM refused our credential",
        provider_status=http,
        error_code=code,
        hint="check that the account of providers.fcm.credentials_file may send in providers.fcm.project_id",
    )


def _third_party(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    return CredentialRejected(
        "FCM's own credential for APNs or web push was rejected",
        provider_status=http,
        error_code=code,
        hint="upload a valid APNs key or VAPID key pair in the Firebase console",
    )


def _misconfigured(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    return CredentialRejected(
        f"FCM's address or project answers HTTP {http} without naming the token",
        provider_status=http,
        error_code=code,
        hint="check providers.fcm.base_url and providers.fcm.project_id",
    )


_MEANING: dict[str, Callable[[int, str | None, float | None], ProviderError]] = {
    "INVALID_ARGUMENT": _permanent,
    "FAILED_PRECONDITION": _permanent,
    "OUT_OF_RANGE": _permanent,
    "THIRD_PARTY_AUTH_ERROR": _third_party,
    "UNAUTHENTICATED": _denied,
    "PERMISSION_DENIED": _denied,
    "NOT_FOUND": _misconfigured,
    "QUOTA_EXCEEDED": _throttled,
    "RESOURCE_EXHAUSTED": _throttled,
    "INTERNAL": _transient,
    "UNAVAILABLE": _transient,
}
"""FCM's error codes and Google's statuses, neither of which uses the other's words for something else."""
