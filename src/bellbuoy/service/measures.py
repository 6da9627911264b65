"""What is measured before a change and after it, from the same calls that health is judged by."""

from __future__ import annotations

from collections.abc import Mapping

from bellbuoy.clock import Clock
from bellbuoy.health.meters import Meters
from bellbuoy.model.change import Figures
from bellbuoy.service.telemetry import ServiceTelemetry


class ServiceMeasures:
    """Implements `bellbuoy.recovery.changes.Measures`."""

    def __init__(self, telemetry: ServiceTelemetry, *, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._since: dict[str, Meters] = {}

    def now(self) -> Mapping[str, Figures]:
        return self._figures(self._telemetry.meters)

    def begin(self, id: str, window_s: float) -> None:
        if id not in self._since:
            # The part of the window that is being filled counts whole, so a longer window forgets nothing of the watch.
            meters = self._since[id] = Meters(window_s * 1.5, calls_min=1)
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
