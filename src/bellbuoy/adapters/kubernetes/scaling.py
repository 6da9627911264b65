"""Scaling by the scale subresource of a Deployment or a StatefulSet; see `bellbuoy.recovery.scaling`.

What was asked for, and how many replicas are usual, stands in an annotation of that object itself, so whichever
process is there scales back what another one, which is gone, has scaled up. It is written down before it is done, with
its `generation`, which grows with every change of its spec: a number of replicas that is not the one
written down is a change that did not come about while the generation is the same, and else somebody else's.

Somebody else (a human, a HorizontalPodAutoscaler, KEDA) is right: what they set is usual from then on, and the reasons
there were until then count no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from bellbuoy.adapters.kubernetes.api import RESTARTED, Document, KubernetesApi, notes, version_of
from bellbuoy.clock import Clock
from bellbuoy.errors import Unavailable, code_of
from bellbuoy.ports.operations import Telemetry

SCALING = "bellbuoy.dev/scaling"
REPLACED = "bellbuoy.dev/replaced-for"
EVERY_S = 15.0
_REASONS_MAX = 100


class Scaled(Struct, frozen=True):
    """What is written down.

    Args:
        usual: replicas without any reason.
        set: the number that was asked for last, as far as this is known.
        generation: the object's before that.
        at: epoch second of it, 0 when nothing was asked for yet.
        reasons: the factor that each asks for; None once somebody else has overruled it.
    """

    usual: int
    set: int
    generation: int = 0
    at: float = 0.0
    reasons: dict[str, float | None] = field(default_factory=dict)


class Bounds(Struct, frozen=True):
    """How far scaling may go, in replicas, and the least number of seconds between two changes."""

    replicas_min: int
    replicas_max: int
    cooldown_s: float


def seen(written: Scaled | None, *, replicas: int, generation: int) -> Scaled:
    """What is written down, put right by what there is. Pure."""
    if written is None:
        return Scaled(usual=replicas, set=replicas)
    if replicas == written.set:
        return written
    if generation == written.generation:
        # Whoever wrote it died before it was done, so there is nothing to cool down from.
        return replace(written, set=replicas, at=0.0)
    return replace(written, usual=replicas, set=replicas, reasons=dict.fromkeys(written.reasons))


def wanted(scaled: Scaled, bounds: Bounds) -> int:
    """How many replicas there are to be: what is usual, or more for the largest reason. Pure."""
    factor = max((factor for factor in scaled.reasons.values() if factor is not None), default=1.0)
    if factor <= 1.0 or not scaled.usual:
        return scaled.usual  # What was stopped altogether stays so.
    within = min(bounds.replicas_max, max(bounds.replicas_min, math.ceil(scaled.usual * factor)))
    return max(scaled.usual, within)


class KubernetesScaling:
    """Changes one Deployment or StatefulSet.

    Args:
        api: the way to it.
        bounds: how far.
        clock, rng: for the looks and the cool-down.
        telemetry: is told what happens.
    """

    able = True

    def __init__(self, api: KubernetesApi, *, bounds: Bounds, clock: Clock, rng: Random, telemetry: Telemetry) -> None:
        self._api = api
        self._bounds = bounds
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry

    async def scale(self, factor: float, *, why: str) -> None:
        def asked(reasons: dict[str, float | None]) -> None:
            if why not in reasons and len(reasons) >= _REASONS_MAX:
                raise Unavailable(f"the {self._api.kind} {self._api.name} is scaled for {_REASONS_MAX} reasons already")
            if reasons.get(why, factor) is not None:
                reasons[why] = factor

        await self._change(asked)

    async def scale_back(self, *, why: str) -> None:
        await self._change(lambda reasons: reasons.pop(why, None))

    async def settle(self) -> None:
        """Bring about what is asked for and had to wait for the cool-down, or was left. Raises Unavailable."""
        await self._change(lambda reasons: None)

    async def run(self) -> None:
        """Settle every `EVERY_S` seconds or so, until cancelled."""
        while True:
            await self._clock.sleep(EVERY_S * self._rng.uniform(0.7, 1.3))
            try:
                await self.settle()
            except Exception as error:  # A defect too: what was scaled up has to come down.
                self._telemetry.event("scaling_failed", code=code_of(error), why=str(error))

    async def replace(self, *, why: str) -> None:
        async def restart(workload: Document) -> None:
            done = _names(notes(workload).get(REPLACED))
            if why in done:
                return
            if workload["spec"].get("paused"):
                raise Unavailable(
                    f"the Deployment {self._api.name} is paused", hint=f"kubectl rollout resume deploy/{self._api.name}"
                )
            now = datetime.fromtimestamp(self._clock.time(), UTC).isoformat(timespec="seconds")
            written = msgspec.json.encode([*done, why][-_REASONS_MAX:]).decode()
            patch = {
                "metadata": {"annotations": {REPLACED: written}},
                "spec": {"template": {"metadata": {"annotations": {RESTARTED: now}}}},
            }
            await self._api.merge(version_of(workload), patch)
            self._telemetry.event("replacement_asked_for", workload=self._api.name, why=why)

        await self._api.changed(restart)

    async def _change(self, edit: Callable[[dict[str, float | None]], object]) -> None:
        await self._api.changed(lambda workload: self._once(workload, edit))

    async def _once(self, workload: Document, edit: Callable[[dict[str, float | None]], object]) -> None:
        """Edit the reasons, and scale if it is time; what is written down comes first."""
        written = _decoded(notes(workload).get(SCALING))
        replicas, generation = workload["spec"].get("replicas", 1), workload["metadata"]["generation"]
        scaled = seen(written, replicas=replicas, generation=generation)
        reasons = dict(scaled.reasons)
        edit(reasons)
        scaled = replace(scaled, reasons=reasons)
        target, now = wanted(scaled, self._bounds), self._clock.time()
        cool = not 0 <= now - scaled.at < self._bounds.cooldown_s  # A clock that went back holds up nothing.
        due = target != replicas and cool
        if due:
            scaled = replace(scaled, set=target, generation=generation, at=now)
        version = version_of(workload)
        idle = not reasons and target == replicas and cool
        if idle and written is not None:
            await self._api.merge(version, {"metadata": {"annotations": {SCALING: None}}})
        elif not idle and scaled != written:
            text = msgspec.json.encode(scaled).decode()
            version = await self._api.merge(version, {"metadata": {"annotations": {SCALING: text}}})
        if due:
            await self._api.scale(version, target)
            self._telemetry.event("scaled", workload=self._api.name, processes=target, before=replicas)


def _decoded(text: str | None) -> Scaled | None:
    """What an annotation says; one that somebody has spoilt says nothing."""
    try:
        return msgspec.json.decode(text, type=Scaled) if text else None
    except msgspec.MsgspecError:
        return None


def _names(text: str | None) -> list[str]:
    try:
        return msgspec.json.decode(text, type=list[str]) if text else []
    except msgspec.MsgspecError:
        return []
