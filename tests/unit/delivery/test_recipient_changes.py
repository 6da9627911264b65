"""What the recipient changed since the notification was routed counts for everything that is still to be sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.errors import CredentialRejected, OutcomeUnknown, Transient
from bellbuoy.model.delivery import Receipt
from tests.support.flow import TENANT, Flow, android, iphone, to_user

LATER = Transient("busy", error_code="UNAVAILABLE", retry_after_s=20.0)
OPTED_OUT: dict[str, Any] = {"preferences": {"categories": {"news": False}}}
# The clock begins at 2027-01-15 08:00 UTC.
QUIET_SOON: dict[str, Any] = {"preferences": {"quiet_hours": {"start": "08:05", "end": "09:00"}}}


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Flow]:
    async with Flow(tmp_path) as running:
        yield running


async def failing_once(flow: Flow, provider: str, **fields: Any) -> str:
    """Send to a user whose provider is busy, and let the first attempt be made."""
    flow.providers[provider].script = lambda message: LATER  # type: ignore[index]
    sent = await flow.send(to_user(**fields))
    await flow.pass_time(1)
    assert len(flow.providers[provider].sent) == 1  # type: ignore[index]
    flow.providers[provider].script = lambda message: Receipt(200, "m")  # type: ignore[index]
    return sent


async def test_opting_out_ends_what_waits_for_its_retry(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    sent = await failing_once(flow, "fcm", category="news")
    await flow.add_user(devices=(android(),), email="ann@example.com", **OPTED_OUT)
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert (record.status, record.code) == ("suppressed", "category_opted_out")
    assert [d.status for d in record.deliveries] == ["cancelled"]
    assert len(flow.providers["fcm"].sent) == 1
    assert not flow.providers["smtp"].sent
    assert (await flow.books()).suppressed == 1


async def test_opting_out_ends_what_is_held(flow: Flow) -> None:
    await flow.add_user(devices=(iphone(),))
    flow.providers["apns"].script = lambda message: CredentialRejected("bad")
    sent = await flow.send(to_user(category="news"))
    await flow.pass_time(5)
    flow.providers["apns"].script = lambda message: Receipt(200)
    await flow.add_user(devices=(iphone(),), **OPTED_OUT)
    await flow.pass_time(400)
    assert (await flow.record(sent)).status == "suppressed"
    assert len(flow.providers["apns"].sent) == 1


async def test_opting_out_spares_what_another_device_already_shows(flow: Flow) -> None:
    await flow.add_user(devices=(android(), iphone()))
    sent = await failing_once(flow, "fcm", category="news")
    await flow.add_user(devices=(android(), iphone()), **OPTED_OUT)
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert record.status == "delivered"
    assert {d.provider: d.status for d in record.deliveries} == {"fcm": "cancelled", "apns": "delivered"}
    assert record.timeline[-1].event == "suppressed"


async def test_opting_out_does_not_hide_a_doubt(flow: Flow) -> None:
    await flow.add_user(email="ann@example.com")
    flow.providers["smtp"].script = lambda message: OutcomeUnknown("gone quiet")
    sent = await flow.send(to_user(category="news"))
    await flow.pass_time(0.5)
    await flow.add_user(email="ann@example.com", **OPTED_OUT)
    await flow.pass_time(30)
    assert (await flow.record(sent)).status == "uncertain"
    assert len(flow.providers["smtp"].sent) == 1


async def test_nothing_more_goes_to_a_user_who_was_deleted(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    sent = await failing_once(flow, "fcm")
    await flow.ledger.delete_user(TENANT, "u-1")
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert record.status == "failed"
    assert any("the user was deleted" in entry.detail for entry in record.timeline)
    assert len(flow.providers["fcm"].sent) == 1
    assert not flow.providers["smtp"].sent


async def test_the_chain_goes_on_without_a_device_that_was_deleted(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    sent = await failing_once(flow, "fcm")
    await flow.ledger.delete_device(TENANT, "u-1", "d-1")
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert [(d.provider, d.status) for d in record.deliveries] == [("fcm", "failed"), ("smtp", "delivered")]
    assert any("the device was deleted" in entry.detail for entry in record.timeline)


async def test_a_new_token_or_address_takes_the_place_of_the_old(flow: Flow) -> None:
    await flow.add_user(devices=(android(),))
    sent = await failing_once(flow, "fcm")
    await flow.ledger.put_device(TENANT, "u-1", android(token="new-token"), now=flow.clock.time())
    await flow.pass_time(60)
    assert (await flow.record(sent)).status == "delivered"
    assert [m.endpoint for m in flow.providers["fcm"].sent] == ["token-d-1", "new-token"]

    await flow.add_user("u-2", email="old@example.com")
    sent = await failing_once(flow, "smtp", user_id="u-2")
    await flow.add_user("u-2", email="new@example.com")
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert [m.endpoint for m in flow.providers["smtp"].sent] == ["old@example.com", "new@example.com"]
    assert [d.status for d in record.deliveries] == ["failed", "delivered"]


async def test_a_channel_that_is_no_longer_allowed_is_left_out(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com", phone="+15551234567")
    sent = await failing_once(flow, "fcm")
    only_sms: dict[str, Any] = {"preferences": {"channels": ["sms"]}}
    await flow.add_user(devices=(android(),), email="ann@example.com", phone="+15551234567", **only_sms)
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert [(d.provider, d.status) for d in record.deliveries] == [("fcm", "failed"), ("sms", "delivered")]
    assert not flow.providers["smtp"].sent


async def test_the_next_channel_goes_by_what_holds_after_a_long_attempt(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")

    async def slow() -> Receipt:
        await flow.clock.sleep(5)
        raise OutcomeUnknown("gone quiet")

    flow.providers["fcm"].script = lambda message: slow()
    sent = await flow.send(to_user(category="news", fallback_after_s=2))
    await flow.pass_time(1)
    await flow.add_user(devices=(android(),), email="ann@example.com", **OPTED_OUT)
    await flow.pass_time(30)
    assert (await flow.record(sent)).status == "uncertain"
    assert not flow.providers["smtp"].sent


async def test_what_was_scheduled_goes_by_what_holds_at_its_time(flow: Flow) -> None:
    quiet_now: dict[str, Any] = {"preferences": {"quiet_hours": {"start": "07:00", "end": "08:05"}}}
    for user_id in ("out", "gone", "moved"):
        await flow.add_user(user_id, email="old@example.com", **quiet_now)
    sent = {u: await flow.send(to_user(u, category="news")) for u in ("out", "gone", "moved")}
    await flow.pass_time(10)
    assert {(await flow.record(i)).status for i in sent.values()} == {"scheduled"}
    await flow.add_user("out", email="old@example.com", **OPTED_OUT)
    await flow.ledger.delete_user(TENANT, "gone")
    await flow.add_user("moved", phone="+15551234567")
    await flow.pass_time(300)
    found = {u: await flow.record(i) for u, i in sent.items()}
    assert (found["out"].status, found["gone"].status, found["gone"].code) == ("suppressed", "failed", "no_route")
    assert found["moved"].status == "delivered"
    assert not flow.providers["smtp"].sent
    assert len(flow.providers["sms"].sent) == 1


@pytest.mark.parametrize(("priority", "status"), [("normal", "scheduled"), ("high", "delivered")])
async def test_a_hold_that_ends_in_quiet_hours_goes_on_after_them(flow: Flow, priority: str, status: str) -> None:
    await flow.add_user(devices=(iphone(),), **QUIET_SOON)
    flow.providers["apns"].script = lambda message: CredentialRejected("bad")
    sent = await flow.send(to_user(priority=priority))
    await flow.pass_time(400)
    flow.providers["apns"].script = lambda message: Receipt(200)
    tried = len(flow.providers["apns"].sent)
    await flow.pass_time(1_200)
    record = await flow.record(sent)
    assert record.status == status
    if status == "scheduled":
        assert len(flow.providers["apns"].sent) == tried
        await flow.pass_time(2_100)
        assert (await flow.record(sent)).status == "delivered"


async def test_the_chain_goes_on_after_quiet_hours_that_begin_as_a_channel_ends(flow: Flow) -> None:
    await flow.add_user(devices=(android(),), email="ann@example.com")
    sent = await failing_once(flow, "fcm")
    quiet_now: dict[str, Any] = {"preferences": {"quiet_hours": {"start": "07:00", "end": "08:05"}}}
    await flow.add_user(email="ann@example.com", **quiet_now)
    await flow.pass_time(60)
    record = await flow.record(sent)
    assert (record.status, [d.status for d in record.deliveries]) == ("scheduled", ["failed"])
    await flow.pass_time(300)
    assert (await flow.record(sent)).status == "delivered"
    assert len(flow.providers["smtp"].sent) == 1


async def test_a_time_to_live_ends_in_quiet_hours_too(flow: Flow) -> None:
    quiet_now: dict[str, Any] = {"preferences": {"quiet_hours": {"start": "07:00", "end": "09:00"}}}
    await flow.add_user(email="ann@example.com", **quiet_now)
    sent = await flow.send(to_user(ttl_s=60))
    await flow.pass_time(70)
    assert (await flow.record(sent)).status == "expired"
