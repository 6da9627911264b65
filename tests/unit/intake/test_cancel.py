"""A cancel stops what is not sent, replaces what a provider may still hold, and survives a crash half-way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.errors import Conflict, NotFound, RateLimited, TimeoutExceeded
from bellbuoy.intake.cancel import Cancellation
from bellbuoy.model.delivery import Message, Receipt
from bellbuoy.model.replacement import CANCELS
from bellbuoy.recovery.execute import StoredSagaLog
from tests.support.flow import TENANT, Flow, android, iphone, to_email, to_user


class Desk:
    """The flow with somebody who cancels."""

    def __init__(self, flow: Flow, path: Path) -> None:
        self.flow = flow
        self.store = SqliteControlStore(path / "control.db", clock=flow.clock, inline=True)
        self.cancellation = self.another()

    def another(self, accept: Any = None) -> Cancellation:
        return self.flow.cancellation(StoredSagaLog(self.store), accept)

    async def half_sent(self, **request: Any) -> str:
        """A notification that one device has and another does not."""
        await self.flow.add_user(devices=(iphone("a"), android("b")))
        self.flow.lanes["fcm"].breaker.isolate()
        sent = await self.flow.send(to_user(**request))
        await self.flow.pass_time(1)
        found = await self.flow.record(sent)
        assert {d.device_id: d.open for d in found.deliveries} == {"a": False, "b": True}
        return sent

    def silent(self, provider: str) -> list[Message]:
        return [m for m in self.flow.providers[provider].sent if CANCELS in m.content.data]  # type: ignore[index]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with Flow(tmp_path) as flow:
        made = Desk(flow, tmp_path)
        yield made
        await made.store.aclose()


async def test_what_waits_is_stopped_and_no_log_stays(desk: Desk) -> None:
    desk.flow.lanes["smtp"].breaker.isolate()
    sent = await desk.flow.send(to_email())
    await desk.flow.pass_time(1)
    assert (await desk.cancellation.cancel(sent, TENANT)).status == "cancelled"
    with pytest.raises(Conflict):
        await desk.cancellation.cancel(sent, TENANT)
    with pytest.raises(NotFound):
        await desk.cancellation.cancel(sent, "other")
    desk.flow.lanes["smtp"].breaker.close()
    await desk.flow.pass_time(60)
    assert desk.flow.providers["smtp"].sent == []
    assert await desk.store.page("saga", limit=10) == []


async def test_what_a_provider_may_still_hold_is_replaced_silently(desk: Desk) -> None:
    sent = await desk.half_sent()
    record = await desk.cancellation.cancel(sent, TENANT)
    assert record.status == "delivered"
    assert not any(d.open for d in record.deliveries)
    assert record.timeline[-1].event == "cancelled"
    desk.flow.lanes["fcm"].breaker.close()
    await desk.flow.pass_time(60)
    (silent,) = desk.silent("apns")
    assert (silent.content.title, silent.content.body) == ("", "")
    assert silent.content.data == {CANCELS: sent}
    assert silent.collapse_key == sent, "what the first was sent under"
    assert desk.flow.providers["fcm"].sent == []
    assert (await desk.flow.books()).difference == 0


@pytest.mark.parametrize("key", [None, "order-17"])
async def test_android_replaces_only_by_the_sender_s_own_key(desk: Desk, key: str | None) -> None:
    await desk.flow.add_user(devices=(android("a"), android("b")))
    calls = 0

    async def script(message: Message) -> Receipt:
        nonlocal calls
        calls += 1
        if message.endpoint == "token-a" or CANCELS in message.content.data:
            return Receipt(200, "m")
        raise TimeoutExceeded("timed out")

    desk.flow.providers["fcm"].script = script
    sent = await desk.flow.send(to_user(**({"collapse_key": key} if key else {})))
    await desk.flow.pass_time(0.5)
    await desk.cancellation.cancel(sent, TENANT)
    await desk.flow.pass_time(60)
    assert [m.collapse_key for m in desk.silent("fcm")] == ([key, key] if key else [])


async def test_a_crash_between_the_steps_is_gone_on_with_and_each_device_gets_one(desk: Desk) -> None:
    sent = await desk.half_sent()
    never = asyncio.Event()

    async def hangs(tenant: str, requests: Sequence[Any]) -> list[Any]:
        await desk.flow.intake.accept(tenant, requests)
        await never.wait()
        return []

    crashing = asyncio.create_task(desk.another(hangs).cancel(sent, TENANT))
    await desk.flow.pass_time(1)
    crashing.cancel()
    await asyncio.gather(crashing, return_exceptions=True)
    assert len(await desk.store.page("saga", limit=10)) == 1
    # An hour later in another process: the time to live that is left differs, and the key is the same.
    await desk.flow.pass_time(3600)
    await desk.another().resume()
    await desk.flow.pass_time(60)
    assert len(desk.silent("apns")) == 1
    assert await desk.store.page("saga", limit=10) == []
    assert desk.flow.providers["fcm"].sent == []


async def test_that_nothing_can_be_accepted_does_not_undo_the_stop(desk: Desk) -> None:
    sent = await desk.half_sent()

    async def full(tenant: str, requests: Sequence[Any]) -> list[Any]:
        raise RateLimited("too many", retry_after_s=1.0)

    record = await desk.another(full).cancel(sent, TENANT)
    assert not any(d.open for d in record.deliveries)
    assert "silent_push_failed" in [name for name, _ in desk.flow.telemetry.events]
