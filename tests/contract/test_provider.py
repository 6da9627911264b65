"""One suite for every provider, against the stand-ins over TLS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.apns import ApnsProvider
from bellbuoy.adapters.fcm import FcmProvider
from bellbuoy.adapters.sms import SmsProvider
from bellbuoy.adapters.smtp import SmtpProvider
from bellbuoy.adapters.transport import PyreqwestTransport
from bellbuoy.clock import SystemClock
from bellbuoy.errors import CredentialRejected, OutcomeUnknown, RecipientGone, Transient
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
    own = dict(wiring["providers"][name])
    ca_file = wiring["tls"]["ca_file"]
    clock = SystemClock()
    if name == "smtp":
        return SmtpProvider(url=own["url"], sender=own["from"], ca_file=ca_file, clock=clock)
    transport = PyreqwestTransport(ca_file=ca_file, http2_only=name == "apns")
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


def fault(sandbox: Sandbox, name: str, kind: str) -> None:
    sandbox.stations[name].faults.put({"kind": kind})


async def test_delivered(provider: Provider) -> None:
    receipts = await asyncio.gather(*(provider.send(message(provider.name)) for _ in range(20)))
    assert all(200 <= receipt.provider_status < 300 for receipt in receipts)
    await provider.probe()


async def test_gone(sandbox: Sandbox, provider: Provider) -> None:
    fault(sandbox, provider.name, "unregistered")
    with pytest.raises(RecipientGone):
        await provider.send(message(provider.name))


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
