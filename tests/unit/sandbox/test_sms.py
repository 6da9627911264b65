"""Twilio's stand-in."""

from __future__ import annotations

import msgspec
import pytest
from pyreqwest.client import Client

from bellbuoy.sandbox import Sandbox
from bellbuoy.sandbox.sms import MAGIC_NUMBERS, MAGIC_SENDERS, TABLE

from .clients import Control


class SmsClient:
    def __init__(self, sandbox: Sandbox, client: Client) -> None:
        self.wiring = sandbox.wiring()["providers"]["sms"]
        self.client = client

    async def send(
        self, to: str = "+491511234567", *, token: str | None = None, headers: dict[str, str] | None = None, **more: str
    ) -> tuple[int, dict[str, object], str | None]:
        sid = self.wiring["account_sid"]
        form = {"To": to, "From": self.wiring["from"], "Body": "It is on its way", **more}
        request = self.client.post(f"{self.wiring['base_url']}/2010-04-01/Accounts/{sid}/Messages.json")
        request = request.basic_auth(sid, token or self.wiring["auth_token"]).headers(headers or {})
        response = await request.form({name: value for name, value in form.items() if value}).build().send()
        body = msgspec.json.decode(bytes(await response.bytes()))
        return response.status, body, response.get_header("retry-after")


@pytest.fixture
async def sms(sandbox: Sandbox, client: Client) -> SmsClient:
    return SmsClient(sandbox, client)


async def test_a_text_is_queued(sms: SmsClient, control: Control) -> None:
    status, body, _ = await sms.send()
    assert (status, body["status"], body["to"]) == (201, "queued", "+491511234567")
    (item,) = (await control.received("sms"))["items"]
    assert (item["id"], item["body"], item["endpoint"]) == (body["sid"], "It is on its way", "+491511234567")


async def test_retries_are_told_by_their_key(sms: SmsClient, control: Control) -> None:
    for _ in range(3):
        await sms.send(headers={"Idempotency-Key": "d-1"})
    await sms.send(headers={"X-Bellbuoy-Id": "d-2"})
    await sms.send()
    received = await control.received("sms")
    assert (received["count"], received["unique"], received["duplicates"]) == (5, 3, {"d-1": 2})


async def test_a_wrong_token(sms: SmsClient) -> None:
    status, body, _ = await sms.send(token="wrong")
    assert (status, body["code"], body["status"]) == (401, 20003, 401)


async def test_the_account_can_be_read(sms: SmsClient, control: Control) -> None:
    sid, token = sms.wiring["account_sid"], sms.wiring["auth_token"]
    url = f"{sms.wiring['base_url']}/2010-04-01/Accounts/{sid}.json"
    assert (await sms.client.get(url).basic_auth(sid, token).build().send()).status == 200
    assert (await sms.client.get(url).basic_auth(sid, "wrong").build().send()).status == 401
    await control.fault("sms", kind="outage")
    assert (await sms.client.get(url).basic_auth(sid, token).build().send()).status == 503
    assert (await control.received("sms"))["requests"] == 0


@pytest.mark.parametrize(("to", "code"), [*MAGIC_NUMBERS.items(), ("0151", "21211"), ("", "21604")])
async def test_recipients_are_checked(sms: SmsClient, to: str, code: str) -> None:
    status, body, _ = await sms.send(to=to)
    assert (status, body["code"]) == (TABLE.rows[code].status, int(code))


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        *(({"From": number}, code) for number, code in MAGIC_SENDERS.items()),
        ({"From": ""}, "21603"),
        ({"Body": ""}, "21602"),
        ({"Body": "x" * 1_601}, "21617"),
    ],
)
async def test_fields_are_checked(sms: SmsClient, fields: dict[str, str], code: str) -> None:
    status, body, _ = await sms.send(**fields)  # type: ignore[arg-type]
    assert (status, body["code"]) == (TABLE.rows[code].status, int(code))


@pytest.mark.parametrize("code", sorted(TABLE.rows))
async def test_every_row_can_be_asked_for(sms: SmsClient, control: Control, code: str) -> None:
    await control.fault("sms", kind="error", code=code)
    status, body, _ = await sms.send()
    assert (status, body["code"]) == (TABLE.rows[code].status, int(code))


async def test_a_quota_says_when_to_come_back(sms: SmsClient, control: Control) -> None:
    await control.fault("sms", kind="quota", retry_after_s=9)
    status, body, retry_after = await sms.send()
    assert (status, body["code"], retry_after) == (429, 20429, "9")
