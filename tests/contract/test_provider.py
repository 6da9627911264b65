"""One suite for every provider, against the stand-ins over TLS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bellbuoy.adapters.apns import ApnsProvider
from bellbuoy.adapters.fcm import FcmProvider
from bellbuoy.adapters.sms import SmsProvider
from bellbuoy.adapters.smtp import SmtpProvider
from bellbuoy.adapters.transport import Http2Transport, PyreqwestTransport
from bellbuoy.clock import SystemClock
from bellbuoy.errors import CredentialRejected, OutcomeUnknown, Permanent, RecipientGone, Transient
from bellbuoy.model.delivery import PROVIDERS, Message
from bellbuoy.model.notification import Content
from bellbuoy.ports.provider import Provider
from bellbuoy.sandbox import Sandbox, SandboxSettings

ENDPOINTS = {"fcm": "tok:en-1", "apns": "3ddc1b" * 10 + "beef", "smtp": "a@example.com", "sms": "+15005550006"}


def message(name: str) -> Message:
    return Message(
        delivery_id="6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
        notification_id="n1",
        endpoint=ENDPOINTS[name],
        content=Content(title="Order", body="On its way"),
        expires_at=SystemClock().time() + 600,
        ttl_s=600,
        platform={"fcm": "android", "apns": "ios"}.get(name),  # type: ignore[arg-type]
    )


def make(name: str, wiring: dict[str, dict[str, Any]]) -> Provider:
    own = {key: value for key, value in wiring["providers"][name].items() if key != "probe_interval_s"}
    ca_file = wiring["tls"]["ca_file"]
    clock = SystemClock()
    if name == "smtp":
        return SmtpProvider(url=own["url"], sender=own["from"], ca_file=ca_file, clock=clock)
    plain = PyreqwestTransport(ca_file=ca_file)
    transport = plain if name == "sms" else Http2Transport(other=plain, ca_file=ca_file)
    if name == "fcm":
        return FcmProvider(**own, transport=transport, clock=clock, rng=random.Random(1))
    if name == "apns":
        return ApnsProvider(**own, transport=transport, clock=clock)
    own["sender"] = own.pop("from")
    return SmsProvider(**own, transport=transport, clock=clock)


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    running = Sandbox(SandboxSettings(data_dir=tmp_path))
    await running.start()
    yield running
    await running.aclose()


@pytest.fixture(params=PROVIDERS)
async def provider(request: pytest.FixtureRequest, sandbox: Sandbox) -> AsyncIterator[Provider]:
    made = make(request.param, sandbox.wiring())
    yield made
    await made.aclose()


def fault(sandbox: Sandbox, name: str, kind: str, **wish: object) -> None:
    sandbox.stations[name].faults.put({"kind": kind, **wish})


PERMANENT = {"apns": "PayloadTooLarge", "smtp": "5.6.0", "sms": "21617"}


async def test_delivered(provider: Provider) -> None:
    receipts = await asyncio.gather(*(provider.send(message(provider.name)) for _ in range(20)))
    assert all(200 <= receipt.provider_status < 300 for receipt in receipts)
    await provider.probe()


async def test_gone(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "unregistered")
    with pytest.raises(RecipientGone):
        await provider.send(message(provider.name))


async def test_a_message_that_no_retry_would_mend(sandbox: Sandbox, provider: Provider) -> None:
    sent = message(provider.name)
    if provider.name == "fcm":  # Its word for this is also its word for a token it never gave out, so it has to look.
        sent = msgspec.structs.replace(sent, content=Content(title="Order", body="x" * 5_000))
    else:
        fault(sandbox, provider.name, "error", code=PERMANENT[provider.name])
    with pytest.raises(Permanent) as caught:
        await provider.send(sent)
    assert not isinstance(caught.value, RecipientGone)
    assert (caught.value.provider_status or 0) >= 400


async def test_a_quota(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "quota", retry_after_s=7)
    with pytest.raises(Transient) as caught:
        await provider.send(message(provider.name))
    if provider.name == "smtp":  # A mail server has no word for when to come back.
        return
    assert caught.value.throttled
    assert caught.value.retry_after_s == pytest.approx(7, abs=1)


async def test_goodbyes_while_messages_are_in_flight(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "goaway", after=5)
    results = await asyncio.gather(*(provider.send(message(provider.name)) for _ in range(40)), return_exceptions=True)
    sent = [result for result in results if not isinstance(result, BaseException)]
    received = sandbox.stations[provider.name].received.counts()
    if provider.name in ("fcm", "apns"):
        assert len(sent) == 40, results
        assert received["accepted"] == 40
    else:  # These protocols do not say what was left untouched, so a message may be in doubt, never lost unsaid.
        assert all(isinstance(r, Transient | OutcomeUnknown) for r in results if isinstance(r, BaseException)), results
        assert len(sent) <= received["accepted"] <= 40


async def test_a_second_sending_is_the_same_message(sandbox: Sandbox, provider: Provider) -> None:
    again = message(provider.name)
    await provider.send(again)
    await provider.send(again)
    first, second = sandbox.stations[provider.name].received.describe()["items"]
    for item in (first, second):
        for own in ("n", "at", "at_s", "id"):
            del item[own]
    assert first == second


async def test_one_access_token_serves_all(sandbox: Sandbox) -> None:
    fcm = make("fcm", sandbox.wiring())
    await asyncio.gather(*(fcm.send(message("fcm")) for _ in range(50)))
    assert len(sandbox.stations["fcm"]._bearers) == 1  # type: ignore[attr-defined]
    await fcm.aclose()


async def test_an_outage(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "outage")
    with pytest.raises(Transient):
        await provider.send(message(provider.name))


async def test_bad_credentials(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "bad_credentials")
    with pytest.raises(CredentialRejected):
        await provider.send(message(provider.name))


async def test_a_reset(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "reset")
    with pytest.raises((Transient, OutcomeUnknown)):
        await provider.send(message(provider.name))


async def test_a_hang_can_be_cancelled(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "hang")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(provider.send(message(provider.name)), 0.3)


async def test_nobody_there(sandbox: Sandbox, provider: Provider) -> None:
    await sandbox.aclose()
    with pytest.raises(Transient):
        await provider.send(message(provider.name))
