"""A breaker's numbers, and the sets that Bellbuoy uses for its dependencies."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens, for how long, and when it closes.

    Args:
        failure_threshold: failures within the window that open it.
        recovery_timeout_s: seconds it stays open before it lets probes through.
        monitoring_window_s: seconds for which a failure counts.
        success_threshold: probes that must succeed to close it; also the most that are admitted at once.
        timeout_s: the call timeout in seconds that goes with it in a guard, and how long a probe may take before its
            place is given to another.
    """

    failure_threshold: int = 5
    recovery_timeout_s: float = 60.0
    monitoring_window_s: float = 300.0
    success_threshold: int = 3
    timeout_s: float = 10.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be greater than 0, got {getattr(self, field.name)}")

    def replace(self, **changes: Any) -> BreakerSettings:
        """The same settings with some numbers changed; raises ValueError for one that is not greater than 0."""
        return dataclasses.replace(self, **changes)


FCM = BreakerSettings(5, 60.0, 300.0, 3, 10.0)
APNS = BreakerSettings(3, 30.0, 180.0, 2, 15.0)
MONGODB = BreakerSettings(8, 20.0, 120.0, 5, 5.0)
REDIS = BreakerSettings(10, 10.0, 60.0, 3, 2.0)
# A broker that is being elected anew is back within seconds, so it is asked again soon.
RABBITMQ = BreakerSettings(5, 10.0, 60.0, 3, 5.0)
# Mail servers greylist and close connections as a matter of course, and take their time over a large message.
SMTP = BreakerSettings(10, 60.0, 300.0, 2, 30.0)
# An SMS costs money: a gateway that answers late may have sent it, so it gets the longest patience of the HTTP ones.
SMS = BreakerSettings(5, 60.0, 300.0, 2, 15.0)
