"""What operators change while the service runs, put together: flags, settings, templates, and the watch over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bellbuoy.clock import Clock
from bellbuoy.delivery.send import Lane
from bellbuoy.health.flags import Flags
from bellbuoy.health.monitor import Monitor
from bellbuoy.ports.values import Values
from bellbuoy.recovery.changes import Changes
from bellbuoy.recovery.judge import Bounds
from bellbuoy.recovery.rollback import Rollback, RollbackSettings
from bellbuoy.service.live import LiveSettings
from bellbuoy.service.measures import ServiceMeasures
from bellbuoy.service.mending import Mending
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import Stores
from bellbuoy.service.telemetry import ServiceTelemetry


@dataclass
class Steering:
    """What operators turn."""

    values: Values
    flags: Flags
    live: LiveSettings
    changes: Changes
    rollback: Rollback


def wire_flags(flags: Flags, monitor: Monitor, telemetry: ServiceTelemetry) -> None:
    """The modes go by the flags, and some flags by the modes."""
    flags.on_change.append(monitor.refresh)
    monitor.on_change.append(lambda: flags.heed(frozenset(monitor.modes)))
    telemetry.analytics = lambda: flags.is_on("analytics_tracking")


def build_steering(
    settings: Settings,
    stores: Stores,
    values: Values,
    flags: Flags,
    live: LiveSettings,
    mending: Mending,
    lanes: Mapping[str, Lane],
    *,
    owner: str,
    clock: Clock,
    telemetry: ServiceTelemetry,
) -> Steering:
    """Put together what changes values, and what watches the changes."""
    numbers = settings.rollback
    measures = ServiceMeasures(telemetry, clock=clock)

    async def go_by_flag(name: str, value: Any) -> None:
        await flags.changed(name, value)

    async def go_by_setting(name: str, value: Any) -> None:
        await live.load()

    async def go_by_template(name: str, value: Any) -> None:
        """Nobody remembers templates; each is read when it is rendered."""

    changes = Changes(
        values,
        measures,
        watched=numbers.enabled,
        applied={"flag": go_by_flag, "setting": go_by_setting, "template": go_by_template},
        clock=clock,
        telemetry=telemetry,
    )
    rollback = Rollback(
        owner,
        values=values,
        changes=changes,
        measures=measures,
        providers=lanes.keys(),
        incidents=mending.incidents,
        store=stores.control,
        locks=stores.leading,
        escalate=mending.escalate,
        settings=RollbackSettings(
            watch_s=numbers.watch_s,
            bounds=Bounds(
                error_rate_worse_by=numbers.error_rate_worse_by,
                p95_worse_times=numbers.p95_worse_times,
                calls_min=numbers.calls_min,
            ),
        ),
        clock=clock,
        telemetry=telemetry,
    )
    return Steering(values, flags, live, changes, rollback)
