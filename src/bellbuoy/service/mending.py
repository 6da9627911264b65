"""Recovery of the assembled service: incidents, plans as this process can run them, and humans to tell."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from bellbuoy.clock import Clock
from bellbuoy.model.operation import Issue
from bellbuoy.recovery.execute import Escalate, Recovery, RecoverySettings
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.service.repairs import Repairs
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import Stores
from bellbuoy.service.telemetry import ServiceTelemetry


@dataclass
class Mending:
    """What mends, and what tells humans."""

    incidents: Incidents
    recovery: Recovery
    escalate: Escalate


def build_mending(
    settings: Settings,
    stores: Stores,
    repairs: Repairs,
    incidents: Incidents,
    escalate: Escalate,
    *,
    owner: str,
    clock: Clock,
    telemetry: ServiceTelemetry,
) -> Mending:
    """Put recovery together."""
    numbers = settings.recovery

    def found() -> list[Issue]:
        # What the homes notice is evidence for the monitor, whose issue counts.
        return [issue for issue in telemetry.issues.values() if issue.component != "homes"]

    recovery = Recovery(
        owner,
        found=found,
        incidents=incidents,
        store=stores.local,
        locks=stores.leading,
        steps=repairs.steps,
        escalate=escalate,
        settings=RecoverySettings(
            enabled=numbers.enabled,
            first_after_s={
                "database_connection": numbers.database_first_s,
                "message_queue_connection": numbers.queue_first_s,
                "external_service": numbers.service_first_s,
            },
            attempts_max=numbers.attempts_max,
            settle_s=numbers.settle_s,
        ),
        clock=clock,
        telemetry=telemetry,
    )
    return Mending(incidents, recovery, escalate)


def build_incidents(stores: Stores, *, clock: Clock, rng: Random, telemetry: ServiceTelemetry) -> Incidents:
    """The incidents of this machine, shown to those who share its ledger."""
    return Incidents(stores.local, stores.control, clock=clock, rng=rng, telemetry=telemetry)
