"""Put the parts together; with `stores`, `lanes` and `alerts` the only modules that name concrete adapters."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol

from bellbuoy import resilience
from bellbuoy.adapters.control_values import ControlValues
from bellbuoy.adapters.host import LinuxHost
from bellbuoy.clock import Clock
from bellbuoy.delivery.feed import Feed, FeedSettings
from bellbuoy.delivery.release import Release, ReleaseSettings
from bellbuoy.delivery.retention import Retention, RetentionSettings
from bellbuoy.delivery.send import Lane
from bellbuoy.delivery.settle import Rules
from bellbuoy.delivery.worker import Worker, WorkerSettings
from bellbuoy.errors import ConfigurationError
from bellbuoy.health.flags import Flags
from bellbuoy.health.meters import Meters
from bellbuoy.intake.accept import Intake, IntakeSettings
from bellbuoy.intake.cancel import Cancellation
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.sends import Sends
from bellbuoy.recovery.escalate import Escalation
from bellbuoy.recovery.execute import StoredSagaLog
from bellbuoy.recovery.rollout import Measured, RolloutSettings, RolloutWatch, measured
from bellbuoy.recovery.scaling import Alone, Scaling
from bellbuoy.recovery.tidy import Tidying
from bellbuoy.service.alerts import build_escalation
from bellbuoy.service.api.context import Context, Nudge
from bellbuoy.service.audit import build_audit
from bellbuoy.service.breakers import breaker_settings, share_breaker
from bellbuoy.service.cache import Cache
from bellbuoy.service.continuity import Continuity, build_continuity
from bellbuoy.service.drills.due import DrillsDue
from bellbuoy.service.isolation import Isolation
from bellbuoy.service.keys import Keys
from bellbuoy.service.lanes import make_lane, pace_of, providers
from bellbuoy.service.leases import LeftLeases
from bellbuoy.service.live import LiveSettings
from bellbuoy.service.mending import Mending, build_incidents, build_mending
from bellbuoy.service.repairs import Repairs
from bellbuoy.service.settings import Settings
from bellbuoy.service.steering import build_steering, wire_flags
from bellbuoy.service.stores import Stores, open_stores
from bellbuoy.service.telemetry import ServiceTelemetry
from bellbuoy.service.vitals import Vitals, build_vitals
from bellbuoy.service.watchers import Watchers

if TYPE_CHECKING:
    from bellbuoy.adapters.kubernetes import KubernetesApi


class Loop(Protocol):
    """Something that runs for as long as the process does."""

    async def run(self) -> None:
        """Do so until cancelled."""
        ...


@dataclass
class Parts:
    """The assembled service; `runtime` runs it. `loops`: what has to run besides the worker and HTTP, by name.
    `cluster` is the way to the workload that all this runs as, None where it is none.
    """

    settings: Settings
    keys: Keys
    lanes: Mapping[str, Lane]
    telemetry: ServiceTelemetry
    stores: Stores
    context: Context
    worker: Worker | None
    escalation: Escalation
    loops: dict[str, Loop]
    cluster: KubernetesApi | None = None
    continuity: Continuity | None = None

    @property
    def ledger(self) -> Ledger:
        """The ledger as the service works with it."""
        return self.stores.ledger

    @property
    def owns_ledger(self) -> bool:
        """Whether no other process uses the ledger."""
        return self.stores.alone

    async def aclose(self) -> None:
        """Close providers, then the homes, then let go of the data directory."""
        for lane in self.lanes.values():
            await lane.provider.aclose()
        if self.continuity is not None:
            await self.continuity.aclose()
        await self.escalation.aclose()
        await self.context.audit.aclose()
        if self.cluster is not None:
            await self.cluster.aclose()
        await self.stores.aclose()


def build(
    settings: Settings,
    *,
    clock: Clock,
    rng: Random,
    accepting: bool,
    working: bool,
    scaling: Scaling | None = None,
) -> Parts:
    """Assemble the parts that this process needs.

    Args:
        settings: checked.
        clock, rng: time and chance for everything.
        accepting, working: whether this process serves HTTP, and whether it delivers. A process that does both over an
            embedded ledger owns the data directory alone; others share it.
        scaling: what can change how many processes there are; None where nothing can. A workload that is configured
            is scaled instead.

    Raises:
        ConfigurationError: a file, a credential or the data directory is not usable.
        Full, Unavailable: the ledger cannot be opened.
    """
    telemetry = ServiceTelemetry(clock, Meters(settings.health.window_s, calls_min=settings.health.calls_min))
    stores = open_stores(settings, telemetry, clock, rng, accepting=accepting, working=working)
    owner = f"{os.getpid()}-{uuid.UUID(int=rng.getrandbits(128)).hex[:12]}"
    lanes: dict[str, Lane] = {
        p.name: make_lane(p, settings, stores.cache, telemetry, clock, rng)
        for p in providers(settings, clock=clock, rng=rng)
    }
    host = LinuxHost(settings.data.dir, memory_max_bytes=_bytes(settings.health.memory_max_mb))
    values = ControlValues(stores.control)
    live = LiveSettings(settings, values, clock=clock, telemetry=telemetry)
    pushed = stores.cache.watched is not None
    flags = Flags(values, stores.cache.flags, pushed=pushed, clock=clock, telemetry=telemetry)
    vitals = build_vitals(owner, settings, stores, lanes, host=host, flags=flags.on, clock=clock, telemetry=telemetry)
    wire_flags(flags, vitals.monitor, telemetry)
    live.on_change.append(lambda now: _reconfigure(now, lanes, vitals, stores.cache, clock))
    loops: dict[str, Loop] = {"heal": stores.healing, "vitals": vitals, "flags": flags, "settings": live}
    loops |= _sharing(owner, stores, lanes, telemetry, clock, working=working)
    continuity = build_continuity(owner, settings, stores, working=working, clock=clock, rng=rng, telemetry=telemetry)
    loops |= {"backup": continuity} if continuity is not None else {}
    worker = None
    if working:
        sends = continuity.journal if continuity is not None else None
        worker, more = _working(owner, settings, stores, lanes, vitals, live, sends, telemetry, clock, rng)
        loops |= more
    nudge = worker.nudge if worker is not None else _nobody
    stores.homes.nudge = nudge
    cluster = kubernetes(settings, clock=clock, rng=rng)
    if cluster is not None:
        scaling, more = _of_cluster(cluster, owner, settings, stores, telemetry, clock, rng)
        loops |= more
    mending, escalation = _mending(
        owner, settings, stores, lanes, vitals, host, scaling or Alone(), nudge, telemetry, clock, rng
    )
    steering = build_steering(
        settings, stores, values, flags, live, mending, lanes, owner=owner, clock=clock, telemetry=telemetry
    )
    loops |= {"recovery": mending.recovery, "escalation": escalation, "rollback": steering.rollback}
    loops["tidying"] = Tidying((stores.local, stores.control), clock=clock, telemetry=telemetry)
    loops |= {"drills": DrillsDue(settings, clock=clock, telemetry=telemetry)}
    intake, cancellation = _accepting(settings, stores, worker, vitals, telemetry, clock, rng)
    if accepting:
        loops["cancel"] = cancellation
    copy = None if settings.ledger.embedded else settings.data.dir / "keys.json"
    keys = Keys(stores.ledger, clock=clock, copy=copy)
    watchers = Watchers(clock)
    telemetry.listeners.append(watchers.heard)
    audit = build_audit(settings, stores, clock=clock, telemetry=telemetry)
    isolation = Isolation(keys, vitals.pins, stores.local, clock=clock, telemetry=telemetry)
    loops |= {"audit": audit, "isolation": isolation}
    context = Context(
        intake,
        cancellation,
        stores.ledger,
        stores,
        keys,
        lanes,
        telemetry,
        clock,
        nudge,
        vitals,
        mending,
        steering,
        watchers,
        audit,
        isolation,
    )
    return Parts(settings, keys, lanes, telemetry, stores, context, worker, escalation, loops, cluster, continuity)


def _sharing(
    owner: str,
    stores: Stores,
    lanes: Mapping[str, Lane],
    telemetry: ServiceTelemetry,
    clock: Clock,
    *,
    working: bool,
) -> dict[str, Loop]:
    """What has to run for processes to tell each other what they may do without."""
    loops: dict[str, Loop] = {f"share-{type(one).__name__}": one for one in stores.sharing}
    if stores.cache.watched is not None:
        loops |= {
            f"share-{name}": share_breaker(
                lane.breaker, stores.cache.circuits, owner=owner, probing=working, telemetry=telemetry, clock=clock
            )
            for name, lane in lanes.items()
        }
    return loops


def _mending(
    owner: str,
    settings: Settings,
    stores: Stores,
    lanes: Mapping[str, Lane],
    vitals: Vitals,
    host: LinuxHost,
    scaling: Scaling,
    nudge: Nudge,
    telemetry: ServiceTelemetry,
    clock: Clock,
    rng: Random,
) -> tuple[Mending, Escalation]:
    """What mends what fails, and what tells humans of it."""
    repairs = Repairs(
        stores,
        lanes,
        monitor=vitals.monitor,
        backlog=vitals.backlog,
        host=host,
        memory_ratio_max=settings.health.memory_ratio_max,
        scaling=scaling,
        nudge=nudge,
        clock=clock,
    )
    incidents = build_incidents(stores, clock=clock, rng=rng, telemetry=telemetry)
    escalation = build_escalation(settings, stores.local, incidents, clock, rng, telemetry)
    mending = build_mending(
        settings, stores, repairs, incidents, escalation, owner=owner, clock=clock, telemetry=telemetry
    )
    return mending, escalation


def _accepting(
    settings: Settings,
    stores: Stores,
    worker: Worker | None,
    vitals: Vitals,
    telemetry: ServiceTelemetry,
    clock: Clock,
    rng: Random,
) -> tuple[Intake, Cancellation]:
    """What takes notifications in, and what takes them back."""
    of_intake = IntakeSettings(settings.delivery.ttl_s_default, settings.server.in_flight_max)
    intake = Intake(
        ledger=stores.ledger,
        # With a queue it is the queue that hands work out, to any process.
        worker=worker if stores.queue is None else None,
        settings=of_intake,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
        circumstances=lambda: vitals.controls.circumstances,
    )
    vitals.controls.steer(intake, of_intake)
    cancellation = Cancellation(
        ledger=stores.ledger,
        accept=intake.accept,
        log=StoredSagaLog(stores.control),
        clock=clock,
        telemetry=telemetry,
    )
    return intake, cancellation


def _working(
    owner: str,
    settings: Settings,
    stores: Stores,
    lanes: Mapping[str, Lane],
    vitals: Vitals,
    live: LiveSettings,
    sends: Sends | None,
    telemetry: ServiceTelemetry,
    clock: Clock,
    rng: Random,
) -> tuple[Worker, dict[str, Loop]]:
    """The worker, and what runs beside it."""
    of_worker = _worker_settings(settings)
    worker = _worker(owner, settings, of_worker, stores.ledger, lanes, vitals, sends, telemetry, clock, rng)
    release = Release(
        ledger=stores.ledger,
        lanes=lanes,
        worker=worker,
        settings=_release_settings(settings),
        clock=clock,
        telemetry=telemetry,
    )
    vitals.controls.steer_worker(worker, of_worker, release)
    live.on_change.append(lambda now: worker.go_by(_rules(now, lanes, rng)))
    live.on_change.append(lambda now: release.configure(_release_settings(now)))
    loops: dict[str, Loop] = {"release": release}
    if not stores.alone:
        own, *left = stores.folders
        loops["leases"] = LeftLeases(own, left, owner=owner, homes=stores.homes, clock=clock, telemetry=telemetry)
    if settings.data.retention_days:
        keep = RetentionSettings(keep_s=settings.data.retention_days * 86_400.0)
        loops["retention"] = Retention(ledger=stores.ledger, settings=keep, clock=clock, telemetry=telemetry)
    if stores.queue is not None:
        loops["feed"] = Feed(
            queue=stores.queue,
            ledger=stores.ledger,
            homes=stores.homes,
            worker=worker,
            settings=FeedSettings(),
            clock=clock,
            telemetry=telemetry,
        )
    return worker, loops


def kubernetes(settings: Settings, *, clock: Clock, rng: Random) -> KubernetesApi | None:
    """The way to what `[kubernetes] deployment` or `statefulset` names, None when neither does.

    Raises:
        ConfigurationError: its driver is not installed, or there is no service account or kubeconfig to use.
    """
    of = settings.kubernetes
    if of.workload is None:
        return None
    try:
        from bellbuoy.adapters.kubernetes import KubernetesApi
    except ModuleNotFoundError as error:
        if error.name not in ("lightkube", "httpx2", "msgspec"):
            raise
        raise ConfigurationError(
            "[kubernetes] is set, and the driver is not installed", hint="pip install 'bellbuoy[kubernetes]'"
        ) from None
    return KubernetesApi(*of.workload, namespace=of.namespace, kubeconfig=of.kubeconfig, clock=clock, rng=rng)


def _of_cluster(
    cluster: KubernetesApi,
    owner: str,
    settings: Settings,
    stores: Stores,
    telemetry: ServiceTelemetry,
    clock: Clock,
    rng: Random,
) -> tuple[Scaling, dict[str, Loop]]:
    """What scales the workload, and what has to run for that and to watch its rollouts."""
    from bellbuoy.adapters.kubernetes import Bounds, KubernetesRollout, KubernetesScaling, StatefulSetRollout

    def measure() -> Measured | None:
        reading = telemetry.meters.overall.reading(clock.monotonic())
        return measured(reading.error_rate, reading.p95_s)

    of = settings.kubernetes
    bounds = Bounds(of.min_replicas, of.max_replicas, of.cooldown_s)
    scaling = KubernetesScaling(cluster, bounds=bounds, clock=clock, rng=rng, telemetry=telemetry)
    loops: dict[str, Loop] = {"scaling": scaling}
    if of.rollback:
        loops["rollout"] = RolloutWatch(
            owner,
            rollout=(
                KubernetesRollout(cluster) if cluster.kind == "Deployment" else StatefulSetRollout(cluster, clock=clock)
            ),
            measure=measure,
            store=stores.control,
            locks=stores.leading,
            # At its end nothing that is measured is of the time before it.
            settings=RolloutSettings(watch_s=max(120.0, 2 * settings.health.window_s)),
            clock=clock,
            telemetry=telemetry,
        )
    return scaling, loops


def _bytes(megabytes: int | None) -> int | None:
    return None if megabytes is None else megabytes * 1024 * 1024


def _worker_settings(settings: Settings) -> WorkerSettings:
    delivery = settings.delivery
    return WorkerSettings(
        in_hand_max=delivery.in_hand_max,
        # Others wait while a shared ledger leases many in one go, and the call has its deadline.
        claim_batch=500 if settings.ledger.embedded else 100,
        lease_s=delivery.lease_s,
        poll_s_max=delivery.poll_s_max,
        drain_s=delivery.drain_s,
    )


def _release_settings(settings: Settings) -> ReleaseSettings:
    return ReleaseSettings(rate_per_s=settings.delivery.release_per_s, ramp_s=settings.delivery.release_ramp_s)


def _rules(settings: Settings, lanes: Mapping[str, Lane], rng: Random) -> Rules:
    numbers = settings.retry
    retry = resilience.RetrySettings(
        max_attempts=numbers.max_attempts,
        initial_delay_s=numbers.initial_delay_s,
        max_delay_s=numbers.max_delay_s,
        backoff_multiplier=numbers.backoff_multiplier,
        jitter_factor=numbers.jitter_factor,
    )
    return Rules(
        delay_s=lambda attempt, told_s: retry.delay_s(attempt, rng, retry_after_s=told_s),
        attempts_max=numbers.max_attempts,
        server_error_wait_s={name: getattr(settings.providers, name).server_error_wait_s for name in lanes},
    )


def _reconfigure(settings: Settings, lanes: Mapping[str, Lane], vitals: Vitals, cache: Cache, clock: Clock) -> None:
    """Have the lanes go by other numbers."""
    for name, lane in lanes.items():
        rate_per_s = getattr(settings.providers, name).rate_per_s
        if rate_per_s != (lane.pace.rate_per_s if lane.pace is not None else None):
            lane.pace = pace_of(name, settings, cache, clock)
    vitals.controls.reconfigure(
        {name: getattr(settings.providers, name).concurrency_max for name in lanes},
        {name: breaker_settings(name, getattr(settings.breakers, name)) for name in lanes},
    )


def _worker(
    owner: str,
    settings: Settings,
    of_worker: WorkerSettings,
    ledger: Ledger,
    lanes: Mapping[str, Lane],
    vitals: Vitals,
    sends: Sends | None,
    telemetry: ServiceTelemetry,
    clock: Clock,
    rng: Random,
) -> Worker:
    return Worker(
        owner,
        ledger=ledger,
        lanes=lanes,
        rules=_rules(settings, lanes, rng),
        settings=of_worker,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
        circumstances=lambda: vitals.controls.circumstances,
        sends=sends,
    )


def _nobody() -> None:
    """No worker runs in this process; the others look for work themselves."""
