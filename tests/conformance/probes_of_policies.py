"""Probes of what only few kits have: budgets, deadlines, hedging, adaptive limits, shared state.

Those of hedging with a budget, adaptive limits and shared state are written against our names, and the matrix judges no
other kit by them: no other one here has the first two, and interlock-cb's shared state speaks to another form of store.
"""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import Any

from tests.conformance.kits import Bellbuoy, Kit, NotOffered
from tests.conformance.probes import Gate, broken, fine, finish, settle


def _ours(kit: Kit) -> Bellbuoy:
    if not isinstance(kit, Bellbuoy):
        raise NotOffered
    return kit


async def a_total_deadline_is_not_overrun(kit: Kit) -> None:
    began = kit.now()
    task = asyncio.ensure_future(kit.within(0.2)(broken))
    await settle()
    for _ in range(20):
        if task.done():
            break
        await kit.wait(0.05)
    taken_s = kit.now() - began
    ended = task.done()
    await finish(task, cancel=True)
    # A real clock is read after the end, and the loop may be late; the next attempt would be 0.1 s too late.
    assert ended, "it goes on"
    assert taken_s < 0.29, f"it ended after {taken_s:.2f} s"


async def bad_results_reach_the_breaker(kit: Kit) -> None:
    breaker = kit.result_breaker(3, "fine")
    for _ in range(3):
        with contextlib.suppress(Exception):
            await breaker.call(fine)
    assert await breaker.refuses(), "it did not open"


async def a_callers_mistakes_do_not_open(kit: Kit) -> None:
    async def mistaken() -> None:
        raise kit.mistake()

    breaker = kit.breaker(failures=3, open_s=60.0, probes=1)
    for _ in range(100):
        with contextlib.suppress(Exception):
            await breaker.call(mistaken)
    assert not await breaker.refuses(), "it opened"


async def a_budget_is_charged_before_the_wait(kit: Kit) -> None:
    call = kit.budgeted(0.1, 0.0)
    tasks = [asyncio.ensure_future(call(broken)) for _ in range(100)]
    await settle()
    waiting = sum(not task.done() for task in tasks)
    await finish(*tasks, cancel=True)
    assert waiting <= 10, f"{waiting} of 100 wait"


async def a_spent_budget_does_not_hide_the_error(kit: Kit) -> None:
    task = asyncio.ensure_future(kit.budgeted(0.0, 0.0)(broken))
    await asyncio.wait([task])
    assert isinstance(task.exception(), ConnectionError), repr(task.exception())


async def a_budgets_floor_is_honoured(kit: Kit) -> None:
    call = kit.budgeted(0.0, 1.0)
    tasks = [asyncio.ensure_future(call(broken)) for _ in range(50)]
    await settle()
    waiting = sum(not task.done() for task in tasks)
    await finish(*tasks, cancel=True)
    assert waiting == 10, f"{waiting} of 50 wait for another attempt where one a second over 10 s is allowed"


async def a_spent_budget_leaves_running_hedges_alone(kit: Kit) -> None:
    ours, gate = _ours(kit), Gate()
    budget = ours.kit.RetryBudget(ratio=0.0, per_second_min=0.1, clock=ours.clock)
    hedge = ours.kit.Hedge(1.0, attempts_max=5, budget=budget, clock=ours.clock)
    task = asyncio.ensure_future(hedge.call(gate))
    await settle()
    for _ in range(5):
        await kit.wait(1.0)
    begun = gate.begun
    gate.succeed()
    assert await task == "late"
    assert begun == 2, f"{begun} were begun"


async def an_adaptive_limit_stays_bounded(kit: Kit) -> None:
    limit = _ours(kit).kit.Gradient(initial=20, limit_max=10_000)
    for n in range(20_000):
        limit.ended(n / 10, 0.1 * max(1.0, limit.limit / 30), limit.limit, dropped=False)
    assert 30 <= limit.limit < 80, f"it is {limit.limit} where 30 can be served"


async def an_adaptive_limit_minds_drops(kit: Kit) -> None:
    limit = _ours(kit).kit.Gradient(initial=50)
    for n in range(10):
        limit.ended(n * 1.0, 0.1, 50, dropped=True)
    assert limit.limit < 25, f"it is {limit.limit} of 50 after ten drops"


async def an_adaptive_limit_keeps_its_baseline(kit: Kit) -> None:
    limit, rng = _ours(kit).kit.Gradient(initial=20), Random(1)
    limit.ended(0.0, 0.1, 20, dropped=False)
    for n in range(5_000):
        limit.ended(1 + n / 10, rng.uniform(0.5, 1.5), 20, dropped=False)
    assert limit.baseline_s < 0.15, f"it became {limit.baseline_s:.2f} s where 0.1 s is normal"


def _fleet(ours: Bellbuoy, store: Any) -> tuple[list[Any], list[Any]]:
    settings = ours.kit.BreakerSettings(3, 10.0, 60.0, 1, 5.0)
    breakers = [ours.kit.CircuitBreaker("them", settings, clock=ours.clock) for _ in range(2)]
    return breakers, [
        ours.kit.SharedBreaker(breaker, store, owner=str(n), clock=ours.clock) for n, breaker in enumerate(breakers)
    ]


async def a_leaked_probe_lease_does_not_wedge_the_fleet(kit: Kit) -> None:
    ours = _ours(kit)
    breakers, shared = _fleet(ours, ours.kit.MemoryStore(ours.clock))
    for _ in range(3):
        breakers[0].admit().failure(ConnectionError())
    for one in shared:
        await one.sync()
    await kit.wait(10.0)
    await shared[0].sync()  # It takes the leave to probe and is never heard of again.
    await kit.wait(60.0)
    await shared[1].sync()
    assert await breakers[1].call(fine) == "fine"


async def concurrent_writes_are_not_lost(kit: Kit) -> None:
    ours = _ours(kit)
    store = ours.kit.MemoryStore(ours.clock)
    written = [await store.publish("them", ours.kit.State.OPEN, 10.0, 0) for _ in range(2)]
    assert written == [True, False]


async def without_the_store_calls_go_on(kit: Kit) -> None:
    ours = _ours(kit)

    class Away:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError("store")

    breakers, shared = _fleet(ours, Away())
    for one in shared:
        await one.sync()
    assert await breakers[0].call(fine) == "fine"
    for _ in range(3):
        breakers[0].admit().failure(ConnectionError())
    await kit.wait(10.0)
    assert await breakers[0].call(fine) == "fine"


PROBES = (
    a_total_deadline_is_not_overrun,
    bad_results_reach_the_breaker,
    a_callers_mistakes_do_not_open,
    a_budget_is_charged_before_the_wait,
    a_spent_budget_does_not_hide_the_error,
    a_budgets_floor_is_honoured,
    a_spent_budget_leaves_running_hedges_alone,
    an_adaptive_limit_stays_bounded,
    an_adaptive_limit_minds_drops,
    an_adaptive_limit_keeps_its_baseline,
    a_leaked_probe_lease_does_not_wedge_the_fleet,
    concurrent_writes_are_not_lost,
    without_the_store_calls_go_on,
)
