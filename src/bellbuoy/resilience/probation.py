"""How a breaker comes to trust again: probes while it is half open, and a ramp after it closed.

The counterpart of `trip`, which says when it opens: plain counters, none of which knows the breaker, waits, or reads a
clock. They exist only while they are needed, so a result of an earlier round finds nothing to change.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from bellbuoy.resilience.presets import BreakerSettings

Call = TypeVar("Call")


class Probes(Generic[Call]):
    """The calls of one half-open round: never more at once than could still be needed to close."""

    __slots__ = ("_failures", "_running", "successes")

    def __init__(self) -> None:
        self._running: dict[Call, float] = {}
        self._failures = 0
        self.successes = 0

    def room(self, settings: BreakerSettings) -> bool:
        """Whether one more may begin."""
        return len(self._running) + self.successes < settings.success_threshold

    def began(self, probe: Call, deadline: float) -> None:
        """`probe` was let through; it has hung when it has not ended at `deadline`."""
        self._running[probe] = deadline

    def hung(self, now: float) -> list[Call]:
        """Those that have hung; each still has to be reported as failed."""
        return [probe for probe, deadline in self._running.items() if deadline <= now]

    def dropped(self, probe: Call) -> None:
        """`probe` ended in a way that says nothing; its place is free again."""
        self._running.pop(probe, None)

    def succeeded(self, probe: Call, settings: BreakerSettings) -> bool:
        """`probe` ended well; returns whether the breaker is to close."""
        self.dropped(probe)
        self.successes += 1
        return self.successes >= settings.success_threshold

    def failed(self, probe: Call, settings: BreakerSettings) -> bool:
        """`probe` failed, was slow or hung; returns whether the breaker is to open again."""
        self.dropped(probe)
        self._failures += 1
        return self._failures > settings.probe_failures_max


class Ramp:
    """Admits ramp_start of the calls at first and evenly more until, after ramp_s, it admits all."""

    __slots__ = ("_began", "_credit")

    def __init__(self, now: float) -> None:
        self._began = now
        self._credit = 1.0  # The first call is admitted.

    def share(self, now: float, settings: BreakerSettings) -> float:
        """The share of the calls that is admitted at `now`; 1 says that the ramp is over."""
        passed = (now - self._began) / settings.ramp_s if settings.ramp_s > 0 else 1.0
        return min(1.0, settings.ramp_start + (1 - settings.ramp_start) * passed)

    def admits(self, share: float) -> bool:
        """Whether this call is one of the `share`. Counted out, not drawn, so that the share is exact."""
        self._credit += share
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
