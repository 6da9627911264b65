"""Timeouts: whose they are, what they say, and that no cancellation is lost or invented."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BulkheadFull, DeadlineExceeded, TimeoutExceeded
from bellbuoy.resilience import Bulkhead, CallTimedOut, Guard, Timeout, deadline, remaining_s
from bellbuoy.resilience.timer import wheel_of
from tests.unit.resilience.support import fail, hang, ok, settle


async def test_cuts_off_what_takes_too_long() -> None:
    clock, events = ManualClock(), list[CallTimedOut]()
    call = asyncio.create_task(Timeout(5.0, clock=clock, name="t", on_event=events.append).call(hang))
    await clock.advance(4.9)
    assert not call.done()
    await clock.advance(0.1)
    error = call.exception()
    assert isinstance(error, TimeoutExceeded)
    assert (str(error), error.started, call.cancelling()) == ("no answer within 5.0 s", True, 0)
    assert events == [CallTimedOut("t", clock.time(), 5.0, True)]


@pytest.mark.parametrize("timeout_s", [0.02, 0.11])
async def test_on_the_real_clock(timeout_s: float) -> None:
    with pytest.raises(TimeoutExceeded):
        await Timeout(timeout_s).call(hang)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert wheel_of(asyncio.get_running_loop()).watching == 0


@pytest.mark.parametrize("timeout_s", [0.02, 0.1, 0.11])
async def test_it_is_never_early(timeout_s: float) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutExceeded):
        await Timeout(timeout_s).call(hang)
    assert time.monotonic() - began >= timeout_s


@pytest.mark.parametrize("timeout_s", [0.02, 0.12])
async def test_a_call_that_ended_is_cut_off_no_more(timeout_s: float) -> None:
    assert await Timeout(timeout_s).call(ok) == "fine"
    await asyncio.sleep(timeout_s + 0.02)  # Long enough for a timer that was left behind to ring.


@pytest.mark.parametrize(("timeout_s", "shared"), [(0.099, 0), (0.1, 1)])
async def test_short_ones_have_a_timer_of_their_own(timeout_s: float, shared: int) -> None:
    call = asyncio.create_task(Timeout(timeout_s).call(hang))
    await asyncio.sleep(0)
    assert wheel_of(asyncio.get_running_loop()).watching == shared
    call.cancel()
    await settle()


async def test_it_is_set_for_the_next_hundredth_of_a_second() -> None:
    earliest = time.monotonic() + 30.0
    call = asyncio.create_task(Timeout(30.0).call(hang))
    await asyncio.sleep(0)
    latest = time.monotonic() + 30.0
    (tick,) = (tick for tick, watches in wheel_of(asyncio.get_running_loop()).buckets.items() if watches)
    assert earliest < tick / 100 <= latest + 0.01
    call.cancel()
    await settle()


async def test_an_earlier_request_to_cancel_stays_on_the_task() -> None:
    clock = ManualClock()

    async def work() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)  # It was served, and is still owed to whoever asked for it.
        with pytest.raises(TimeoutExceeded):
            await Timeout(1.0, clock=clock).call(hang)
        return task.cancelling()

    task = asyncio.create_task(work())
    await settle()
    await clock.advance(1.0)
    assert await task == 1


async def test_a_deadline_of_less_than_a_second_is_one() -> None:
    clock = ManualClock()
    with deadline(0.5, clock=clock):
        assert await Timeout(5.0, clock=clock).call(ok) == "fine"
        call = asyncio.create_task(Timeout(5.0, clock=clock).call(hang))
        await settle()
    await clock.advance(0.5)
    assert isinstance(call.exception(), TimeoutExceeded)


async def test_returns_and_raises_what_the_call_does() -> None:
    assert await Timeout(5.0).call(ok) == "fine"
    with pytest.raises(ConnectionError):
        await Timeout(5.0).call(fail)


async def test_an_inner_timeout_error_is_not_claimed() -> None:
    inner = TimeoutError("inner")
    with pytest.raises(TimeoutError) as caught:
        await Timeout(5.0).call(fail, inner)
    assert caught.value is inner


@pytest.mark.parametrize("same_moment", [False, True])
async def test_a_cancellation_from_outside_stays_one(same_moment: bool) -> None:
    clock = ManualClock()
    call = asyncio.create_task(Timeout(5.0, clock=clock).call(hang))
    await settle()
    call.cancel()
    if same_moment:
        await clock.advance(5.0)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()


async def test_a_cancellation_while_the_limit_unwinds_stays_one() -> None:
    clock = ManualClock()

    async def slow_to_leave() -> None:
        try:
            await hang()
        finally:
            call.cancel()  # As somebody outside might, before the timeout learns that its own has arrived.

    call = asyncio.create_task(Timeout(5.0, clock=clock).call(slow_to_leave))
    await clock.advance(5.0)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_a_cancellation_before_it_began_is_not_swallowed() -> None:
    clock = ManualClock()

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await Timeout(0.001, clock=clock).call(hang)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


async def test_a_pending_cancellation_is_not_taken_for_the_limit() -> None:
    timeout = Timeout(0.001)

    async def stubborn() -> None:
        try:
            await asyncio.sleep(0)  # The cancellation that was asked for before arrives here.
        except asyncio.CancelledError:
            await hang()

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await timeout.call(stubborn)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


async def test_nested_the_inner_one_goes_first() -> None:
    clock = ManualClock()
    inner, outer = Timeout(2.0, clock=clock, name="in"), Timeout(5.0, clock=clock)
    call = asyncio.create_task(outer.call(inner.call, hang))
    await clock.advance(2.0)
    assert "2.0 s" in str(call.exception())


async def test_nested_and_due_together_the_outer_one_decides() -> None:
    clock = ManualClock()
    inner, outer = Timeout(2.0, clock=clock), Timeout(2.0, clock=clock)

    async def persistent() -> str:
        try:
            return await inner.call(hang)
        except TimeoutExceeded:
            return await hang()

    call = asyncio.create_task(outer.call(persistent))
    await clock.advance(2.0)
    assert isinstance(call.exception(), TimeoutExceeded)
    assert call.cancelling() == 0


async def test_a_call_that_ends_well_while_it_is_cut_off_has_ended_well() -> None:
    clock = ManualClock()

    async def stubborn() -> str:
        try:
            return await hang()
        except asyncio.CancelledError:
            return "saved"

    call = asyncio.create_task(Timeout(1.0, clock=clock).call(stubborn))
    await clock.advance(1.0)
    assert await call == "saved"
    assert call.cancelling() == 0


async def test_it_can_be_used_inside_asyncio_timeout() -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await Timeout(60.0).call(hang)
    assert not isinstance(caught.value, TimeoutExceeded)


async def test_says_when_the_call_never_began() -> None:
    clock = ManualClock()
    bulkhead = Bulkhead("them", concurrency_max=1, queue_max=5, clock=clock)
    holder = asyncio.create_task(bulkhead.call(hang))
    await settle()
    call = asyncio.create_task(Guard("them", Timeout(1.0, clock=clock), bulkhead).call(ok))
    await clock.advance(1.0)
    error = call.exception()
    assert isinstance(error, TimeoutExceeded)
    assert (str(error), error.started) == ("not admitted within 1.0 s", False)
    assert bulkhead.waiting == 0
    holder.cancel()
    await settle()
    assert bulkhead.free == 1


async def test_the_deadline_only_shrinks() -> None:
    clock = ManualClock()
    assert remaining_s() is None
    with deadline(10.0, clock=clock):
        with deadline(60.0, clock=clock):
            assert remaining_s() == 10.0
        with deadline(3.0, clock=clock):
            await clock.advance(1.0, turns=0)
            assert remaining_s() == 2.0
        assert remaining_s() == 9.0
    assert remaining_s() is None


async def test_the_deadline_shortens_timeouts() -> None:
    clock = ManualClock()
    with deadline(2.0, clock=clock):
        call = asyncio.create_task(Timeout(5.0, clock=clock).call(hang))
    await clock.advance(2.0)
    assert isinstance(call.exception(), TimeoutExceeded)


@pytest.mark.parametrize("late_s", [0.0, 1.0])
async def test_after_the_deadline_nothing_begins(late_s: float) -> None:
    clock = ManualClock()
    called = False

    async def call() -> None:
        nonlocal called
        called = True

    with deadline(2.0, clock=clock):
        await clock.advance(2.0 + late_s, turns=0)
        with pytest.raises(DeadlineExceeded):
            await Timeout(5.0, clock=clock).call(call)
    assert not called


async def test_one_timer_for_all() -> None:
    timeout = Timeout(30.0)
    calls = [asyncio.create_task(timeout.call(hang)) for _ in range(1_000)]
    await settle()
    wheel = wheel_of(asyncio.get_running_loop())
    assert wheel.watching == 1_000
    timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert len(timers) <= 2  # The wheel's, and perhaps the test runner's.
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert wheel.watching == 0


def test_one_policy_in_several_loops() -> None:
    timeout = Timeout(30.0)
    assert [asyncio.run(timeout.call(ok)) for _ in range(3)] == ["fine"] * 3


def test_one_policy_in_several_threads() -> None:
    timeout = Timeout(0.15)
    barrier = threading.Barrier(4)

    async def work() -> str:
        barrier.wait(10)  # All loops run a task at this moment.
        try:
            return await timeout.call(hang)
        except TimeoutExceeded:
            return "cut off"

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: asyncio.run(work()), range(4))) == ["cut off"] * 4


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_timeouts_of_its_own() -> None:
    timeout = Timeout(0.15)

    def child(write: int) -> None:
        asyncio._set_running_loop(None)
        try:
            asyncio.run(timeout.call(hang))
        except TimeoutExceeded:
            os.write(write, b"cut off")
        finally:
            os._exit(0)

    async def parent() -> tuple[int, int]:
        await timeout.call(ok)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            child(write)
        os.close(write)
        return read, pid

    read, pid = asyncio.run(parent())
    os.waitpid(pid, 0)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"cut off"


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_limits_that_make_no_sense(wrong: float) -> None:
    with pytest.raises(ValueError):
        Timeout(wrong)


async def test_bulkhead_refusal_inside_passes() -> None:
    bulkhead = Bulkhead("them", concurrency_max=1)
    with pytest.raises(BulkheadFull):
        await Guard("g", Timeout(1.0), bulkhead).call(bulkhead.call, ok)
