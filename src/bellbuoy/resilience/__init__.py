"""An asyncio resilience kit: circuit breaker, retry waits, timeout, bulkhead, and the guard that composes them.

It needs nothing but the standard library. State machines are plain synchronous objects without a lock: nothing awaits
between reading and changing them. Time and chance are injected.
"""

from bellbuoy.resilience.bulkhead import Bulkhead
from bellbuoy.resilience.circuit_breaker import (
    CircuitBreaker,
    CircuitClosed,
    CircuitEvent,
    CircuitHalfOpened,
    CircuitIsolated,
    CircuitOpened,
    Permit,
    Snapshot,
    State,
)
from bellbuoy.resilience.classify import Verdict, classify
from bellbuoy.resilience.guard import Guard
from bellbuoy.resilience.presets import APNS, FCM, MONGODB, RABBITMQ, REDIS, SMS, SMTP, BreakerSettings
from bellbuoy.resilience.retry import RetrySettings
from bellbuoy.resilience.timeout import Timeout

__all__ = [
    "APNS",
    "FCM",
    "MONGODB",
    "RABBITMQ",
    "REDIS",
    "SMS",
    "SMTP",
    "BreakerSettings",
    "Bulkhead",
    "CircuitBreaker",
    "CircuitClosed",
    "CircuitEvent",
    "CircuitHalfOpened",
    "CircuitIsolated",
    "CircuitOpened",
    "Guard",
    "Permit",
    "RetrySettings",
    "Snapshot",
    "State",
    "Timeout",
    "Verdict",
    "classify",
]
