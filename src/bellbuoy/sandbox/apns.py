"""The stand-in for the Apple Push Notification service.

Facts: https://developer.apple.com/documentation/usernotifications, the pages "Sending notification requests to APNs",
"Establishing a token-based connection to APNs" and "Handling notification responses from APNs".
"""

from __future__ import annotations

import re
import uuid
from typing import Any, ClassVar

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from bellbuoy.sandbox.faults import Action, Delay, ErrorTable, Hold, Refuse, Row
from bellbuoy.sandbox.http import Exchange, HttpAnswer, HttpRequest, document_of
from bellbuoy.sandbox.http2 import Http2Connection
from bellbuoy.sandbox.received import Item
from bellbuoy.sandbox.station import HttpStation, Surroundings, Verdict, notification_id, text

PAYLOAD_BYTES_MAX = 4_096
VOIP_PAYLOAD_BYTES_MAX = 5_120
COLLAPSE_ID_BYTES_MAX = 64
TOKEN_AGE_S_MAX = 3_600
TOKEN_UPDATE_S_MIN = 1_200
_TOKENS_MAX = 1_000
_CLOCK_SKEW_S = 300

_STATUSES: dict[int, tuple[str, ...]] = {
    400: (
        *("BadDeviceToken", "DeviceTokenNotForTopic", "BadCollapseId", "BadExpirationDate", "BadMessageId"),
        *("BadPriority", "DuplicateHeaders", "InvalidPushType", "MissingDeviceToken", "PayloadEmpty"),
        *("BadTopic", "MissingTopic", "TopicDisallowed", "IdleTimeout"),
    ),
    403: (
        *("ExpiredProviderToken", "InvalidProviderToken", "MissingProviderToken", "BadCertificate"),
        *("BadCertificateEnvironment", "BadEnvironmentKeyInToken", "Forbidden"),
    ),
    404: ("BadPath",),
    405: ("MethodNotAllowed",),
    410: ("Unregistered", "ExpiredToken"),
    413: ("PayloadTooLarge",),
    429: ("TooManyRequests", "TooManyProviderTokenUpdates"),
    500: ("InternalServerError",),
    503: ("ServiceUnavailable", "Shutdown"),
}

TABLE = ErrorTable(
    rows={reason: Row(status) for status, reasons in _STATUSES.items() for reason in reasons},
    outage="ServiceUnavailable",
    error_rate="InternalServerError",
    quota="TooManyRequests",
    bad_credentials="InvalidProviderToken",
    unregistered="Unregistered",
    quota_retry_after_s=None,
)

MAGIC_PREFIXES: dict[str, str] = {
    "dead0410": "Unregistered",
    "dead0411": "ExpiredToken",
    "bad00400": "BadDeviceToken",
    "bad00401": "DeviceTokenNotForTopic",
    "bad00402": "TopicDisallowed",
    "bad00403": "InvalidProviderToken",
    "bad00404": "ExpiredProviderToken",
    "bad00405": "BadEnvironmentKeyInToken",
    "bad00429": "TooManyRequests",
    "bad00430": "TooManyProviderTokenUpdates",
    "bad00500": "InternalServerError",
    "bad00503": "ServiceUnavailable",
    "bad00504": "Shutdown",
}
"""What a token starts with, and the reason it gets; also `510e0000` (2 s) and `dead0000` (30 s, no answer)."""

PUSH_TYPES = frozenset(
    {
        *("alert", "background", "location", "voip", "complication", "fileprovider", "mdm"),
        *("liveactivity", "pushtotalk", "widgets", "controls"),
    }
)
_SUFFIXES = (".voip", ".complication", ".location-query", ".pushkit.fileprovider", ".push-type.liveactivity")
_PATH = re.compile(r"^/3/device/([^/]*)$")
_HEX = re.compile(r"^(?:[0-9a-fA-F]{2}){32,100}$")
_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_EPOCH = re.compile(r"^\d{1,11}$")
_encode = msgspec.json.Encoder().encode


class Apns(HttpStation):
    """Apple's side of APNs.

    Args:
        surroundings: clock, chance, log.
        team_id, key_id: what a provider token must name.
        public_key: of the team's key.
        topic: the one app's bundle id.
    """

    name: ClassVar[str] = "apns"
    table: ClassVar[ErrorTable] = TABLE

    def __init__(
        self,
        surroundings: Surroundings,
        *,
        team_id: str,
        key_id: str,
        public_key: ec.EllipticCurvePublicKey,
        topic: str,
    ) -> None:
        super().__init__(surroundings)
        self._team_id = team_id
        self._key_id = key_id
        self._public_key = public_key
        self._topic = topic
        self._topics = frozenset({topic, *(topic + suffix for suffix in _SUFFIXES)})
        # Issue times of the provider tokens that were checked and let in, the eldest first.
        self._tokens: dict[str, float] = {}
        self._updated_at: float | None = None
        self._updated_to = 0.0

    def judge(self, exchange: Exchange) -> Verdict:
        request = exchange.request
        headers = request.headers
        path = _PATH.match(request.path)
        token = path.group(1) if path else ""
        apns_id = headers.get("apns-id", "")
        payload = document_of(request.body)
        item = self._item(token, apns_id, headers, payload)
        reason = self._check(request, path is not None, token, payload)
        if reason is not None:
            refuse = Refuse(reason, TABLE.rows[reason])
            item.status, item.error = refuse.row.status, reason
            probe = bool(token) and not token.strip("0")
            return Verdict(self.refusal(refuse, request), item, counts=not probe, probe=probe)
        item.delivered = True
        return Verdict(HttpAnswer(200, b"", (("apns-id", item.id),)), item, action=_magic(token))

    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        body: dict[str, Any] = {"reason": refuse.code}
        if refuse.row.status == 410:
            timestamp_ms = refuse.timestamp_ms
            body["timestamp"] = int(self.clock.time() * 1_000) if timestamp_ms is None else timestamp_ms
        headers = [("apns-id", _apns_id(request.headers.get("apns-id", "")))]
        if refuse.retry_after_s is not None:
            headers.append(("retry-after", f"{refuse.retry_after_s:g}"))
        return HttpAnswer(refuse.row.status, _encode(body), tuple(headers))

    def delivered(self, exchange: Exchange) -> None:
        # One stream at first, the full number after the first good push.
        if isinstance(exchange.connection, Http2Connection):
            exchange.connection.open_up()

    def _item(self, token: str, apns_id: str, headers: dict[str, str], payload: object) -> Item:
        fields: dict[str, Any] = payload if isinstance(payload, dict) else {}
        aps = fields.get("aps")
        alert = aps.get("alert") if isinstance(aps, dict) else None
        shown: dict[str, Any] = alert if isinstance(alert, dict) else {"body": alert}
        data = {name: value for name, value in fields.items() if name != "aps"}
        return Item(
            provider=self.name,
            at=0.0,
            id=_apns_id(apns_id),
            endpoint=token,
            collapse_id=headers.get("apns-collapse-id"),
            item_id=apns_id or None,
            title=text(shown.get("title")),
            body=text(shown.get("body")),
            data=data or None,
            priority=headers.get("apns-priority"),
            headers={name: value for name, value in headers.items() if name.startswith("apns-")},
            notification=notification_id(data),
        )

    # -- checks, each giving the reason to refuse or None ----------------------------------------------------------

    def _check(self, request: HttpRequest, is_device: bool, token: str, payload: object) -> str | None:
        if not is_device:
            return "BadPath"
        if request.method != "POST":
            return "MethodNotAllowed"
        if any(name.startswith("apns-") or name == "authorization" for name in request.repeated):
            return "DuplicateHeaders"
        return (
            self._check_provider_token(request.headers.get("authorization"))
            or _check_headers(request.headers)
            or self._check_topic(request.headers)
            or _check_device_token(token)
            or _check_payload(request, payload)
        )

    def _check_provider_token(self, authorization: str | None) -> str | None:
        if authorization is None:
            return "MissingProviderToken"
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            return "InvalidProviderToken"
        now = self.clock.time()
        issued_at = self._tokens.get(token)
        if issued_at is None:
            issued_at = self._issued_at(token)
            if issued_at is None or issued_at > now + _CLOCK_SKEW_S:
                return "InvalidProviderToken"
            if now - issued_at > TOKEN_AGE_S_MAX:
                return "ExpiredProviderToken"
            if self._is_too_soon(issued_at):
                return "TooManyProviderTokenUpdates"
            self._admit(token, issued_at)
        return "ExpiredProviderToken" if now - issued_at > TOKEN_AGE_S_MAX else None

    def _is_too_soon(self, issued_at: float) -> bool:
        """Whether a new token with this `iat` breaks the rule of one in 20 minutes, whoever of the senders made it.

        Apple does not say whether it looks at the time of making or of arrival, so a token is refused only when both
        are close: replicas that agree on an `iat` in steps may change steps just after they have started.
        """
        if self._updated_at is None:
            return False
        arrives_soon = self.clock.monotonic() - self._updated_at < TOKEN_UPDATE_S_MIN
        return arrives_soon and abs(issued_at - self._updated_to) < TOKEN_UPDATE_S_MIN

    def _admit(self, token: str, issued_at: float) -> None:
        self._updated_at = self.clock.monotonic()
        self._updated_to = issued_at
        self._tokens[token] = issued_at
        while len(self._tokens) > _TOKENS_MAX:
            del self._tokens[next(iter(self._tokens))]

    def _issued_at(self, token: str) -> float | None:
        """The `iat` of a token that our team's key has signed, None for any other."""
        try:
            header = jwt.get_unverified_header(token)
            # Times are judged by the injected clock, not by the library's.
            claims = jwt.decode(
                token,
                self._public_key,
                algorithms=["ES256"],
                options={"verify_iat": False, "verify_exp": False, "verify_nbf": False, "verify_aud": False},
            )
        except jwt.InvalidTokenError:
            return None
        issued_at = claims.get("iat")
        if header.get("kid") != self._key_id or claims.get("iss") != self._team_id:
            return None
        if not isinstance(issued_at, int | float) or isinstance(issued_at, bool):
            return None
        return float(issued_at)

    def _check_topic(self, headers: dict[str, str]) -> str | None:
        topic = headers.get("apns-topic")
        if not topic:
            return "MissingTopic"
        if not re.fullmatch(r"[A-Za-z0-9.\-]+", topic):
            return "BadTopic"
        return None if topic in self._topics else "TopicDisallowed"


def _check_headers(headers: dict[str, str]) -> str | None:
    apns_id = headers.get("apns-id")
    if apns_id is not None and not _UUID.match(apns_id):
        return "BadMessageId"
    push_type = headers.get("apns-push-type", "alert")
    if push_type not in PUSH_TYPES:
        return "InvalidPushType"
    priority = headers.get("apns-priority", "5" if push_type == "background" else "10")
    if priority not in ("10", "5", "1") or (push_type == "background" and priority == "10"):
        return "BadPriority"
    if not _EPOCH.match(headers.get("apns-expiration", "0")):
        return "BadExpirationDate"
    if len(headers.get("apns-collapse-id", "").encode()) > COLLAPSE_ID_BYTES_MAX:
        return "BadCollapseId"
    return None


def _check_device_token(token: str) -> str | None:
    if not token:
        return "MissingDeviceToken"
    # A token of zeros is what senders probe with: well formed, and never anybody's.
    return None if _HEX.match(token) and token.strip("0") else "BadDeviceToken"


def _check_payload(request: HttpRequest, payload: object) -> str | None:
    voip = request.headers.get("apns-push-type") == "voip"
    if len(request.body) > (VOIP_PAYLOAD_BYTES_MAX if voip else PAYLOAD_BYTES_MAX):
        return "PayloadTooLarge"
    return None if isinstance(payload, dict) and payload else "PayloadEmpty"


def _magic(token: str) -> Action | None:
    prefix = token[:8].lower()
    reason = MAGIC_PREFIXES.get(prefix)
    if reason is not None:
        return Refuse(reason, TABLE.rows[reason])
    if prefix == "510e0000":
        return Delay(2.0)
    return Hold(30.0, deliver=True) if prefix == "dead0000" else None


def _apns_id(given: str) -> str:
    return given if _UUID.match(given) else str(uuid.uuid4())
