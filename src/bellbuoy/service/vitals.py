"""Health of the assembled service: what is probed and looked at, put together, and run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from bellbuoy.clock import Clock
from bellbuoy.delivery.send import Lane, is_outage
from bellbuoy.errors import Busy, Full, StoreError, code_of
from bellbuoy.health import signs
from bellbuoy.health.hysteresis import Patience
from bellbuoy.health.monitor import Monitor
from bellbuoy.health.pins import Pins
from bellbuoy.health.probes import Probe, ProbeSettings
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.operations import Host
from bellbuoy.ports.shared import Announcements
from bellbuoy.resilience import CircuitBreaker
from bellbuoy.service.controls import Controls
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import Stores
from bellbuoy.service.telemetry import ServiceTelemetry

BACKLOG_EVERY_S = 2.0
ANNOUNCE_S = 5.0
"""Seconds between two announcements of modes that have not changed."""

PROVIDER_SILENT_S = 0.7
"""A provider across the internet may take longer than a store next door."""

EMBEDDED_SILENT_S = 5.0
"""A disk that is busy is slow for seconds, and is no more down for it."""


@dataclass
class Vitals:
    """What watches the service."""

    monitor: Monitor
    controls: Controls
    pins: Pins
    probes: dict[str, Probe]
    backlog: signs.Backlog
    ledger: Ledger
    clock: Clock
    telemetry: ServiceTelemetry
    owner: str
    announcements: Announcements

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for probe in self.probes.values():
                group.create_task(probe.run(), name=f"probe-{probe.name}")
            group.create_task(self._count(), name="backlog")
            group.create_task(self.pins.run(), name="pins")
            group.create_task(self.monitor.run(), name="monitor")
            group.create_task(self._announce(), name="announce")

    async def _announce(self) -> None:
        """Tell the others in which modes this process works; nobody goes by it but people who look."""
        told: tuple[str, ...] | None = None
        age_s = ANNOUNCE_S
        while True:
            modes = tuple(self.monitor.modes)
            if modes != told or age_s >= ANNOUNCE_S:
                try:
                    await self.announcements.announce(self.owner, modes, life_s=3 * ANNOUNCE_S)
                    told, age_s = modes, 0.0
                except StoreError:
                    told = None  # They are told when there is somewhere to tell it.
            await self.clock.sleep(1.0)
            age_s += 1.0

    async def workers(self) -> dict[str, list[str]]:
        """Every process that is heard of, and its modes: this one, and the others while that can be read."""
        try:
            found = {worker: list(modes) for worker, modes in (await self.announcements.announced()).items()}
        except StoreError:
            found = {}
        return {**found, self.owner: list(self.monitor.modes)}

    async def _count(self) -> None:
        while True:
            try:
                now = self.clock.time()
                self.backlog.depth, oldest = await self.ledger.backlog(now=now)
                self.backlog.oldest_s = 0.0 if oldest is None else max(0.0, now - oldest)
            except Exception as error:  # Not measured; a defect too must not end the counting.
                self.backlog.depth = None
                if not isinstance(error, StoreError):
                    self.telemetry.event("health_failed", code=code_of(error), why=repr(error))
            await self.clock.sleep(BACKLOG_EVERY_S)


def build_vitals(
    owner: str,
    settings: Settings,
    stores: Stores,
    lanes: Mapping[str, Lane],
    *,
    host: Host,
    flags: Callable[[], Set[str]],
    clock: Clock,
    telemetry: ServiceTelemetry,
) -> Vitals:
    """Put together what is watched in this process."""
    numbers = settings.health
    limits = signs.Limits(
        error_rate_max=numbers.error_rate_max,
        p95_latency_s_max=numbers.p95_latency_s_max,
        database_slow_s=numbers.database_slow_s,
        memory_ratio_max=numbers.memory_ratio_max,
        disk_free_min_bytes=int(numbers.disk_free_min_mb * 1024 * 1024),
        backlog_max=numbers.backlog_max,
        backlog_age_s_max=numbers.backlog_age_s_max,
    )
    probes = _probes(settings, stores, lanes, clock)
    backlog = signs.Backlog(limits)
    monitor = Monitor(
        [
            signs.Breakers(_breakers(stores, lanes)),
            signs.Probes(probes),
            signs.Rates(telemetry.meters, limits),
            signs.Machine(host, limits),
            backlog,
            signs.Noticed(telemetry.issues),
        ],
        patience=Patience(enter_looks=numbers.enter_looks, leave_s=numbers.leave_s),
        interval_s=numbers.interval_s,
        flags=flags,
        clock=clock,
        telemetry=telemetry,
    )
    backlog.meant = lambda: "sending_stopped" in monitor.modes
    controls = Controls(monitor, lanes, drop_caches=stores.drop_caches, give_back_memory=host.give_back_memory)
    controls.tuned.append(lambda tuning: stores.prefer_cache(always=tuning.prefer_cache, fresh_s=tuning.cache_s))
    pins = Pins(stores.control, monitor, clock=clock, telemetry=telemetry)
    return Vitals(
        monitor, controls, pins, probes, backlog, stores.ledger, clock, telemetry, owner, stores.cache.announcements
    )


def _breakers(stores: Stores, lanes: Mapping[str, Lane]) -> dict[tuple[str, str], CircuitBreaker]:
    found = {(f"{name}_down", name): lane.breaker for name, lane in lanes.items()}
    if stores.watched.breaker is not None:
        found["database_down", "ledger"] = stores.watched.breaker
    if stores.queue is not None:
        found["message_queue_down", "queue"] = stores.queue.breaker
    if stores.cache.watched is not None:
        found["cache_down", "cache"] = stores.cache.watched.breaker
    return found


def _probes(settings: Settings, stores: Stores, lanes: Mapping[str, Lane], clock: Clock) -> dict[str, Probe]:
    """One for each dependency, by the issue that its end is."""
    numbers = settings.health
    of_stores = ProbeSettings(numbers.interval_s, numbers.silent_s)
    of_file = ProbeSettings(numbers.interval_s, max(numbers.silent_s, EMBEDDED_SILENT_S))
    found = {
        "database_down": Probe(
            "ledger",
            stores.watched.check,
            is_down=_is_away,
            settings=of_file if settings.ledger.embedded else of_stores,
            clock=clock,
        )
    }
    if stores.queue is not None:
        found["message_queue_down"] = Probe(
            "queue", stores.queue.check, is_down=_is_away, settings=of_stores, clock=clock
        )
    if stores.cache.watched is not None:
        # One that takes no writes is of no use either, unlike a store, which says by it how it is.
        check = stores.cache.watched.check
        found["cache_down"] = Probe("cache", check, is_down=lambda _: True, settings=of_stores, clock=clock)
    for name, lane in lanes.items():
        interval_s = getattr(settings.providers, name).probe_interval_s
        found[f"{name}_down"] = Probe(
            name,
            lane.probe,
            is_down=is_outage,
            settings=ProbeSettings(interval_s, max(numbers.silent_s, PROVIDER_SILENT_S)),
            clock=clock,
            spared=_just_sent(lane, clock, interval_s),
        )
    return found


def _just_sent(lane: Lane, clock: Clock, interval_s: float) -> Callable[[], bool]:
    return lambda: clock.monotonic() - lane.sent_at < min(interval_s, 1.0)


def _is_away(error: Exception) -> bool:
    """A store that says that it is busy or full is there."""
    return not isinstance(error, (Busy, Full))
