"""Those who watch what happens in this process, each with a bounded queue: who is too slow is told what it missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Mapping

from bellbuoy.clock import Clock, heard
from bellbuoy.errors import RateLimited, Unavailable

WATCHERS_MAX = 50
"""Those who may watch one process at a time."""

WAITING_MAX = 1_000
"""Events that wait for one of them; then the oldest are missed."""

LAST = "service_stopping"
"""The event after which nothing is to be waited for, so that the process can end."""

Event = tuple[int, float, str, Mapping[str, object]]
"""Its number in this process, its epoch second, its name and its fields."""


class Watchers:
    """Hands events to those who watch.

    Args:
        clock: for times and ticks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watchers: list[Watcher] = []
        self._number = 0
        self._over = False

    def heard(self, name: str, fields: Mapping[str, object]) -> None:
        """Give an event to everybody; never waits."""
        self._number += 1
        self._over = self._over or name == LAST
        for watcher in self._watchers:
            watcher.put((self._number, self._clock.time(), name, fields))

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watcher]:
        """Somebody who hears everything from now on.

        Raises:
            RateLimited: there are as many as there may be.
            Unavailable: the process stops.
        """
        if self._over:
            raise Unavailable("the process stops", retry_after_s=1.0)
        if len(self._watchers) >= WATCHERS_MAX:
            raise RateLimited(f"{WATCHERS_MAX} streams are open in this process", retry_after_s=5.0)
        watcher = Watcher(self._clock)
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)


class Watcher:
    """One reader's events."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._missed = 0
        self._wake = asyncio.Event()

    def put(self, event: Event) -> None:
        if len(self._waiting) == WAITING_MAX:
            self._missed += 1
        self._waiting.append(event)
        self._wake.set()

    async def take(self, wait_s: float) -> tuple[int, list[Event]]:
        """How many were missed, and what came within `wait_s` seconds."""
        if not self._waiting:
            await heard(self._wake, wait_s, clock=self._clock)
        self._wake.clear()
        found, missed = list(self._waiting), self._missed
        self._waiting.clear()
        self._missed = 0
        return missed, found
