"""Our kit passes every probe, and the probes can fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.conformance import probes, probes_of_policies
from tests.conformance.kits import Bellbuoy, Breaker, Call, Kit


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


_CAUGHT = (
    probes.half_open_admits_no_more_than_its_probes,
    probes.a_cancelled_probe_does_not_open,
    probes.cancelled_calls_do_not_open,
    probes.a_late_success_does_not_close,
    probes.a_late_failure_does_not_reopen,
    probes.stragglers_do_not_extend_the_wait,
    probes.an_inner_timeout_is_not_claimed,
    probes.cancelled_waiters_cost_no_place,
    probes.a_place_granted_to_a_cancelled_call_is_not_lost,
    probes.waits_do_not_overflow,
)


@pytest.mark.parametrize("probe", _CAUGHT, ids=lambda probe: probe.__name__)
async def test_a_naive_one_is_caught(probe: Any) -> None:
    async def run() -> None:
        found: Awaitable[None] = probe(Naive())
        await asyncio.wait_for(found, 3)

    with pytest.raises((AssertionError, OverflowError, asyncio.TimeoutError)):
        await run()
