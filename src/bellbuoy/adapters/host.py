"""The machine under this process, as Linux shows it: memory against the nearest limit, and the disk."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

# The C library's own; others than glibc have no such call.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class LinuxHost:
    """Implements `bellbuoy.ports.operations.Host`.

    Memory is held against every limit that there is: the control group's and those of the groups around it (version 2,
    or 1), the machine's, and one that is configured. The nearest counts.

    Args:
        data_dir: whose disk is looked at.
        memory_max_bytes: a limit of the operator's own for this process; None for none.
        root: where `/proc` and `/sys` are.
    """

    def __init__(self, data_dir: Path, *, memory_max_bytes: int | None = None, root: Path = Path("/")) -> None:
        self._data_dir = data_dir
        self._memory_max_bytes = memory_max_bytes
        self._root = root

    def memory_ratio(self) -> float | None:
        ratios = [used / limit for used, limit in self._memory() if limit > 0]
        return max(ratios, default=None)

    def give_back_memory(self) -> None:
        """Collect garbage, and give what that frees back to the system, which an allocator otherwise keeps."""
        gc.collect()
        if _TRIM is not None:
            _TRIM(0)

    def disk_free_bytes(self) -> int | None:
        try:
            stats = os.statvfs(self._data_dir)
        except OSError:
            return None
        return stats.f_bavail * stats.f_frsize

    def _memory(self) -> Iterator[tuple[int, int]]:
        """Pairs of what is used and what may be used, in bytes."""
        own = self._own()
        if own is not None and self._memory_max_bytes is not None:
            yield own, self._memory_max_bytes
        yield from self._groups()
        machine = self._machine()
        if machine is not None:
            yield machine

    def _own(self) -> int | None:
        text = self._read("proc/self/statm")
        return int(text.split()[1]) * PAGE_BYTES if text else None

    def _groups(self) -> Iterator[tuple[int, int]]:
        for line in (self._read("proc/self/cgroup") or "").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                yield from self._up("sys/fs/cgroup", path, "memory.current", "memory.max", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")
                yield from self._up("sys/fs/cgroup/memory", path, *names)

    def _up(self, base: str, path: str, used: str, limit: str, reclaimable: str) -> Iterator[tuple[int, int]]:
        """The group and those around it; in a container the path may not be visible, and the root is its own."""
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            folder = "/".join([base, *parts[:depth]])
            is_used, may_use = self._read(f"{folder}/{used}"), self._read(f"{folder}/{limit}")
            if is_used is None or may_use is None or not may_use.strip().isdigit():
                continue
            # What the kernel can drop at once is not in use, as Kubernetes counts it (its working set).
            stat = dict(line.split() for line in (self._read(f"{folder}/memory.stat") or "").splitlines())
            yield max(0, int(is_used) - int(stat.get(reclaimable, 0))), int(may_use)

    def _machine(self) -> tuple[int, int] | None:
        lines = (line.split() for line in (self._read("proc/meminfo") or "").splitlines())
        found = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
        if "MemTotal" not in found or "MemAvailable" not in found:
            return None
        return found["MemTotal"] - found["MemAvailable"], found["MemTotal"]

    def _read(self, path: str) -> str | None:
        try:
            return (self._root / path).read_text()
        except OSError:
            return None
