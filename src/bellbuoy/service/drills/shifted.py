"""A wall clock that somebody else sets, as NTP or an operator might; the monotonic clock does not notice."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

from bellbuoy.clock import SystemClock

_SECONDS = struct.Struct("=d")
_FILE = "clock-offset"


class ShiftedClock(SystemClock):
    """The machine's clocks, with the wall clock off by what a file of the data directory says at this moment.

    What reads the time without being given a clock, as a driver or the log does, goes by the machine's.

    Args:
        data_dir: made here.
    """

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        set_clock(data_dir, 0.0)
        with (data_dir / _FILE).open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), _SECONDS.size)

    def time(self) -> float:
        return time.time() + float(_SECONDS.unpack_from(self._offset)[0])


def set_clock(data_dir: Path, offset_s: float) -> None:
    """Have a process that goes by the `ShiftedClock` of this directory be off by so many seconds from now on."""
    path = data_dir / _FILE
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.write(_SECONDS.pack(offset_s))
