"""The few calls that are made of a Kubernetes API, all about one Deployment or StatefulSet, each with a deadline.

Objects are taken and written as the documents they are, so that a field which this version of the driver does not know
is not lost on its way through. Every write names the `resourceVersion` it goes by, in the body of the patch, where the
API server checks it as it does for an update: Kubernetes API Concepts, "Resource versions", and 409 otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import httpx2
import msgspec
from lightkube import AsyncClient, KubeConfig
from lightkube.core.exceptions import ConfigError
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.types import PatchType

from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, Conflict, Unavailable

Kind = Literal["Deployment", "StatefulSet"]

_WORKLOADS = {
    "Deployment": create_namespaced_resource("apps", "v1", "Deployment", "deployments"),
    "StatefulSet": create_namespaced_resource("apps", "v1", "StatefulSet", "statefulsets"),
}
_HISTORIES = {
    "Deployment": create_namespaced_resource("apps", "v1", "ReplicaSet", "replicasets"),
    "StatefulSet": create_namespaced_resource("apps", "v1", "ControllerRevision", "controllerrevisions"),
}
"""Where the revisions of each are kept."""
_AccessReview = create_global_resource(
    "authorization.k8s.io", "v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews"
)

RESTARTED = "kubectl.kubernetes.io/restartedAt"
"""On a pod template: when its pods were last restarted, as `kubectl rollout restart` says it."""

TIMEOUT_S = 10.0
TRIES_MAX = 8
"""How often a change is tried anew when others change the workload at the same time."""

RIGHTS: Mapping[Kind, Sequence[tuple[str, str, str]]] = {
    "Deployment": (("get", "deployments", ""), ("patch", "deployments", ""), ("patch", "deployments", "scale")),
    "StatefulSet": (("get", "statefulsets", ""), ("patch", "statefulsets", ""), ("patch", "statefulsets", "scale")),
}
RIGHTS_OF_ROLLBACK: Mapping[Kind, Sequence[tuple[str, str, str]]] = {
    "Deployment": (("list", "replicasets", ""),),
    "StatefulSet": (("list", "controllerrevisions", ""),),
}
"""What the service account has to be allowed, as (verb, resource, subresource) of the group `apps`."""

Document = dict[str, Any]
T = TypeVar("T")


class KubernetesApi:
    """The way to one Deployment or StatefulSet; nothing is connected yet.

    Args:
        kind: which of them it is.
        name: its name.
        namespace: where it is; None takes that of the service account, or of the kubeconfig's context.
        kubeconfig: a file; None for the service account of the pod that this runs in.
        clock, rng: for the pauses between tries.
        timeout_s: of each call, in seconds.

    Raises:
        ConfigurationError: there is no service account, or the file cannot be used.
    """

    def __init__(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str | None,
        kubeconfig: Path | None,
        clock: Clock,
        rng: Random,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        try:
            found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_service_account()
            # The cluster's API is reached directly, whatever proxy the environment names for other calls.
            self._client = AsyncClient(found.get(), namespace=namespace, trust_env=False)
        except (ConfigError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"[kubernetes] the cluster's API cannot be used: {error}",
                hint="run it in a pod with a service account, or give [kubernetes] kubeconfig",
            ) from None
        self.kind = kind
        self.name = name
        self.namespace = self._client.namespace
        self._clock = clock
        self._rng = rng
        self._timeout_s = timeout_s

    async def workload(self) -> Document:
        """It as it is. Raises Unavailable."""
        found: Document = await self._call(self._client.get(_WORKLOADS[self.kind], self.name))
        return found

    async def history(self, workload: Document) -> list[Document]:
        """The ReplicaSets of a Deployment, the ControllerRevisions of a StatefulSet. Raises Unavailable."""
        labels = workload["spec"]["selector"].get("matchLabels") or {}

        async def listed() -> list[Document]:
            return [one async for one in self._client.list(_HISTORIES[self.kind], labels=labels)]

        return [one for one in await self._call(listed()) if _owner(one) == workload["metadata"]["uid"]]

    async def merge(self, version: str, patch: Document) -> str:
        """Merge a document into it (RFC 7396) over the version that was seen; returns the new one.

        Raises:
            Conflict: it has another version by now; nothing was written.
            Unavailable: it could not be asked for, or the outcome is not known.
        """
        patch = {**patch, "metadata": {**patch.get("metadata", {}), "resourceVersion": version}}
        changed = await self._call(
            self._client.patch(_WORKLOADS[self.kind], self.name, patch, patch_type=PatchType.MERGE)
        )
        return str(changed["metadata"]["resourceVersion"])

    async def replace_parts(self, version: str, parts: Mapping[str, Any]) -> None:
        """Replace whole parts of it (RFC 6902), by their paths. Raises as `merge` does."""
        operations = [
            {"op": "replace", "path": path, "value": value}
            for path, value in {"/metadata/resourceVersion": version, **parts}.items()
        ]
        await self._call(self._client.patch(_WORKLOADS[self.kind], self.name, operations, patch_type=PatchType.JSON))

    async def scale(self, version: str, replicas: int) -> None:
        """Set the number of replicas through the scale subresource. Raises as `merge` does."""
        patch = {"metadata": {"resourceVersion": version}, "spec": {"replicas": replicas}}
        scale = _WORKLOADS[self.kind].Scale
        await self._call(self._client.patch(scale, self.name, patch, patch_type=PatchType.MERGE))

    async def changed(self, change: Callable[[Document], Awaitable[T]]) -> T:
        """Change it from what it is now, again from the start when somebody else was first.

        Raises:
            Unavailable: the API is away, or others change it all the time.
            Whatever `change` raises but Conflict.
        """
        for tried in range(TRIES_MAX):
            try:
                return await change(await self.workload())
            except Conflict:
                await self._clock.sleep(self._rng.uniform(0, 0.05 * 2**tried))
        raise Unavailable(
            f"others change the {self.kind} {self.name} at this moment", hint="try again", retry_after_s=5
        )

    async def missing(self, *, rollback: bool) -> list[str]:
        """The rights that the service account lacks, in words; with `rollback` those for undoing a rollout as well.

        Raises:
            Unavailable: the API cannot be asked.
        """
        found = []
        for verb, resource, part in (*RIGHTS[self.kind], *(RIGHTS_OF_ROLLBACK[self.kind] if rollback else ())):
            about = {
                "namespace": self.namespace,
                "group": "apps",
                "verb": verb,
                "resource": resource,
                "subresource": part,
                # A right over the one by its name is enough; a list cannot be limited to names.
                "name": self.name if verb != "list" else "",
            }
            review = _AccessReview(spec={"resourceAttributes": about})
            answer = await self._call(self._client.create(review))
            if not answer["status"]["allowed"]:
                found.append(f"{verb} {resource}{f'/{part}' if part else ''}")
        return found

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except httpx2.HTTPStatusError as error:
            raise self._meaning(error.response.status_code, str(error)) from error
        except (TimeoutError, httpx2.HTTPError, ConfigError, msgspec.MsgspecError, LookupError, ValueError) as error:
            raise Unavailable(
                f"the Kubernetes API does not answer: {error or type(error).__name__}",
                hint="check the network to the API server, and its own health",
                retry_after_s=5,
            ) from error

    def _meaning(self, status: int, message: str) -> Exception:
        """What an answer that is not success means."""
        if status == 409:
            return Conflict(f"the {self.kind} {self.name} has been changed since it was read")
        hints = {
            401: "its token is not accepted: check the service account, or the kubeconfig",
            403: "give the service account the Role of docs/kubernetes.md; bellbuoy doctor says what is missing",
            404: f"is there a {self.kind} {self.name} in {self.namespace}? check [kubernetes]",
        }
        return Unavailable(f"the Kubernetes API answered {status}: {message}", hint=hints.get(status), retry_after_s=5)


def notes(document: Document) -> dict[str, str]:
    """The annotations of an object."""
    return dict(document["metadata"].get("annotations") or {})


def version_of(document: Document) -> str:
    """What a write over what was read has to name."""
    return str(document["metadata"]["resourceVersion"])


def _owner(document: Document) -> str | None:
    owners = document["metadata"].get("ownerReferences") or []
    return next((one["uid"] for one in owners if one.get("controller")), None)
