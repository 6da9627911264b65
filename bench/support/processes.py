"""Child processes of a benchmark: each stopped by its own id, whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOP_S_MAX = 30.0


class Broken(Exception):
    """The benchmark cannot go on; the message says why."""


def python(*arguments: str) -> list[str]:
    """Return the command that runs a module of this environment."""
    return [sys.executable, "-m", *arguments]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without its own Bellbuoy settings, and with the extra variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BELLBUOY_")}
    return inherited | {"PYTHONPATH": str(ROOT)} | dict(extra)


@contextmanager
def running(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the time of the block.

    It gets a session of its own, so that an interrupt reaches only the benchmark, which then stops it in order, and
    so that children of one that had to be killed go with it.
    """
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=environment(env or {}),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and after `STOP_S_MAX` seconds end it and its children."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S_MAX)
    with suppress(ProcessLookupError):
        # The group's id is the process's own; it stays reserved as long as a member lives, so it names no stranger.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_port(port: int, process: subprocess.Popen[bytes], *, log: Path, seconds_max: float = 30.0) -> None:
    """Wait until a process listens.

    Raises:
        Broken: it ended, or did not listen in time.
    """

    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
        return False

    await_that(listens, process, log=log, what=f"listen on {port}", every_s=0.05, seconds_max=seconds_max)


def await_that(
    holds: Callable[[], bool],
    process: subprocess.Popen[bytes],
    *,
    log: Path,
    what: str,
    every_s: float,
    seconds_max: float,
) -> float:
    """Wait until something holds, and return the time at which it was asked for, in seconds since the epoch.

    Raises:
        Broken: the process ended, or it took longer than `seconds_max`.
    """
    deadline = time.monotonic() + seconds_max
    while not holds():
        if process.poll() is not None:
            raise Broken(f"{process.args!r} ended with {process.returncode}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise Broken(f"{process.args!r} did not {what} within {seconds_max:g} s:\n{tail(log)}")
        time.sleep(every_s)
    return time.time()


def tail(log: Path, lines_max: int = 20) -> str:
    """Return the end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines_max:])
