"""What processes tell each other, in Redis."""

from bellbuoy.adapters.redis.backup import RedisPlace, RedisSource
from bellbuoy.adapters.redis.circuits import RedisCircuits
from bellbuoy.adapters.redis.flags import RedisAnnouncements, RedisFlags
from bellbuoy.adapters.redis.idempotency import RedisIdempotency
from bellbuoy.adapters.redis.limits import RedisRateLimit
from bellbuoy.adapters.redis.link import Link
from bellbuoy.adapters.redis.locks import RedisLocks
from bellbuoy.adapters.redis.recipients import RedisRecipients

__all__ = [
    "Link",
    "RedisAnnouncements",
    "RedisCircuits",
    "RedisFlags",
    "RedisIdempotency",
    "RedisLocks",
    "RedisPlace",
    "RedisRateLimit",
    "RedisRecipients",
    "RedisSource",
]
