"""A file system with little room, and how all of it is taken."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bellbuoy.service.drills.stack import CannotRun, Stack

DISK_BYTES = 32 * 1024 * 1024
SMALL_BYTES_MAX = 64 * 1024 * 1024
"""Of a disk that a drill may fill."""
_PAGE = b"\0" * 4096


@dataclass
class SmallDisk:
    """A file system of its own, which only root may mount.

    Args:
        given: a directory on a file system with little room that is there already; None mounts one.
    """

    given: Path | None = None
    _mounted: Path | None = None

    def made(self, folder: Path) -> Path:
        """A directory on it; one that is mounted is mounted on `folder`. Raises CannotRun."""
        place = self.given
        if place is None:
            _mount(folder)
            place = self._mounted = folder
        if not place.is_dir():
            raise CannotRun(f"there is no directory {place}", hint="make it, or give --small-disk another")
        size = shutil.disk_usage(place).total
        if size > SMALL_BYTES_MAX:
            raise CannotRun(
                f"the disk of {place} has {size // 2**20} MiB, and all of it would be filled",
                hint=f"give --small-disk a directory on a file system of at most {SMALL_BYTES_MAX // 2**20} MiB",
            )
        return place

    def close(self) -> None:
        """Take away what was mounted; nobody may use it any more."""
        if self._mounted is not None:
            subprocess.run(["umount", str(self._mounted)], check=True)  # noqa: S603, S607
            self._mounted = None


@dataclass
class SmallDiskStack(Stack):
    """One process that does everything, with its data on a file system with little room."""

    disk: SmallDisk = field(default_factory=SmallDisk)

    def make(self) -> None:
        self.add("serve", str(self.disk.made(self.folder / "disk") / "data"), "serve", accepts=True)

    def close(self) -> None:
        super().close()
        self.disk.close()


def fill(path: Path) -> None:
    """Take all the room there is, to the last page."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(_PAGE)


def _mount(place: Path) -> None:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise CannotRun(
            "a file system with little room cannot be mounted here",
            hint="run it as root, or give --small-disk a directory on a file system of at most 64 MiB",
        )
