"""What is measured before a change and after it, from the same calls that health is judged by."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from bellbuoy.clock import Clock
from bellbuoy.health.meters import Meters
from bellbuoy.model.change import Figures
from bellbuoy.service.telemetry import ServiceTelemetry

REMEMBERED_S = 8.0
"""How long after a change a process may hear of it and still know what it measured before."""

_CALLS_MAX = 50_000


class _Recent:
    """The calls of the last seconds, each for itself, and at most `_CALLS_MAX` of them."""

    def __init__(self) -> None:
        self._calls: deque[tuple[str, float, float | None, bool, int]] = deque(maxlen=_CALLS_MAX)

    def add(self, dependency: str, now: float, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        self._calls.append((dependency, now, seconds, failed, calls))

    def forget(self, before: float) -> None:
        while self._calls and self._calls[0][1] < before:
            self._calls.popleft()

    def tell(self, meters: Meters, since: float) -> None:
        """Give `meters` what ended after a moment in monotonic seconds."""
        for dependency, at, seconds, failed, calls in self._calls:
            if at >= since:
                meters.add(dependency, at, seconds, failed=failed, calls=calls)


class ServiceMeasures:
    """Implements `bellbuoy.recovery.changes.Measures`."""

    def __init__(self, telemetry: ServiceTelemetry, *, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._recent = _Recent()
        self._remembered: deque[tuple[float, Mapping[str, Figures]]] = deque()
        self._since: dict[str, Meters] = {}
        telemetry.more_meters.append(self._recent)

    def now(self) -> Mapping[str, Figures]:
        return self._figures(self._telemetry.meters)

    def remember(self) -> None:
        now = self._clock.time()
        self._recent.forget(self._clock.monotonic() - REMEMBERED_S)
        self._remembered.append((now, self.now()))
        while self._remembered[0][0] < now - REMEMBERED_S:
            self._remembered.popleft()

    def before(self, at: float) -> Mapping[str, Figures] | None:
        return next((figures for then, figures in reversed(self._remembered) if then <= at), None)

    def begin(self, id: str, at: float, window_s: float) -> None:
        if id in self._since:
            return
        # The part of the window that is being filled counts whole, so a longer window forgets nothing of the watch.
        meters = self._since[id] = Meters(window_s * 1.5, calls_min=1)
        self._recent.tell(meters, self._clock.monotonic() - (self._clock.time() - at))
        self._telemetry.more_meters.append(meters)

    def since(self, id: str) -> Mapping[str, Figures]:
        meters = self._since.get(id)
        return {} if meters is None else self._figures(meters)

    def end(self, id: str) -> None:
        meters = self._since.pop(id, None)
        if meters is not None:
            self._telemetry.more_meters.remove(meters)

    def _figures(self, meters: Meters) -> dict[str, Figures]:
        now = self._clock.monotonic()
        readings = {name: meter.reading(now) for name, meter in meters.of.items()}
        return {name: Figures(one.calls, one.failures, one.p95_s) for name, one in readings.items() if one.calls}
