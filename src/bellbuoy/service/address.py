"""Where services listen, written down in their data directory for whoever calls them on the same machine.

Each process that listens has a file of its own and holds a lock on it for as long as it lives. Who gets that lock knows
that nobody listens there any more, however the process ended: a key that is sent there would go to a stranger.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from bellbuoy.service.files import opened

_FILES = "url-*"
_BYTES_MAX = 1_000


def url_of(host: str, port: int) -> str:
    """The URL of an address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def near_url_of(host: str, port: int) -> str:
    """The same for whoever is on this machine, where every address that it has may be meant."""
    return url_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104


@contextlib.contextmanager
def noted(data_dir: Path, host: str, port: int) -> Iterator[None]:
    """While this lasts, a data directory says that a service listens there. On a full disk nobody needs it to serve."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(_note(data_dir, near_url_of(host, port)))
        yield


@contextlib.contextmanager
def _note(data_dir: Path, url: str) -> Iterator[None]:
    _forget_the_dead(data_dir)
    path = data_dir / _FILES.replace("*", secrets.token_hex(8))
    scratch = path.with_name(f".{path.name}")  # It gets its name when it is locked, so that it never seems to be dead.
    with open(scratch, "xb", opener=_for_the_owner) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(url.encode())
            file.flush()
            scratch.rename(path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def found(data_dir: Path) -> str | None:
    """Where a service of a data directory listens, of several the one that began last; None where none does."""
    living = filter(None, map(_living, data_dir.glob(_FILES)))
    return max(living, default=(0, None))[1]


def _living(path: Path) -> tuple[int, str] | None:
    """When a file was written, in ns, and what URL it has; None where nobody listens there, or it has none."""
    try:
        with opened(path) as file:
            if not _held(file):
                return None
            url = file.read(_BYTES_MAX).decode("ascii").strip()
            parts = urlsplit(url)
            return (os.fstat(file.fileno()).st_mtime_ns, url) if parts.hostname and parts.port else None
    except (OSError, ValueError):
        return None


def _held(file: BinaryIO) -> bool:
    """Whether somebody has the lock; those who look share it, so that none of them takes another for a service."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _forget_the_dead(data_dir: Path) -> None:
    for path in data_dir.glob(_FILES):
        with contextlib.suppress(OSError), opened(path) as file:
            if not _held(file):
                path.unlink()


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
