"""Apple Push Notification service as a `Provider`.

Source: Apple's "Sending notification requests to APNs", "Establishing a token-based connection to APNs" and "Handling
notification responses from APNs".
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import Struct

from bellbuoy.adapters.transport import Response, Transport, checked_url, retry_after_s
from bellbuoy.clock import Clock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)
from bellbuoy.model.delivery import Message, ProviderName, Receipt
from bellbuoy.model.notification import PUSH_PAYLOAD_BYTES_MAX, Content, Priority

TOKEN_QUANTUM_S = 2_100
"""A provider token's `iat` is a multiple of these seconds, so replicas and restarts present the same token."""
TOKEN_UPDATE_S_MIN = 1_200
"""Seconds between two different `iat`; Apple refuses updates more often than every 20 minutes."""
TOKEN_REMINT_QUANTUM_S = 300
"""The coarser `iat` of a token that replaces one Apple calls expired, so replicas that do so agree as well."""
TOKEN_LAG_S = 30
"""Seconds to wait before a new `iat`, so that a clock a little fast never dates a token in Apple's future."""
CLOCK_STEP_S = 60
"""Seconds that a clock may be set back before the token is dated anew."""

DEVICE_WAIT_S = 60.0
"""Seconds to wait after TooManyRequests for one device without a Retry-After."""
COLLAPSE_ID_BYTES_MAX = 64

_PRIORITY: dict[Priority, str] = {"high": "10", "normal": "5", "low": "1"}
_DEVICE_TOKEN = re.compile(r"[0-9a-fA-F]{16,400}")
_encode = msgspec.json.Encoder().encode


class ProviderToken:
    """The ES256 token that names us to Apple: one for all connections, changed every 35 minutes.

    Signatures are deterministic (RFC 6979) where OpenSSL can, so all replicas send the same bytes and Apple sees one
    token rather than a new one with every restart.

    Args:
        team_id: Apple's ten characters for the team.
        key_id: and for the key.
        key: the key's P-256 private half.
        clock: its wall time dates the token.
    """

    def __init__(self, *, team_id: str, key_id: str, key: EllipticCurvePrivateKey, clock: Clock) -> None:
        self._head = _base64url(_encode({"alg": "ES256", "kid": key_id}))
        self._team_id = team_id
        self._key = key
        self._clock = clock
        try:
            self._scheme = ECDSA(SHA256(), deterministic_signing=True)
        except UnsupportedAlgorithm:
            self._scheme = ECDSA(SHA256())
        self._iat: int | None = None
        self._good_until = 0.0
        self._authorization = ""

    def authorization(self) -> str:
        """The value of the `authorization` header for a request made now."""
        now = self._clock.time()
        iat = self._iat
        # A clock that was set back leaves a token dated in the future, which Apple refuses.
        ahead = iat is not None and iat > now + CLOCK_STEP_S
        if iat is None or ahead or now >= self._good_until:
            due = int(now - TOKEN_LAG_S) // TOKEN_QUANTUM_S * TOKEN_QUANTUM_S
            if iat is None or ahead or due - iat >= TOKEN_UPDATE_S_MIN:
                self._mint(due)
            # After an early change the next quantum may come too soon, and the one after it is the next chance.
            self._good_until = float(due + TOKEN_QUANTUM_S + TOKEN_LAG_S)
        return self._authorization

    def after_expired(self, rejected: str) -> str | None:
        """The token to try once more after Apple called `rejected` expired, None when it is too early for another.

        It never awaits, so of many calls at once the first mints and the rest get the same.
        """
        current = self.authorization()
        if current != rejected:
            return current
        iat = int(self._clock.time()) // TOKEN_REMINT_QUANTUM_S * TOKEN_REMINT_QUANTUM_S
        if self._iat is not None and iat - self._iat < TOKEN_UPDATE_S_MIN:
            return None
        self._mint(iat)
        return self._authorization

    @property
    def update_allowed_in_s(self) -> float:
        """Seconds until Apple may be shown another token than the present one, 0 when it may now."""
        return max(0.0, (self._iat or 0) + TOKEN_UPDATE_S_MIN - self._clock.time())

    def _mint(self, iat: int) -> None:
        signed = self._head + b"." + _base64url(_encode({"iss": self._team_id, "iat": iat}))
        r, s = decode_dss_signature(self._key.sign(signed, self._scheme))
        signature = _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        self._authorization = f"bearer {(signed + b'.' + signature).decode()}"
        self._iat = iat


def read_signing_key(path: str | Path) -> EllipticCurvePrivateKey:
    """Read Apple's .p8 file.

    Raises:
        ConfigurationError: it cannot be read or holds no P-256 private key.
    """
    setting = "providers.apns.key_file"
    hint = f"set {setting} to the AuthKey_....p8 file from Apple's developer pages"
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{setting}: {str(path)!r} cannot be read ({error.strerror})", hint=hint) from None
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
        raise ConfigurationError(f"{setting}: {str(path)!r} holds no P-256 private key", hint=hint)
    return key


def encode(message: Message) -> bytes:
    """Write the payload: Apple's `aps`, and the sender's data as keys beside it; the same message, the same bytes.

    Raises:
        Permanent: the data has a key `aps`, or the payload is larger than Apple takes.
    """
    content = message.content
    if "aps" in content.data:
        raise Permanent(
            "the data has a key 'aps', which is Apple's own", error_code="reserved_key", hint="rename the key"
        )
    aps: dict[str, Any]
    if content.title or content.body:
        alert = {}
        if content.title:
            alert["title"] = content.title
        if content.body:
            alert["body"] = content.body
        aps = {"alert": alert}
        if message.priority != "low":
            aps["sound"] = "default"
    else:
        aps = {"content-available": 1}
    body = _encode({"aps": aps, **content.data})
    if len(body) > PUSH_PAYLOAD_BYTES_MAX:
        raise Permanent("the payload is over 4096 bytes", error_code="PayloadTooLarge", hint="send less content")
    return body


def collapse_id(message: Message) -> str:
    """What the message replaces on the device: the sender's key, else its own id, so a retry replaces itself.

    A name that no header can carry, being too long or not ASCII, is replaced by a digest of it.
    """
    name = message.collapse_key or message.notification_id
    if len(name) <= COLLAPSE_ID_BYTES_MAX and name.isascii() and name.isprintable():
        return name
    return _base64url(hashlib.sha256(name.encode()).digest()).decode()


def classify(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer other than 200 means for the delivery.

    BadDeviceToken and DeviceTokenNotForTopic name the token, but so do a wrong topic or environment, for every token
    at once; telling the two apart needs the outcomes of many sends, and is left to who sees them.

    Args:
        http: the HTTP status.
        body: the answer's body, whatever it is.
        retry_after: the Retry-After header, None when there was none.
        now: epoch seconds, for a Retry-After that is a date.
    """
    try:
        answer = _decode(body)
    except msgspec.MsgspecError:
        answer = _Answer()
    code = answer.reason
    if code in _GONE:
        since = answer.timestamp / 1000 if answer.timestamp is not None else None
        return RecipientGone(_GONE[code], since=since, provider_status=http, error_code=code)
    if code in _CONFIGURATION:
        return CredentialRejected(
            "Apple refused our credential or configuration",
            provider_status=http,
            error_code=code,
            hint=_CONFIGURATION[code],
        )
    wait_s = retry_after_s(retry_after, now)
    if code in _RETRY:
        return _transient(http, code, wait_s)
    if code in _PERMANENT:
        return _permanent(http, code)
    return _by_http(http, code, wait_s)


def _by_http(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    """For reasons that are not known, or an answer that is not Apple's."""
    if http == 504:
        return OutcomeUnknown("a gateway before APNs had no answer in time", provider_status=http, error_code=code)
    if http >= 500 or http in (408, 429):
        return _transient(http, code, wait_s)
    if http in (401, 403, 404, 405) or http < 400:
        return CredentialRejected(
            f"APNs, or what stands at its address, answers HTTP {http}",
            provider_status=http,
            error_code=code,
            hint="check providers.apns.base_url and the key",
        )
    # A 410 without a reason is no word of Apple's on the token, so it costs the message and not the registration.
    return _permanent(http, code)


def _permanent(http: int, code: str | None) -> ProviderError:
    return Permanent("APNs refused the message as it stands", provider_status=http, error_code=code)


def _transient(http: int, code: str | None, wait_s: float | None) -> ProviderError:
    throttled = http == 429
    if throttled and wait_s is None:
        wait_s = float(TOKEN_UPDATE_S_MIN) if code == "TooManyProviderTokenUpdates" else DEVICE_WAIT_S
    return Transient(
        "APNs asks for less" if throttled else f"APNs failed with HTTP {http}",
        throttled=throttled,
        provider_status=http,
        error_code=code,
        retry_after_s=wait_s,
    )


class _Answer(Struct):
    reason: str | None = None
    timestamp: float | None = None


_decode = msgspec.json.Decoder(_Answer).decode

_GONE = {
    "BadDeviceToken": "APNs does not know the device token in this environment",
    "DeviceTokenNotForTopic": "the device token belongs to another app",
    "Unregistered": "the device token is no longer active",
    "ExpiredToken": "the device token has expired",
}
_TOPIC_HINT = "check that providers.apns.topic is the app's bundle id and that the key may send to it"
_KEY_HINT = "check providers.apns.team_id, key_id and key_file, and that the key is not revoked"
_CONFIGURATION = {
    "BadTopic": _TOPIC_HINT,
    "MissingTopic": _TOPIC_HINT,
    "TopicDisallowed": _TOPIC_HINT,
    "ExpiredProviderToken": "check that this machine's clock is right",
    "InvalidProviderToken": _KEY_HINT,
    "MissingProviderToken": _KEY_HINT,
    "BadCertificate": _KEY_HINT,
    "Forbidden": _KEY_HINT,
    "BadCertificateEnvironment": "check that providers.apns.base_url is the environment of the key",
    "BadEnvironmentKeyInToken": "check that providers.apns.base_url is the environment of the key",
    # The token was checked before it went into the path, so only the address can make the path wrong.
    "BadPath": "check that providers.apns.base_url has no path",
    "MethodNotAllowed": "check that providers.apns.base_url leads to APNs",
}
_RETRY = frozenset(
    {
        "IdleTimeout",
        "TooManyRequests",
        "TooManyProviderTokenUpdates",
        "InternalServerError",
        "ServiceUnavailable",
        "Shutdown",
    }
)
_PERMANENT = frozenset(
    {
        "BadCollapseId",
        "BadExpirationDate",
        "BadMessageId",
        "BadPriority",
        "DuplicateHeaders",
        "InvalidPushType",
        "MissingDeviceToken",
        "PayloadEmpty",
        "PayloadTooLarge",
    }
)


class ApnsProvider:
    """Sends each message with one request, under the delivery's id as `apns-id` and with a collapse id.

    Args:
        base_url: `https://api.push.apple.com`, `https://api.sandbox.push.apple.com`, or a stand-in's.
        team_id, key_id: as Apple gave them.
        key_file: the .p8 file, read now.
        topic: the app's bundle id.
        transport: speaks HTTP/2 alone and keeps its connection for hours; closed with the provider.
        clock: see `ProviderToken`.

    Raises:
        ConfigurationError: the file, the address or a name is not usable.
    """

    name: ClassVar[ProviderName] = "apns"

    server_error_wait_s: float = 900.0
    """Seconds to wait at least after a 5xx without Retry-After; Apple asks for a quarter of an hour."""

    def __init__(
        self,
        *,
        base_url: str = "https://api.push.apple.com",
        team_id: str,
        key_id: str,
        key_file: str | Path,
        topic: str,
        transport: Transport,
        clock: Clock,
    ) -> None:
        for setting, value in (("team_id", team_id), ("key_id", key_id), ("topic", topic)):
            if not value or not value.isascii() or not value.isprintable() or " " in value:
                raise ConfigurationError(
                    f"providers.apns.{setting} is missing or not plain text", hint=f"set providers.apns.{setting}"
                )
        self._device_url = checked_url(base_url, "providers.apns.base_url") + "/3/device/"
        self._topic = topic
        self._transport = transport
        self._clock = clock
        self._token = ProviderToken(team_id=team_id, key_id=key_id, key=read_signing_key(key_file), clock=clock)

    async def send(self, message: Message) -> Receipt:
        """See `Provider.send`."""
        if not _DEVICE_TOKEN.fullmatch(message.endpoint):
            raise Permanent("the device token is not hexadecimal", error_code="malformed_token")
        url = self._device_url + message.endpoint
        body = encode(message)
        authorization = self._token.authorization()
        answer = await self._transport.post(url, self._headers(message, authorization), body)
        if answer.status == 200:
            return Receipt(200, answer.headers.get("apns-id"))
        failure = self._failure(answer)
        if failure.error_code == "ExpiredProviderToken":
            renewed = self._token.after_expired(authorization)
            if renewed is not None:
                answer = await self._transport.post(url, self._headers(message, renewed), body)
                if answer.status == 200:
                    return Receipt(200, answer.headers.get("apns-id"))
                failure = self._failure(answer)
        raise failure

    async def probe(self) -> None:
        """Push to a token of zeros: that Apple calls it bad shows that connection, credential and topic are good."""
        try:
            await self.send(_PROBE)
        except RecipientGone:
            return

    async def renew(self) -> None:
        """See `Provider.renew`; the provider token stays, since Apple refuses a new one within 20 minutes."""
        await self._transport.renew()

    async def aclose(self) -> None:
        """See `Provider.aclose`."""
        await self._transport.aclose()

    def _headers(self, message: Message, authorization: str) -> tuple[tuple[str, str], ...]:
        shown = bool(message.content.title or message.content.body)
        return (
            ("authorization", authorization),
            ("apns-topic", self._topic),
            ("apns-push-type", "alert" if shown else "background"),
            # A background push of another priority than 5 is an error.
            ("apns-priority", _PRIORITY[message.priority] if shown else "5"),
            ("apns-expiration", str(int(message.expires_at))),
            ("apns-collapse-id", collapse_id(message)),
            ("apns-id", message.delivery_id),
            ("content-type", "application/json"),
        )

    def _failure(self, answer: Response) -> ProviderError:
        failure = classify(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())
        if failure.error_code == "TooManyProviderTokenUpdates" and "retry-after" not in answer.headers:
            # The token is kept; Apple forgets the quarrel 20 minutes after the last change.
            failure.retry_after_s = max(DEVICE_WAIT_S, self._token.update_allowed_in_s)
        return failure


_PROBE = Message(
    delivery_id="00000000-0000-0000-0000-000000000000",
    notification_id="probe",
    endpoint="0" * 64,
    content=Content(title="probe"),
    expires_at=0.0,
    ttl_s=0,
    platform="ios",
)


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")
