"""Our kit passes every probe, and the probes can fail."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.conformance import probes, probes_of_policies
from tests.conformance.kits import Bellbuoy, Breaker, Call, Ignored, Kit


@pytest.mark.parametrize("probe", [*probes.PROBES, *probes_of_policies.PROBES], ids=lambda probe: probe.__name__)
async def test_ours_passes(probe: probes.Probe) -> None:
    async with asyncio.timeout(20):
        await probe(Bellbuoy())


class Naive(Kit):
    """What one writes in five minutes, with most of the mistakes that kits were seen to make."""

    name, module = "naive", "asyncio"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        failed, opened_at = 0, 0.0

        async def call(fn: Call) -> Any:
            nonlocal failed, opened_at
            now = asyncio.get_running_loop().time()
            if failed >= failures and now < opened_at + open_s:
                raise ConnectionAbortedError
            try:
                result = await fn()
            except BaseException:
                failed += 1
                opened_at = asyncio.get_running_loop().time()
                raise
            failed = 0
            return result

        return Breaker(call, ConnectionAbortedError)

    def timeout(self, timeout_s: float) -> Any:
        async def call(fn: Call) -> Any:
            try:
                async with asyncio.timeout(timeout_s):
                    return await fn()
            except TimeoutError as error:
                raise TimeoutError("mine") from error

        return call

    def bulkhead(self, places: int, waiting: int) -> Any:
        free, queue = places, list[asyncio.Future[None]]()

        async def call(fn: Call) -> Any:
            nonlocal free
            if free == 0:
                place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                queue.append(place)
                await place
            else:
                free -= 1
            try:
                return await fn()
            finally:
                if queue:
                    place = queue.pop(0)
                    if not place.done():
                        place.set_result(None)
                else:
                    free += 1

        return call

    def backoff_s(self, attempt: int) -> float:
        return float(min(30.0, 2.0**attempt))

    def result_breaker(self, failures: int, bad: object) -> Breaker:
        return self.breaker(failures=failures, open_s=60.0, probes=1)

    def budgeted(self, ratio: float, per_second_min: float) -> Any:
        async def call(fn: Call) -> Any:
            try:
                return await fn()
            except ConnectionError as error:
                if ratio:  # Only after the wait is it asked whether there may be another attempt at all.
                    await asyncio.sleep(1.0)
                raise RuntimeError("budget exceeded") from error

        return call

    def within(self, deadline_s: float) -> Any:
        async def call(fn: Call) -> Any:
            while True:
                with contextlib.suppress(ConnectionError):
                    return await fn()
                await asyncio.sleep(0.15)

        return call


class Careless(Kit):
    """Counts probes, and forgets who they were; goes by the wall clock; takes a cancellation for an end like others."""

    name, module = "careless", "asyncio"
    ignored_frees = True

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        failed = running = 0
        opened_at: float | None = None

        async def call(fn: Call) -> Any:
            nonlocal failed, running, opened_at
            if opened_at is not None:
                if time.time() < opened_at + open_s or running >= probes:
                    raise ConnectionAbortedError
                running += 1
            try:
                result = await fn()
            except ConnectionError:
                failed += 1
                if opened_at is not None or failed >= failures:
                    opened_at, running = time.time(), 0
                raise
            except Ignored:
                if self.ignored_frees:
                    failed, running, opened_at = 0, 0, None
                raise
            except asyncio.CancelledError:
                failed, running, opened_at = 0, 0, None
                raise
            failed, running, opened_at = 0, 0, None
            return result

        return Breaker(call, ConnectionAbortedError)

    def timeout(self, timeout_s: float) -> Any:
        async def call(fn: Call) -> Any:
            task = asyncio.ensure_future(fn())
            try:
                await asyncio.wait([task], timeout=timeout_s)
            except asyncio.CancelledError:
                if task.done():
                    return task.result()
                task.cancel()
                raise TimeoutError from None
            return task.result()

        return call


class Wedging(Careless):
    """An outcome that it is told to ignore keeps its place for ever."""

    ignored_frees = False


class Unfenced(Kit):
    """Has proper states, and asks no result which of them it is of."""

    name, module = "unfenced", "asyncio"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        state, failed, since = "closed", 0, 0.0

        async def call(fn: Call) -> Any:
            nonlocal state, failed, since
            if state == "open":
                if time.monotonic() < since + open_s:
                    raise ConnectionAbortedError
                state = "half open"
            try:
                result = await fn()
            except ConnectionError:
                failed += 1
                if state == "half open" or failed >= failures:
                    state, since = "open", time.monotonic()
                raise
            if state == "half open":
                state, failed = "closed", 0
            return result

        return Breaker(call, ConnectionAbortedError)


class Locking(Kit):
    """Holds a lock through the call."""

    name, module = "locking", "asyncio"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        lock = asyncio.Lock()

        async def call(fn: Call) -> Any:
            async with lock:
                return await fn()

        return Breaker(call, ConnectionAbortedError)

    def blocking_breaker(self) -> Any:
        lock = threading.Lock()

        def call(fn: Callable[[], Any]) -> Any:
            with lock:
                return fn()

        return call


_CAUGHT: dict[probes.Probe, type[Kit]] = {
    probes.half_open_admits_no_more_than_its_probes: Naive,
    probes.a_cancelled_probe_does_not_close: Careless,
    probes.a_cancelled_probe_does_not_open: Naive,
    probes.cancelled_calls_do_not_open: Naive,
    probes.a_late_success_does_not_close: Naive,
    probes.a_late_failure_does_not_reopen: Naive,
    probes.a_late_success_counts_as_no_probe: Unfenced,
    probes.a_late_failure_counts_as_no_probe: Unfenced,
    probes.stragglers_do_not_extend_the_wait: Naive,
    probes.a_probe_of_an_earlier_round_frees_no_place: Careless,
    probes.a_straggler_from_before_frees_no_place: Careless,
    probes.a_hung_probe_does_not_wedge: Careless,
    probes.wall_clock_jumps_do_not_matter: Careless,
    probes.an_ignored_outcome_does_not_close: Careless,
    probes.an_ignored_outcome_does_not_wedge: Wedging,
    probes.calls_run_side_by_side: Locking,
    probes.no_lock_is_held_through_a_call: Locking,
    probes.an_inner_timeout_is_not_claimed: Naive,
    probes.a_cancellation_wins_over_a_result: Careless,
    probes.an_earlier_cancellation_is_not_swallowed: Careless,
    probes.cancelled_waiters_cost_no_place: Naive,
    probes.a_place_granted_to_a_cancelled_call_is_not_lost: Naive,
    probes.waits_do_not_overflow: Naive,
    probes_of_policies.a_total_deadline_is_not_overrun: Naive,
    probes_of_policies.bad_results_reach_the_breaker: Naive,
    probes_of_policies.a_callers_mistakes_do_not_open: Naive,
    probes_of_policies.a_budget_is_charged_before_the_wait: Naive,
    probes_of_policies.a_spent_budget_does_not_hide_the_error: Naive,
    probes_of_policies.a_budgets_floor_is_honoured: Naive,
}


@pytest.mark.parametrize(("probe", "kit"), _CAUGHT.items(), ids=lambda one: one.__name__)
async def test_a_bad_one_is_caught(probe: probes.Probe, kit: type[Kit]) -> None:
    with pytest.raises((AssertionError, OverflowError, ConnectionAbortedError, asyncio.TimeoutError)):
        await asyncio.wait_for(asyncio.ensure_future(probe(kit())), 3)


def test_every_probe_that_other_kits_are_judged_by_can_fail() -> None:
    ours = {probe for probe in probes_of_policies.PROBES if "_ours" in probe.__code__.co_names}
    assert {*probes.PROBES, *probes_of_policies.PROBES} - ours == {*_CAUGHT}
