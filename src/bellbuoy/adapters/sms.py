"""Text messages over Twilio's Messages resource, or anything that speaks it, as a `Provider`.

Source: Twilio's "Messages resource" and its "Error and warning dictionary".
"""

from __future__ import annotations

import base64
import re
from typing import ClassVar
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from bellbuoy.adapters.text import cut
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
from bellbuoy.model.notification import Content

TEXT_CHARS_MAX = 1600
"""The longest text Twilio takes; it is cut into segments on the way and put together on the phone."""

QUOTA_WAIT_S = 10.0
"""Seconds to wait after a 429 without Retry-After; Twilio limits requests at once, and those pass quickly."""

VALIDITY_S_MAX = 36_000
"""Twilio's own limit of ten hours in its queue, in seconds; a shorter life is asked for, a longer one cannot be."""
VALIDITY_S_MIN = 5
"""Seconds below which Twilio advises against a validity, since handing over takes about that."""

_NUMBER = re.compile(r"\+[1-9][0-9]{6,14}")


def text(content: Content) -> str:
    """The text of a message: title, then body on its own line; cut at `TEXT_CHARS_MAX` with an ellipsis."""
    return cut("\n".join(part for part in (content.title, content.body) if part), TEXT_CHARS_MAX)


def classify(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer other than 2xx means for the delivery: by Twilio's error code, then by HTTP status.

    A number counts as gone only where Twilio says that no text can ever reach it. Having opted out is the person's
    will, which a word from them takes back, and so is no reason to forget the number.

    Args:
        http: the HTTP status.
        body: the answer's body, whatever it is.
        retry_after: the Retry-After header, None when there was none.
        now: epoch seconds, for a Retry-After that is a date.
    """
    try:
        number = _decode_problem(body).code
    except msgspec.MsgspecError:
        number = None
    code = None if number is None else str(number)
    wait_s = retry_after_s(retry_after, now)
    if number in _GONE:
        return RecipientGone(_GONE[number], provider_status=http, error_code=code)
    if number in _CONFIGURATION or (http in (401, 403, 404, 405) and number not in _PERMANENT) or http < 400:
        return CredentialRejected(
            "the SMS service refused our account or configuration",
            provider_status=http,
            error_code=code,
            hint=_CONFIGURATION.get(number or 0, "check providers.sms.base_url, account_sid and auth_token"),
        )
    if http == 429 or number in _THROTTLED:
        return Transient(
            "the SMS service asks for less",
            throttled=True,
            provider_status=http,
            error_code=code,
            retry_after_s=QUOTA_WAIT_S if wait_s is None else wait_s,
        )
    if http == 504:
        return OutcomeUnknown(
            "a gateway before the SMS service had no answer in time", provider_status=http, error_code=code
        )
    if http >= 500 or http == 408:
        return Transient(
            f"the SMS service failed with HTTP {http}",
            provider_status=http,
            error_code=code,
            retry_after_s=wait_s,
        )
    return Permanent(
        _PERMANENT.get(number or 0, "the SMS service refused the message as it stands"),
        provider_status=http,
        error_code=code,
    )


class _Problem(Struct):
    code: int | None = None


class _Message(Struct):
    sid: str | None = None


_decode_problem = msgspec.json.Decoder(_Problem).decode
_decode_message = msgspec.json.Decoder(_Message).decode

_GONE = {
    21211: "the number is not a valid phone number",
    21214: "the number cannot be reached",
    21217: "the number does not look like a phone number",
    21614: "the number is not a mobile number",
}
_PERMANENT = {
    21408: "this account may not send to the number's region",
    21602: "the message has no text",
    21610: "the recipient has opted out",
    21612: "the number cannot be reached from this sender",
    21617: "the text is too long",
}
_SENDER_HINT = "check that providers.sms.from is a number or messaging service of this account that can send texts"
_CONFIGURATION = {
    20003: "check providers.sms.account_sid and auth_token",
    20005: "the account is suspended or closed; see the SMS service's console",
    20404: "check providers.sms.base_url and account_sid",
    21212: _SENDER_HINT,
    21603: _SENDER_HINT,
    21606: _SENDER_HINT,
    21608: "a trial account sends only to numbers verified in the SMS service's console",
    21659: _SENDER_HINT,
    21660: _SENDER_HINT,
    21701: _SENDER_HINT,
}
_THROTTLED = frozenset({14107, 20429, 21611, 30001})


class SmsProvider:
    """Sends each message with one request to `Messages.json`.

    Twilio knows no idempotency key, so a request that was written and not answered is `OutcomeUnknown`. The delivery's
    id is sent as `Idempotency-Key` all the same, for compatible services that do.

    Args:
        base_url: `https://api.twilio.com`, or a compatible service's.
        account_sid, auth_token: the account.
        sender: a number of the account, a sender name, or a messaging service (`MG...`).
        transport: closed with the provider.
        clock: its wall time reads a Retry-After that is a date.

    Raises:
        ConfigurationError: an argument is missing or the address is not usable.
    """

    name: ClassVar[ProviderName] = "sms"

    server_error_wait_s: float = 10.0
    """Seconds to wait at least after a 5xx without Retry-After: a text costs money each time, so better once late."""

    def __init__(
        self,
        *,
        base_url: str = "https://api.twilio.com",
        account_sid: str,
        auth_token: str,
        sender: str,
        transport: Transport,
        clock: Clock,
    ) -> None:
        for setting, value in (("account_sid", account_sid), ("auth_token", auth_token), ("from", sender)):
            if not value:
                raise ConfigurationError(f"providers.sms.{setting} is missing", hint=f"set providers.sms.{setting}")
        account = f"{checked_url(base_url, 'providers.sms.base_url')}/2010-04-01/Accounts/{quote(account_sid, safe='')}"
        self._account_url = f"{account}.json"
        self._messages_url = f"{account}/Messages.json"
        # A messaging service is named by another parameter than a single sender.
        self._sender = ("MessagingServiceSid" if sender.startswith("MG") else "From", sender)
        basic = base64.b64encode(f"{account_sid}:{auth_token}".encode()).decode()
        self._authorization = ("authorization", f"Basic {basic}")
        self._form_headers = (self._authorization, ("content-type", "application/x-www-form-urlencoded"))
        self._transport = transport
        self._clock = clock

    async def send(self, message: Message) -> Receipt:
        """See `Provider.send`."""
        if not _NUMBER.fullmatch(message.endpoint):
            raise Permanent("the phone number is not in E.164 form", error_code="malformed_number")
        form = [("To", message.endpoint), self._sender, ("Body", text(message.content))]
        if message.ttl_s < VALIDITY_S_MAX:
            form.append(("ValidityPeriod", str(max(VALIDITY_S_MIN, message.ttl_s))))
        answer = await self._transport.post(
            self._messages_url,
            (*self._form_headers, ("idempotency-key", message.delivery_id)),
            urlencode(form).encode(),
        )
        if not 200 <= answer.status < 300:
            raise self._failure(answer)
        try:
            sid = _decode_message(answer.body).sid
        except msgspec.MsgspecError:
            # The service has taken the message, whatever it called it.
            sid = None
        return Receipt(answer.status, sid)

    async def probe(self) -> None:
        """Read the account: it shows that the service answers and that our credential is good, and costs nothing."""
        answer = await self._transport.get(self._account_url, (self._authorization,))
        if answer.status != 200:
            raise self._failure(answer)

    async def renew(self) -> None:
        """See `Provider.renew`."""
        await self._transport.renew()

    async def aclose(self) -> None:
        """See `Provider.aclose`."""
        await self._transport.aclose()

    def _failure(self, answer: Response) -> ProviderError:
        return classify(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())
