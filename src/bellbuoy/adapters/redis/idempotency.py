"""Which notifications were accepted under a key, each under its id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bellbuoy.adapters.redis.link import PREFIX, Link
from bellbuoy.ports.shared import REMEMBERED_S, Remembered

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Remembered).decode


class RedisIdempotency:
    """`bellbuoy.ports.shared.IdempotencyMemory` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def find(self, ids: Sequence[str]) -> Mapping[str, Remembered]:
        """What is known of these ids."""

        async def work(redis: Any) -> list[bytes | None]:
            found: list[bytes | None] = await redis.mget([_key(one) for one in ids])
            return found

        found = await self._link.ask(work) if ids else []
        pairs = zip(ids, map(_known, found), strict=True)
        return {one: known for one, known in pairs if known is not None}

    async def remember(self, accepted: Sequence[Remembered]) -> None:
        """These were confirmed by a home; what is known of an id already stays."""

        async def work(redis: Any) -> None:
            async with redis.pipeline(transaction=False) as pipeline:
                for one in accepted:
                    pipeline.set(_key(one.id), _encode(one), ex=int(REMEMBERED_S), nx=True)
                await pipeline.execute()

        if accepted:
            await self._link.ask(work)


def _known(kept: bytes | None) -> Remembered | None:
    try:
        return None if kept is None else _decode(kept)
    except msgspec.MsgspecError:
        return None  # Another version of this program wrote it.


def _key(notification_id: str) -> str:
    return f"{PREFIX}accepted:{notification_id}"
