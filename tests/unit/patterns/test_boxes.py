"""One test for each pattern that the service is built of, named after it; `docs/patterns.md` has the table."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen, Transient, Unavailable
from bellbuoy.health.hysteresis import Patience
from bellbuoy.health.meters import Meters
from bellbuoy.health.monitor import Monitor
from bellbuoy.health.pins import Pins
from bellbuoy.health.probes import Probe, ProbeSettings
from bellbuoy.health.signs import Limits, Probes, Rates
from bellbuoy.model.delivery import Message, Receipt
from bellbuoy.model.recipient import Device, Endpoint
from bellbuoy.model.routes import Circumstances
from bellbuoy.resilience.saga import MemorySagaLog, Saga, SagaFailed, Step
from bellbuoy.service.link import open_link
from bellbuoy.service.scaling import SupervisedScaling
from tests.support.cluster import AWAY, Cluster
from tests.support.flow import IOS_TOKEN, Flow, MemorySagas, RecordingTelemetry, android, iphone, to_email, to_user
from tests.unit.recovery.test_execute import World


@pytest.fixture
async def flow(tmp_path: Path) -> AsyncIterator[Flow]:
    async with Flow(tmp_path) as flow:
        yield flow


def down(message: Message) -> Exception:
    return Transient("down", error_code="connect")


def up(message: Message) -> Receipt:
    return Receipt(200, "m")


async def hang(message: Message) -> Receipt:
    await asyncio.Event().wait()
    return Receipt(200, "never")


async def test_circuit_breaker(flow: Flow) -> None:
    breaker = flow.lanes["fcm"].breaker
    await flow.add_user(devices=(android(),))
    flow.providers["fcm"].script = down
    for _ in range(5):
        assert breaker.state == "closed"
        await flow.send(to_user())
        flow.worker.nudge()
        await flow.pass_time(0.1)
    assert breaker.state == "open"
    flow.providers["fcm"].script = up
    await flow.pass_time(200)
    assert breaker.state == "closed"


async def test_retry_with_backoff(flow: Flow) -> None:
    flow.providers["smtp"].script = down
    sent = await flow.send(to_email())
    await flow.pass_time(20)
    (delivery,) = (await flow.record(sent)).deliveries
    first, second, third = (attempt.started_at for attempt in delivery.attempts)
    assert (round(second - first), round(third - second)) == (1, 2)


async def test_bulkhead_isolation(flow: Flow) -> None:
    await flow.add_user("a", devices=(android(),))
    await flow.add_user("i", devices=(iphone(),))
    flow.providers["fcm"].script = hang
    for _ in range(120):
        await flow.send(to_user("a"))
    sent = await flow.send(to_user("i"))
    await flow.pass_time(1)
    assert (await flow.record(sent)).status == "delivered"


async def test_timeout_handling(flow: Flow) -> None:
    flow.providers["smtp"].script = hang
    sent = await flow.send(to_email(on_uncertain="stop"))
    await flow.pass_time(45)
    assert (await flow.record(sent)).status == "uncertain"


async def test_graceful_degradation(flow: Flow) -> None:
    both = Device("d", "ios", "fcm", "by-fcm", alternate=Endpoint("apns", IOS_TOKEN))
    await flow.add_user(devices=(both,))
    flow.lanes["fcm"].breaker.isolate()
    flow.worker._circumstances = lambda: Circumstances(modes=("fcm_fallback",), down=frozenset({"fcm"}))
    sent = await flow.send(to_user())
    await flow.pass_time(1)
    found = await flow.record(sent)
    assert (found.status, [d.provider for d in found.deliveries if d.status == "delivered"]) == ("delivered", ["apns"])


async def test_health_checks() -> None:
    clock, telemetry, broken = ManualClock(), RecordingTelemetry(), False

    async def ask() -> None:
        if broken:
            raise Unavailable("away")

    probe = Probe("ledger", ask, is_down=lambda _: True, settings=ProbeSettings(), clock=clock)
    monitor = Monitor(
        [Probes({"database_down": probe})],
        patience=Patience(),
        interval_s=0.4,
        flags=frozenset,
        clock=clock,
        telemetry=telemetry,
    )
    tasks = [asyncio.create_task(probe.run()), asyncio.create_task(monitor.run())]
    await clock.advance(2.0, turns=20)
    assert dict(monitor.modes) == {}
    broken = True
    await clock.advance(1.9, turns=20)
    assert "read_only" in monitor.modes, "within two seconds, without traffic"
    for task in tasks:
        task.cancel()


def _rates(failed: bool, seconds: float) -> set[str]:
    meters = Meters(60.0)
    for _ in range(100):
        meters.add("fcm", 10.0, seconds, failed=failed)
    return {sign.issue for sign in Rates(meters, Limits())(10.0) if sign.bad}


def test_error_rate_monitoring() -> None:
    assert _rates(failed=True, seconds=0.1) == {"high_error_rate"}
    assert _rates(failed=False, seconds=0.1) == set()


def test_latency_monitoring() -> None:
    assert _rates(failed=False, seconds=2.5) == {"high_latency"}


async def test_dependency_checks(flow: Flow) -> None:
    flow.providers["apns"].probe_error = Transient("down", error_code="connect")
    for _ in range(5):
        with pytest.raises((Transient, CircuitOpen)):
            await flow.lanes["apns"].probe()
    assert flow.lanes["apns"].breaker.state == "open", "what probes find counts for the breaker"
    assert flow.lanes["fcm"].breaker.state == "closed"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await world.store.aclose()


async def test_auto_recovery(world: World) -> None:
    world.start("a")
    world.break_()
    await world.pass_time(31)
    world.mend()
    await world.pass_time(1)
    assert (await world.only()).resolved_by == "recovery"


async def test_manual_intervention(world: World, tmp_path: Path) -> None:
    world.start("a", enabled=False)
    world.break_()
    await world.pass_time(60)
    assert world.done == []
    await world.incidents.retry((await world.only()).id)
    await world.pass_time(1)
    assert world.done
    monitor = Monitor(
        [],
        patience=Patience(),
        interval_s=0.4,
        flags=frozenset,
        clock=world.clock,
        telemetry=world.telemetry,
    )
    await Pins(world.store, monitor, clock=world.clock, telemetry=world.telemetry).set("read_only", True, by="ann")
    assert monitor.modes["read_only"] == ("pinned",)


async def test_emergency_scaling() -> None:
    ours, theirs = socket.socketpair()
    link, supervisor = await open_link(ours), await open_link(theirs)
    scaling = SupervisedScaling(link)
    heard = supervisor.heard()
    await scaling.scale(2.0, why="inc-1")
    assert await anext(heard) == {"scale": 2.0, "why": "inc-1"}
    await scaling.scale_back(why="inc-1")
    assert await anext(heard) == {"scale": None, "why": "inc-1"}
    for end in (link, supervisor):
        end.close()
    await asyncio.sleep(0)


async def test_idempotent_operations(flow: Flow) -> None:
    ids = await asyncio.gather(*(flow.send(to_email(), key="k") for _ in range(50)))
    await flow.pass_time(1)
    assert len(set(ids)) == 1
    assert len(flow.providers["smtp"].sent) == 1


async def test_saga_pattern() -> None:
    standing: list[str] = []

    def step(name: str, *, fails: bool = False) -> Step:
        async def do() -> None:
            standing.append(name)
            if fails:
                raise Unavailable("no")

        async def undo() -> None:
            standing.remove(name)

        return Step(name, do, undo=undo)

    with pytest.raises(SagaFailed):
        await Saga("s", [step("a"), step("b"), step("c", fails=True)]).run("s", MemorySagaLog())
    assert standing == []


async def test_eventual_consistency(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        cluster.store.failure = AWAY
        sent = await cluster.send(to_email())
        await cluster.pass_time(3)
        assert len(cluster.providers["smtp"].sent) == 1, "the queue has brought it"
        cluster.store.failure = None
        await cluster.until_settled()
        assert (await cluster.record(sent)).status == "delivered", "and the ledger has heard of it"


async def test_compensating_transactions(flow: Flow) -> None:
    flow.lanes["smtp"].breaker.isolate()
    sent = await flow.send(to_email())
    await flow.pass_time(1)
    sagas = MemorySagas()
    await flow.cancellation(sagas).cancel(sent, "default")
    assert sagas.states == {}, "it is over"
    flow.lanes["smtp"].breaker.close()
    await flow.pass_time(60)
    assert (await flow.record(sent)).status == "cancelled"
    assert flow.providers["smtp"].sent == []
    assert (await flow.books()).difference == 0
