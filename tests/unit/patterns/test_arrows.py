"""One test for each way in which one pattern drives another, named after it; `docs/patterns.md` has the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy import resilience
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Transient
from bellbuoy.health.hysteresis import Patience
from bellbuoy.health.monitor import Monitor, Sign
from bellbuoy.health.signs import Breakers
from bellbuoy.model.delivery import Message, Receipt
from bellbuoy.model.replacement import CANCELS
from bellbuoy.recovery.plan import PLAN_OF, PLANS
from bellbuoy.service.controls import Controls
from tests.support.cluster import AWAY, Cluster
from tests.support.flow import Flow, MemorySagas, RecordingTelemetry, android, to_email, to_user
from tests.unit.recovery.test_execute import World


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Flow]:
    async with Flow(tmp_path) as flow:
        yield flow


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await world.store.aclose()


def down(message: Message) -> Exception:
    return Transient("down", error_code="connect")


def monitor_of(*signs: Sign) -> Monitor:
    return Monitor(
        [lambda now: signs],
        patience=Patience(),
        interval_s=0.4,
        flags=frozenset,
        clock=ManualClock(),
        telemetry=RecordingTelemetry(),
    )


def _nothing() -> None:
    """There is nothing to drop here."""


async def test_metrics_to_circuit_breaker(flow: Flow) -> None:
    """What is measured changes when breakers open: at half as many failures while latency is high."""
    monitor = monitor_of(Sign("high_latency", "service", True, certain=True))
    Controls(monitor, flow.lanes, drop_caches=_nothing, give_back_memory=_nothing)
    monitor.step()
    assert flow.lanes["fcm"].breaker.settings.failure_threshold == 3
    await flow.add_user(devices=(android(),))
    flow.providers["fcm"].script = down
    for _ in range(3):
        await flow.send(to_user())
    await flow.pass_time(0.6)
    assert flow.lanes["fcm"].breaker.state == "open"


async def test_health_to_circuit_breaker(flow: Flow) -> None:
    """A health check that fails again and again opens the breaker, and one that succeeds closes it."""
    lane = flow.lanes["smtp"]
    flow.providers["smtp"].probe_error = Transient("down", error_code="connect")
    for _ in range(20):
        with pytest.raises((Transient, resilience.CircuitOpen)):
            await lane.probe()
    assert lane.breaker.state == "open"
    flow.providers["smtp"].probe_error = None
    await flow.pass_time(lane.breaker.settings.recovery_timeout_s * 1.3)
    for _ in range(lane.breaker.settings.success_threshold):
        await lane.probe()
    assert lane.breaker.state == "closed"


async def test_latency_to_timeout() -> None:
    """A timeout follows what calls take, within its bounds."""
    clock = ManualClock()
    timeout = resilience.AdaptiveTimeout(timeout_s_min=1.0, timeout_s_max=15.0, clock=clock)

    async def take(seconds: float) -> None:
        await clock.sleep(seconds)

    async def calls(seconds: float) -> None:
        for _ in range(40):
            calling = asyncio.create_task(timeout.call(take, seconds))
            await clock.advance(seconds, turns=10)
            await calling

    assert timeout.timeout_s == 15.0
    await calls(0.01)
    assert timeout.timeout_s == 1.0
    await calls(0.9)
    assert 1.5 < timeout.timeout_s < 2.5
    await calls(1.4)
    assert 2.5 < timeout.timeout_s < 3.5


async def test_circuit_breaker_to_graceful_degradation(flow: Flow) -> None:
    """A breaker that opens brings the modes of its dependency at once."""
    breaker = flow.lanes["fcm"].breaker
    telemetry = RecordingTelemetry()
    monitor = Monitor(
        [Breakers({("fcm_down", "fcm"): breaker})],
        patience=Patience(),
        interval_s=0.4,
        flags=frozenset({"email_fallback"}).copy,
        clock=flow.clock,
        telemetry=telemetry,
    )
    monitor.step()
    assert dict(monitor.modes) == {}
    breaker.isolate()
    monitor.step()
    assert set(monitor.modes) == {"fcm_fallback", "external_service_down", "email_fallback"}


async def test_retry_to_circuit_breaker(flow: Flow) -> None:
    """Every attempt of a retry goes through the breaker, and while that is open none is made."""
    flow.providers["smtp"].script = down
    for _ in range(10):
        await flow.send(to_email())
    await flow.pass_time(10)
    assert flow.lanes["smtp"].breaker.state == "open"
    made = len(flow.providers["smtp"].sent)
    await flow.pass_time(10)
    assert len(flow.providers["smtp"].sent) == made


async def test_circuit_breaker_to_auto_recovery(world: World) -> None:
    """What an open breaker says is down has a plan, which is tried."""
    assert PLAN_OF["fcm_down"] == "external_service"
    world.start("a")
    world.break_("fcm_down", "fcm")
    await world.pass_time(31)
    assert (await world.only()).plan == "external_service"
    assert world.done


async def test_health_to_emergency_scaling(world: World) -> None:
    """A backlog that health finds has a plan that begins with more workers and ends with as many as usual."""
    world.start("a")
    world.break_("queue_backlog", "queue")
    await world.pass_time(1)
    assert (await world.only()).plan == "queue_backlog"
    assert (PLANS["queue_backlog"].steps[0], PLANS["queue_backlog"].steps[-1]) == ("scale_up", "scale_back")
    assert PLANS["queue_backlog"].first_after_s == 0


async def test_retry_to_idempotent_operations(flow: Flow) -> None:
    """Whatever is tried again carries the same id, so that a device shows it once."""
    answers = iter([Transient("down", error_code="connect"), Receipt(200, "m")])
    flow.providers["smtp"].script = lambda message: next(answers)
    sent = await flow.send(to_email())
    await flow.pass_time(5)
    first, second = flow.providers["smtp"].sent
    assert first.delivery_id == second.delivery_id
    assert first.notification_id == second.notification_id == sent


async def test_graceful_degradation_to_eventual_consistency(tmp_path: Path) -> None:
    """What was done in a mode comes to every home once the mode is over."""
    async with Cluster(tmp_path) as cluster:
        cluster.store.failure = cluster.queue.failure = AWAY
        sent = [await cluster.send(to_email()) for _ in range(5)]
        assert cluster.kept.pending()
        cluster.store.failure = cluster.queue.failure = None
        await cluster.until_settled()
        await cluster.pass_time(10)
        assert {(await cluster.record(one)).status for one in sent} == {"delivered"}
        assert (await cluster.ledger.books()).difference == 0


async def test_auto_recovery_to_saga(world: World) -> None:
    """A plan is a saga: what its steps did is in a log, and a runner that dies is gone on for."""
    world.gate = asyncio.Event()
    first = world.start("a")
    world.break_()
    await world.pass_time(31)
    incident = await world.only()
    kept = await world.store.read("saga", f"{incident.id}/1")
    assert kept is not None
    assert b'"first","status":"done"' in kept.data
    first.cancel()


async def test_manual_intervention_to_compensation(flow: Flow) -> None:
    """A cancel takes back all that has not been sent, once; what was sent stays, and is replaced where that can be."""
    await flow.add_user(devices=(android("a"), android("b")))
    gate = asyncio.Event()

    async def late(message: Message) -> Receipt:
        await gate.wait()
        return Receipt(200, "m")

    flow.providers["fcm"].script = lambda message: Receipt(200, "m") if message.endpoint == "token-a" else late(message)
    sent = await flow.send(to_user(collapse_key="order-17"))
    await flow.pass_time(1)
    found = await flow.record(sent)
    assert {d.device_id: d.status for d in found.deliveries} == {"a": "delivered", "b": "sending"}
    flow.lanes["smtp"].breaker.isolate()
    other = await flow.send(to_email())
    await flow.pass_time(1)
    cancellation = flow.cancellation(MemorySagas())
    await cancellation.cancel(other, "default")
    await cancellation.cancel(sent, "default")
    flow.lanes["smtp"].breaker.close()
    gate.set()
    await flow.pass_time(60)
    assert flow.providers["smtp"].sent == []
    assert (await flow.record(other)).status == "cancelled"
    assert {d.status for d in (await flow.record(sent)).deliveries} == {"delivered"}
    silent = [m for m in flow.providers["fcm"].sent if m.content.data == {CANCELS: sent}]
    assert [(m.endpoint, m.collapse_key) for m in silent] == [("token-a", "order-17")]
