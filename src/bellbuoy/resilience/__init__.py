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
from bellbuoy.resilience.adaptive_limit import AdaptiveLimit, Aimd, Gradient
from bellbuoy.resilience.adaptive_timeout import AdaptiveTimeout
from bellbuoy.resilience.backoff import RetrySettings, retryable
from bellbuoy.resilience.budget import Reservation, RetryBudget
from bellbuoy.resilience.bulkhead import Bulkhead
from bellbuoy.resilience.chaos import Chaos
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
    FellBack,
    HedgeStarted,
    LimitChanged,
    RetryExhausted,
    RetryScheduled,
    SharedStateLost,
    SharedStateRegained,
)
from bellbuoy.resilience.fallback import Fallback, LastGood
from bellbuoy.resilience.guard import CompositionWarning, Guard, Policy
from bellbuoy.resilience.hedge import Hedge
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
from bellbuoy.resilience.retry import Attempt, Reschedule, Retry
from bellbuoy.resilience.saga import (
    MemorySagaLog,
    NotVerified,
    Saga,
    SagaFailed,
    SagaLog,
    SagaState,
    Step,
    StepState,
)
from bellbuoy.resilience.shared import MemoryStore, SharedBreaker, SharedCircuit, SharedStore
from bellbuoy.resilience.throttle import AdaptiveThrottle, RateLimit
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
    "AdaptiveLimit",
    "AdaptiveThrottle",
    "AdaptiveTimeout",
    "Aimd",
    "Attempt",
    "BreakerSettings",
    "Bulkhead",
    "BulkheadFull",
    "CallRefused",
    "CallTimedOut",
    "Chaos",
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
    "Fallback",
    "FellBack",
    "Gradient",
    "Guard",
    "Hedge",
    "HedgeStarted",
    "LastGood",
    "LimitChanged",
    "MemorySagaLog",
    "MemoryStore",
    "NotVerified",
    "Permit",
    "Policy",
    "RateLimit",
    "RateLimited",
    "Reschedule",
    "Reservation",
    "Retry",
    "RetryBudget",
    "RetryExhausted",
    "RetryScheduled",
    "RetrySettings",
    "Saga",
    "SagaFailed",
    "SagaLog",
    "SagaState",
    "SharedBreaker",
    "SharedCircuit",
    "SharedStateLost",
    "SharedStateRegained",
    "SharedStore",
    "Snapshot",
    "State",
    "Step",
    "StepState",
    "Timeout",
    "TimeoutExceeded",
    "Verdict",
    "classify",
    "deadline",
    "remaining_s",
    "retry_after_of",
    "retryable",
]
