"""Which folder is this process's own, of those that several processes have beside each other: journals, audit logs."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from bellbuoy.errors import ConfigurationError

FOLDERS_MAX = 100


def claim(root: Path) -> tuple[Path, IO[str], list[tuple[Path, IO[str]]]]:
    """Take the first folder that no other process has, and those that ended processes left with something in them.

    Args:
        root: the folder that they are all in; made when it is not there.

    Returns:
        The folder, what holds it until it is closed, and the same for each that was left.

    Raises:
        ConfigurationError: it cannot be written, or too many processes have one.
    """
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        with open(root / "claim.lock", "w", encoding="utf-8") as gate:
            # One at a time: whoever looks holds every free folder for a moment, and another would find none.
            fcntl.flock(gate, fcntl.LOCK_EX)
            return _claim(root)
    except OSError as error:
        raise ConfigurationError(
            f"the folders in {root} cannot be opened: {error.strerror}",
            hint="check [data] dir and the rights of the user that runs bellbuoy",
        ) from error


def _claim(root: Path) -> tuple[Path, IO[str], list[tuple[Path, IO[str]]]]:
    free = [(root / str(n), lock) for n in range(FOLDERS_MAX) if (lock := _try(root / f"{n}.lock")) is not None]
    if not free:
        raise ConfigurationError(
            f"{FOLDERS_MAX} processes have a folder in {root}", hint="give some of them another [data] dir"
        )
    (own, lock), *others = free
    left = []
    for folder, other in others:
        if folder.exists():
            left.append((folder, other))
        else:
            other.close()
    return own, lock, left


def _try(path: Path) -> IO[str] | None:
    # Not truncated: who holds it may have written something down in it.
    lock = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # It is held for as long as the process lives.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
