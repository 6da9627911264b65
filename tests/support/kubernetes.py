"""A Kubernetes API server with one Deployment or StatefulSet, as far as it matters here, by HTTP on a port of its own.

It keeps what a client relies on: a `resourceVersion` that grows with every write and is checked when a patch names one,
a `generation` that grows with every change of the spec, merge and JSON patches, the scale subresource, and access
reviews. The controller that makes ReplicaSets, or ControllerRevisions, and counts revisions acts when a test calls
`reconcile`.
"""

from __future__ import annotations

import asyncio
import copy
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bellbuoy.adapters.kubernetes import Kind

NAME, NAMESPACE, TOKEN = "bellbuoy", "push", "token-of-the-tests"
REVISION = "deployment.kubernetes.io/revision"
HISTORY = {"Deployment": "replicasets", "StatefulSet": "controllerrevisions"}
_BASE = "/apis/apps/v1/namespaces/{namespace}"

Document = dict[str, Any]


class FakeCluster:
    """The API server's state, and what a test does to it beside the client."""

    def __init__(self, kind: Kind = "Deployment", *, replicas: int = 3) -> None:
        self.kind = kind
        self.plural = f"{kind.lower()}s"
        self._version = 100
        self.denied: set[tuple[str, str, str]] = set()
        self.away = False
        self.before_write: Callable[[], None] | None = None
        self.writes: list[tuple[str, Document | list[Document]]] = []
        self.sets: list[Document] = []
        template = {"metadata": {"labels": {"app": NAME}}, "spec": {"containers": [{"name": "main", "image": "v1"}]}}
        self.workload: Document = {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "uid-1", "generation": 1, "annotations": {}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": NAME}}, "template": template},
            "status": {},
        }
        self._written(self.workload)
        self.reconcile()

    # What others do.

    @property
    def replicas(self) -> int:
        return int(self.workload["spec"]["replicas"])

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.workload["metadata"]["annotations"])

    @property
    def image(self) -> str:
        return str(self.workload["spec"]["template"]["spec"]["containers"][0]["image"])

    def set_replicas(self, replicas: int) -> None:
        """A human, or an autoscaler."""
        self._update(lambda document: document["spec"].update(replicas=replicas))

    def deploy(self, image: str) -> None:
        """Somebody rolls another image out."""

        def changed(document: Document) -> None:
            document["spec"]["template"]["spec"]["containers"][0]["image"] = image

        self._update(changed)

    def restart(self, at: str) -> None:
        """Somebody restarts all pods, as `kubectl rollout restart` does."""

        def changed(document: Document) -> None:
            metadata = document["spec"]["template"]["metadata"]
            metadata["annotations"] = {"kubectl.kubernetes.io/restartedAt": at}

        self._update(changed)

    def reconcile(self, *, complete: bool = True, failed: bool = False) -> None:
        """The controller: something that keeps each template, the revision, the status."""
        act = self._reconcile_deployment if self.kind == "Deployment" else self._reconcile_stateful_set
        act(complete=complete, failed=failed)
        self._written(self.workload)

    def _reconcile_deployment(self, *, complete: bool, failed: bool) -> None:
        deployment = self.workload
        template = deployment["spec"]["template"]
        plain = [_without_hash(one["spec"]["template"]) for one in self.sets]
        highest = max((int(one["metadata"]["annotations"][REVISION]) for one in self.sets), default=0)
        if template in plain:
            found = self.sets[plain.index(template)]
        else:
            found = self._replica_set(template, len(self.sets) + 1)
        if int(found["metadata"]["annotations"].get(REVISION, "0")) != highest or not highest:
            found["metadata"]["annotations"][REVISION] = str(highest + 1)
        deployment["metadata"]["annotations"][REVISION] = found["metadata"]["annotations"][REVISION]
        replicas = self.replicas
        reason = "ProgressDeadlineExceeded" if failed else "NewReplicaSetAvailable"
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas if complete else replicas + 1,
            "updatedReplicas": replicas if complete else 1,
            "availableReplicas": replicas,
            "conditions": [{"type": "Progressing", "status": "False" if failed else "True", "reason": reason}],
        }

    def _reconcile_stateful_set(self, *, complete: bool, failed: bool) -> None:
        assert not failed, "a StatefulSet never says so"
        template = {**self.workload["spec"]["template"], "$patch": "replace"}
        kept = [one["data"]["spec"]["template"] for one in self.sets]
        highest = max((one["revision"] for one in self.sets), default=0)
        found = self.sets[kept.index(template)] if template in kept else self._controller_revision(template)
        if found["revision"] != highest or not highest:
            found["revision"] = highest + 1
        current = (self.workload["status"] or {}).get("currentRevision")
        replicas = self.replicas
        self.workload["status"] = {
            "observedGeneration": self.workload["metadata"]["generation"],
            "replicas": replicas,
            "readyReplicas": replicas if complete else replicas - 1,
            "updatedReplicas": replicas if complete else 1,
            "updateRevision": found["metadata"]["name"],
            "currentRevision": found["metadata"]["name"] if complete else current,
        }

    def _controller_revision(self, template: Document) -> Document:
        number = len(self.sets) + 1
        made = {
            "apiVersion": "apps/v1",
            "kind": "ControllerRevision",
            "metadata": {
                "name": f"{NAME}-{number}",
                "annotations": dict(self.workload["metadata"]["annotations"]),
                "ownerReferences": [self._owner],
            },
            "data": {"spec": {"template": copy.deepcopy(template)}},
            "revision": 0,
        }
        self.sets.append(made)
        return made

    @property
    def _owner(self) -> Document:
        return {"apiVersion": "apps/v1", "kind": self.kind, "name": NAME, "uid": "uid-1", "controller": True}

    def _replica_set(self, template: Document, number: int) -> Document:
        labelled = copy.deepcopy(template)
        labelled["metadata"]["labels"]["pod-template-hash"] = f"hash-{number}"
        made = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": f"{NAME}-{number}", "annotations": {}, "ownerReferences": [self._owner]},
            "spec": {"template": labelled},
        }
        self.sets.append(made)
        return made

    def _update(self, change: Callable[[Document], object]) -> Document:
        before = copy.deepcopy(self.workload["spec"])
        changed = copy.deepcopy(self.workload)
        change(changed)
        if changed["spec"] != before:
            changed["metadata"]["generation"] += 1
        self.workload = changed
        self._written(changed)
        return changed

    def _written(self, document: Document) -> None:
        self._version += 1
        document["metadata"]["resourceVersion"] = str(self._version)

    # What the client does.

    async def read(self, request: Request) -> Response:
        return self._refused(request, ("get", self.plural, "")) or JSONResponse(self.workload)

    async def patch(self, request: Request) -> Response:
        part = "scale" if request.url.path.endswith("/scale") else ""
        refused = self._refused(request, ("patch", self.plural, part))
        if refused is not None:
            return refused
        if self.before_write is not None:
            # Somebody is faster; once, since who is faster every time is another matter.
            act, self.before_write = self.before_write, None
            act()
        patch = await request.json()
        current = self._scale() if part else self.workload
        if request.headers["content-type"] == "application/json-patch+json":
            changed = _json_patched(current, patch)
        else:
            changed = _merged(current, patch)
        if changed["metadata"]["resourceVersion"] != self.workload["metadata"]["resourceVersion"]:
            return _status(409, "Conflict", "the object has been modified; please apply your changes to it")
        self.writes.append((part, patch))
        if part:
            self._update(lambda document: document["spec"].update(replicas=changed["spec"]["replicas"]))
            return JSONResponse(self._scale())
        return JSONResponse(self._update(lambda document: document.update(copy.deepcopy(changed))))

    async def sets_of(self, request: Request) -> Response:
        refused = self._refused(request, ("list", HISTORY[self.kind], ""))
        listing = {"apiVersion": "apps/v1", "kind": "List", "metadata": {}, "items": self.sets}
        return refused or JSONResponse(listing)

    async def review(self, request: Request) -> Response:
        refused = self._refused(request, ("create", "selfsubjectaccessreviews", ""))
        document = await request.json()
        about = document["spec"]["resourceAttributes"]
        allowed = (about["verb"], about["resource"], about["subresource"]) not in self.denied
        return refused or JSONResponse({**document, "status": {"allowed": allowed}}, status_code=201)

    def _scale(self) -> Document:
        metadata = {key: self.workload["metadata"][key] for key in ("name", "namespace", "resourceVersion")}
        spec = {"replicas": self.replicas}
        return {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": metadata, "spec": spec}

    def _refused(self, request: Request, right: tuple[str, str, str]) -> Response | None:
        if self.away:
            return Response("upstream is away", status_code=503, media_type="text/plain")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized", "Unauthorized")
        if (
            request.path_params.get("namespace", NAMESPACE) != NAMESPACE
            or request.path_params.get("name", NAME) != NAME
        ):
            return _status(404, "NotFound", "not found")
        if right in self.denied:
            return _status(403, "Forbidden", f"cannot {right[0]} {right[1]}")
        return None


@asynccontextmanager
async def serving(cluster: FakeCluster, path: Path) -> AsyncIterator[Path]:
    """Serve it; gives a kubeconfig for it, written into `path`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    one = f"{_BASE}/{cluster.plural}/{{name}}"
    app = Starlette(
        routes=[
            Route(one, cluster.read, methods=["GET"]),
            Route(one, cluster.patch, methods=["PATCH"]),
            Route(f"{one}/scale", cluster.patch, methods=["PATCH"]),
            Route(f"{_BASE}/{HISTORY[cluster.kind]}", cluster.sets_of, methods=["GET"]),
            Route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", cluster.review, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    kubeconfig = path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "tests",
                "contexts": [
                    {"name": "tests", "context": {"cluster": "tests", "user": "tests", "namespace": NAMESPACE}}
                ],
                "clusters": [{"name": "tests", "cluster": {"server": f"http://127.0.0.1:{listener.getsockname()[1]}"}}],
                "users": [{"name": "tests", "user": {"token": TOKEN}}],
            }
        )
    )
    try:
        yield kubeconfig
    finally:
        async with asyncio.timeout(10):
            await server.shutdown(sockets=[listener])


def _without_hash(template: Document) -> Document:
    plain = copy.deepcopy(template)
    plain["metadata"]["labels"].pop("pod-template-hash", None)
    return plain


def _merged(base: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _json_patched(base: Document, operations: list[Document]) -> Document:
    """RFC 6902, as far as the client uses it: replace what is there."""
    result = copy.deepcopy(base)
    for operation in operations:
        assert operation["op"] == "replace"
        *path, last = operation["path"].lstrip("/").split("/")
        inner = result
        for key in path:
            inner = inner[key]
        assert last in inner
        inner[last] = operation["value"]
    return result


def _status(code: int, reason: str, message: str) -> Response:
    body = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }
    return JSONResponse(body, status_code=code)
