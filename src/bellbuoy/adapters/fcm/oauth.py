"""Google's OAuth for a service account: a signed assertion is traded for a token that lasts about an hour.

Source: RFC 7523, and Google's "Using OAuth 2.0 for Server to Server Applications".
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from urllib.parse import urlencode

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import Struct

from bellbuoy.adapters.transport import Headers, Transport, checked_url, retry_after_s
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, CredentialRejected, OutcomeUnknown, ProviderError, Transient

_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_FORM = (("content-type", "application/x-www-form-urlencoded"),)
_SETTING = "providers.fcm.credentials_file"

ASSERTION_S = 3600
"""Seconds an assertion is valid; Google takes no more than an hour."""
AHEAD_S = 300.0
"""A token is renewed this many seconds before it expires, give or take the jitter."""
RETRY_S = 10.0
"""Seconds between attempts to renew a token that still works."""
REJECTED_AGAIN_S = 30.0
"""A token that FCM rejects is replaced at most this often, so a missing permission does not become a flood."""


class ServiceAccount(Struct, frozen=True):
    """What is needed of Google's credentials file."""

    client_email: str
    token_uri: str
    key: RSAPrivateKey
    project_id: str | None = None
    key_id: str | None = None


class _File(Struct):
    client_email: str
    private_key: str
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105  # A public address.
    private_key_id: str | None = None
    project_id: str | None = None


class _Granted(Struct):
    access_token: str
    expires_in: float = 3600.0


class _Refused(Struct):
    error: str = ""


_decode_granted = msgspec.json.Decoder(_Granted).decode
_decode_refused = msgspec.json.Decoder(_Refused).decode


def read_service_account(path: str | Path) -> ServiceAccount:
    """Read Google's JSON key file.

    Raises:
        ConfigurationError: it cannot be read, is no service account's key, or names a token address unfit for secrets.
    """
    hint = f"set {_SETTING} to the JSON key of a service account, downloaded from the Firebase console"
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{_SETTING}: {str(path)!r} cannot be read ({error.strerror})", hint=hint) from None
    try:
        file = msgspec.json.decode(raw, type=_File)
        key = load_pem_private_key(file.private_key.encode(), None)
    except (msgspec.MsgspecError, ValueError, TypeError, UnicodeError):
        # The cause is left out: a parser's message may quote the key.
        raise ConfigurationError(f"{_SETTING}: {str(path)!r} is not a service account's key", hint=hint) from None
    if not isinstance(key, RSAPrivateKey):
        raise ConfigurationError(f"{_SETTING}: the private key is not an RSA key", hint=hint)
    checked_url(file.token_uri, f"{_SETTING} (its token_uri)")
    return ServiceAccount(file.client_email, file.token_uri, key, file.project_id, file.private_key_id)


class AccessTokens:
    """The current access token, renewed ahead of its end by one request at a time.

    While a token still works nobody waits: the first caller after the renewal time starts it and goes on with the old
    one. Once it has expired all callers wait for the same request.

    Args:
        account: who asks.
        transport: how.
        clock: its monotonic time decides about renewal, its wall time goes into the assertion.
        rng: spreads replicas' renewals by up to a fifth of `AHEAD_S`.
    """

    def __init__(self, account: ServiceAccount, *, transport: Transport, clock: Clock, rng: random.Random) -> None:
        self._account = account
        self._transport = transport
        self._clock = clock
        self._rng = rng
        self._headers: Headers = ()
        self._renew_at = float("-inf")
        self._expires_at = float("-inf")
        self._replaced_at = float("-inf")
        self._renewal: asyncio.Task[None] | None = None

    @property
    def ready(self) -> Headers | None:
        """The headers of a request if a token is at hand and needs no attention, else None."""
        return self._headers if self._clock.monotonic() < self._renew_at else None

    async def headers(self) -> Headers:
        """Return the headers of a request, with a token that has not expired.

        Raises:
            Transient: the token address could not be reached or failed; nothing has been sent.
            CredentialRejected: Google refused the account.
        """
        now = self._clock.monotonic()
        if now >= self._renew_at and self._renewal is None:
            self._begin()
        if now >= self._expires_at and self._renewal is not None:
            await _result(self._renewal)
        return self._headers

    async def replace(self, rejected: Headers) -> Headers | None:
        """Return the headers with a newer token than the one FCM rejected; None when it was replaced just now.

        Raises as `headers` does.
        """
        if self._headers is not rejected:
            return await self.headers()
        now = self._clock.monotonic()
        if self._renewal is None:
            if now - self._replaced_at < REJECTED_AGAIN_S:
                return None
            self._replaced_at = now
            self._begin()
        assert self._renewal is not None
        await _result(self._renewal)
        return self._headers

    def forget(self) -> None:
        """Ask for a new token before the next request."""
        self._renew_at = self._expires_at = float("-inf")

    async def aclose(self) -> None:
        """End a renewal that is under way."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    def _begin(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew(), name="fcm-oauth")
        self._renewal.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._renewal = None
        if not task.cancelled() and task.exception() is not None:
            # Whoever waited has the error. A token that still works is used on, and renewed a little later.
            self._renew_at = min(self._clock.monotonic() + RETRY_S, self._expires_at)

    async def _renew(self) -> None:
        form = urlencode({"grant_type": _GRANT, "assertion": self._assertion()}).encode()
        asked_at = self._clock.monotonic()
        try:
            answer = await self._transport.post(self._account.token_uri, _FORM, form)
        except OutcomeUnknown as error:
            # It is the token that is uncertain: the message itself has not been written anywhere.
            raise Transient("no answer from the OAuth token address", error_code=error.error_code) from None
        granted = None
        if answer.status == 200:
            try:
                granted = _decode_granted(answer.body)
            except msgspec.MsgspecError:
                granted = None
        if granted is None or not granted.access_token.isascii():
            raise refusal(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())
        self._headers = (
            ("authorization", f"Bearer {granted.access_token}"),
            ("content-type", "application/json"),
        )
        life_s = max(0.0, granted.expires_in)
        # A token too short-lived for the usual margin is renewed at half its life.
        ahead_s = min(AHEAD_S * self._rng.uniform(0.8, 1.2), life_s / 2)
        self._renew_at = asked_at + life_s - ahead_s
        self._expires_at = asked_at + life_s

    def _assertion(self) -> str:
        now = int(self._clock.time())
        account = self._account
        claims = {
            "iss": account.client_email,
            "scope": _SCOPE,
            "aud": account.token_uri,
            "iat": now,
            "exp": now + ASSERTION_S,
        }
        headers = {"kid": account.key_id} if account.key_id else None
        return jwt.encode(claims, account.key, algorithm="RS256", headers=headers)


async def _result(renewal: asyncio.Task[None]) -> None:
    """Wait for a renewal that others wait for too: cancelling one of them must not cancel it for all."""
    await asyncio.wait((renewal,))
    if renewal.cancelled():
        raise Transient("the provider is being closed", error_code="transport_closed")
    renewal.result()


def refusal(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer of the token address without a token means; arguments as for an answer of FCM."""
    wait_s = retry_after_s(retry_after, now)
    if http >= 500 or http in (200, 408, 429):
        return Transient(
            f"the OAuth token address failed with HTTP {http}",
            throttled=http == 429,
            provider_status=http,
            error_code="oauth_unavailable",
            retry_after_s=wait_s if wait_s is not None or http != 429 else 60.0,
        )
    try:
        code = _decode_refused(body).error
    except msgspec.MsgspecError:
        code = ""
    return CredentialRejected(
        "Google refused the service account's key",
        provider_status=http,
        error_code=code or "oauth_refused",
        hint=f"check that the key in {_SETTING} is not revoked, and that this machine's clock is right",
    )
