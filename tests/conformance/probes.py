"""Every way in which resilience kits were seen to fail, as a probe that a kit passes or not.

A probe is given a kit and returns, or raises AssertionError with what it saw. The name says what must hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from tests.conformance.kits import Breaker, Ignored, Kit

OPEN_S = 0.05
Probe = Callable[[Kit], Awaitable[None]]


class Gate:
    """A call that ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self._ends: list[asyncio.Future[Any]] = []

    async def __call__(self) -> Any:
        self.begun += 1
        end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ends.append(end)
        return await end

    def succeed(self) -> None:
        for end in self._ends:
            if not end.done():
                end.set_result("late")

    def fail(self) -> None:
        for end in self._ends:
            if not end.done():
                end.set_exception(ConnectionError("late"))


async def fine() -> str:
    return "fine"


async def broken() -> None:
    raise ConnectionError("broken")


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def finish(*tasks: asyncio.Future[Any], cancel: bool = False) -> None:
    for task in tasks:
        if cancel:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def open_it(breaker: Breaker, failures: int = 3) -> None:
    for _ in range(failures):
        with contextlib.suppress(Exception):
            await breaker.call(broken)
    assert await breaker.refuses(), "it did not open"


async def half_open(kit: Kit, probes: int = 1) -> Breaker:
    breaker = kit.breaker(failures=3, open_s=OPEN_S, probes=probes)
    await open_it(breaker)
    await kit.wait(OPEN_S * 1.2)
    return breaker


async def half_open_admits_no_more_than_its_probes(kit: Kit) -> None:
    breaker, gate = await half_open(kit, 2), Gate()
    tasks = [asyncio.ensure_future(breaker.call(gate)) for _ in range(50)]
    await settle()
    begun = gate.begun
    await finish(*tasks, cancel=True)
    assert 1 <= begun <= 2, f"{begun} of 50 were admitted"


async def a_cancelled_probe_does_not_close(kit: Kit) -> None:
    breaker, gate = await half_open(kit), Gate()
    task = asyncio.ensure_future(breaker.call(gate))
    await settle()
    await finish(task, cancel=True)
    with contextlib.suppress(Exception):
        await breaker.call(broken)
    assert await breaker.refuses(), "one failure no longer opens it, so it had closed"


async def a_cancelled_probe_does_not_open(kit: Kit) -> None:
    breaker, gate = await half_open(kit), Gate()
    task = asyncio.ensure_future(breaker.call(gate))
    await settle()
    await finish(task, cancel=True)
    assert not await breaker.refuses(), "the next probe is refused"


async def cancelled_calls_do_not_open(kit: Kit) -> None:
    breaker, gate = kit.breaker(failures=3, open_s=OPEN_S, probes=1), Gate()
    tasks = [asyncio.ensure_future(breaker.call(gate)) for _ in range(10)]
    await settle()
    await finish(*tasks, cancel=True)
    assert not await breaker.refuses(), "it opened"


async def a_late_success_does_not_close(kit: Kit) -> None:
    breaker, gate = kit.breaker(failures=3, open_s=60.0, probes=1), Gate()
    late = asyncio.ensure_future(breaker.call(gate))
    await settle()
    await open_it(breaker)
    gate.succeed()
    await finish(late)
    assert await breaker.refuses(), "it closed"


async def a_late_failure_does_not_reopen(kit: Kit) -> None:
    breaker, gate = kit.breaker(failures=1, open_s=OPEN_S, probes=1), Gate()
    late = asyncio.ensure_future(breaker.call(gate))
    await settle()
    await open_it(breaker, 1)
    await kit.wait(OPEN_S * 1.2)
    await breaker.call(fine)
    gate.fail()
    await finish(late)
    assert not await breaker.refuses(), "it opened again"


async def a_late_success_counts_as_no_probe(kit: Kit) -> None:
    breaker, late, gate = kit.breaker(failures=3, open_s=OPEN_S, probes=2), Gate(), Gate()
    stragglers = [asyncio.ensure_future(breaker.call(late)) for _ in range(2)]
    await settle()
    await open_it(breaker)
    await kit.wait(OPEN_S * 1.2)
    probing = [asyncio.ensure_future(breaker.call(gate)) for _ in range(2)]
    await settle()
    late.succeed()
    await finish(*stragglers)
    gate.fail()
    await finish(*probing)
    assert await breaker.refuses(), "the failed probes did not open it, so it had closed"


async def a_late_failure_counts_as_no_probe(kit: Kit) -> None:
    breaker, late, gate = kit.breaker(failures=3, open_s=OPEN_S, probes=2), Gate(), Gate()
    straggler = asyncio.ensure_future(breaker.call(late))
    await settle()
    await open_it(breaker)
    await kit.wait(OPEN_S * 1.2)
    probe = asyncio.ensure_future(breaker.call(gate))
    await settle()
    late.fail()
    await finish(straggler)
    gate.succeed()
    await finish(probe)
    assert not await breaker.refuses(), "it opened although its probe succeeded"


async def stragglers_do_not_extend_the_wait(kit: Kit) -> None:
    breaker, gate = kit.breaker(failures=3, open_s=0.2, probes=1), Gate()
    late = [asyncio.ensure_future(breaker.call(gate)) for _ in range(3)]
    await settle()
    await open_it(breaker)
    await kit.wait(0.15)
    gate.fail()
    await finish(*late)
    await kit.wait(0.1)
    assert not await breaker.refuses(), "it is still open after its time"


async def a_probe_of_an_earlier_round_frees_no_place(kit: Kit) -> None:
    breaker, stale, fresh = await half_open(kit, 2), Gate(), Gate()
    task = asyncio.ensure_future(breaker.call(stale))
    await settle()
    with contextlib.suppress(Exception):
        await breaker.call(broken)
    await kit.wait(OPEN_S * 1.2)
    tasks = [asyncio.ensure_future(breaker.call(fresh)) for _ in range(2)]
    await settle()
    stale.succeed()
    await finish(task)
    tasks += [asyncio.ensure_future(breaker.call(fresh)) for _ in range(5)]
    await settle()
    begun = fresh.begun
    await finish(*tasks, cancel=True)
    assert begun <= 2, f"{begun} run at once"


async def a_straggler_from_before_frees_no_place(kit: Kit) -> None:
    breaker, late, gate = kit.breaker(failures=3, open_s=OPEN_S, probes=1), Gate(), Gate()
    stragglers = [asyncio.ensure_future(breaker.call(late)) for _ in range(3)]
    await settle()
    await open_it(breaker)
    await kit.wait(OPEN_S * 1.2)
    tasks = [asyncio.ensure_future(breaker.call(gate))]
    await settle()
    late.succeed()
    await finish(*stragglers)
    tasks += [asyncio.ensure_future(breaker.call(gate)) for _ in range(5)]
    await settle()
    begun = gate.begun
    await finish(*tasks, cancel=True)
    assert begun <= 1, f"{begun} run at once"


async def a_hung_probe_does_not_wedge(kit: Kit) -> None:
    breaker, gate = await half_open(kit), Gate()
    hung = asyncio.ensure_future(breaker.call(gate))
    await settle()
    try:
        for _ in range(4):
            await kit.wait(0.2)
            if not await breaker.refuses():
                return
        raise AssertionError("it refuses for ever")
    finally:
        await finish(hung, cancel=True)


async def wall_clock_jumps_do_not_matter(kit: Kit) -> None:
    breaker = kit.breaker(failures=3, open_s=60.0, probes=1)
    await open_it(breaker)
    with kit.wall_clock_at(3_600.0):
        assert await breaker.refuses(), "an hour on the wall clock let calls through"
    short = kit.breaker(failures=3, open_s=OPEN_S, probes=1)
    await open_it(short)
    with kit.wall_clock_at(-3_600.0):
        await kit.wait(OPEN_S * 1.2)
        assert not await short.refuses(), "an hour back on the wall clock keeps it open"


async def an_ignored_outcome_does_not_close(kit: Kit) -> None:
    breaker = await half_open(kit)
    await _ignored(breaker)
    with contextlib.suppress(Exception):
        await breaker.call(broken)
    assert await breaker.refuses(), "one failure no longer opens it, so it had closed"


async def an_ignored_outcome_does_not_wedge(kit: Kit) -> None:
    breaker = await half_open(kit)
    for _ in range(5):
        with contextlib.suppress(Exception):
            await _ignored(breaker)
    await kit.wait(OPEN_S * 1.2)  # It may have opened again, as long as it does not stay so.
    await breaker.call(fine)


async def _ignored(breaker: Breaker) -> None:
    async def ignored() -> None:
        raise Ignored

    with contextlib.suppress(Ignored):
        await breaker.call(ignored)


async def calls_run_side_by_side(kit: Kit) -> None:
    breaker, gate = kit.breaker(failures=3, open_s=OPEN_S, probes=1), Gate()
    tasks = [asyncio.ensure_future(breaker.call(gate)) for _ in range(5)]
    await settle()
    begun = gate.begun
    await finish(*tasks, cancel=True)
    assert begun == 5, f"{begun} of 5 run"


async def no_lock_is_held_through_a_call(kit: Kit) -> None:
    call, ended = kit.blocking_breaker(), threading.Event()

    def work() -> bool:
        # Another thread's call while this one runs: it needs nothing but the breaker.
        threading.Thread(target=call, args=(ended.set,), daemon=True).start()
        return ended.wait(1.0)

    assert call(work), "another thread's call waits for this one's end"


async def an_inner_timeout_is_not_claimed(kit: Kit) -> None:
    inner = TimeoutError("inner")

    async def raises() -> None:
        raise inner

    task = asyncio.ensure_future(kit.timeout(5.0)(raises))
    await asyncio.wait([task])
    seen = task.exception()
    assert seen is inner, f"it became {type(seen).__name__}"


async def a_cancellation_wins_over_a_result(kit: Kit) -> None:
    call, gate = kit.timeout(5.0), Gate()
    task = asyncio.ensure_future(call(gate))
    await settle()
    gate.succeed()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), "the cancellation is gone"


async def an_earlier_cancellation_is_not_swallowed(kit: Kit) -> None:
    call = kit.timeout(1e-9)

    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(Exception):
            await call(lambda: asyncio.sleep(5.0))
        await asyncio.sleep(0)

    task = asyncio.ensure_future(work())
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled(), "the cancellation is gone"


async def cancelled_waiters_cost_no_place(kit: Kit) -> None:
    call, gate = kit.bulkhead(2, 20), Gate()
    holders = [asyncio.ensure_future(call(gate)) for _ in range(2)]
    await settle()
    waiters = [asyncio.ensure_future(call(fine)) for _ in range(20)]
    await settle()
    await finish(*waiters, cancel=True)
    gate.succeed()
    await finish(*holders)
    after = Gate()
    tasks = [asyncio.ensure_future(call(after)) for _ in range(22)]
    await settle()
    begun, refused = after.begun, sum(task.done() for task in tasks)
    await finish(*tasks, cancel=True)
    assert begun == 2, f"{begun} of 2 places are left"
    assert not refused, f"{20 - refused} of 20 places in the line are left"


async def a_place_granted_to_a_cancelled_call_is_not_lost(kit: Kit) -> None:
    call = kit.bulkhead(1, 20)
    for turns in range(6):
        gate = Gate()
        holder = asyncio.ensure_future(call(gate))
        await settle()
        waiter = asyncio.ensure_future(call(fine))
        await settle()
        gate.succeed()
        for _ in range(turns):
            await asyncio.sleep(0)
        waiter.cancel()
        await finish(holder, waiter)
    after = asyncio.ensure_future(call(fine))
    await settle()
    done = after.done() and after.exception() is None
    await finish(after, cancel=not done)
    assert done, "its place is gone"


async def waits_do_not_overflow(kit: Kit) -> None:
    for attempt in (1, 100, 1_023, 1_024, 1_025, 100_000, 1_000_000):
        assert 0 <= kit.backoff_s(attempt) < 1e6


PROBES: tuple[Probe, ...] = (
    half_open_admits_no_more_than_its_probes,
    a_cancelled_probe_does_not_close,
    a_cancelled_probe_does_not_open,
    cancelled_calls_do_not_open,
    a_late_success_does_not_close,
    a_late_failure_does_not_reopen,
    a_late_success_counts_as_no_probe,
    a_late_failure_counts_as_no_probe,
    stragglers_do_not_extend_the_wait,
    a_probe_of_an_earlier_round_frees_no_place,
    a_straggler_from_before_frees_no_place,
    a_hung_probe_does_not_wedge,
    wall_clock_jumps_do_not_matter,
    an_ignored_outcome_does_not_close,
    an_ignored_outcome_does_not_wedge,
    calls_run_side_by_side,
    no_lock_is_held_through_a_call,
    an_inner_timeout_is_not_claimed,
    a_cancellation_wins_over_a_result,
    an_earlier_cancellation_is_not_swallowed,
    cancelled_waiters_cost_no_place,
    a_place_granted_to_a_cancelled_call_is_not_lost,
    waits_do_not_overflow,
)
