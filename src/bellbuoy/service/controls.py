"""What the modes do: every number that they change, set on the parts it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from bellbuoy.delivery.release import Release
from bellbuoy.delivery.send import Lane
from bellbuoy.delivery.worker import Worker, WorkerSettings
from bellbuoy.health.mode import Tuning, tuning_of
from bellbuoy.health.monitor import Monitor
from bellbuoy.intake.accept import Intake, IntakeSettings
from bellbuoy.model.routes import CALM, Circumstances
from bellbuoy.resilience import BreakerSettings


class Controls:
    """Sets what the modes ask for, whenever they change; doing it again changes nothing.

    `circumstances` is what the flow goes by; `header` the value of `Bellbuoy-Degraded`, None while no mode is active.

    Args:
        monitor: knows the modes.
        lanes: the providers.
        drop_caches: forgets what can be had again.
        give_back_memory: collects garbage, and gives back what that frees.
    """

    def __init__(
        self,
        monitor: Monitor,
        lanes: Mapping[str, Lane],
        *,
        drop_caches: Callable[[], None],
        give_back_memory: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._lanes = lanes
        self._drop_caches = drop_caches
        self._give_back_memory = give_back_memory
        self._breakers: dict[str, BreakerSettings] = {name: lane.breaker.settings for name, lane in lanes.items()}
        self._places = {name: lane.bulkhead.concurrency_max for name, lane in lanes.items()}
        self._tuning = Tuning()
        self._worker: tuple[Worker, WorkerSettings, Release] | None = None
        self._intake: tuple[Intake, IntakeSettings] | None = None
        self.circumstances: Circumstances = CALM
        self.header: bytes | None = None
        self.tuned: list[Callable[[Tuning], None]] = []
        monitor.on_change.append(self.apply)

    def steer(self, intake: Intake, of_intake: IntakeSettings) -> None:
        """Steer the intake; `of_intake` are its numbers as they are configured."""
        self._intake = intake, of_intake

    def steer_worker(self, worker: Worker, of_worker: WorkerSettings, release: Release) -> None:
        """Steer the worker; `of_worker` are its numbers as they are configured."""
        self._worker = worker, of_worker, release

    def reconfigure(self, places: Mapping[str, int], breakers: Mapping[str, BreakerSettings]) -> None:
        """Go by other numbers than those that were configured at the start, by provider; the modes change these now."""
        self._places.update(places)
        self._breakers.update(breakers)
        self._tune(self._tuning)

    def apply(self) -> None:
        """Set everything as the modes are."""
        modes, before = frozenset(self._monitor.modes), self.circumstances
        down = frozenset(name for name in self._lanes if f"{name}_down" in self._monitor.issues)
        self.circumstances = Circumstances(modes=tuple(self._monitor.modes), down=down)
        self.header = ", ".join(self._monitor.modes).encode() or None
        if "drop_caches" in modes and "drop_caches" not in before.modes:
            self._drop_caches()
            self._give_back_memory()
        opened = self.circumstances.diverting, self.circumstances.opened
        if self._worker is not None and any(opened) and opened != (before.diverting, before.opened):
            self._worker[2].sweep("fcm")  # What waits for FCM has another way now.
        tuning = tuning_of(modes)
        if tuning != self._tuning:
            self._tuning = tuning
            self._tune(tuning)

    def _tune(self, tuning: Tuning) -> None:
        for name, lane in self._lanes.items():
            lane.bulkhead.resize(max(1, int(self._places[name] * tuning.concurrency)))
            usual = self._breakers[name]
            threshold = math.ceil(usual.failure_threshold / 2) if tuning.tight_breakers else usual.failure_threshold
            lane.breaker.configure(usual.replace(failure_threshold=threshold))
        if self._worker is not None:
            worker, usually, _ = self._worker
            worker.configure(
                replace(
                    usually,
                    claim_batch=max(1, int(usually.claim_batch * tuning.batch)),
                    poll_s_max=usually.poll_s_max * tuning.poll,
                    in_hand_max=max(10, int(usually.in_hand_max * tuning.in_hand)),
                )
            )
        if self._intake is not None:
            intake, bounds = self._intake
            intake.configure(replace(bounds, in_flight_max=max(1, int(bounds.in_flight_max * tuning.in_hand))))
        for tell in self.tuned:
            tell(tuning)
