"""What was drilled: a file for each drill that was run, in the data directory."""

from __future__ import annotations

import getpass
import os
import socket
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from bellbuoy.continuity.drill import DrillReport
from bellbuoy.service.files import opened

KEPT_MAX = 1_000
"""Records that are kept; the oldest go first."""
RECORD_BYTES_MAX = 16 * 1024 * 1024
"""What is longer is no record: that of an hour, the longest that a drill lasts, has some 2 MB."""
_decoder = msgspec.json.Decoder(DrillReport)


class Kept(Struct, frozen=True):
    """The records that can be read, the oldest first, and the names of the files that cannot, which prove nothing."""

    reports: list[DrillReport]
    unreadable: list[str]


class Records:
    """The records in `<data dir>/drills`.

    Args:
        data_dir: of the service.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "drills"

    def add(self, report: DrillReport) -> Path:
        """Keep a report; returns its file. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(report.started_at))
        path = self._folder / f"{at}-{report.drill}-{os.getpid()}.json"
        _write(path, msgspec.json.format(msgspec.json.encode(report), indent=1))
        for old in self._files()[:-KEPT_MAX]:
            old.unlink(missing_ok=True)
        return path

    def all(self) -> Kept:
        """Every record there is. One of another version cannot be read either, and what is no regular file is not."""
        kept = Kept([], [])
        for path in self._files():
            try:
                kept.reports.append(_decoder.decode(_read(path)))
            except (OSError, msgspec.MsgspecError):
                kept.unreadable.append(path.name)
        return kept

    def since(self, now: float) -> float:
        """Epoch seconds from which drills that were never run are waited for: the first time that anybody asked.

        Args:
            now: that moment, when this is the first time. Raises OSError when it cannot be written down.
        """
        path = self._folder / "since"
        try:
            return float(_read(path))
        except (OSError, ValueError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, f"{now:.3f}\n".encode())
            return now

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.json"))


def _read(path: Path) -> bytes:
    with opened(path) as file:
        return file.read(RECORD_BYTES_MAX)


def _write(path: Path, data: bytes) -> None:
    """Put a file that only its owner can read in the place of whatever has its name."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(data)
    temporary.chmod(0o600)
    temporary.rename(path)


def who() -> str:
    """The user and machine that run this."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container's user often has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
