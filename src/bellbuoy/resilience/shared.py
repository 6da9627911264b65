"""One breaker's state for several processes: told to a store beside the calls, never asked for during one.

Each process goes by its own breaker. A task of its own tells the store when that opens or closes, and takes over what
others told. The store's clock is the only one whose times are compared. To probe after an outage a process needs a
lease, which carries its owner and runs out by itself, so that one that dies holds nobody up. When the store is away
each process goes on by what it sees itself, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.resilience.circuit_breaker import CircuitBreaker, State
from bellbuoy.resilience.events import (
    CircuitClosed,
    CircuitIsolated,
    CircuitOpened,
    Event,
    Events,
    SharedStateLost,
    SharedStateRegained,
)


@dataclass(frozen=True, slots=True)
class SharedCircuit:
    """What the store holds: `state`, for how many more seconds if it is open, and the version to write against."""

    state: State
    open_s: float
    version: int


class SharedStore(Protocol):
    """Where processes meet. Each method is atomic and may raise anything when the store is away."""

    async def read(self, name: str) -> SharedCircuit:
        """What is known of `name`; closed and version 0 when nothing is."""
        ...

    async def publish(self, name: str, state: State, open_s: float, version: int) -> bool:
        """Write over `version`; False when somebody else has written since, and then nothing is changed."""
        ...

    async def lease_probe(self, name: str, owner: str, lease_s: float) -> bool:
        """Leave to probe, for one owner at a time; True for the owner who has it already, who keeps it longer."""
        ...

    async def release_probe(self, name: str, owner: str) -> None:
        """Give the leave back; changes nothing unless `owner` has it."""
        ...


class MemoryStore:
    """A store for the breakers of one process, and for tests."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = clock or SystemClock()
        self._circuits: dict[str, tuple[State, float, int]] = {}
        self._leases: dict[str, tuple[str, float]] = {}

    async def read(self, name: str) -> SharedCircuit:
        state, until, version = self._circuits.get(name, (State.CLOSED, 0.0, 0))
        return SharedCircuit(state, max(0.0, until - self._clock.monotonic()), version)

    async def publish(self, name: str, state: State, open_s: float, version: int) -> bool:
        if self._circuits.get(name, (State.CLOSED, 0.0, 0))[2] != version:
            return False
        self._circuits[name] = (state, self._clock.monotonic() + open_s, version + 1)
        return True

    async def lease_probe(self, name: str, owner: str, lease_s: float) -> bool:
        now = self._clock.monotonic()
        holder, until = self._leases.get(name, (owner, 0.0))
        if holder != owner and until > now:
            return False
        self._leases[name] = (owner, now + lease_s)
        return True

    async def release_probe(self, name: str, owner: str) -> None:
        if self._leases.get(name, ("", 0.0))[0] == owner:
            del self._leases[name]


class SharedBreaker:
    """Keeps a breaker and a store in step.

    Args:
        breaker: the local one; it gets a gate that holds probes back until this process has the leave.
        store: where the others are met.
        owner: names this process among them.
        interval_s: seconds between two looks at the store.
        timeout_s: seconds after which the store counts as away.
        probing: whether this process calls what is guarded. One that does not only follows the others: with the leave
            to probe it would hold them all up.
        clock: waits.
        on_event: told when the store is lost and when it is back.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        store: SharedStore,
        *,
        owner: str,
        interval_s: float = 1.0,
        timeout_s: float = 0.5,
        probing: bool = True,
        clock: Clock | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.breaker = breaker
        self.store = store
        self.owner = owner
        self.interval_s = interval_s
        self.timeout_s = timeout_s
        self.probing = probing
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._clock: Clock = clock or SystemClock()
        self._version = 0
        self._to_tell: CircuitOpened | CircuitClosed | CircuitIsolated | None = None
        self._told_at = 0.0
        self._adopting = False
        self._lost = False
        self._leased = False
        self._leased_at = self._abstaining_until = float("-inf")
        breaker.gate = self._may_probe
        breaker.events.listen(self._heard)

    async def run(self) -> None:
        """Keep them in step until cancelled."""
        while True:
            await self.sync()
            await self._clock.sleep(self.interval_s)

    async def sync(self) -> None:
        """Look once: tell what changed here, take over what changed elsewhere, and ask for the leave to probe."""
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._tell()
                await self._take_over()
                await self._lease()
        except Exception as error:
            if not self._lost:
                self._lost = True
                self.events.emit(SharedStateLost(self.breaker.name, self._clock.time(), repr(error)))
        else:
            if self._lost:
                self._lost = False
                self.events.emit(SharedStateRegained(self.breaker.name, self._clock.time()))

    def _may_probe(self) -> bool:
        return self._lost or self._leased

    def _heard(self, event: Event) -> None:
        if not self._adopting and isinstance(event, (CircuitOpened, CircuitClosed, CircuitIsolated)):
            self._to_tell = event
            self._told_at = self._clock.monotonic()

    async def _tell(self) -> None:
        event = self._to_tell
        if event is None:
            return
        state, open_s = State.CLOSED, 0.0
        if isinstance(event, CircuitIsolated):
            state = State.ISOLATED
        elif isinstance(event, CircuitOpened):
            state, open_s = State.OPEN, max(0.0, event.retry_after_s - (self._clock.monotonic() - self._told_at))
        if await self.store.publish(self.breaker.name, state, open_s, self._version):
            self._version += 1
        if self._to_tell is event:  # Otherwise something newer happened while the store was writing.
            self._to_tell = None

    async def _take_over(self) -> None:
        theirs = await self.store.read(self.breaker.name)
        if theirs.version < self._version:
            # The store has lost what it held. What is open here must not be closed by that: it is told anew.
            self._to_tell = self._to_tell or self._open_here()
            if self._to_tell is not None:
                self._version = theirs.version
        if theirs.version == self._version or self._to_tell is not None:
            return
        self._version = theirs.version
        self._adopting = True
        try:
            if theirs.state is State.ISOLATED:
                self.breaker.isolate()
            elif theirs.state is State.CLOSED:
                self.breaker.close()
            elif theirs.open_s > 0:
                self.breaker.open("shared", for_s=theirs.open_s)
        finally:
            self._adopting = False

    def _open_here(self) -> CircuitOpened | CircuitIsolated | None:
        name, now, wait_s = self.breaker.name, self._clock.time(), self.breaker.retry_after_s
        self._told_at = self._clock.monotonic()
        if self.breaker.state is State.ISOLATED:
            return CircuitIsolated(name, now)
        return CircuitOpened(name, now, 0, wait_s, "shared") if wait_s is not None else None

    async def _lease(self) -> None:
        name, now = self.breaker.name, self._clock.monotonic()
        lease_s = 2 * self.breaker.settings.timeout_s + 2 * self.interval_s
        if self._leased and now - self._leased_at > lease_s:
            # Nothing came of it in the time that probes take: perhaps nobody calls here. It is the others' turn.
            self._abstaining_until = now + lease_s
        if self.breaker.state is State.HALF_OPEN and self.probing and now >= self._abstaining_until:
            had, self._leased = self._leased, await self.store.lease_probe(name, self.owner, lease_s)
            self._leased_at = self._leased_at if had else now
        elif self._leased:
            self._leased = False
            await self.store.release_probe(name, self.owner)
