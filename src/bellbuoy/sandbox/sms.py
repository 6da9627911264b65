"""The stand-in for Twilio's SMS API, version 2010-04-01.

Facts: https://www.twilio.com/docs/messaging/api/message-resource, https://www.twilio.com/docs/api/errors and, for the
numbers that mean something, https://www.twilio.com/docs/iam/test-credentials.
"""

from __future__ import annotations

import base64
import re
import secrets
from email.utils import formatdate
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec

from bellbuoy.sandbox.faults import ErrorTable, Refuse, Row
from bellbuoy.sandbox.http import Exchange, HttpAnswer, HttpRequest
from bellbuoy.sandbox.received import Item
from bellbuoy.sandbox.station import HttpStation, Surroundings, Verdict

TEXT_CHARS_MAX = 1_600

TABLE = ErrorTable(
    rows={
        "20003": Row(401, "Authenticate"),
        "20005": Row(403, "Account not active"),
        "20404": Row(404, "The requested resource was not found"),
        "20429": Row(429, "Too Many Requests"),
        "20500": Row(500, "An internal server error has occurred"),
        "20503": Row(503, "Service unavailable"),
        "21211": Row(400, "Invalid 'To' Phone Number"),
        "21212": Row(400, "Invalid 'From' Phone Number"),
        "21408": Row(400, "Permission to send an SMS has not been enabled for the region"),
        "21602": Row(400, "Message body is required."),
        "21603": Row(400, "A 'From' phone number is required."),
        "21604": Row(400, "A 'To' phone number is required."),
        "21606": Row(400, "The 'From' phone number is not a valid, SMS-capable inbound phone number."),
        "21610": Row(400, "Attempt to send to unsubscribed recipient"),
        "21611": Row(429, "This 'From' number has exceeded the maximum number of queued messages"),
        "21612": Row(400, "The 'To' phone number is not currently reachable via SMS"),
        "21614": Row(400, "'To' number is not a valid mobile number"),
        "21617": Row(400, "The concatenated message body exceeds the 1600 character limit"),
        "30001": Row(429, "Queue overflow"),
    },
    outage="20503",
    error_rate="20500",
    quota="20429",
    bad_credentials="20003",
    unregistered="21211",
)

MAGIC_NUMBERS: dict[str, str] = {
    "+15005550001": "21211",
    "+15005550002": "21612",
    "+15005550003": "21408",
    "+15005550004": "21610",
    "+15005550009": "21614",
}
"""Recipients, and the error each gets: Twilio's own test numbers."""

MAGIC_SENDERS: dict[str, str] = {"+15005550001": "21212", "+15005550007": "21606", "+15005550008": "21611"}
"""Senders, and the error each gets."""

_JSON = (("content-type", "application/json"),)
_NUMBER = re.compile(r"^\+[1-9]\d{6,14}$")
_encode = msgspec.json.Encoder().encode


class Sms(HttpStation):
    """Twilio's side.

    Args:
        surroundings: clock, chance, log.
        account_sid, auth_token: the one account it has.
    """

    name: ClassVar[str] = "sms"
    table: ClassVar[ErrorTable] = TABLE

    def __init__(self, surroundings: Surroundings, *, account_sid: str, auth_token: str) -> None:
        super().__init__(surroundings)
        self._account = f"/2010-04-01/Accounts/{account_sid}"
        self._account_sid = account_sid
        self._basic = base64.b64encode(f"{account_sid}:{auth_token}".encode()).decode()

    def judge(self, exchange: Exchange) -> Verdict:
        request = exchange.request
        if request.method != "POST":
            return self._look_up(request)
        form = {name: values[-1] for name, values in parse_qs(request.body.decode("utf-8", "replace")).items()}
        item = self._item(form, request)
        code = self._check(request, form)
        if code is not None:
            refuse = Refuse(code, TABLE.rows[code])
            item.status, item.error = refuse.row.status, code
            return Verdict(self.refusal(refuse, request), item)
        item.delivered, item.status = True, 201
        return Verdict(HttpAnswer(201, _encode(self._resource(item, form)), _JSON), item)

    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        body = {
            "code": int(refuse.code) if refuse.code.isdigit() else refuse.code,
            "message": refuse.row.message,
            "more_info": f"https://www.twilio.com/docs/errors/{refuse.code}",
            "status": refuse.row.status,
        }
        headers: tuple[tuple[str, str], ...] = _JSON
        if refuse.retry_after_s is not None:
            headers = (*headers, ("retry-after", f"{refuse.retry_after_s:g}"))
        if refuse.row.status == 401:
            headers = (*headers, ("www-authenticate", 'Basic realm="Twilio API"'))
        return HttpAnswer(refuse.row.status, _encode(body), headers)

    def _is_known(self, request: HttpRequest) -> bool:
        scheme, _, basic = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "basic" and secrets.compare_digest(basic.strip().encode(), self._basic.encode())

    def _check(self, request: HttpRequest, form: dict[str, str]) -> str | None:
        if not self._is_known(request):
            return "20003"
        if request.path != f"{self._account}/Messages.json":
            return "20404"
        sender, recipient, body = form.get("From", ""), form.get("To", ""), form.get("Body", "")
        if not sender and "MessagingServiceSid" not in form:
            return "21603"
        return MAGIC_SENDERS.get(sender) or _check_recipient(recipient) or _check_text(body, form)

    def _look_up(self, request: HttpRequest) -> Verdict:
        """Reads: the account, which clients use to see whether their credentials are good."""
        item = Item(provider=self.name, at=0.0)
        code = "20003" if not self._is_known(request) else "20404"
        if code == "20404" and request.method == "GET" and request.path == f"{self._account}.json":
            body = {"sid": self._account_sid, "status": "active", "type": "Full", "friendly_name": "Sandbox"}
            return Verdict(HttpAnswer(200, _encode(body), _JSON), item, counts=False, probe=True)
        return Verdict(self.refusal(Refuse(code, TABLE.rows[code]), request), item, counts=False)

    def _item(self, form: dict[str, str], request: HttpRequest) -> Item:
        # Twilio has no idempotency key; a client that sends one lets its retries be told from its messages.
        key = request.headers.get("x-bellbuoy-id") or request.headers.get("idempotency-key")
        return Item(
            provider=self.name,
            at=0.0,
            id="SM" + secrets.token_hex(16),
            endpoint=form.get("To", ""),
            collapse_id=key,
            item_id=key,
            body=form.get("Body"),
            headers={"From": form.get("From", form.get("MessagingServiceSid", ""))},
        )

    def _resource(self, item: Item, form: dict[str, str]) -> dict[str, Any]:
        now = formatdate(self.clock.time())
        return {
            "sid": item.id,
            "account_sid": self._account_sid,
            "api_version": "2010-04-01",
            "body": form.get("Body"),
            "to": item.endpoint,
            "from": form.get("From"),
            "messaging_service_sid": form.get("MessagingServiceSid"),
            "status": "queued",
            "direction": "outbound-api",
            "num_segments": str(max(1, -(-len(form.get("Body", "")) // 153))),
            "num_media": "0",
            "date_created": now,
            "date_updated": now,
            "date_sent": None,
            "error_code": None,
            "error_message": None,
            "price": None,
            "price_unit": "USD",
            "uri": f"{self._account}/Messages/{item.id}.json",
        }


def _check_recipient(recipient: str) -> str | None:
    if not recipient:
        return "21604"
    if recipient in MAGIC_NUMBERS:
        return MAGIC_NUMBERS[recipient]
    return None if _NUMBER.match(recipient) else "21211"


def _check_text(body: str, form: dict[str, str]) -> str | None:
    if not body and "MediaUrl" not in form:
        return "21602"
    return "21617" if len(body) > TEXT_CHARS_MAX else None
