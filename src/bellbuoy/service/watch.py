"""The stores inside their guards; and how each is, known from its real work and from a few probes a second at most.

An acceptance that takes too long is left to itself, not cancelled: nobody could tell whether it came about. When it
does after all, its lease is given back, since whoever asked has put the notification elsewhere and works on nothing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from bellbuoy.clock import Clock
from bellbuoy.errors import ExecutionRejected, Full, StoreError, TimeoutExceeded, Unavailable
from bellbuoy.ports.ledger import Ledger, Offer, Taken
from bellbuoy.ports.queue import Queue
from bellbuoy.resilience import CircuitBreaker, Timeout

FRESH_S = 0.3
"""How old a probe may be and still answer: each is an fsync, and whoever can reach the port may ask."""

PROBE_S = 2.0
"""Seconds after which a probe without an answer says that the ledger is away. It goes on; no other begins meanwhile."""

REFUSAL_S = 10.0
"""How long a refused write counts when no other follows: without traffic only the probe can find out."""


class WatchedLedger:
    """A ledger that remembers when it refused a write for lack of room; everything else passes through.

    A probe's one small row still fits where a record no longer does, so what the real writes met says more.

    Args:
        ledger: what is watched.
        clock: for the age of what was seen.
        breaker: around every acceptance: one that takes longer than `timeout_s` counts as a failure, and with the
            breaker open none is tried. None for neither.
        timeout_s: seconds.
        remote: whether it is on a server; then everything goes through the breaker, and keeps to its own deadline.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        breaker: CircuitBreaker | None = None,
        timeout_s: float = 5.0,
        remote: bool = False,
    ) -> None:
        self._remote = remote
        self._ledger = ledger
        self._clock = clock
        self.breaker = breaker
        self._timeout = Timeout(timeout_s, clock=clock, name="ledger")
        self._late: set[asyncio.Task[Any]] = set()
        self._refusals: dict[str, tuple[float, Full]] = {}
        self._probe = _Probe(ledger.probe, clock, breaker)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if not self._remote or self.breaker is None or name in ("probe", "aclose", "examine", "where"):
            return found
        inside = guarded(self.breaker, found)
        setattr(self, name, inside)  # The next one who asks finds it at once.
        return inside

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        """Put notifications in.

        Raises:
            Full: no room; nothing was written.
            Unavailable: not confirmed in time, or not tried because it was away a moment ago.
        """
        try:
            if self.breaker is None:
                taken = await self._ledger.accept(offers)
            else:
                taken = await self.breaker.call(self._timeout.call, self._accept, offers)
        except Full as error:
            self._refusals["accept"] = (self._clock.monotonic(), error)
            raise
        except (ExecutionRejected, TimeoutExceeded) as error:
            retry_after_s = getattr(error, "retry_after_s", None) or FRESH_S
            raise Unavailable("the ledger does not answer in time", retry_after_s=retry_after_s) from error
        if self._refusals:
            self._refusals.pop("accept", None)
        return taken

    async def _accept(self, offers: Sequence[Offer]) -> list[Taken]:
        asked = asyncio.ensure_future(self._ledger.accept(offers))
        try:
            return await asyncio.shield(asked)
        except asyncio.CancelledError:
            self._leave(self._given_back(offers, asked))
            raise

    async def _given_back(self, offers: Sequence[Offer], asked: asyncio.Future[list[Taken]]) -> None:
        try:
            taken = await asked
            for offer, one in zip(offers, taken, strict=True):
                if one.kind == "new" and offer.owner is not None:
                    due_at = max(self._clock.time(), offer.record.not_before or 0.0)
                    await self._ledger.abandon(offer.record.id, 1, due_at=due_at)
        except StoreError:
            return  # It was not written, or its lease ends by itself once nobody renews it.

    def _leave(self, rest: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(rest, name="late-acceptance")
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def save(self, *args: Any, **kwargs: Any) -> bool:
        """Write a claimed notification."""
        try:
            if self._remote and self.breaker is not None:
                asked: bool = await guarded(self.breaker, self._ledger.save)(*args, **kwargs)
            else:
                asked = await self._ledger.save(*args, **kwargs)
        except Full as error:
            self._refusals["save"] = (self._clock.monotonic(), error)
            raise
        if self._refusals:
            self._refusals.pop("save", None)
        return asked

    async def check(self) -> float | None:
        """How long the last probe took, in milliseconds; however many ask, one probe runs at a time.

        Raises:
            Full: it has no room, for the probe or for the last real write of its kind.
            Unavailable: it cannot be read or written, or did not answer in `PROBE_S`.
        """
        latency_ms, failure = await self._probe.result()
        for at, refusal in self._refusals.values():
            if self._clock.monotonic() - at < REFUSAL_S:
                raise refusal
        if failure is not None:
            raise failure
        return latency_ms


class GuardedQueue:
    """A queue whose breaker and time limits are around whatever puts something in or asks how it is.

    Args:
        queue: what is guarded.
        breaker: opened by what fails or takes too long; with it open nothing is tried.
        clock: for the time limits.
    """

    def __init__(self, queue: Queue, *, breaker: CircuitBreaker, clock: Clock) -> None:
        self.unguarded = self._queue = queue
        self.breaker = breaker
        self._timeout = Timeout(breaker.settings.timeout_s, clock=clock, name="queue")
        self.check = _Probe(queue.probe, clock, breaker).check
        for name in ("put", "depth"):
            setattr(self, name, guarded(breaker, functools.partial(self._timeout.call, getattr(queue, name))))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


class WatchedCache:
    """What processes share, on a server: how it is.

    Args:
        server: its questions go through the breaker already.
        breaker: the one that they go through.
        clock: for the age of what was seen.
    """

    def __init__(self, server: CacheServer, *, breaker: CircuitBreaker, clock: Clock) -> None:
        self._server = server
        self.breaker = breaker
        self.check = _Probe(server.probe, clock, None).check
        self.run, self.aclose = server.run, server.aclose


class CacheServer(Protocol):
    """The connection to what processes share."""

    async def probe(self) -> None: ...

    async def run(self) -> None: ...

    async def aclose(self) -> None: ...


class _Probe:
    """Asks a store how it is, at most once a second however many want to know.

    It goes through the store's breaker: without traffic nothing else would find out that the store is back.
    """

    def __init__(
        self, probe: Callable[[], Coroutine[Any, Any, None]], clock: Clock, breaker: CircuitBreaker | None
    ) -> None:
        self._probe = probe if breaker is None else guarded(breaker, probe)
        self._clock = clock
        self._patience = Timeout(PROBE_S, clock=clock, name="probe")
        self._running: asyncio.Task[None] | None = None
        self._at = float("-inf")
        self._failure: StoreError | None = None
        self._latency_ms: float | None = None

    async def check(self) -> float | None:
        """How long the last probe took, in milliseconds. Raises Full, Unavailable."""
        latency_ms, failure = await self.result()
        if failure is not None:
            raise failure
        return latency_ms

    async def result(self) -> tuple[float | None, StoreError | None]:
        """What the last probe took in milliseconds, and why it failed."""
        if self._running is None and self._clock.monotonic() - self._at >= FRESH_S:
            self._running = asyncio.create_task(self._run(), name="probe")
        if self._running is not None:
            try:
                await self._patience.call(asyncio.shield, self._running)
            except TimeoutExceeded:
                return None, Unavailable(f"no answer for {PROBE_S:g} s", retry_after_s=FRESH_S)
        return self._latency_ms, self._failure

    async def _run(self) -> None:
        began = self._clock.monotonic()
        try:
            await self._probe()
        except StoreError as error:
            self._failure, self._latency_ms = error, None
        else:
            self._failure, self._latency_ms = None, (self._clock.monotonic() - began) * 1000
        finally:
            self._running = None
            self._at = self._clock.monotonic()


def guarded(breaker: CircuitBreaker, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` inside the breaker, with a refusal or a lack of time told as any other absence."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await breaker.call(fn, *args, **kwargs)
        except (ExecutionRejected, TimeoutExceeded) as error:
            retry_after_s = getattr(error, "retry_after_s", None) or FRESH_S
            raise Unavailable(f"{breaker.name} does not answer", retry_after_s=retry_after_s) from error

    return call
