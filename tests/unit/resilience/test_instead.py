"""Fallback, last good answer, hedging, shared state, chaos, testing helpers and exporters."""

from __future__ import annotations

import asyncio
import gc
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen, Permanent, TimeoutExceeded
from bellbuoy.resilience import (
    BreakerSettings,
    Bulkhead,
    CallRefused,
    Chaos,
    CircuitBreaker,
    CircuitOpened,
    Event,
    Fallback,
    FellBack,
    Guard,
    Hedge,
    HedgeStarted,
    LastGood,
    MemoryStore,
    Retry,
    RetryBudget,
    SharedBreaker,
    SharedCircuit,
    SharedStateLost,
    State,
    Timeout,
)
from bellbuoy.resilience.exporters.opentelemetry import OpenTelemetryExporter
from bellbuoy.resilience.exporters.prometheus import PrometheusExporter
from bellbuoy.resilience.testing import instant, put
from tests.unit.resilience.support import Scene, fail, ok, settle


async def test_fallback_answers_failures_only() -> None:
    events = list[FellBack]()
    fallback = Fallback(lambda error: f"instead of {error}", on_event=events.append)
    assert await fallback.call(ok) == "fine"
    assert await fallback.call(fail) == "instead of lost"
    assert [one.error for one in events] == ["ConnectionError('lost')"]
    with pytest.raises(Permanent):
        await fallback.call(fail, Permanent("a mistake"))
    with pytest.raises(asyncio.CancelledError):
        await fallback.call(fail, asyncio.CancelledError())


async def test_fallback_may_be_asynchronous_and_may_fail() -> None:
    async def other(error: Exception) -> str:
        raise LookupError from error

    with pytest.raises(LookupError):
        await Fallback[str](other).call(fail)
    breaker = CircuitBreaker("them")
    breaker.isolate()
    assert await Guard("g", Fallback(lambda error: type(error).__name__), breaker).call(ok) == "CircuitOpen"


async def test_last_good_answer() -> None:
    clock = ManualClock()
    cache = LastGood(lambda key: key, stale_s_max=60.0, fresh_s=1.0, size_max=2, clock=clock)
    calls = 0

    async def ask(key: str) -> str:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise ConnectionError
        return f"{key}{calls}"

    assert [await cache.call(ask, "a"), await cache.call(ask, "a"), calls] == ["a1", "a1", 1]
    await clock.advance(2.0, turns=0)
    assert [await cache.call(ask, "a"), await cache.call(ask, "b")] == ["a2", "b3"]
    await clock.advance(50.0, turns=0)
    assert [await cache.call(ask, "a"), await cache.call(ask, "b")] == ["a2", "b3"]
    with pytest.raises(ConnectionError):
        await cache.call(ask, "c")
    await clock.advance(11.0, turns=0)
    with pytest.raises(ConnectionError):
        await cache.call(ask, "a")
    calls = 0
    for key in "abc":
        await cache.call(ask, key)
    assert len(cache._answers) == 2
    cache.forget()
    assert not cache._answers


async def test_last_good_answers_are_fresh_and_stale_to_the_second() -> None:
    clock, told = ManualClock(), list[FellBack]()
    cache = LastGood(
        lambda *, user: user, stale_s_max=60.0, fresh_s=1.0, clock=clock, name="kept", on_event=told.append
    )
    calls = 0

    async def ask(*, user: str) -> str:
        nonlocal calls
        calls += 1
        return await (ok(user) if calls <= 2 else fail())

    for wait_s, made in [(0.0, 1), (0.9, 1), (0.1, 2), (60.0, 3)]:
        await clock.advance(wait_s, turns=0)
        assert await cache.call(ask, user="anna") == "anna"
        assert calls == made
    assert told == [FellBack("kept", clock.time(), "ConnectionError('lost')")]
    await clock.advance(0.1, turns=0)
    with pytest.raises(ConnectionError):
        await cache.call(ask, user="anna")
    with pytest.raises(ConnectionError):
        await cache.call(ask, user="ben")


@pytest.mark.parametrize("used", ["fresh", "called", "stale", "nothing"])
async def test_the_answer_that_was_used_longest_ago_goes_first(used: str) -> None:
    clock, broken = ManualClock(), set[str]()
    cache = LastGood(lambda key: key, stale_s_max=60.0, fresh_s=1.0, size_max=2, clock=clock)

    async def ask(key: str) -> str:
        return await (fail() if key in broken else ok(key))

    async def kept(key: str) -> bool:
        broken.add(key)
        try:
            return await cache.call(ask, key) == key
        except ConnectionError:
            return False

    await cache.call(ask, "a")
    await cache.call(ask, "b")
    if used != "fresh":
        await clock.advance(2.0, turns=0)
    if used == "stale":
        broken.add("a")
    if used != "nothing":
        await cache.call(ask, "a")
    await cache.call(ask, "c")
    assert [await kept("a"), await kept("b"), await kept("c")] == [used != "nothing", used == "nothing", True]
    cache.forget("c")
    await clock.advance(2.0, turns=0)
    assert not await kept("c")
    cache.forget("c")


async def test_a_callers_mistake_is_no_reason_to_fall_back() -> None:
    cache = LastGood(lambda *args: 1, stale_s_max=60.0)
    await cache.call(ok)
    with pytest.raises(Permanent):
        await cache.call(fail, Permanent("a mistake"))
    assert await Fallback(lambda error: "instead").call(ok, value="well") == "well"
    only_keys = Fallback(lambda error: "instead", on=lambda error: isinstance(error, KeyError))
    assert await only_keys.call(fail, KeyError()) == "instead"
    with pytest.raises(ConnectionError):
        await only_keys.call(fail)


class Race:
    """Calls that take as many seconds as told, one after the other; a negative number fails after that long."""

    def __init__(self, clock: ManualClock, *taken_s: float) -> None:
        self.clock, self.taken_s = clock, list(taken_s)
        self.begun = self.cancelled = 0

    async def __call__(self) -> int:
        number, taken_s = self.begun, self.taken_s[self.begun]
        self.begun += 1
        try:
            await self.clock.sleep(abs(taken_s))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if taken_s < 0:
            raise ConnectionError(str(number))
        return number


@pytest.mark.parametrize(
    ("taken_s", "attempts_max", "result", "begun", "cancelled"),
    [
        ([0.5, 1.0], 2, 0, 1, 0),
        ([10.0, 1.0], 2, 1, 2, 1),
        ([3.0, 10.0, 10.0], 3, 0, 3, 2),
        ([-3.0, 5.0], 2, 1, 2, 0),
        ([5.0, -1.0], 2, 0, 2, 0),
        ([-5.0, -1.0], 2, "0", 2, 0),
        ([-0.5, 1.0], 2, "0", 1, 0),
    ],
)
async def test_hedging(taken_s: list[float], attempts_max: int, result: int | str, begun: int, cancelled: int) -> None:
    clock = ManualClock()
    race = Race(clock, *taken_s)
    call = asyncio.create_task(Hedge(1.0, attempts_max=attempts_max, clock=clock).call(race))
    await settle()
    await clock.advance(20.0)
    assert (str(call.exception()) if isinstance(result, str) else call.result()) == result
    assert (race.begun, race.cancelled) == (begun, cancelled)
    assert len(asyncio.all_tasks()) == 1


async def test_of_the_tries_that_failed_none_is_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    call = asyncio.create_task(Hedge(1.0, clock=clock).call(Race(clock, -5.0, -4.0)))
    await settle()
    await clock.advance(5.0)
    assert str(call.exception()) == "0"

    async def breaks_off() -> str:
        try:
            await clock.sleep(60.0)
        finally:
            raise ConnectionError("while it was cancelled")

    tries = [breaks_off, ok]

    async def one_after_the_other() -> str:
        return await tries.pop(0)()

    hedged = asyncio.create_task(Hedge(1.0, clock=clock).call(one_after_the_other))
    await settle()
    await clock.advance(1.0)
    assert hedged.result() == "fine"
    del call, hedged
    gc.collect()
    assert not caplog.records


async def test_a_spent_budget_stops_more_hedges_and_not_those_that_run() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, clock=clock)
    race = Race(clock, 10.0, 3.0, 1.0)
    call = asyncio.create_task(Hedge(1.0, attempts_max=3, budget=budget, clock=clock).call(race))
    await settle()
    await clock.advance(5.0)
    assert (call.result(), race.begun, budget.running) == (1, 2, 0)


async def test_hedges_are_told_of_and_no_more_than_allowed() -> None:
    clock, told = ManualClock(), list[HedgeStarted]()
    race = Race(clock, 10.0, 10.0)
    hedge = Hedge(1.0, clock=clock, name="them", on_event=told.append)
    call = asyncio.create_task(hedge.call(race))
    await settle()
    await clock.advance(1.0)
    assert told == [HedgeStarted("them", clock.time(), 2)]
    await clock.advance(8.0)
    assert (race.begun, len(told)) == (2, 1)
    await clock.advance(1.0)
    assert call.result() == 0
    assert await hedge.call(ok, value="well") == "well"


async def test_a_try_that_fails_does_not_put_the_next_one_off() -> None:
    clock = ManualClock()
    race = Race(clock, -1.5, 10.0, 1.0)
    call = asyncio.create_task(Hedge(1.0, attempts_max=3, clock=clock).call(race))
    await settle()
    await clock.advance(1.9)
    assert race.begun == 2
    await clock.advance(0.1)
    assert race.begun == 3
    await clock.advance(1.0)
    assert (call.result(), race.cancelled) == (2, 1)
    assert len(asyncio.all_tasks()) == 1


async def test_a_hedge_waits_for_a_budget_that_fills_again() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.5, per_second_min=0.0, clock=clock)
    race = Race(clock, 10.0, 1.0)
    call = asyncio.create_task(Hedge(1.0, budget=budget, clock=clock).call(race))
    await settle()
    await clock.advance(1.0)
    assert (race.begun, budget.available) == (1, 0.5)  # Its own call was counted.
    budget.called()
    await clock.advance(1.0)
    assert (race.begun, budget.running, budget.available) == (2, 1, 0.0)
    await clock.advance(1.0)
    assert (call.result(), budget.running) == (1, 0)


async def test_hedges_of_tests_do_not_wait() -> None:
    clock = ManualClock()
    race = Race(clock, 10.0, 10.0)
    with instant():
        call = asyncio.create_task(Hedge(60.0, clock=clock).call(race))
    await settle()
    assert race.begun == 2
    call.cancel()
    await settle()


async def test_a_cancelled_hedge_leaves_nothing() -> None:
    clock = ManualClock()
    race = Race(clock, 10.0, 10.0)
    call = asyncio.create_task(Hedge(1.0, clock=clock).call(race))
    await settle()
    await clock.advance(2.0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert race.cancelled == 2
    assert len(asyncio.all_tasks()) == 1


async def test_a_hedge_that_is_cancelled_twice_gives_its_budget_back() -> None:
    clock = ManualClock()
    budget = RetryBudget(clock=clock)
    let_go = asyncio.Event()

    async def stubborn() -> None:
        try:
            await clock.sleep(100.0)
        finally:
            await let_go.wait()

    call = asyncio.create_task(Hedge(1.0, budget=budget, clock=clock).call(stubborn))
    await settle()
    await clock.advance(1.0)
    assert budget.running == 1
    for _ in range(2):
        call.cancel()
        await settle()
    assert (call.cancelled(), budget.running) == (True, 0)
    let_go.set()
    await settle()


class Fleet:
    """Two processes with a breaker each around one store."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.clock = ManualClock()
        self.store = store or MemoryStore(self.clock)
        self.events = list[Event]()
        settings = BreakerSettings(3, 10.0, 60.0, 2, 5.0)
        self.a, self.b = (CircuitBreaker("them", settings, clock=self.clock) for _ in range(2))
        self.shared = [
            SharedBreaker(breaker, self.store, owner=owner, clock=self.clock, on_event=self.events.append)
            for breaker, owner in [(self.a, "a"), (self.b, "b")]
        ]

    async def sync(self) -> None:
        for one in self.shared:
            await one.sync()


def _fail(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        breaker.admit().failure(ConnectionError())


def _refused(breaker: CircuitBreaker) -> bool:
    try:
        breaker.admit().drop()
    except CircuitOpen:
        return True
    return False


async def test_what_one_process_finds_the_others_know() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    await fleet.clock.advance(4.0, turns=0)
    await fleet.sync()
    assert (fleet.b.state, fleet.b.retry_after_s) == (State.OPEN, 6.0)
    await fleet.clock.advance(6.0, turns=0)
    await fleet.sync()
    assert [_refused(fleet.a), _refused(fleet.b)] == [False, True]  # One process probes.
    for _ in range(2):
        fleet.a.admit().success()
    await fleet.sync()
    assert (fleet.a.state, fleet.b.state) == (State.CLOSED, State.CLOSED)


async def test_a_probe_lease_of_a_process_that_died_runs_out() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    await fleet.sync()
    await fleet.clock.advance(10.0, turns=0)
    await fleet.sync()
    assert _refused(fleet.b)
    await fleet.clock.advance(13.0, turns=0)
    await fleet.shared[1].sync()
    assert not _refused(fleet.b)


class Broken(MemoryStore):
    away = False

    async def read(self, name: str) -> SharedCircuit:
        if self.away:
            raise ConnectionError("store")
        return await super().read(name)


async def test_without_the_store_each_goes_on_alone() -> None:
    store = Broken(ManualClock())
    fleet = Fleet(store)
    _fail(fleet.a)
    store.away = True
    await fleet.sync()
    await fleet.clock.advance(10.0, turns=0)
    assert [_refused(fleet.a), _refused(fleet.b)] == [False, False]
    await fleet.sync()
    store.away = False
    for _ in range(2):
        await fleet.sync()
    assert sorted({type(event).__name__ for event in fleet.events}) == ["SharedStateLost", "SharedStateRegained"]
    assert len(fleet.events) == 4


async def test_the_store_keeps_one_circuit_for_each_name() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    assert await store.read("a") == SharedCircuit(State.CLOSED, 0.0, 0)
    assert await store.publish("a", State.OPEN, 10.0, 0)
    await clock.advance(4.0, turns=0)
    assert await store.read("a") == SharedCircuit(State.OPEN, 6.0, 1)
    assert await store.read("b") == SharedCircuit(State.CLOSED, 0.0, 0)
    assert not await store.publish("a", State.CLOSED, 0.0, 0)  # Written against what is no longer there.
    assert await store.publish("a", State.ISOLATED, 0.0, 1)
    await clock.advance(60.0, turns=0)
    assert await store.read("a") == SharedCircuit(State.ISOLATED, 0.0, 2)


async def test_the_store_gives_one_owner_the_leave_to_probe() -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    assert await store.lease_probe("a", "me", 10.0)
    assert not await store.lease_probe("a", "you", 10.0)
    assert await store.lease_probe("b", "you", 10.0)
    await store.release_probe("a", "you")
    assert not await store.lease_probe("a", "you", 10.0)
    await clock.advance(9.0, turns=0)
    assert await store.lease_probe("a", "me", 10.0)
    await clock.advance(9.9, turns=0)
    assert not await store.lease_probe("a", "you", 10.0)
    await clock.advance(0.1, turns=0)
    assert await store.lease_probe("a", "you", 10.0)
    await store.release_probe("a", "you")
    assert await store.lease_probe("a", "me", 10.0)
    await store.release_probe("nobody's", "me")


async def test_what_was_taken_over_is_not_told_again() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    for _ in range(3):
        await fleet.sync()
    assert (await fleet.store.read("them")).version == 1
    fleet.b.isolate()
    await fleet.sync()
    await fleet.sync()
    assert ((await fleet.store.read("them")).version, fleet.a.state) == (2, State.ISOLATED)
    fleet.a.close()
    await fleet.sync()
    assert ((await fleet.store.read("them")).version, fleet.b.state) == (3, State.CLOSED)


async def test_an_open_time_that_has_passed_is_not_taken_over() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    await fleet.shared[0].sync()
    await fleet.clock.advance(10.0, turns=0)
    await fleet.shared[1].sync()
    assert fleet.b.state is State.CLOSED


async def test_what_is_left_of_an_open_time_is_told_and_taken_over() -> None:
    fleet = Fleet()
    told = list[Event]()
    fleet.b.events.listen(told.append)
    _fail(fleet.a)
    await fleet.clock.advance(9.5, turns=0)
    await fleet.sync()
    assert await fleet.store.read("them") == SharedCircuit(State.OPEN, 0.5, 1)
    assert told == [CircuitOpened("them", fleet.clock.time(), 0, 0.5, "shared")]
    assert not fleet.events


async def test_without_a_look_at_the_store_nobody_probes() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    await fleet.clock.advance(10.0, turns=0)
    assert _refused(fleet.a)


async def test_what_is_to_be_told_yet_is_not_written_over() -> None:
    class Meanwhile(MemoryStore):
        then: Any = None

        async def publish(self, name: str, state: State, open_s: float, version: int) -> bool:
            if self.then is not None:
                then, self.then = self.then, None
                then()
            return await super().publish(name, state, open_s, version)

    store = Meanwhile(ManualClock())
    fleet = Fleet(store)
    await store.publish("them", State.CLOSED, 0.0, 0)
    _fail(fleet.a)
    store.then = fleet.a.isolate
    await fleet.shared[0].sync()
    assert fleet.a.snapshot().state is State.ISOLATED
    await fleet.shared[0].sync()  # Now it learns that somebody else has written, whose word stands.
    assert fleet.a.snapshot().state is State.CLOSED


async def test_the_leave_to_probe_lasts_as_long_as_a_probe_may_hang_and_is_given_back() -> None:
    leases = list[tuple[str, str, float]]()

    class Leasing(MemoryStore):
        async def lease_probe(self, name: str, owner: str, lease_s: float) -> bool:
            leases.append((name, owner, lease_s))
            return await super().lease_probe(name, owner, lease_s)

        async def release_probe(self, name: str, owner: str) -> None:
            leases.append((name, owner, 0.0))
            await super().release_probe(name, owner)

    clock = ManualClock()
    fleet = Fleet(Leasing(clock))
    fleet.shared[0].interval_s = 3.0
    _fail(fleet.a)
    await fleet.shared[0].sync()
    assert not leases
    await fleet.clock.advance(10.0, turns=0)
    await fleet.shared[0].sync()
    assert leases == [("them", "a", 16.0)]
    for _ in range(2):
        fleet.a.admit().success()
    for _ in range(2):
        await fleet.shared[0].sync()
    assert leases == [("them", "a", 16.0), ("them", "a", 0.0)]
    _fail(fleet.a)
    await fleet.clock.advance(10.0, turns=0)
    assert _refused(fleet.a)  # It gave the leave back and has not asked for it again.


async def test_what_happens_while_the_store_writes_is_told_the_next_time() -> None:
    class Slow(MemoryStore):
        meanwhile: Any = None

        async def publish(self, name: str, state: State, open_s: float, version: int) -> bool:
            written = await super().publish(name, state, open_s, version)
            if self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                meanwhile()
            return written

    store = Slow(ManualClock())
    fleet = Fleet(store)
    _fail(fleet.a)
    store.meanwhile = fleet.a.isolate
    await fleet.shared[0].sync()
    assert ((await store.read("them")).state, fleet.a.state) == (State.OPEN, State.ISOLATED)
    await fleet.shared[0].sync()
    assert await store.read("them") == SharedCircuit(State.ISOLATED, 0.0, 2)


async def test_it_keeps_in_step_by_itself_and_takes_a_slow_store_for_none() -> None:
    class Hanging(MemoryStore):
        hangs = False
        reads = 0

        async def read(self, name: str) -> SharedCircuit:
            self.reads += 1
            if self.hangs:
                await asyncio.get_running_loop().create_future()
            return await super().read(name)

    clock, told, lost = ManualClock(), list[Event](), asyncio.Event()

    def tell(event: Event) -> None:
        told.append(event)
        lost.set()

    store = Hanging(clock)
    shared = SharedBreaker(
        CircuitBreaker("them", clock=clock), store, owner="a", interval_s=2.0, timeout_s=0.01, clock=clock,
        on_event=tell,
    )  # fmt: skip
    running = asyncio.create_task(shared.run())
    await settle()
    await clock.advance(1.9)
    assert store.reads == 1
    store.hangs = True
    await clock.advance(0.1)
    assert store.reads == 2
    await asyncio.wait_for(lost.wait(), 10)
    assert told == [SharedStateLost("them", clock.time(), "TimeoutError()")]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_newer_version_wins() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    fleet.b.isolate()
    await fleet.shared[1].sync()
    await fleet.shared[0].sync()
    assert fleet.a.state is State.ISOLATED


async def test_chaos_does_what_it_is_told_to_and_repeats_itself() -> None:
    async def count(chaos: Chaos) -> list[str]:
        story = []
        for _ in range(300):
            try:
                story.append(await chaos.call(ok))
            except ConnectionError as error:
                story.append(str(error))
        return story

    first = await count(Chaos(failure_share=0.3, rng=Random(7)))
    assert first == await count(Chaos(failure_share=0.3, rng=Random(7)))
    assert 60 < first.count("chaos") < 120
    assert set(await count(Chaos(loss_share=1.0))) == {"chaos"}
    assert set(await count(Chaos(failure_share=1.0, enabled=False))) == {"fine"}
    clock = ManualClock()
    hanging = asyncio.create_task(Timeout(1.0, clock=clock).call(Chaos(hang_share=1.0).call, ok))
    delayed = asyncio.create_task(Chaos(delay_share=1.0, delay_s=3.0, clock=clock).call(ok))
    await settle()
    await clock.advance(1.0)
    assert isinstance(hanging.exception(), TimeoutExceeded)
    assert not delayed.done()
    await clock.advance(2.0)
    assert delayed.result() == "fine"
    with pytest.raises(ValueError):
        Chaos(failure_share=1.1)


class Lots(Random):
    """Draws what it is given, four for a call: hang, failure, delay, loss."""

    def __init__(self, *drawn: float) -> None:
        super().__init__(1)
        self.drawn = list(drawn)

    def random(self) -> float:
        return self.drawn.pop(0)


@pytest.mark.parametrize(
    ("drawn", "ends", "made"),
    [
        ((0.5, 0.5, 0.5, 0.5), "fine", 1),
        ((0.4, 0.5, 0.5, 0.5), "hangs", 0),
        ((0.5, 0.4, 0.5, 0.5), "lost", 0),
        ((0.5, 0.5, 0.4, 0.5), "late", 1),
        ((0.5, 0.5, 0.5, 0.4), "lost", 1),
    ],
)
async def test_each_lot_brings_its_own_trouble(drawn: tuple[float, ...], ends: str, made: int) -> None:
    clock, calls = ManualClock(), list[str]()

    async def work(*, name: str) -> str:
        calls.append(name)
        return "fine"

    chaos = Chaos(
        failure_share=0.5, loss_share=0.5, delay_share=0.5, delay_s=3.0, hang_share=0.5,
        error=lambda: ConnectionError("lost"), rng=Lots(*drawn), clock=clock,
    )  # fmt: skip
    call = asyncio.create_task(chaos.call(work, name="a"))
    await settle()
    if ends == "late":
        assert not calls
        await clock.advance(3.0)
        ends = "fine"
    if ends == "hangs":
        await clock.advance(3_600.0)
        assert not call.done()
        call.cancel()
    elif ends == "lost":
        assert str(call.exception()) == "lost"
    else:
        assert call.result() == ends
    assert len(calls) == made
    chaos.enabled = False
    assert await chaos.call(work, name="b") == "fine"  # No lot is drawn: there is none left.


async def test_instant_is_for_what_is_called_inside() -> None:
    clock = ManualClock()
    ends: list[Any] = [ConnectionError(), ConnectionError()]

    async def flaky() -> str:
        return await fail(ends.pop()) if ends else "fine"

    with instant():
        assert await Retry(clock=clock).call(flaky) == "fine"
        inside = asyncio.create_task(Retry(clock=clock).call(fail))
    outside = asyncio.create_task(Retry(clock=clock).call(fail))
    await settle()
    assert (inside.done(), outside.done()) == (True, False)
    assert isinstance(inside.exception(), ConnectionError)
    outside.cancel()
    await settle()


@pytest.mark.parametrize("state", list(State))
def test_a_breaker_put_in_a_state(state: State) -> None:
    scene = Scene()
    put(scene.breaker, State.ISOLATED if state is State.CLOSED else State.CLOSED)
    put(scene.breaker, state)
    assert scene.state() is state
    assert scene.story[-1] == f"Circuit{ {'open': 'Opened', 'half_open': 'HalfOpened'}.get(state, state.title()) }"
    assert [one.reason for one in scene.events if isinstance(one, CircuitOpened)] in ([], ["test"])


STATES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2, State.ISOLATED: 3, State.DISABLED: 4}


def test_prometheus() -> None:
    registry, scene = CollectorRegistry(), Scene()
    bulkhead = Bulkhead("queue", concurrency_max=1)
    PrometheusExporter(registry).observe(scene.breaker, bulkhead)
    scene.fail()
    bulkhead.events.emit(CallRefused("queue", 0.0, "bulkhead_full"))
    labels = {"name": "them", "event": "CircuitOpened"}
    assert registry.get_sample_value("bellbuoy_resilience_events_total", labels) == 1
    labels = {"name": "queue", "event": "CallRefused"}
    assert registry.get_sample_value("bellbuoy_resilience_events_total", labels) == 1
    assert registry.get_sample_value("bellbuoy_resilience_breaker_state", {"name": "queue"}) is None
    for state, number in STATES.items():
        put(scene.breaker, state)
        assert registry.get_sample_value("bellbuoy_resilience_breaker_state", {"name": "them"}) == number
    page = generate_latest(registry).decode()
    assert "# HELP bellbuoy_resilience_events_total What policies did.\n" in page
    numbers = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in STATES.items())
    assert f"# HELP bellbuoy_resilience_breaker_state {numbers}.\n" in page


def test_opentelemetry() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader, scene = InMemoryMetricReader(), Scene()
    provider = MeterProvider([reader])
    OpenTelemetryExporter(provider.get_meter("test")).observe(scene.breaker, Bulkhead("queue", concurrency_max=1))
    scene.fail()
    found: dict[str, list[tuple[Any, Any]]] = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        points: Any = metric.data.data_points
        found[f"{metric.name}: {metric.description}"] = [(dict(one.attributes), one.value) for one in points]
    numbers = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in STATES.items())
    assert found == {
        "bellbuoy.resilience.events: What policies did.": [({"name": "them", "event": "CircuitOpened"}, 1)],
        f"bellbuoy.resilience.breaker.state: {numbers}.": [({"name": "them"}, 2)],
    }
    provider.shutdown()


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_store_that_has_lost_everything_closes_nothing(by_hand: bool) -> None:
    fleet = Fleet()
    for _ in range(2):
        _fail(fleet.a)
        await fleet.sync()
        fleet.a.close()
        await fleet.sync()
    if by_hand:
        fleet.a.isolate()
    else:
        _fail(fleet.a)
    await fleet.sync()
    state = State.ISOLATED if by_hand else State.OPEN
    for one in fleet.shared:
        one.store = MemoryStore(fleet.clock)
    fleet.shared[1].store = fleet.shared[0].store
    for _ in range(3):
        await fleet.sync()
    assert (fleet.a.state, fleet.b.state) == (state, state)
    assert (await fleet.shared[0].store.read("them")).state is state


async def test_leave_to_probe_goes_on_to_the_others_when_nobody_probes_with_it() -> None:
    fleet = Fleet()
    _fail(fleet.a)
    await fleet.sync()
    await fleet.clock.advance(10.0, turns=0)
    for _ in range(13):  # Nobody calls through `a`, which keeps its lease alive all the same.
        await fleet.sync()
        assert _refused(fleet.b)
        await fleet.clock.advance(1.0, turns=0)
    await fleet.sync()
    assert not _refused(fleet.b)


async def test_one_who_never_calls_never_takes_the_leave() -> None:
    fleet = Fleet()
    fleet.shared[0].probing = False
    _fail(fleet.b)
    await fleet.shared[1].sync()
    await fleet.shared[0].sync()
    await fleet.clock.advance(10.0, turns=0)
    await fleet.sync()
    assert [_refused(fleet.a), _refused(fleet.b)] == [True, False]
    for _ in range(2):
        fleet.b.admit().success()
    await fleet.shared[1].sync()
    await fleet.shared[0].sync()
    assert fleet.a.state is State.CLOSED


async def test_one_who_is_well_takes_over_what_others_told_a_store_that_had_lost_everything() -> None:
    fleet = Fleet()
    for _ in range(2):
        _fail(fleet.a)
        await fleet.sync()
        fleet.a.close()
        await fleet.sync()
    fleet.shared[0].store = fleet.shared[1].store = MemoryStore(fleet.clock)
    _fail(fleet.a)
    await fleet.shared[0].sync()
    await fleet.shared[0].sync()
    await fleet.shared[1].sync()
    assert (fleet.a.state, fleet.b.state) == (State.OPEN, State.OPEN)
