"""Readiness: cheap to ask, and not deceived by a probe that fits where a record does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import Full, StoreError, Unavailable
from bellbuoy.resilience import REDIS, CircuitBreaker
from bellbuoy.service.watch import FRESH_S, WatchedCache, WatchedLedger


class Store:
    """A ledger that does what the test says."""

    def __init__(self) -> None:
        self.probes = 0
        self.failing: dict[str, StoreError] = {}
        self.gate: asyncio.Event | None = None

    async def probe(self) -> None:
        self.probes += 1
        if self.gate is not None:
            await self.gate.wait()
        self._maybe_fail("probe")

    async def accept(self, offers: Any) -> list[Any]:
        self._maybe_fail("accept")
        return []

    async def save(self, *args: Any, **kwargs: Any) -> bool:
        self._maybe_fail("save")
        return True

    def _maybe_fail(self, method: str) -> None:
        if method in self.failing:
            raise self.failing[method]


def watched() -> tuple[Any, Store, ManualClock]:
    store, clock = Store(), ManualClock()
    return WatchedLedger(store, clock=clock), store, clock  # type: ignore[arg-type]


async def test_many_who_ask_share_one_probe() -> None:
    ledger, store, clock = watched()
    store.gate = asyncio.Event()
    asking = [asyncio.create_task(ledger.check()) for _ in range(100)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    store.gate.set()
    assert await asyncio.gather(*asking[1:]) == [0.0] * 99
    assert store.probes == 1, "it goes on when one of those who asked gives up"
    await clock.advance(FRESH_S * 0.9)
    await ledger.check()
    assert store.probes == 1
    await clock.advance(FRESH_S * 0.2)
    await ledger.check()
    assert store.probes == 2


async def test_a_probe_without_an_answer_says_that_the_ledger_is_away() -> None:
    ledger, store, clock = watched()
    store.gate = asyncio.Event()
    for _ in range(3):
        asking = asyncio.create_task(ledger.check())
        await clock.advance(2.1)
        with pytest.raises(Unavailable):
            await asking
    assert store.probes == 1, "the one that hangs is enough"
    store.gate.set()
    await ledger.check()


async def test_a_probe_that_fails_is_remembered_as_long() -> None:
    ledger, store, clock = watched()
    store.failing["probe"] = Unavailable("gone")
    for _ in range(3):
        with pytest.raises(Unavailable):
            await ledger.check()
    assert store.probes == 1
    store.failing.clear()
    await clock.advance(1.0)
    await ledger.check()


@pytest.mark.parametrize("method", ["accept", "save"])
async def test_a_real_write_that_found_no_room_counts_although_the_probe_fits(method: str) -> None:
    ledger, store, clock = watched()
    await ledger.check()
    store.failing[method] = Full("no room")
    with pytest.raises(Full):
        await getattr(ledger, method)([])
    with pytest.raises(Full):
        await ledger.check()
    # Another kind of write that fits says nothing of this one.
    await getattr(ledger, "save" if method == "accept" else "accept")([])
    with pytest.raises(Full):
        await ledger.check()
    store.failing.clear()
    await getattr(ledger, method)([])
    await ledger.check()
    store.failing[method] = Full("no room")
    with pytest.raises(Full):
        await getattr(ledger, method)([])
    await clock.advance(10.0)
    await ledger.check()  # Nobody has tried since, so it is offered again.


class Server:
    """What processes share, which does what the test says."""

    failure: StoreError | None = None

    async def probe(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def run(self) -> None:
        """Nothing to hear."""

    async def aclose(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize("failure", [Unavailable("gone"), Full("no room")])
async def test_a_cache_that_takes_nothing_is_away_until_it_does_again(failure: StoreError) -> None:
    server, clock = Server(), ManualClock()
    cache = WatchedCache(server, breaker=CircuitBreaker("redis", REDIS), clock=clock)
    assert await cache.check() is not None
    server.failure = failure
    await clock.advance(1.0)
    with pytest.raises(type(failure)):
        await cache.check()
    server.failure = None
    await clock.advance(1.0)
    assert await cache.check() is not None
