"""Users' last known state, each under a key of its own, and word of each change in a channel."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from bellbuoy.adapters.redis.link import Link, Script
from bellbuoy.model.recipient import User
from bellbuoy.ports.shared import UserKey

KEPT_S = 24 * 3600
"""Seconds for which a user is known unless the ledger says it again."""

GUARD_S = 15
"""Seconds after a change in which nothing is kept: longer than from reading a user in the ledger to keeping it."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(User).decode

# What is kept begins with the second of the last change of many users at once; with another one it is not known.
_FIND = Script("""
local kept = redis.call('GET', KEYS[1])
if not kept then return false end
local since = redis.call('GET', KEYS[2]) or '0'
local bar = string.find(kept, '|', 1, true)
if string.sub(kept, 1, bar - 1) ~= since then return false end
return string.sub(kept, bar + 1)
""")
_KEEP = Script("""
local since = redis.call('GET', KEYS[2]) or '0'
local change = redis.call('GET', KEYS[3])
if change and change ~= ARGV[4] then return 0 end
if tonumber(redis.call('TIME')[1]) - tonumber(since) < tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], since .. '|' .. ARGV[1], 'EX', ARGV[2])
return 1
""")
# A server without room lets a script go on that began with what frees some, so a change is told there too.
_FORGET = Script("""
for i = 3, #ARGV do redis.call('PUBLISH', KEYS[#KEYS], ARGV[i]) end
for i = 1, #KEYS - 1, 2 do redis.call('DEL', KEYS[i]) end
for i = 2, #KEYS - 1, 2 do redis.call('SET', KEYS[i], ARGV[2], 'EX', ARGV[1]) end
""")
_FORGET_ALL = Script("""
redis.call('PUBLISH', KEYS[2], 'null')
redis.call('SET', KEYS[1], redis.call('TIME')[1])
""")
_CHANNEL, _SINCE = "users", "users:since"


class RedisRecipients:
    """`bellbuoy.ports.shared.Recipients` in Redis."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def live(self) -> bool:
        """Whether every change is heard of at this moment."""
        return self._link.live

    async def find(self, tenant: str, user_id: str) -> User | None:
        """The user as last kept; None when nothing is known."""
        kept = await self._link.run_script(_FIND, [_key("user", (tenant, user_id)), _SINCE], [])
        try:
            return None if kept is None else _decode(kept)
        except msgspec.MsgspecError:
            return None  # Another version of this program kept it.

    async def keep(self, tenant: str, user: User, *, after: str = "") -> bool:
        """Remember what the ledger just said; False when it may be old."""
        key = (tenant, user.user_id)
        keys = [_key("user", key), _SINCE, _key("changed", key)]
        return bool(await self._link.run_script(_KEEP, keys, [_encode(user), KEPT_S, GUARD_S, after]))

    async def forget(self, keys: Sequence[UserKey] | None, *, change: str) -> None:
        """Somebody changed these users; None: any number of them."""
        if keys is None:
            await self._link.run_script(_FORGET_ALL, [_SINCE, _CHANNEL], [])
        elif keys:
            names = [_key(what, key) for key in keys for what in ("user", "changed")]
            args = [GUARD_S, change, *(json.dumps(key) for key in keys)]
            await self._link.run_script(_FORGET, [*names, _CHANNEL], args)

    def listen(self, changed: Callable[[UserKey | None], None]) -> None:
        """Have `changed` called with each user that is forgotten; with None when any may have changed."""

        def heard(said: bytes | None) -> None:
            key: Any = None if said is None else json.loads(said)
            changed(None if key is None else (key[0], key[1]))

        self._link.listen(_CHANNEL, heard)


def _key(what: str, key: UserKey) -> str:
    tenant, user_id = key
    return f"{what}:{len(tenant)}:{tenant}:{user_id}"
