"""A StatefulSet's rollout, where a revision is a ControllerRevision; see `bellbuoy.adapters.kubernetes.rollout`.

How far it is, is read as `kubectl rollout status` reads it (kubernetes/kubectl,
pkg/polymorphichelpers/rollout_status.go). A StatefulSet has no deadline for its progress, so one is kept here. The way
back leads past a pod that never gets ready only where pods are managed in parallel: in order, the controller waits for
that pod first (Kubernetes' documentation, "StatefulSets", "Forced rollback").
"""

from __future__ import annotations

from bellbuoy.adapters.kubernetes.api import Document, KubernetesApi
from bellbuoy.adapters.kubernetes.rollout import KubernetesRollout, is_observed
from bellbuoy.clock import Clock
from bellbuoy.errors import Unavailable
from bellbuoy.recovery.rollout import RolloutStatus

PROGRESS_S = 300.0
"""Seconds in which one more pod has to be updated, or the rollout has failed."""


class StatefulSetRollout(KubernetesRollout):
    """Looks at one StatefulSet's rollout, and undoes it.

    Args:
        api: the way to it.
        clock: for the deadline of its progress, which begins anew when another process looks.
    """

    def __init__(self, api: KubernetesApi, *, clock: Clock) -> None:
        super().__init__(api)
        self._clock = clock
        self._progress: tuple[str, int] | None = None
        self._since = 0.0

    async def _current(self, workload: Document) -> int:
        name = (workload.get("status") or {}).get("updateRevision")
        for number, one in (await self._revisions(workload)).items():
            if one["metadata"]["name"] == name:
                return number
        raise Unavailable(f"the StatefulSet {self._api.name} has no revision yet", retry_after_s=5)

    async def _revisions(self, workload: Document) -> dict[int, Document]:
        # What a ControllerRevision has under `data` is a part of the StatefulSet's specification.
        return {int(one["revision"]): {**one, **one["data"]} for one in await self._api.history(workload)}

    def _status(self, workload: Document) -> RolloutStatus:
        status = workload.get("status") or {}
        if not is_observed(workload):
            return "under_way"
        if status.get("updateRevision") == status.get("currentRevision"):
            self._progress = None
            ready = status.get("readyReplicas", 0) >= workload["spec"].get("replicas", 1)
            return "complete" if ready else "under_way"
        now, progress = self._clock.monotonic(), (status["updateRevision"], status.get("updatedReplicas", 0))
        if progress != self._progress:
            self._progress, self._since = progress, now
        return "failed" if now - self._since >= PROGRESS_S else "under_way"
