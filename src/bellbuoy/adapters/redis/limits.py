"""A rate over all processes: the theoretical arrival time of the next place, by the server's clock."""

from __future__ import annotations

from bellbuoy.adapters.redis.link import Link, Script

# The generic cell rate algorithm of ITU-T I.371 in microseconds, which a double holds exactly. A place is taken when it
# comes within the longest wait; otherwise nothing changes.
_RESERVE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, tolerance, longest = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local due = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
local wait = math.max(0, due - tolerance - now)
if wait > longest then return -1 end
local next_due = due + interval
redis.call('SET', KEYS[1], string.format('%.0f', next_due), 'PX', math.ceil((next_due - now) / 1000) + 1000)
return math.ceil(wait)
""")


class RedisRateLimit:
    """`bellbuoy.ports.shared.RateLimit` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def reserve(self, name: str, *, rate_per_s: float, burst: int, wait_s_max: float) -> float | None:
        """Seconds until the place that was taken may be used; None when that is too long."""
        interval = 1e6 / rate_per_s
        numbers = [round(interval), round(interval * (burst - 1)), round(wait_s_max * 1e6)]
        wait = int(await self._link.run_script(_RESERVE, [f"rate:{name}"], numbers))
        return None if wait < 0 else wait / 1e6
