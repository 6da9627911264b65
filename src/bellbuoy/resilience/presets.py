"""A breaker's numbers, and the sets that Bellbuoy uses for its dependencies."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from random import Random
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When a breaker opens, for how long, and when it closes.

    Args:
        failure_threshold: failures within the window that open it; not used with `failure_ratio`.
        recovery_timeout_s: seconds it stays open before it lets probes through.
        monitoring_window_s: seconds for which a call counts.
        success_threshold: probes that must succeed to close it; also the most that are admitted at once.
        timeout_s: the call timeout in seconds that goes with it in a guard; a probe is given up after twice that.
        consecutive: count failures in a row, whenever they were, instead of those within the window.
        failure_ratio: open when this share of the calls failed, None to go by their number.
        slow_call_s: a call that takes, or has been running for, more seconds than this is slow; None: none is.
        slow_call_ratio: open when this share of the calls was slow.
        minimum_calls: calls that a window must hold before a ratio says anything.
        window_calls: let ratios look at this many last calls, None to let them look at the last seconds.
        close_ratio: share of the probes that must succeed; 1 re-opens at the first failure.
        reopen_multiplier: how much longer it stays open each time that probing fails; 1 for always as long.
        recovery_timeout_s_max: the longest that it grows to, in seconds, before jitter.
        recovery_jitter: how much longer it may stay open by chance, as a share of the wait.
        ramp_s: seconds over which the admitted share grows to all calls after it closed; 0 for no ramp.
        ramp_start: the share that is admitted at the beginning of the ramp.
    """

    failure_threshold: int = 5
    recovery_timeout_s: float = 60.0
    monitoring_window_s: float = 300.0
    success_threshold: int = 3
    timeout_s: float = 10.0
    consecutive: bool = False
    failure_ratio: float | None = None
    slow_call_s: float | None = None
    slow_call_ratio: float = 0.5
    minimum_calls: int = 10
    window_calls: int | None = None
    close_ratio: float = 1.0
    reopen_multiplier: float = 1.0
    recovery_timeout_s_max: float = 900.0
    recovery_jitter: float = 0.0
    ramp_s: float = 0.0
    ramp_start: float = 0.1

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be greater than 0, got {value}")
        for name in ("failure_ratio", "slow_call_ratio", "close_ratio", "ramp_start"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be greater than 0 and at most 1, got {value}")
        if self.reopen_multiplier < 1:
            raise ValueError(f"reopen_multiplier must be at least 1, got {self.reopen_multiplier}")
        if self.recovery_jitter < 0 or self.ramp_s < 0:
            raise ValueError("recovery_jitter and ramp_s must not be less than 0")

    def replace(self, **changes: Any) -> BreakerSettings:
        """The same settings with some numbers changed; raises ValueError for one that makes no sense."""
        return dataclasses.replace(self, **changes)

    def open_s(self, round_: int, rng: Random) -> float:
        """Seconds to stay open after `round_` rounds of failed probes.

        min(recovery_timeout_s * reopen_multiplier^round, max) * (1 + recovery_jitter * U(0, 1)); the maximum never
        shortens `recovery_timeout_s` itself, and the exponent is bounded so that no round overflows.
        """
        longest = max(self.recovery_timeout_s_max, self.recovery_timeout_s)
        wait = self.recovery_timeout_s
        if round_ > 0 and self.reopen_multiplier > 1:
            rounds_max = math.log(longest / wait) / math.log(self.reopen_multiplier)
            wait = longest if round_ >= rounds_max else wait * self.reopen_multiplier**round_
        return wait * (1 + self.recovery_jitter * rng.random()) if self.recovery_jitter else wait

    @property
    def probe_failures_max(self) -> int:
        """Failed probes of one round that still let it close: the most F with S / (S + F) >= close_ratio."""
        return int(self.success_threshold * (1 - self.close_ratio) / self.close_ratio + 1e-9)


_POSITIVE: Final = (
    "failure_threshold",
    "recovery_timeout_s",
    "monitoring_window_s",
    "success_threshold",
    "timeout_s",
    "slow_call_s",
    "minimum_calls",
    "window_calls",
    "recovery_timeout_s_max",
)

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
# A page must go out as soon as the pager's service is back, so it is tried again soonest of those that tell people.
PAGERDUTY = BreakerSettings(5, 20.0, 300.0, 2, 10.0)
# A webhook takes about one message a second; a message that comes a minute later still does its work.
SLACK = BreakerSettings(5, 60.0, 300.0, 1, 10.0)
# Making a ticket runs the other side's automations, so a slow answer is no sign of trouble, and nothing is in a hurry.
JIRA = BreakerSettings(5, 120.0, 600.0, 1, 30.0)
