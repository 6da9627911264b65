"""What Redis holds, for a backup: its own snapshot is asked for, and every key is copied as Redis writes it itself.

No correctness rests on Redis, so a restore of the others goes without it: it fills itself. This is for who wants it
back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bellbuoy.adapters.redis.link import PREFIX, Link
from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, Damaged, Unavailable
from bellbuoy.ports.archive import Change, Snapshot, Unchanging

PAGE = 500
"""Keys in one call."""

SAVE_S_MAX = 120.0
"""Seconds in which Redis must have written its own snapshot."""

KEYS_FILE = "keys.msgpack"


class Dumped(Struct, frozen=True, array_like=True):
    """A key, the milliseconds that it had to live (0 for ever), and its value in Redis's own form."""

    key: bytes
    left_ms: int
    value: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Dumped]).decode


class RedisSource(Unchanging):
    """Implements `bellbuoy.ports.archive.Source`, without changes.

    Args:
        link: the way to Redis.
        clock: for times and waiting.
    """

    name = "cache"
    guarantee = "each key as it was at some moment of the backup; Redis has written its own snapshot then too"

    def __init__(self, link: Link, *, clock: Clock) -> None:
        self._link = link
        self._clock = clock

    async def full(self, folder: Path) -> Snapshot:
        """See `Source.full`."""
        await self._save()
        at, cursor = self._clock.time(), 0
        with (folder / KEYS_FILE).open("wb") as file:
            while True:
                cursor, page = await self._link.ask(_dumper(cursor))
                if page:
                    data = _encode(page)
                    await asyncio.to_thread(file.write, len(data).to_bytes(4, "little") + data)
                if cursor == 0:
                    break
        return Snapshot("", 0, at, [KEYS_FILE])

    async def _save(self) -> None:
        """Have Redis write its own snapshot. Raises Unavailable when it says that it could not."""

        async def begin(redis: Any) -> int:
            before: int = (await redis.info("persistence"))["rdb_saves"]
            await redis.bgsave(schedule=True)
            return before

        async def look(redis: Any) -> dict[str, Any]:
            found: dict[str, Any] = await redis.info("persistence")
            return found

        before = await self._link.ask(begin)
        end = self._clock.monotonic() + SAVE_S_MAX
        while self._clock.monotonic() < end:
            found = await self._link.ask(look)
            if found["rdb_last_bgsave_status"] != "ok":
                raise Unavailable("Redis could not write its snapshot", hint="look at its log: disk, memory, rights")
            if found["rdb_saves"] > before and not found["rdb_bgsave_in_progress"]:
                return
            await self._clock.sleep(0.1)
        raise Unavailable(f"Redis has not written its snapshot within {SAVE_S_MAX:.0f} s")

    async def aclose(self) -> None:
        """See `Source.aclose`."""
        await self._link.aclose()


class RedisPlace:
    """Implements `bellbuoy.ports.archive.Place`.

    Args:
        link: the way to a Redis without keys of ours.
        replace: whether those make way.
    """

    name = "cache"

    def __init__(self, link: Link, *, replace: bool = False) -> None:
        self._link = link
        self._replace = replace

    async def begin(self, folder: Path) -> None:
        """See `Place.begin`."""
        cursor, there = await self._link.ask(_dumper(0))
        if (there or cursor) and not self._replace:
            raise Conflict("Redis has keys of ours already", hint="take an empty one, or replace them with --force")
        with (folder / KEYS_FILE).open("rb") as file:
            while head := file.read(4):
                data = file.read(int.from_bytes(head, "little"))
                try:
                    page = _decode(data)
                except msgspec.DecodeError:
                    raise Damaged("the copy of the cache cannot be read") from None
                await self._link.ask(_restorer(page))

    async def apply(self, changes: Sequence[Change]) -> None:
        """There are none."""

    async def finish(self, timeline: str) -> None:
        """It is in use as soon as somebody asks it."""


def _dumper(cursor: int) -> Any:
    """A question for the next keys after a cursor; one that has gone meanwhile is left out."""

    async def work(redis: Any) -> tuple[int, list[Dumped]]:
        after, keys = await redis.scan(cursor, match=f"{PREFIX}*", count=PAGE)
        async with redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.dump(key)
                pipeline.pttl(key)
            found = await pipeline.execute()
        pairs = zip(keys, found[::2], found[1::2], strict=True)
        return after, [Dumped(key, max(0, left), value) for key, value, left in pairs if value is not None]

    return work


def _restorer(page: Sequence[Dumped]) -> Any:
    async def work(redis: Any) -> None:
        async with redis.pipeline(transaction=False) as pipeline:
            for one in page:
                pipeline.restore(one.key, one.left_ms, one.value, replace=True)
            await pipeline.execute()

    return work
