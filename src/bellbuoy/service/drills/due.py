"""Which planned drills are due. They are reported and never run by themselves: breaking things is for a person."""

from __future__ import annotations

from collections.abc import Sequence

from bellbuoy.clock import Clock
from bellbuoy.continuity.drill import DrillReport, Due, due
from bellbuoy.service.drills.records import Records
from bellbuoy.service.sections import Drills
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry

LOOK_EVERY_S = 300.0


def planned(plan: Drills, reports: Sequence[DrillReport], *, since: float) -> list[Due]:
    """When each planned drill is due; `since` as in `due`."""
    return due({"monthly": plan.monthly, "quarterly": plan.quarterly, "annual": plan.annual}, reports, since=since)


class DrillsDue:
    """Keeps the metric of what is overdue up to date.

    Args:
        settings: the plan, and where the records are.
        clock: for the dates.
        telemetry: has the metric.
    """

    def __init__(self, settings: Settings, *, clock: Clock, telemetry: ServiceTelemetry) -> None:
        self._plan = settings.drills
        self._records = Records(settings.data.dir)
        self._clock = clock
        self._telemetry = telemetry
        self._told: set[str] = set()
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Look every few minutes, until cancelled."""
        while True:
            try:
                self.look()
            except OSError as error:
                self._telemetry.event("drills_not_read", why=error.strerror or type(error).__name__)
            await self._clock.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Look now. Raises OSError."""
        now, kept = self._clock.time(), self._records.all()
        for name in kept.unreadable:
            if name not in self._unreadable:
                self._telemetry.event("drill_record_unreadable", file=name)
        self._unreadable = set(kept.unreadable)
        for one in planned(self._plan, kept.reports, since=self._records.since(now)):
            overdue = one.overdue(now)
            self._telemetry.drill_overdue.labels(one.drill).set(float(overdue))
            if overdue and one.drill not in self._told:
                self._telemetry.event("drill_overdue", drill=one.drill, every=one.every)
            self._told = self._told | {one.drill} if overdue else self._told - {one.drill}
