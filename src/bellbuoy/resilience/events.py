"""What policies tell: one dataclass for each thing that happens, given to callbacks at once and to async streams.

Callbacks run inside the call that caused the event, so they should be quick. One that raises is logged and forgotten:
a broken observer must not fail the call that it observes. A stream keeps the newest events and says how many it lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeAlias

_log = logging.getLogger("bellbuoy.resilience")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to the policy `name` at `at`, in seconds since the epoch."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class CircuitEvent(Event):
    """A breaker changed state."""


@dataclass(frozen=True, slots=True)
class CircuitOpened(CircuitEvent):
    """It refuses calls for `retry_after_s` seconds, after `failure_count` failures within its window.

    `reason` is `failures`, `slow_calls`, `probe` (a probe failed), `lease` (a probe hung) or `shared` (another process
    opened it). `shadow` True: it only measures and refuses nothing.
    """

    failure_count: int
    retry_after_s: float
    reason: str = "failures"
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class CircuitHalfOpened(CircuitEvent):
    """It admits probes."""


@dataclass(frozen=True, slots=True)
class CircuitClosed(CircuitEvent):
    """It admits calls; a share that grows to all of them while it ramps up."""


@dataclass(frozen=True, slots=True)
class CircuitIsolated(CircuitEvent):
    """It was opened by hand and stays so until it is closed by hand."""


@dataclass(frozen=True, slots=True)
class CircuitDisabled(CircuitEvent):
    """It was switched off by hand: it admits everything and learns nothing."""


@dataclass(frozen=True, slots=True)
class RetryScheduled(Event):
    """Attempt number `attempt` failed and the next follows in `delay_s` seconds."""

    attempt: int
    delay_s: float
    error: str


@dataclass(frozen=True, slots=True)
class RetryExhausted(Event):
    """Attempt number `attempt` was the last: `because` is `attempts`, `budget`, `deadline` or `final`."""

    attempt: int
    because: str
    error: str


@dataclass(frozen=True, slots=True)
class CallTimedOut(Event):
    """A call was cut off after `timeout_s` seconds; `started` False: it had never begun."""

    timeout_s: float
    started: bool


@dataclass(frozen=True, slots=True)
class CallRefused(Event):
    """A call was refused before it ran; `code` is that of the error that says why."""

    code: str


@dataclass(frozen=True, slots=True)
class LimitChanged(Event):
    """An adaptive limit now admits `limit` calls at once, before `was`."""

    was: int
    limit: int


@dataclass(frozen=True, slots=True)
class FellBack(Event):
    """A call failed with `error` and the fallback answered in its place."""

    error: str


@dataclass(frozen=True, slots=True)
class HedgeStarted(Event):
    """Try number `attempt` was started because the earlier ones had not answered."""

    attempt: int


@dataclass(frozen=True, slots=True)
class SharedStateLost(Event):
    """The shared store cannot be reached: each process goes on by what it sees itself."""

    error: str


@dataclass(frozen=True, slots=True)
class SharedStateRegained(Event):
    """The shared store answers again."""


Listener: TypeAlias = Callable[[Event], None]


class Events:
    """Where policies leave their events and observers pick them up; it may be shared by many policies."""

    __slots__ = ("_listeners", "_streams")

    def __init__(self, *listeners: Callable[..., None]) -> None:
        self._listeners: list[Callable[..., None]] = list(listeners)
        self._streams: list[EventStream] = []

    def emit(self, event: Event) -> None:
        """Give `event` to everybody who listens; never raises."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                _log.exception("an event listener failed on %r", event)
        for stream in self._streams:
            stream.put(event)

    def listen(self, listener: Callable[..., None]) -> Callable[[], None]:
        """Call `listener` with each event from now on; returns the function that ends it."""
        self._listeners.append(listener)

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return end

    def stream(self, keep_max: int = 1_000) -> EventStream:
        """The events from now on, to be read with `async for`; at most `keep_max` wait unread, the oldest go first."""
        stream = EventStream(self, keep_max)
        self._streams.append(stream)
        return stream

    def _end(self, stream: EventStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)


class EventStream(AsyncIterator[Event]):
    """Events as an async iterator with one reader; `lost` counts those that were not read in time."""

    __slots__ = ("_closed", "_events", "_source", "_waiter", "lost")

    def __init__(self, source: Events, keep_max: int) -> None:
        self._source = source
        self._events: deque[Event] = deque(maxlen=keep_max)
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self.lost = 0

    def put(self, event: Event) -> None:
        """Keep `event` for the reader."""
        if len(self._events) == self._events.maxlen:
            self.lost += 1
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """End the stream; the reader still gets what was kept."""
        self._closed = True
        self._source._end(self)
        self._wake()

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._events.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
