"""Breakers' states, each in a hash, and the leave to probe, which runs out by itself."""

from __future__ import annotations

from bellbuoy.adapters.redis.link import Link, Script
from bellbuoy.ports.shared import Circuit

_READ = Script("""
local held = redis.call('HMGET', KEYS[1], 'state', 'until', 'version')
if not held[1] then return {'closed', '0', '0'} end
local time = redis.call('TIME')
local left = tonumber(held[2]) - (time[1] * 1000 + math.floor(time[2] / 1000))
return {held[1], string.format('%.0f', math.max(0, left)), held[3]}
""")
_PUBLISH = Script("""
if tonumber(redis.call('HGET', KEYS[1], 'version') or '0') ~= tonumber(ARGV[3]) then return 0 end
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'until', string.format('%.0f', until_ms), 'version', ARGV[3] + 1)
return 1
""")
_LEASE = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")
_RELEASE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
""")


class RedisCircuits:
    """`bellbuoy.ports.shared.Circuits` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def read(self, name: str) -> Circuit:
        """What is known of a breaker: closed and version 0 when nothing is."""
        state, left_ms, version = await self._link.run_script(_READ, [f"circuit:{name}"], [])
        return Circuit(state.decode(), int(left_ms) / 1000, int(version))

    async def publish(self, name: str, state: str, open_s: float, version: int) -> bool:
        """Write over `version`; False when somebody else has written since."""
        args = [state, round(open_s * 1000), version]
        return bool(await self._link.run_script(_PUBLISH, [f"circuit:{name}"], args))

    async def lease_probe(self, name: str, owner: str, lease_s: float) -> bool:
        """Leave to probe, for one owner at a time; whoever has it gets it for longer."""
        args = [owner, max(1, round(lease_s * 1000))]
        return bool(await self._link.run_script(_LEASE, [f"probe-leave:{name}"], args))

    async def release_probe(self, name: str, owner: str) -> None:
        """Give the leave back; changes nothing unless `owner` has it."""
        await self._link.run_script(_RELEASE, [f"probe-leave:{name}"], [owner])
