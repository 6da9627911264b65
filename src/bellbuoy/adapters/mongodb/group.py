"""Many callers' writes as one call: what arrives while a write is under way goes out together with the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from bellbuoy.adapters.mongodb.database import CALL_S, busy
from bellbuoy.adapters.mongodb.faults import RETRY_AFTER_S, Contended
from bellbuoy.errors import ConfigurationError, Full, Unavailable

Row = TypeVar("Row")
Result = TypeVar("Result")

PENDING_MAX = 50_000
"""Writes that may wait; the next is refused with `Full` rather than grow the queue."""

WEIGHT_MAX = 1_000
"""Documents in one write, so that it stays short; MongoDB advises no more in a transaction."""

ALONE_MAX = 16
"""Writes under way at once where a group is taken apart."""

_LEFT_S_MIN = 0.1
"""A write that has less time left is not begun: it would take its neighbours' time away."""


class _Waiting(Generic[Row, Result]):
    """A row, who waits for its result, and until when."""

    __slots__ = ("end", "future", "row")

    def __init__(self, row: Row, future: asyncio.Future[Result], end: float) -> None:
        self.row, self.future, self.end = row, future, end


class Group(Generic[Row, Result]):
    """Gathers the writes of one kind.

    Args:
        write: writes rows within so many seconds; returns for each its result, or the exception that refused it alone.
        weight: how many documents a row writes.
        key: what a row writes to where no two rows of one write may write to the same; None where they may.

    Concurrency: one write is under way at a time. A cancelled caller's row is written all the same.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Row], float], Awaitable[Sequence[Result | Exception]]],
        *,
        weight: Callable[[Row], int] = lambda row: 1,
        key: Callable[[Row], Hashable] | None = None,
    ) -> None:
        self._write = write
        self._weight = weight
        self._key = key
        self._pending: deque[_Waiting[Row, Result]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def put(self, row: Row) -> Result:
        """Write a row; returns or raises within `CALL_S` seconds.

        Raises:
            Full: too many are waiting; nothing was written.
            Unavailable: no answer in time; it may have been written all the same.
            Exception: what `write` returned for this row.
        """
        if len(self._pending) >= PENDING_MAX:
            raise Full("too many writes are waiting for MongoDB", retry_after_s=RETRY_AFTER_S)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._pending.append(_Waiting(row, future, loop.time() + CALL_S))
        if self._running is None or self._running.done():
            self._running = loop.create_task(self._run(), name="ledger-write")
        return await future

    async def aclose(self) -> None:
        """Write what was handed over. Safe to call twice."""
        if self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        while self._pending:
            batch = self._next()
            if batch:
                await self._together(batch)

    def _next(self) -> list[_Waiting[Row, Result]]:
        """The rows of the next write; one that writes to what an earlier row does waits for the write after."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting[Row, Result]] = []
        later: list[_Waiting[Row, Result]] = []
        taken: set[Hashable] = set()
        weight = 0
        while self._pending and weight < WEIGHT_MAX and len(later) < WEIGHT_MAX:
            one = self._pending.popleft()
            key = self._key(one.row) if self._key is not None else None
            if one.end - now < _LEFT_S_MIN:
                _resolve(one, Unavailable("MongoDB did not answer in time", retry_after_s=RETRY_AFTER_S))
            elif key is not None and key in taken:
                later.append(one)
            else:
                taken.add(key)
                batch.append(one)
                weight += self._weight(one.row)
        self._pending.extendleft(reversed(later))
        return batch

    async def _together(self, batch: list[_Waiting[Row, Result]]) -> None:
        left_s = min(one.end for one in batch) - asyncio.get_running_loop().time()
        results: Sequence[Result | Exception]
        try:
            results = await self._write([one.row for one in batch], left_s)
        except (Unavailable, Full, ConfigurationError) as error:
            results = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                # One of them is at fault. Alone, each meets only its own fate.
                await self._apart(batch)
                return
            results = [busy() if isinstance(error, Contended) else error]
        for one, result in zip(batch, results, strict=True):
            _resolve(one, result)

    async def _apart(self, batch: list[_Waiting[Row, Result]]) -> None:
        places = asyncio.Semaphore(ALONE_MAX)

        async def alone(one: _Waiting[Row, Result]) -> None:
            async with places:
                await self._together([one])

        await asyncio.gather(*(alone(one) for one in batch))


def _resolve(one: _Waiting[Row, Result], result: Result | Exception) -> None:
    if one.future.done():
        return
    if isinstance(result, Exception):
        one.future.set_exception(result)
    else:
        one.future.set_result(result)
