"""A Deployment's rollout, and the way back to the revision before; see `bellbuoy.recovery.rollout`.

How far a rollout is, is read as `kubectl rollout status` reads it, and the way back is that of `kubectl rollout undo`:
the pod template of the ReplicaSet with the highest revision below the present one (kubernetes/kubectl,
pkg/polymorphichelpers/rollout_status.go and rollback.go). A restart makes a revision of its own that runs the same, so
going back is going past those.
"""

from __future__ import annotations

import copy
import hashlib

import msgspec

from bellbuoy.adapters.kubernetes.api import RESTARTED, Document, KubernetesApi, notes, version_of
from bellbuoy.errors import Conflict, NotFound, Unavailable
from bellbuoy.recovery.rollout import RolloutState, RolloutStatus

REVISION = "deployment.kubernetes.io/revision"
UNDONE = "bellbuoy.dev/undone"
HASH = "pod-template-hash"
_UNDONE_MAX = 20
# Of the object itself, not of its revision.
_OWN = (
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
)


class KubernetesRollout:
    """Looks at one Deployment's rollout, and undoes it.

    Args:
        api: the way to it.
    """

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self.name = f"{api.namespace}/{api.name}"

    async def state(self) -> RolloutState:
        workload = await self._api.workload()
        return RolloutState(await self._current(workload), self._status(workload), _what_runs(workload))

    async def undo(self, change: str, *, revision: int) -> None:
        async def back(workload: Document) -> None:
            undone = _decoded(notes(workload).get(UNDONE))
            if change in undone:
                return
            await self._back(workload, change, revision, undone)

        try:
            await self._api.changed(back)
        except _Moved as error:
            raise Conflict(str(error)) from None

    # What is another for a StatefulSet.

    async def _current(self, workload: Document) -> int:
        """The present revision, 0 while the controller has given it none."""
        return _revision(workload)

    async def _revisions(self, workload: Document) -> dict[int, Document]:
        """What there was, with its pod template and its annotations, by the revision."""
        return {_revision(one): one for one in await self._api.history(workload)}

    def _status(self, workload: Document) -> RolloutStatus:
        """How far it is, in the order in which kubectl asks."""
        if not is_observed(workload):
            return "under_way"
        status = workload.get("status") or {}
        progressing: Document = next(
            (one for one in status.get("conditions") or [] if one["type"] == "Progressing"), {}
        )
        if progressing.get("reason") == "ProgressDeadlineExceeded":
            return "failed"
        desired = workload["spec"].get("replicas", 1)
        updated, total = status.get("updatedReplicas", 0), status.get("replicas", 0)
        if updated < desired or total > updated or status.get("availableReplicas", 0) < updated:
            return "under_way"
        return "complete"

    # The way back.

    async def _back(self, workload: Document, change: str, revision: int, undone: dict[str, int]) -> None:
        named = f"the {self._api.kind} {self._api.name}"
        if not is_observed(workload):
            raise Unavailable(f"{named} was changed a moment ago, and its controller has yet to see it")
        current = await self._current(workload)
        if current != revision:
            raise _Moved(f"{named} is at revision {current}, no longer at {revision}")
        if workload["spec"].get("paused"):
            raise Unavailable(f"{named} is paused", hint=f"kubectl rollout resume deploy/{self._api.name}")
        earlier = {
            number: one
            for number, one in (await self._revisions(workload)).items()
            if 0 < number < current and _what_runs(one) != _what_runs(workload)
        }
        before = max(earlier, default=None)
        if before is None:
            raise NotFound(
                f"{named} has no revision before {current}",
                hint="its revisionHistoryLimit is 0, or this is the first; deploy one that works",
            )
        undone = dict([*undone.items(), (change, before)][-_UNDONE_MAX:])
        # What the revision was annotated with comes back; what else the workload is annotated with stays.
        theirs = {
            name: value
            for name, value in notes(earlier[before]).items()
            if name not in _OWN and not name.startswith("bellbuoy.dev/")
        }
        annotations = {**notes(workload), **theirs, UNDONE: msgspec.json.encode(undone).decode()}
        await self._api.replace_parts(
            version_of(workload), {"/spec/template": _template(earlier[before]), "/metadata/annotations": annotations}
        )


class _Moved(Exception):
    """Another revision is there by now, which trying again does not change."""


def _template(document: Document) -> Document:
    """The pod template without what only a history has: a ReplicaSet's hash, how a ControllerRevision is applied."""
    template: Document = copy.deepcopy(document["spec"]["template"])
    template.pop("$patch", None)
    (template["metadata"].get("labels") or {}).pop(HASH, None)
    if template["metadata"].get("creationTimestamp") is None:
        template["metadata"].pop("creationTimestamp", None)
    return template


def _what_runs(document: Document) -> str:
    """A name for what the pods run, whenever they were restarted."""
    template = _template(document)
    annotations = dict(template["metadata"].get("annotations") or {})
    annotations.pop(RESTARTED, None)
    template["metadata"]["annotations"] = annotations
    return hashlib.sha256(msgspec.json.encode(template, order="deterministic")).hexdigest()[:16]


def is_observed(workload: Document) -> bool:
    """Whether its controller has seen the last change."""
    observed: int = (workload.get("status") or {}).get("observedGeneration", 0)
    return observed >= int(workload["metadata"]["generation"])


def _revision(document: Document) -> int:
    """0 while the controller has given it none."""
    text = notes(document).get(REVISION, "")
    return int(text) if text.isdecimal() else 0


def _decoded(text: str | None) -> dict[str, int]:
    try:
        return msgspec.json.decode(text, type=dict[str, int]) if text else {}
    except msgspec.MsgspecError:
        return {}
