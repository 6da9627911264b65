"""Firebase Cloud Messaging as a `Provider`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from bellbuoy.adapters.fcm.answers import REFRESHABLE, classify
from bellbuoy.adapters.fcm.oauth import AccessTokens, read_service_account
from bellbuoy.adapters.fcm.payload import encode
from bellbuoy.adapters.transport import Headers, Response, Transport, checked_url
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, CredentialRejected, Permanent, ProviderError, RecipientGone
from bellbuoy.model.delivery import Message, ProviderName, Receipt
from bellbuoy.model.notification import Content

_PROBE = Message(
    delivery_id="00000000-0000-0000-0000-000000000000",
    notification_id="probe",
    endpoint="bellbuoy-probe-invalid-token",
    content=Content(title="probe"),
    expires_at=0.0,
    ttl_s=0,
    platform="android",
)


class _Sent(Struct):
    name: str | None = None


_decode_sent = msgspec.json.Decoder(_Sent).decode


class FcmProvider:
    """Sends each message with one `messages:send`.

    FCM has no idempotency key, so a request that was written and not answered is `OutcomeUnknown`; the tag that every
    message carries makes a device show what arrives twice once.

    Args:
        base_url: `https://fcm.googleapis.com`, or a stand-in's.
        project_id: the Firebase project; None takes the one the credentials file names.
        credentials_file: the JSON key of a service account, read now.
        transport: closed with the provider.
        clock: see `AccessTokens`.
        rng: see `AccessTokens`.

    Raises:
        ConfigurationError: the file or the address is not usable.
    """

    name: ClassVar[ProviderName] = "fcm"

    server_error_wait_s: float = 10.0
    """Seconds to wait at least after a 5xx without Retry-After; Google asks for ten before any retry."""

    def __init__(
        self,
        *,
        base_url: str = "https://fcm.googleapis.com",
        project_id: str | None = None,
        credentials_file: str | Path,
        transport: Transport,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        base = checked_url(base_url, "providers.fcm.base_url")
        account = read_service_account(credentials_file)
        project = project_id or account.project_id
        if not project:
            raise ConfigurationError("providers.fcm.project_id is missing", hint="set it to the Firebase project's id")
        self._url = f"{base}/v1/projects/{quote(project, safe='')}/messages:send"
        self._transport = transport
        self._clock = clock
        self._tokens = AccessTokens(account, transport=transport, clock=clock, rng=rng)

    async def send(self, message: Message) -> Receipt:
        """See `Provider.send`."""
        answer = await self._post(encode(message))
        try:
            name = _decode_sent(answer.body).name
        except msgspec.MsgspecError:
            # FCM has taken the message, whatever it called it.
            name = None
        return Receipt(answer.status, name)

    async def probe(self) -> None:
        """Ask FCM to validate a message to a token that cannot exist; that it names the token's fault is health."""
        try:
            await self._post(encode(_PROBE, validate_only=True))
        except (RecipientGone, Permanent):
            return

    async def renew(self) -> None:
        """See `Provider.renew`; the OAuth token is asked for anew."""
        self._tokens.forget()
        await self._transport.renew()

    async def aclose(self) -> None:
        """See `Provider.aclose`."""
        await self._tokens.aclose()
        await self._transport.aclose()

    async def _post(self, body: bytes) -> Response:
        """One request, and a second with a new token when FCM rejected the first one's; return an answer of 200."""
        headers: Headers = self._tokens.ready or await self._tokens.headers()
        answer = await self._transport.post(self._url, headers, body)
        if answer.status == 200:
            return answer
        failure = self._failure(answer)
        if isinstance(failure, CredentialRejected) and failure.error_code in REFRESHABLE:
            renewed = await self._tokens.replace(headers)
            if renewed is not None:
                answer = await self._transport.post(self._url, renewed, body)
                if answer.status == 200:
                    return answer
                failure = self._failure(answer)
        raise failure

    def _failure(self, answer: Response) -> ProviderError:
        return classify(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())
