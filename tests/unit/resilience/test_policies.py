from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellbuoy.clock import ManualClock, SystemClock
from bellbuoy.errors import BulkheadFull, CircuitOpen, TimeoutExceeded
from bellbuoy.resilience import BreakerSettings, Bulkhead, CircuitBreaker, Guard, RetrySettings, Timeout


async def forever() -> None:
    await asyncio.Event().wait()


async def at_once() -> str:
    return "done"


# Timeout


async def test_a_timeout_cuts_off_and_says_that_the_result_is_unknown() -> None:
    clock = ManualClock()
    call = asyncio.create_task(Timeout(5, clock=clock).call(forever))
    await clock.advance(4.9)
    assert not call.done()
    await clock.advance(0.2)
    with pytest.raises(TimeoutExceeded) as cut:
        await call
    assert cut.value.started
    assert call.cancelling() == 0


async def test_an_inner_timeout_is_not_claimed() -> None:
    async def inner() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as raised:
        await Timeout(5).call(inner)
    assert not isinstance(raised.value, TimeoutExceeded)


async def test_a_cancellation_from_outside_stays_one_even_at_the_same_moment() -> None:
    clock = ManualClock()
    call = asyncio.create_task(Timeout(5, clock=clock).call(forever))
    await clock.advance(1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call

    both = asyncio.create_task(Timeout(5, clock=clock).call(forever))
    await clock.advance(4)
    waking = asyncio.create_task(clock.advance(1, turns=0))
    await asyncio.sleep(0)  # The limit has just passed, and nobody has run since.
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    await waking


async def test_nested_timeouts_each_claim_their_own() -> None:
    clock = ManualClock()
    outer, inner = Timeout(10, clock=clock), Timeout(3, clock=clock)

    async def body() -> str:
        with pytest.raises(TimeoutExceeded, match=r"3"):
            await inner.call(forever)
        await forever()
        return "never"

    call = asyncio.create_task(outer.call(body))
    await clock.advance(11)
    with pytest.raises(TimeoutExceeded, match=r"10"):
        await call


async def test_a_timeout_on_the_real_clock_leaves_no_timer() -> None:
    assert await Timeout(60, clock=SystemClock()).call(at_once) == "done"
    with pytest.raises(ValueError, match="timeout_s"):
        Timeout(0)


# Bulkhead


async def test_a_bulkhead_admits_so_many_and_lets_so_many_wait() -> None:
    clock = ManualClock()
    bulkhead = Bulkhead("x", concurrency_max=2, queue_max=3, wait_s_max=5, clock=clock)
    running = [asyncio.create_task(bulkhead.call(forever)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull):
        await bulkhead.call(forever)
    await clock.advance(6)
    assert [task.done() for task in running] == [False, False, True, True, True]
    assert all(isinstance(task.exception(), BulkheadFull) for task in running[2:])
    for task in running[:2]:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert bulkhead.free == 2


async def test_the_urgent_go_first_and_equals_in_order() -> None:
    bulkhead = Bulkhead("x", concurrency_max=1, queue_max=10, wait_s_max=60, clock=ManualClock())
    gate, order = asyncio.Event(), list[str]()

    async def say(word: str) -> None:
        order.append(word)

    first = asyncio.create_task(bulkhead.call(gate.wait))
    await asyncio.sleep(0)
    words = [(2, "low"), (1, "normal 1"), (1, "normal 2"), (0, "high")]
    tasks = [asyncio.create_task(bulkhead.call_at(urgency, say, word)) for urgency, word in words]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *tasks)
    assert order == ["high", "normal 1", "normal 2", "low"]


async def test_no_place_is_lost_by_random_cancellation() -> None:
    rng = Random(7)
    bulkhead = Bulkhead("x", concurrency_max=5, queue_max=1_000, wait_s_max=1_000, clock=ManualClock())
    tasks: list[asyncio.Task[None]] = []

    async def briefly() -> None:
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)

    for _ in range(20_000):
        tasks.append(asyncio.create_task(bulkhead.call_at(rng.randrange(3), briefly)))
        if rng.random() < 0.5:
            rng.choice(tasks[-20:]).cancel()
        if rng.random() < 0.3:
            await asyncio.sleep(0)
        if len(tasks) > 200:
            await asyncio.gather(*tasks, return_exceptions=True)
            tasks.clear()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bulkhead.free == 5


# Retry waits


@given(attempt=st.integers(1, 10**6), seed=st.integers())
@settings(max_examples=300)
def test_a_wait_stays_within_its_bounds(attempt: int, seed: int) -> None:
    numbers = RetrySettings()
    delay = numbers.delay_s(attempt, Random(seed))
    base = min(2.0 ** min(attempt - 1, 60), 30.0)
    assert max(0.1, base * 0.9) <= delay <= base * 1.1


@given(asked=st.floats(0, 10**7), seed=st.integers())
def test_a_retry_after_is_never_cut_short_and_never_endless(asked: float, seed: int) -> None:
    delay = RetrySettings().delay_s(1, Random(seed), retry_after_s=asked)
    assert min(asked, 86_400.0) <= delay <= 86_400.0 * 1.1 + 0.1


def test_the_first_waits_are_the_documented_ones() -> None:
    numbers = RetrySettings(jitter_factor=0)
    assert [numbers.delay_s(n, Random(1)) for n in range(1, 8)] == pytest.approx([1, 2, 4, 8, 16, 30, 30])
    assert RetrySettings(initial_delay_s=5, max_delay_s=5, jitter_factor=0).delay_s(9, Random(1)) == 5


# Guard


async def test_a_guard_runs_its_policies_from_the_outside_in() -> None:
    clock = ManualClock()
    numbers = BreakerSettings(failure_threshold=1, timeout_s=2)
    breaker = CircuitBreaker("x", numbers, clock=clock)
    bulkhead = Bulkhead("x", concurrency_max=1, queue_max=1, wait_s_max=1, clock=clock)
    guard = Guard("x", bulkhead, breaker, Timeout(2, clock=clock))
    assert await guard.call(at_once) == "done"
    call = asyncio.create_task(guard.call(forever))
    await clock.advance(3)
    with pytest.raises(TimeoutExceeded):
        await call
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen):
        await guard.call(at_once)
    assert bulkhead.free == 1


def test_the_kit_imports_alone() -> None:
    source = Path(__file__).parents[3] / "src"
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import bellbuoy.resilience"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=60)
