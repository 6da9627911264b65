"""Ends what a drill has started when the drill itself is killed, and takes its folder away.

This file is a program as well: it imports nothing of Bellbuoy's, reads the processes to watch from its input, and acts
when that ends, which it does however the drill ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_told: list[IO[bytes]] = []
"""The input of the warden that there is, if there is one."""


@contextlib.contextmanager
def warden(folder: Path | None) -> Iterator[None]:
    """In the block, everything that is watched ends with this process at the latest.

    Args:
        folder: is deleted then; None for none.
    """
    command = [sys.executable, "-I", __file__, str(folder or "")]
    # An interrupt at the terminal is for whoever drives the drill, who ends everything in order.
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as process:  # noqa: S603  # This file.
        assert process.stdin is not None
        _told.append(process.stdin)
        try:
            yield
        finally:
            _told.remove(process.stdin)
            process.kill()


def watch(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Have this leader of a process group watched, and with it its group; nothing outside of a `warden`."""
    for told in _told:
        told.write(b"%d\n" % process.pid)
        told.flush()


def _started(pid: int) -> str | None:
    """When a process was started, as only the kernel counts it; None where it is not there, or nobody can say.

    Another that has got the number since then was started later.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _main(folder: str) -> None:
    watched = {pid: _started(pid) for pid in (int(line) for line in sys.stdin.buffer)}
    for pid, started in watched.items():
        if started is not None and _started(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(sys.argv[1])
