"""The mail stand-in, spoken to by a real client."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import aiosmtplib
import msgspec
import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.sandbox import Sandbox
from bellbuoy.sandbox.smtp import MAGIC_ADDRESSES, TABLE

from .clients import Control, eventually


@contextlib.asynccontextmanager
async def conversation(sandbox: Sandbox, *, starttls: bool = True) -> AsyncIterator[aiosmtplib.SMTP]:
    address = urlsplit(sandbox.wiring()["providers"]["smtp"]["url"])
    context = ssl.create_default_context(cafile=sandbox.wiring()["tls"]["ca_file"])
    client = aiosmtplib.SMTP(
        hostname=address.hostname, port=address.port, start_tls=starttls, tls_context=context, timeout=10
    )
    await client.connect()
    try:
        yield client
    finally:
        client.close()


def mail(to: str = "ann@example.com", message_id: str = "<m-1@example.com>") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "bellbuoy@example.com", to, "Grüße"
    message["Message-ID"] = message_id
    message.set_content("It is on its way")
    return message


@pytest.mark.parametrize("starttls", [True, False])
async def test_mail_arrives(sandbox: Sandbox, control: Control, starttls: bool) -> None:
    async with conversation(sandbox, starttls=starttls) as client:
        await client.send_message(mail())
        await client.send_message(mail())
        await client.send_message(mail(to="bob@example.com"))
    received = await control.received("smtp")
    assert (received["count"], received["unique"], received["duplicate_count"]) == (3, 2, 1)
    assert received["duplicates"] == {"<m-1@example.com>": 1}
    item = received["items"][0]
    assert (item["endpoint"], item["title"], item["body"]) == ("ann@example.com", "Grüße", "It is on its way")
    assert item["headers"]["From"] == "bellbuoy@example.com"


async def test_a_login_is_checked(sandbox: Sandbox, data_dir: Path) -> None:
    secrets = msgspec.json.decode((data_dir / "sandbox" / "secrets.json").read_bytes())
    async with conversation(sandbox) as client:
        with pytest.raises(aiosmtplib.SMTPAuthenticationError) as caught:
            await client.login(secrets["smtp_username"], "wrong")
        assert caught.value.code == 535
        await client.login(secrets["smtp_username"], secrets["smtp_password"])
        await client.send_message(mail())


@pytest.mark.parametrize("part", sorted(MAGIC_ADDRESSES))
async def test_a_magic_address_gets_its_code(sandbox: Sandbox, control: Control, part: str) -> None:
    code = MAGIC_ADDRESSES[part]
    async with conversation(sandbox) as client:
        with pytest.raises(aiosmtplib.SMTPException) as caught:
            await client.send_message(mail(to=f"{part}@example.com"))
    assert code in str(caught.value)
    assert (await control.received("smtp"))["errors"] == {code: 1}


@pytest.mark.parametrize("code", sorted(TABLE.rows))
async def test_every_row_can_be_asked_for(sandbox: Sandbox, control: Control, code: str) -> None:
    await control.fault("smtp", kind="error", code=code)
    async with conversation(sandbox) as client:
        with pytest.raises(aiosmtplib.SMTPException) as caught:
            await client.send_message(mail())
    assert f"{code} " in str(caught.value)
    assert str(TABLE.rows[code].status) in str(caught.value)


async def test_one_bad_recipient_spares_the_other(sandbox: Sandbox, control: Control) -> None:
    async with conversation(sandbox) as client:
        refused, _ = await client.sendmail(
            "a@example.com", ["ann@example.com", "sandbox-unknown@example.com"], mail().as_bytes()
        )
    assert list(refused) == ["sandbox-unknown@example.com"]
    received = await control.received("smtp")
    assert (received["accepted"], received["rejected"]) == (1, 1)


async def test_an_outage_greets_with_421(sandbox: Sandbox, control: Control) -> None:
    async with conversation(sandbox) as client:
        assert (await client.noop()).code == 250
        await control.fault("smtp", kind="outage")
        with pytest.raises(aiosmtplib.SMTPException) as caught:
            await client.send_message(mail())
        assert "421" in str(caught.value)
    with pytest.raises(aiosmtplib.SMTPConnectError) as refused:
        async with conversation(sandbox):
            pass
    assert "421" in str(refused.value)
    await control.clear("smtp")
    async with conversation(sandbox) as client:
        await client.send_message(mail())
    received = await control.received("smtp")
    assert (received["errors"], received["count"]) == ({"4.3.2": 2}, 1)


async def test_an_outage_answers_a_probe(sandbox: Sandbox, control: Control) -> None:
    async with conversation(sandbox) as client:
        await control.fault("smtp", kind="outage")
        with pytest.raises(aiosmtplib.SMTPException) as caught:
            await client.noop()
        assert "421" in str(caught.value)
    assert (await control.received("smtp"))["requests"] == 0


async def test_bad_credentials(sandbox: Sandbox, control: Control) -> None:
    await control.fault("smtp", kind="bad_credentials")
    async with conversation(sandbox) as client:
        with pytest.raises(aiosmtplib.SMTPAuthenticationError):
            await client.login("bellbuoy", "whatever")
        with pytest.raises(aiosmtplib.SMTPException) as caught:
            await client.send_message(mail())
        assert "535" in str(caught.value)


async def test_latency_waits_for_the_clock(sandbox: Sandbox, control: Control, clock: ManualClock) -> None:
    await control.fault("smtp", kind="latency", ms=700)
    async with conversation(sandbox) as client:
        sending = asyncio.create_task(client.send_message(mail()))
        await eventually(lambda: clock.next_wake_s is not None)
        await clock.advance(0.7)
        await sending
    assert (await control.received("smtp"))["accepted"] == 1


@pytest.mark.parametrize("deliver", [True, False])
async def test_a_hang_ends_with_the_fault(sandbox: Sandbox, control: Control, deliver: bool) -> None:
    await control.fault("smtp", kind="hang", deliver=deliver)
    async with conversation(sandbox) as client:
        sending = asyncio.create_task(client.send_message(mail()))
        await eventually(lambda: sandbox.stations["smtp"].held == 1)
        await control.clear("smtp")
        with pytest.raises(aiosmtplib.SMTPServerDisconnected):
            await sending
    received = await control.received("smtp")
    assert (received["count"], received["unanswered"]) == (int(deliver), 1)


async def test_a_timeout_drops_in_its_time(sandbox: Sandbox, control: Control, clock: ManualClock) -> None:
    await control.fault("smtp", kind="timeout", after_s=5)
    async with conversation(sandbox) as client:
        sending = asyncio.create_task(client.send_message(mail()))
        await eventually(lambda: clock.next_wake_s is not None)
        await clock.advance(5)
        with pytest.raises(aiosmtplib.SMTPServerDisconnected):
            await sending


async def test_a_reset_and_a_goaway(sandbox: Sandbox, control: Control) -> None:
    await control.fault("smtp", kind="reset")
    async with conversation(sandbox) as client:
        with pytest.raises(aiosmtplib.SMTPServerDisconnected):
            await client.send_message(mail())
    await control.fault("smtp", kind="goaway", after=1)
    async with conversation(sandbox) as client:
        await client.send_message(mail())
        with pytest.raises(aiosmtplib.SMTPException) as caught:
            await client.send_message(mail())
        assert "421" in str(caught.value)
    assert (await control.received("smtp"))["count"] == 1
