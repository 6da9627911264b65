from __future__ import annotations

import asyncio

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BulkheadFull, CircuitOpen, CredentialRejected, OutcomeUnknown, Permanent, Transient
from bellbuoy.resilience import BreakerSettings, CircuitBreaker, CircuitEvent

SETTINGS = BreakerSettings(
    failure_threshold=3, recovery_timeout_s=10, monitoring_window_s=60, success_threshold=2, timeout_s=5
)
DOWN = Transient("down")


class Bench:
    """A breaker on a clock that stands still, and what it told."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.events: list[CircuitEvent] = []
        self.breaker = CircuitBreaker("x", SETTINGS, clock=self.clock, on_event=self.events.append)

    def fail(self, times: int = 1, error: Exception = DOWN) -> None:
        for _ in range(times):
            self.breaker.admit().failure(error)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_it_opens_at_the_threshold_and_says_when_to_come_back(bench: Bench) -> None:
    bench.fail(2)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"
    await bench.clock.advance(4)
    with pytest.raises(CircuitOpen) as refused:
        bench.breaker.admit()
    assert refused.value.retry_after_s == pytest.approx(6)
    assert bench.names() == ["CircuitOpened"]


async def test_failures_older_than_the_window_do_not_count(bench: Bench) -> None:
    bench.fail(2)
    await bench.clock.advance(60)
    bench.fail(2)
    assert bench.breaker.state == "closed"
    assert bench.breaker.snapshot().failure_count == 2


async def test_a_jump_of_the_wall_clock_changes_nothing(bench: Bench) -> None:
    bench.fail(3)
    bench.clock.jump(3_600)
    assert bench.breaker.state == "open"
    bench.clock.jump(-7_200)
    await bench.clock.advance(10)
    assert bench.breaker.state == "half_open"


async def test_half_open_admits_no_more_probes_than_it_needs(bench: Bench) -> None:
    bench.fail(3)
    await bench.clock.advance(10)
    first, second = bench.breaker.admit(), bench.breaker.admit()
    for _ in range(100):
        with pytest.raises(CircuitOpen):
            bench.breaker.admit()
    first.success()
    with pytest.raises(CircuitOpen):
        bench.breaker.admit()
    second.success()
    assert bench.breaker.state == "closed"
    assert bench.names() == ["CircuitOpened", "CircuitHalfOpened", "CircuitClosed"]


async def test_one_failed_probe_opens_it_again(bench: Bench) -> None:
    bench.fail(3)
    await bench.clock.advance(10)
    bench.breaker.admit().success()
    bench.breaker.admit().failure(DOWN)
    assert bench.breaker.state == "open"
    assert bench.breaker.retry_after_s == pytest.approx(10)


async def test_a_late_result_changes_nothing(bench: Bench) -> None:
    early, late_failure = bench.breaker.admit(), bench.breaker.admit()
    bench.fail(3)
    early.success()
    assert bench.breaker.state == "open"
    await bench.clock.advance(10)
    probe = bench.breaker.admit()
    late_failure.failure(DOWN)
    assert bench.breaker.state == "half_open"
    probe.success()
    bench.breaker.admit().success()
    assert bench.breaker.state == "closed"


async def test_a_permit_counts_once(bench: Bench) -> None:
    permit = bench.breaker.admit()
    for _ in range(10):
        permit.failure(DOWN)
    assert bench.breaker.snapshot().failure_count == 1


async def test_a_hung_probe_gives_its_place_away(bench: Bench) -> None:
    bench.fail(3)
    await bench.clock.advance(10)
    hung = [bench.breaker.admit(), bench.breaker.admit()]
    await bench.clock.advance(2 * SETTINGS.timeout_s)
    bench.breaker.admit().success()
    bench.breaker.admit().success()
    assert bench.breaker.state == "closed"
    for permit in hung:
        permit.failure(DOWN)
    assert bench.breaker.snapshot().failure_count == 0


@pytest.mark.parametrize(
    "error",
    [
        Permanent("bad request"),
        Transient("slow down", throttled=True),
        CredentialRejected("who are you"),
        BulkheadFull("full"),
        asyncio.CancelledError(),
    ],
    ids=lambda e: type(e).__name__,
)
async def test_what_is_not_the_dependency_s_fault_never_opens_it(bench: Bench, error: BaseException) -> None:
    for _ in range(100):
        bench.breaker.admit().failure(error)
    assert bench.breaker.state == "closed"


@pytest.mark.parametrize("error", [OutcomeUnknown("?"), TimeoutError(), ConnectionResetError(), OSError()], ids=repr)
async def test_what_is_its_fault_opens_it(bench: Bench, error: Exception) -> None:
    bench.fail(3, error)
    assert bench.breaker.state == "open"


async def test_a_cancelled_probe_neither_closes_nor_opens(bench: Bench) -> None:
    bench.fail(3)
    await bench.clock.advance(10)

    async def forever() -> None:
        await asyncio.Event().wait()

    probe = asyncio.create_task(bench.breaker.call(forever))
    await asyncio.sleep(0)
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert bench.breaker.state == "half_open"
    assert len([bench.breaker.admit(), bench.breaker.admit()]) == 2


async def test_by_hand(bench: Bench) -> None:
    bench.breaker.isolate()
    await bench.clock.advance(10_000)
    with pytest.raises(CircuitOpen) as refused:
        bench.breaker.admit()
    assert refused.value.retry_after_s is None
    assert bench.breaker.snapshot().retry_after_s is None
    bench.breaker.close()
    bench.breaker.admit().success()
    bench.fail(3)
    bench.breaker.reset()
    assert (bench.breaker.state, bench.breaker.snapshot().failure_count) == ("closed", 0)


async def test_settings_change_without_forgetting(bench: Bench) -> None:
    bench.fail(2)
    bench.breaker.configure(SETTINGS.replace(failure_threshold=5))
    bench.fail(2)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"
    with pytest.raises(ValueError, match="failure_threshold"):
        SETTINGS.replace(failure_threshold=0)


async def test_a_call_returns_or_raises_what_it_does(bench: Bench) -> None:
    async def answer(x: int) -> int:
        if x < 0:
            raise DOWN
        return x

    assert await bench.breaker.call(answer, 7) == 7
    for _ in range(3):
        with pytest.raises(Transient):
            await bench.breaker.call(answer, -1)
    with pytest.raises(CircuitOpen):
        await bench.breaker.call(answer, 7)
