"""The stand-in for Firebase Cloud Messaging, HTTP v1, with Google's OAuth token endpoint.

Facts: https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages and .../ErrorCode for the messages and
errors, https://developers.google.com/identity/protocols/oauth2/service-account for the token.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, ClassVar
from urllib.parse import parse_qs

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from bellbuoy.sandbox.faults import Action, Delay, ErrorTable, Hold, Refuse, Row
from bellbuoy.sandbox.http import Exchange, HttpAnswer, HttpRequest, document_of
from bellbuoy.sandbox.received import Item
from bellbuoy.sandbox.station import HttpStation, Surroundings, Verdict, notification_id, text

SCOPES = (
    "https://www.googleapis.com/auth/firebase.messaging",
    "https://www.googleapis.com/auth/cloud-platform",
)
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_S_MAX = 3_600
TOKEN_S = 3_599
PAYLOAD_BYTES_MAX = 4_096
TOPIC_PAYLOAD_BYTES_MAX = 2_048
TTL_S_MAX = 2_419_200
_BEARERS_MAX = 1_000
_CLOCK_SKEW_S = 300

_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_TOKEN = "The registration token is not a valid FCM registration token"  # noqa: S105

TABLE = ErrorTable(
    rows={
        "INVALID_ARGUMENT": Row(400, _BAD_TOKEN, "INVALID_ARGUMENT"),
        "UNREGISTERED": Row(404, "Requested entity was not found.", "NOT_FOUND"),
        "SENDER_ID_MISMATCH": Row(403, "SenderId mismatch", "PERMISSION_DENIED"),
        "THIRD_PARTY_AUTH_ERROR": Row(401, "Auth error from APNS or Web Push Service", "UNAUTHENTICATED"),
        "QUOTA_EXCEEDED": Row(
            429,
            "Quota exceeded for quota metric 'Messages sent' and limit 'Messages sent per minute'.",
            "RESOURCE_EXHAUSTED",
        ),
        "INTERNAL": Row(500, "Internal error encountered.", "INTERNAL"),
        "UNAVAILABLE": Row(503, "The service is currently unavailable.", "UNAVAILABLE"),
        "UNSPECIFIED_ERROR": Row(500, "Unknown error.", "UNKNOWN"),
        "UNAUTHENTICATED": Row(
            401,
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other "
            "valid authentication credential.",
            "UNAUTHENTICATED",
            detailed=False,
        ),
        "PERMISSION_DENIED": Row(
            403,
            "Permission 'cloudmessaging.messages.create' denied on resource (or it may not exist).",
            "PERMISSION_DENIED",
            detailed=False,
        ),
        "NOT_FOUND": Row(404, "Requested entity was not found.", "NOT_FOUND", detailed=False),
    },
    outage="UNAVAILABLE",
    error_rate="INTERNAL",
    quota="QUOTA_EXCEEDED",
    bad_credentials="UNAUTHENTICATED",
    unregistered="UNREGISTERED",
)

MAGIC_TOKENS: dict[str, str] = {
    "sandbox-unregistered": "UNREGISTERED",
    "sandbox-invalid": "INVALID_ARGUMENT",
    "sandbox-mismatch": "SENDER_ID_MISMATCH",
    "sandbox-third-party": "THIRD_PARTY_AUTH_ERROR",
    "sandbox-quota": "QUOTA_EXCEEDED",
    "sandbox-internal": "INTERNAL",
    "sandbox-unavailable": "UNAVAILABLE",
    "sandbox-unspecified": "UNSPECIFIED_ERROR",
    "sandbox-unauthenticated": "UNAUTHENTICATED",
    "sandbox-denied": "PERMISSION_DENIED",
    "sandbox-not-found": "NOT_FOUND",
}
"""What a token contains, and the error it gets; also `sandbox-slow` (2 s) and `sandbox-hang` (30 s, no answer)."""

_JSON = (("content-type", "application/json; charset=UTF-8"),)
_DURATION = re.compile(r"^(\d+)(?:\.\d{1,9})?s$")
_SPACE = re.compile(r"[\s\x00-\x1f]")
_MESSAGE_FIELDS = frozenset(
    {
        *("name", "data", "notification", "android", "webpush", "apns", "fcm_options", "fcmOptions"),
        *("token", "topic", "condition"),
    }
)
_TARGETS = ("token", "topic", "condition")
_NOTIFICATION_FIELDS = frozenset(("title", "body", "image"))
_encode = msgspec.json.Encoder().encode


class Fcm(HttpStation):
    """Google's side of FCM.

    Args:
        surroundings: clock, chance, log.
        project_id: the one project it has.
        client_email: the service account that may send.
        public_key: of that account.
    """

    name: ClassVar[str] = "fcm"
    table: ClassVar[ErrorTable] = TABLE

    def __init__(
        self, surroundings: Surroundings, *, project_id: str, client_email: str, public_key: rsa.RSAPublicKey
    ) -> None:
        super().__init__(surroundings)
        self._project_id = project_id
        self._client_email = client_email
        self._public_key = public_key
        self._path = f"/v1/projects/{project_id}/messages:send"
        self._bearers: dict[str, float] = {}
        self.token_uris: tuple[str, ...] = ()

    def judge(self, exchange: Exchange) -> Verdict:
        request = exchange.request
        if request.path == "/token":
            answer = self._token(request)
            item = Item(provider=self.name, at=0.0, status=answer.status)
            return Verdict(answer, item, counts=False, target="token")
        document = document_of(request.body)
        message = document.get("message") if isinstance(document, dict) else None
        item = self._item(message if isinstance(message, dict) else {})
        refuse = self._check(request, document, item)
        dry = isinstance(document, dict) and document.get("validate_only", document.get("validateOnly")) is True
        if refuse is not None:
            item.status, item.error = refuse.row.status, refuse.code
            return Verdict(self.refusal(refuse, request), item, counts=not dry, probe=dry)
        action = _magic(item.endpoint)
        if dry:
            item.id = f"projects/{self._project_id}/messages/fake_message_id"
        item.delivered = not dry
        answer = HttpAnswer(200, _encode({"name": item.id}), _JSON)
        return Verdict(answer, item, counts=not dry, action=action, probe=dry)

    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        headers: tuple[tuple[str, str], ...] = _JSON
        if refuse.retry_after_s is not None:
            headers = (*_JSON, ("retry-after", f"{refuse.retry_after_s:g}"))
        if request.path == "/token":
            body: dict[str, Any] = {"error": "temporarily_unavailable", "error_description": refuse.row.message}
            if refuse.row.status < 500:
                body["error"] = "invalid_grant"
            return HttpAnswer(refuse.row.status, _encode(body), headers)
        error: dict[str, Any] = {
            "code": refuse.row.status,
            "message": refuse.row.message,
            "status": refuse.row.label or refuse.code,
        }
        if refuse.row.detailed:
            error["details"] = [{"@type": _FCM_ERROR, "errorCode": refuse.code}]
        return HttpAnswer(refuse.row.status, _encode({"error": error}), headers)

    def _item(self, message: dict[str, Any]) -> Item:
        notification = _dict(message.get("notification"))
        android = _dict(message.get("android"))
        shown = _dict(android.get("notification"))
        data = message.get("data")
        endpoint = next((text(message[name]) for name in _TARGETS if name in message), None) or ""
        tag = text(shown.get("tag"))
        return Item(
            provider=self.name,
            at=0.0,
            id=f"projects/{self._project_id}/messages/{secrets.token_hex(12)}",
            endpoint=endpoint,
            collapse_id=tag or _other_collapse_id(message, android),
            item_id=tag,
            title=text(notification.get("title")) or text(shown.get("title")),
            body=text(notification.get("body")) or text(shown.get("body")),
            data=data if isinstance(data, dict) else None,
            priority=text(android.get("priority")),
            notification=notification_id(data),
        )

    # -- checks --------------------------------------------------------------------------------------------------

    def _check(self, request: HttpRequest, document: object, item: Item) -> Refuse | None:
        if request.path != self._path:
            foreign = request.path.startswith("/v1/projects/") and request.path.endswith("/messages:send")
            return _row("PERMISSION_DENIED" if foreign else "NOT_FOUND")
        if request.method != "POST":
            return _row("NOT_FOUND")
        if not self._is_live(request.headers.get("authorization", "")):
            return _row("UNAUTHENTICATED")
        if not isinstance(document, dict):
            return _malformed("Invalid JSON payload received. Expected an object.")
        message = document.get("message")
        if not isinstance(message, dict):
            return _malformed("Invalid value at 'message': a message is required.")
        return _check_envelope(document, message) or _check_message(message, item)

    def _is_live(self, authorization: str) -> bool:
        scheme, _, bearer = authorization.partition(" ")
        expires_at = self._bearers.get(bearer)
        return scheme.lower() == "bearer" and expires_at is not None and self.clock.time() < expires_at

    def _token(self, request: HttpRequest) -> HttpAnswer:
        if request.method != "POST":
            return HttpAnswer(405, b"", (("allow", "POST"),))
        form = parse_qs(request.body.decode("utf-8", "replace"))
        if form.get("grant_type") != [JWT_BEARER]:
            return _oauth_error("unsupported_grant_type", "Invalid grant_type: the JWT bearer grant is expected")
        problem = self._assertion_problem(form.get("assertion", [""])[0])
        if problem is not None:
            return _oauth_error(*problem)
        now = self.clock.time()
        if len(self._bearers) >= _BEARERS_MAX:
            self._bearers = {bearer: end for bearer, end in self._bearers.items() if end > now}
            # An attacker of a test system gets no more than this; the eldest goes first.
            while len(self._bearers) >= _BEARERS_MAX:
                del self._bearers[next(iter(self._bearers))]
        bearer = "ya29.sandbox-" + secrets.token_urlsafe(32)
        self._bearers[bearer] = now + TOKEN_S
        body = {"access_token": bearer, "expires_in": TOKEN_S, "token_type": "Bearer"}
        return HttpAnswer(200, _encode(body), _JSON)

    def _assertion_problem(self, assertion: str) -> tuple[str, str] | None:
        """(error, description) when the assertion is not a good one, as Google's endpoint words them."""
        try:
            # Times are judged below, by the injected clock.
            claims = jwt.decode(
                assertion,
                self._public_key,
                algorithms=["RS256"],
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False},
            )
        except jwt.InvalidTokenError:
            return "invalid_grant", "Invalid JWT Signature."
        if claims.get("iss") != self._client_email:
            return "invalid_grant", "Invalid grant: account not found"
        if claims.get("aud") not in self.token_uris:
            return "invalid_grant", "Invalid JWT: Failed audience check"
        if not set(str(claims.get("scope", "")).split()) & set(SCOPES):
            return "invalid_scope", "Invalid OAuth scope or ID token audience provided."
        if not _is_timely(claims.get("iat"), claims.get("exp"), self.clock.time()):
            return (
                "invalid_grant",
                "Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe. "
                "Check your iat and exp values in the JWT claim.",
            )
        return None


def _check_envelope(document: dict[str, Any], message: dict[str, Any]) -> Refuse | None:
    unknown = document.keys() - {"message", "validate_only", "validateOnly"}
    if unknown:
        return _malformed(f'Invalid JSON payload received. Unknown name "{min(unknown)}": Cannot find field.')
    unknown = message.keys() - _MESSAGE_FIELDS
    if unknown:
        return _malformed(
            f"Invalid JSON payload received. Unknown name \"{min(unknown)}\" at 'message': Cannot find field."
        )
    for name in ("notification", "android", "webpush", "apns", "data"):
        if name in message and not isinstance(message[name], dict):
            return _malformed(f"Invalid value at 'message.{name}': expected an object.")
    unknown = _dict(message.get("notification")).keys() - _NOTIFICATION_FIELDS
    if unknown:
        return _malformed(
            f"Invalid JSON payload received. Unknown name \"{min(unknown)}\" at 'message.notification': "
            "Cannot find field."
        )
    for position, value in enumerate(_dict(message.get("data")).values()):
        if not isinstance(value, str):
            shown = _encode(value).decode()
            return _malformed(f"Invalid value at 'message.data[{position}].value' (TYPE_STRING), {shown}")
    return None


def _check_message(message: dict[str, Any], item: Item) -> Refuse | None:
    if sum(name in message for name in _TARGETS) != 1:
        return _argument("Recipient of the message is not set or is set more than once.")
    endpoint = item.endpoint
    if not endpoint or ("token" in message and _SPACE.search(endpoint)):
        return _argument(_BAD_TOKEN)
    for key in _dict(message.get("data")):
        if key in ("from", "message_type") or key.startswith(("google.", "gcm.")):
            return _argument(f"Invalid data payload key: {key}")
    return _check_limits(message)


def _check_limits(message: dict[str, Any]) -> Refuse | None:
    android = _dict(message.get("android"))
    if not _is_ttl(android.get("ttl")):
        return _argument("Invalid value at 'message.android.ttl': a duration from 0s to 2419200s is expected.")
    if text(android.get("priority", "normal")) not in ("normal", "high", "NORMAL", "HIGH"):
        return _malformed("Invalid value at 'message.android.priority' (AndroidMessagePriority).")
    limit = PAYLOAD_BYTES_MAX if "token" in message else TOPIC_PAYLOAD_BYTES_MAX
    if _payload_bytes(message) > limit:
        return _argument("Android message is too big")
    payload = _dict(message.get("apns")).get("payload")
    if payload is not None and len(_encode(payload)) > PAYLOAD_BYTES_MAX:
        return _argument("APNs payload is too big")
    return None


def _payload_bytes(message: dict[str, Any]) -> int:
    parts = {name: message[name] for name in ("data", "notification") if message.get(name)}
    return len(_encode(parts)) if parts else 0


def _is_ttl(ttl: object) -> bool:
    if ttl is None:
        return True
    found = _DURATION.match(ttl) if isinstance(ttl, str) else None
    return found is not None and float(str(ttl)[:-1]) <= TTL_S_MAX


def _is_timely(issued_at: object, expires_at: object, now: float) -> bool:
    """Whether an assertion with these times (epoch seconds, if they are numbers at all) is good at `now`."""
    if not isinstance(issued_at, int | float) or not isinstance(expires_at, int | float):
        return False
    return (
        issued_at <= now + _CLOCK_SKEW_S
        and expires_at > now
        and 0 < expires_at - issued_at <= ASSERTION_S_MAX
        and now - issued_at <= ASSERTION_S_MAX
    )


def _other_collapse_id(message: dict[str, Any], android: dict[str, Any]) -> str | None:
    apns = _dict(_dict(message.get("apns")).get("headers"))
    webpush = _dict(_dict(message.get("webpush")).get("headers"))
    return (
        text(android.get("collapse_key", android.get("collapseKey")))
        or text(apns.get("apns-collapse-id"))
        or text(webpush.get("Topic", webpush.get("topic")))
    )


def _magic(token: str) -> Action | None:
    if "sandbox-" not in token:
        return None
    for part, code in MAGIC_TOKENS.items():
        if part in token:
            return _row(code)
    if "sandbox-slow" in token:
        return Delay(2.0)
    return Hold(30.0, deliver=True) if "sandbox-hang" in token else None


def _row(code: str) -> Refuse:
    return Refuse(code, TABLE.rows[code])


def _argument(message: str) -> Refuse:
    """A fault of the message that FCM itself found: with its own error code."""
    return Refuse("INVALID_ARGUMENT", Row(400, message, "INVALID_ARGUMENT"))


def _malformed(message: str) -> Refuse:
    """A fault that Google's front end found before FCM saw the message: without FCM's error code."""
    return Refuse("INVALID_ARGUMENT", Row(400, message, "INVALID_ARGUMENT", detailed=False))


def _oauth_error(error: str, description: str) -> HttpAnswer:
    return HttpAnswer(400, _encode({"error": error, "error_description": description}), _JSON)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
