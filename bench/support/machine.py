"""What a figure depends on: the machine, the disk, and the versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from .processes import Broken

NEEDED = {"h2load": "nghttp2-client", "nghttpd": "nghttp2-server", "redis-server": "redis-server"}
PACKAGES = (
    "celery",
    "taskiq",
    "taskiq-redis",
    "redis",
    "requests",
    "tenacity",
    "pybreaker",
    "aiobreaker",
    "aiohttp",
    "uvloop",
)


def require_programs() -> None:
    """Check that the servers are there.

    Raises:
        Broken: one is not; the message names the package that brings it.
    """
    missing = [
        f"{program} (Debian package {package})" for program, package in NEEDED.items() if not shutil.which(program)
    ]
    if missing:
        raise Broken("the benchmark needs " + " and ".join(missing))


def facts(folder: Path) -> dict[str, object]:
    """Return what was measured on: cores, processor, Python, load, the disk's fsync, versions."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 2),
        "fsync_ms": _fsync_ms(folder),
        "redis": _version("redis-server"),
        "nghttpd": _version("nghttpd"),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"^model name\s*: (.+)$", text, re.M)
    return named[1].strip() if named else platform.machine()


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"\d+\.\d+(\.\d+)?", said)
    return number[0] if number else "unknown"


def _fsync_ms(folder: Path) -> float:
    """Time a 4 KiB append with fsync where the data will lie: a tmpfs would make durability look free."""
    path = folder / "fsync"
    times = []
    with path.open("wb", buffering=0) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return round(statistics.median(times) * 1000, 3)
