"""A queue in this process, for simulations and tests of what works with one; nothing in it outlives the process."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from bellbuoy.clock import Clock, heard
from bellbuoy.errors import Full
from bellbuoy.ports.queue import LANES, Handed, Lane, Message

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class MemoryQueue:
    """`bellbuoy.ports.queue.Queue` without a broker.

    Args:
        clock: for delays.
        room: messages that may be in it.
        times_max: how often a message is handed out before it goes to the dead.
    """

    def __init__(self, *, clock: Clock, room: int = 100_000, times_max: int = 20) -> None:
        self._clock = clock
        self._room = room
        self._times_max = times_max
        # Encoded, as they are on a wire: whoever puts a message in may change its record afterwards.
        self._ready: dict[Lane, deque[tuple[bytes, int]]] = {lane: deque() for lane in LANES}
        self._later: list[tuple[float, int, Lane, bytes]] = []
        self._out: dict[str, tuple[Lane, bytes, int]] = {}
        self._dead: deque[tuple[Lane, bytes, int]] = deque()
        self._numbers = itertools.count()
        self._turn = itertools.count(1)
        self._came = asyncio.Event()

    async def put(self, lane: Lane, messages: Sequence[Message], *, delay_s: float = 0.0) -> None:
        """Put messages in. Raises Full."""
        if sum(map(len, self._ready.values())) + len(self._later) + len(self._out) + len(messages) > self._room:
            raise Full("the queue has no room", retry_after_s=1.0)
        for message in messages:
            body = _encode(message)
            if delay_s > 0:
                heapq.heappush(self._later, (self._clock.monotonic() + delay_s, next(self._numbers), lane, body))
            else:
                self._ready[lane].append((body, 0))
        self._came.set()

    async def take(self, lanes: Sequence[Lane], *, limit: int, wait_s: float) -> list[Handed]:
        """At most `limit` messages, those of the first lane first."""
        if not self._any(lanes):
            self._came.clear()
            await heard(self._came, min(wait_s, self._next_s()), clock=self._clock)
        self._any(lanes)
        # Every tenth time the last lane comes first, so that it is not starved.
        order = list(reversed(lanes)) if next(self._turn) % 10 == 0 else lanes
        found: list[Handed] = []
        for lane in order:
            while self._ready[lane] and len(found) < limit:
                found.append(self._hand(lane, *self._ready[lane].popleft()))
        return found

    async def acknowledge(self, handed: Sequence[Handed]) -> None:
        """Let go of messages for good."""
        for one in handed:
            self._out.pop(one.tag, None)

    async def give_back(self, handed: Sequence[Handed]) -> None:
        """Have messages handed out again."""
        for one in handed:
            if (there := self._out.pop(one.tag, None)) is not None:
                self._again(*there)

    async def dead(self, *, limit: int) -> list[Handed]:
        """At most `limit` messages that were handed out too often."""
        return [self._hand(*self._dead.popleft()) for _ in range(min(limit, len(self._dead)))]

    async def depth(self) -> Mapping[str, int]:
        """How many messages wait in each lane, and in `dead`."""
        waiting: dict[str, int] = {lane: len(ready) for lane, ready in self._ready.items()}
        for _, _, lane, _ in self._later:
            waiting[lane] += 1
        return {**waiting, "dead": len(self._dead)}

    async def reconnect(self) -> None:
        """There is nothing between it and its callers."""

    async def probe(self) -> None:
        """It is there."""

    async def aclose(self) -> None:
        """Give back what is out."""
        for there in [self._out.pop(tag) for tag in list(self._out)]:
            self._again(*there)

    def _any(self, lanes: Sequence[Lane]) -> bool:
        """Whether something is ready, what has come due included."""
        while self._later and self._later[0][0] <= self._clock.monotonic():
            _, _, lane, body = heapq.heappop(self._later)
            self._ready[lane].append((body, 0))
        return any(self._ready[lane] for lane in lanes)

    def _next_s(self) -> float:
        return max(0.0, self._later[0][0] - self._clock.monotonic()) if self._later else float("inf")

    def _hand(self, lane: Lane, body: bytes, times: int) -> Handed:
        tag = str(next(self._numbers))
        self._out[tag] = (lane, body, times)
        return Handed(_decode(body), lane, tag, times)

    def _again(self, lane: Lane, body: bytes, times: int) -> None:
        if times + 1 >= self._times_max:
            self._dead.append((lane, body, times + 1))
        else:
            self._ready[lane].append((body, times + 1))
            self._came.set()
