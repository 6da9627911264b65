"""Locks, and the fence that each new holder gets."""

from __future__ import annotations

from bellbuoy.adapters.redis.link import Link, Script
from bellbuoy.ports.shared import Lock

# A fence is the last one and one, or the server's time in microseconds if that is more: so it grows, too, after the
# server has lost what it held.
_ACQUIRE = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local fence = string.format('%.0f', math.max(now, tonumber(redis.call('GET', KEYS[2]) or '0') + 1))
redis.call('SET', KEYS[2], fence)
redis.call('SET', KEYS[1], fence .. '|' .. ARGV[1], 'PX', ARGV[2])
return tonumber(fence)
""")
_RENEW = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
""")
_RELEASE = Script("""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
""")


class RedisLocks:
    """`bellbuoy.ports.shared.Locks` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def acquire(self, name: str, owner: str, *, lease_s: float) -> Lock | None:
        """The lock, None when somebody has it."""
        keys = [f"lock:{name}", f"fence:{name}"]
        fence = int(await self._link.run_script(_ACQUIRE, keys, [owner, _milliseconds(lease_s)]))
        return Lock(name, owner, fence) if fence else None

    async def renew(self, lock: Lock, *, lease_s: float) -> bool:
        """Keep it for `lease_s` seconds from now; False when it is lost."""
        args = [_held(lock), _milliseconds(lease_s)]
        return bool(await self._link.run_script(_RENEW, [f"lock:{lock.name}"], args))

    async def release(self, lock: Lock) -> bool:
        """Give it back; False when it was lost before."""
        return bool(await self._link.run_script(_RELEASE, [f"lock:{lock.name}"], [_held(lock)]))


def _held(lock: Lock) -> str:
    return f"{lock.fence}|{lock.owner}"


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
