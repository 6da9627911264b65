"""SmsProvider over a scripted transport, and every answer it knows."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs

import pytest

from bellbuoy.adapters.sms import SmsProvider, classify, text
from bellbuoy.clock import ManualClock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)
from bellbuoy.model.delivery import Message
from bellbuoy.model.notification import Content
from tests.unit.adapters.transport.fakes import FakeTransport, answer

NOW = 1_800_000_000.0
SENT = answer(201, b'{"sid": "SM1", "status": "queued"}')


def message(**changed: Any) -> Message:
    fields: dict[str, Any] = {
        "delivery_id": "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
        "notification_id": "n1",
        "endpoint": "+15005550006",
        "content": Content(title="Order", body="On its way & soon"),
        "expires_at": NOW + 86_400,
        "ttl_s": 86_400,
    }
    return Message(**{**fields, **changed})


def provider(transport: FakeTransport, **changed: Any) -> SmsProvider:
    fields: dict[str, Any] = {
        "base_url": "https://sms.test/",
        "account_sid": "AC1",
        "auth_token": "s3cret",
        "sender": "+15005550001",
    }
    return SmsProvider(**{**fields, **changed}, transport=transport, clock=ManualClock())


def problem(http: int, code: int) -> bytes:
    return json.dumps({"code": code, "message": "To +15005550006 s3cret", "status": http}).encode()


@pytest.mark.parametrize(
    ("http", "code", "kind"),
    [
        (400, 21211, RecipientGone),
        (400, 21214, RecipientGone),
        (400, 21217, RecipientGone),
        (400, 21614, RecipientGone),
        (400, 21610, Permanent),
        (400, 21612, Permanent),
        (400, 21602, Permanent),
        (400, 21617, Permanent),
        (403, 21408, Permanent),
        (400, 21408, Permanent),
        (400, 21212, CredentialRejected),
        (400, 21603, CredentialRejected),
        (400, 21606, CredentialRejected),
        (400, 21608, CredentialRejected),
        (400, 21659, CredentialRejected),
        (401, 20003, CredentialRejected),
        (403, 20003, CredentialRejected),
        (403, 20005, CredentialRejected),
        (404, 20404, CredentialRejected),
        (429, 20429, Transient),
        (400, 21611, Transient),
        (429, 14107, Transient),
        (400, 99999, Permanent),
        (500, 20500, Transient),
        (503, 20503, Transient),
    ],
)
def test_every_code(http: int, code: int, kind: type[ProviderError]) -> None:
    error = classify(http, problem(http, code), None, NOW)
    assert type(error) is kind
    assert error.error_code == str(code)
    assert error.provider_status == http
    assert "s3cret" not in f"{error} {error.hint}"
    assert "+1500" not in f"{error} {error.hint}"


@pytest.mark.parametrize(
    ("http", "kind"),
    [
        (302, CredentialRejected),
        (400, Permanent),
        (401, CredentialRejected),
        (403, CredentialRejected),
        (404, CredentialRejected),
        (405, CredentialRejected),
        (408, Transient),
        (429, Transient),
        (500, Transient),
        (502, Transient),
        (503, Transient),
        (504, OutcomeUnknown),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": "x"}'])
def test_an_answer_without_a_code_goes_by_its_status(http: int, kind: type[ProviderError], body: bytes) -> None:
    error = classify(http, body, None, NOW)
    assert type(error) is kind
    assert error.error_code is None


@pytest.mark.parametrize(
    ("http", "retry_after", "wait_s", "throttled"),
    [(429, None, 10.0, True), (429, "3", 3.0, True), (503, None, None, False), (503, "9", 9.0, False)],
)
def test_the_wait(http: int, retry_after: str | None, wait_s: float | None, throttled: bool) -> None:
    error = classify(http, b"", retry_after, NOW)
    assert isinstance(error, Transient)
    assert (error.retry_after_s, error.throttled) == (wait_s, throttled)


async def test_a_message_is_one_form_with_the_delivery_as_key() -> None:
    transport = FakeTransport(SENT)
    receipt = await provider(transport).send(message())
    assert (receipt.provider_status, receipt.message_id) == (201, "SM1")
    [(url, headers, body)] = transport.requests
    assert url == "https://sms.test/2010-04-01/Accounts/AC1/Messages.json"
    assert headers == {
        "authorization": "Basic " + base64.b64encode(b"AC1:s3cret").decode(),
        "content-type": "application/x-www-form-urlencoded",
        "idempotency-key": "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
    }
    assert parse_qs(body.decode()) == {
        "To": ["+15005550006"],
        "From": ["+15005550001"],
        "Body": ["Order\nOn its way & soon"],
    }


@pytest.mark.parametrize(("ttl_s", "expected"), [(0, ["5"]), (60, ["60"]), (35_999, ["35999"]), (36_000, None)])
async def test_a_short_life_is_passed_on(ttl_s: int, expected: list[str] | None) -> None:
    transport = FakeTransport(SENT)
    await provider(transport).send(message(ttl_s=ttl_s))
    assert parse_qs(transport.requests[0][2].decode()).get("ValidityPeriod") == expected


async def test_a_messaging_service_may_send() -> None:
    transport = FakeTransport(SENT)
    await provider(transport, sender="MG123").send(message())
    form = parse_qs(transport.requests[0][2].decode())
    assert form["MessagingServiceSid"] == ["MG123"]
    assert "From" not in form


async def test_a_taken_message_needs_no_name() -> None:
    assert (await provider(FakeTransport(answer(200, b"<html>"))).send(message())).message_id is None


@pytest.mark.parametrize("endpoint", ["", "5005550006", "+0123456789", "+1500555000x", "+15005550006\n"])
async def test_what_is_no_number_is_not_sent(endpoint: str) -> None:
    transport = FakeTransport(SENT)
    with pytest.raises(Permanent):
        await provider(transport).send(message(endpoint=endpoint))
    assert transport.requests == []


def test_a_long_text_is_cut_to_the_limit() -> None:
    assert text(Content(title="a", body="b" * 1598)) == "a\n" + "b" * 1598
    cut = text(Content(title="a", body="b" * 1599))
    assert len(cut) == 1600
    assert cut.endswith("b…")
    assert text(Content(body="only")) == "only"
    assert text(Content(title="only")) == "only"


async def test_a_probe_reads_the_account() -> None:
    transport = FakeTransport(answer(200, b"{}"))
    await provider(transport).probe()
    assert transport.requests[0][0] == "https://sms.test/2010-04-01/Accounts/AC1.json"
    for ill, kind in ((answer(401, b""), CredentialRejected), (answer(503), Transient)):
        with pytest.raises(kind):
            await provider(FakeTransport(ill)).probe()


async def test_a_failure_reaches_the_caller_and_closing_the_transport() -> None:
    transport = FakeTransport(answer(400, problem(400, 21610)), SENT)
    sms = provider(transport)
    with pytest.raises(Permanent):
        await sms.send(message())
    await sms.aclose()
    assert transport.closed == 1


@pytest.mark.parametrize(
    ("argument", "setting"), [("account_sid", "account_sid"), ("auth_token", "auth_token"), ("sender", "from")]
)
def test_the_account_must_be_given(argument: str, setting: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(FakeTransport(SENT), **{argument: ""})
    assert f"providers.sms.{setting}" in str(caught.value)
