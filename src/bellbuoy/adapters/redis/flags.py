"""Operators' switches in one hash, and who works in which modes in another."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bellbuoy.adapters.redis.link import PREFIX, Link, Script

_FLAGS, _MODES = "flags", "modes"

_WRITE = Script("""
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
redis.call('PUBLISH', KEYS[2], ARGV[1])
""")
# Each field is the millisecond until which it holds, a bar, and the modes. Old servers have no expiry of a field.
_ANNOUNCE = Script("""
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', until_ms) .. '|' .. ARGV[2])
""")
_ANNOUNCED = Script("""
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local all, found = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
  local bar = string.find(all[i + 1], '|', 1, true)
  if tonumber(string.sub(all[i + 1], 1, bar - 1)) <= now_ms then redis.call('HDEL', KEYS[1], all[i])
  else found[#found + 1] = all[i]; found[#found + 1] = string.sub(all[i + 1], bar + 1) end
end
return found
""")


class RedisFlags:
    """`bellbuoy.ports.shared.FlagStore` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def read(self) -> Mapping[str, bool]:
        """All that were ever switched."""

        async def work(redis: Any) -> dict[bytes, bytes]:
            found: dict[bytes, bytes] = await redis.hgetall(PREFIX + _FLAGS)
            return found

        return {name.decode(): value == b"on" for name, value in (await self._link.ask(work)).items()}

    async def write(self, name: str, on: bool | None) -> None:
        """Switch one on or off; None forgets it."""
        await self._link.run_script(_WRITE, [_FLAGS, _FLAGS], [name, "" if on is None else "on" if on else "off"])

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called soon after a switch, and when one may have been missed."""
        self._link.listen(_FLAGS, lambda _: changed())


class RedisAnnouncements:
    """`bellbuoy.ports.shared.Announcements` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def announce(self, worker: str, modes: Sequence[str], *, life_s: float) -> None:
        """`worker` is in these modes, for `life_s` seconds."""
        await self._link.run_script(_ANNOUNCE, [_MODES], [worker, json.dumps(modes), int(life_s * 1000)])

    async def withdraw(self, worker: str) -> None:
        """`worker` is no more."""

        async def work(redis: Any) -> None:
            await redis.hdel(PREFIX + _MODES, worker)

        await self._link.ask(work)

    async def announced(self) -> Mapping[str, tuple[str, ...]]:
        """Every worker that announced itself and its modes."""
        found = await self._link.run_script(_ANNOUNCED, [_MODES], [])
        pairs = zip(found[::2], found[1::2], strict=True)
        return {worker.decode(): tuple(json.loads(modes)) for worker, modes in pairs}
