"""An asyncio resilience kit: circuit breaker, retry, timeout, bulkhead and more, and the guard that composes them.

It needs nothing but the standard library. State machines are plain synchronous objects without a lock: nothing awaits
between reading and changing them. Time and chance are injected.
"""

from bellbuoy.errors import (
    BulkheadFull,
    CircuitOpen,
    DeadlineExceeded,
    ExecutionRejected,
    RateLimited,
    TimeoutExceeded,
)
from bellbuoy.resilience.budget import Reservation, RetryBudget
from bellbuoy.resilience.bulkhead import Bulkhead
from bellbuoy.resilience.circuit_breaker import CircuitBreaker, Permit, Snapshot, State
from bellbuoy.resilience.classify import Classifier, Verdict, classify, retry_after_of
from bellbuoy.resilience.events import (
    CallRefused,
    CallTimedOut,
    CircuitClosed,
    CircuitDisabled,
    CircuitEvent,
    CircuitHalfOpened,
    CircuitIsolated,
    CircuitOpened,
    Event,
    Events,
    EventStream,
    RetryExhausted,
    RetryScheduled,
)
from bellbuoy.resilience.guard import CompositionWarning, Guard, Policy
from bellbuoy.resilience.presets import (
    APNS,
    FCM,
    JIRA,
    MONGODB,
    PAGERDUTY,
    RABBITMQ,
    REDIS,
    SLACK,
    SMS,
    SMTP,
    BreakerSettings,
)
from bellbuoy.resilience.retry import Attempt, Reschedule, Retry, RetrySettings, retryable
from bellbuoy.resilience.timeout import Timeout, deadline, remaining_s

__all__ = [
    "APNS",
    "FCM",
    "JIRA",
    "MONGODB",
    "PAGERDUTY",
    "RABBITMQ",
    "REDIS",
    "SLACK",
    "SMS",
    "SMTP",
    "Attempt",
    "BreakerSettings",
    "Bulkhead",
    "BulkheadFull",
    "CallRefused",
    "CallTimedOut",
    "CircuitBreaker",
    "CircuitClosed",
    "CircuitDisabled",
    "CircuitEvent",
    "CircuitHalfOpened",
    "CircuitIsolated",
    "CircuitOpen",
    "CircuitOpened",
    "Classifier",
    "CompositionWarning",
    "DeadlineExceeded",
    "Event",
    "EventStream",
    "Events",
    "ExecutionRejected",
    "Guard",
    "Permit",
    "Policy",
    "RateLimited",
    "Reschedule",
    "Reservation",
    "Retry",
    "RetryBudget",
    "RetryExhausted",
    "RetryScheduled",
    "RetrySettings",
    "Snapshot",
    "State",
    "Timeout",
    "TimeoutExceeded",
    "Verdict",
    "classify",
    "deadline",
    "remaining_s",
    "retry_after_of",
    "retryable",
]
