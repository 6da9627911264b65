"""The audit log in files of a folder: one chain, one writer, segments named after the number of their first entry."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from bellbuoy.adapters.folders import sync
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, Full
from bellbuoy.model.audit import (
    LINE_BYTES_MAX,
    Entry,
    Head,
    Header,
    entry_of,
    header_of,
    parts,
    sealed,
    sealed_header,
)

SEGMENT_BYTES = 8 * 1024 * 1024
SEGMENT_S = 86_400.0
"""A segment of this age is followed by another, so that what is too old can be forgotten day by day."""

SUFFIX = ".log"

T = TypeVar("T")


class FileAuditLog:
    """Implements `bellbuoy.ports.audit.AuditLog`.

    Args:
        folder: of this process alone; made when it is not there.
        where: says in the head which machine and folder this is.
        clock: for the times of segments.
        segment_bytes, segment_s: a segment of at least this many bytes or seconds is followed by another.

    Raises:
        ConfigurationError: the folder cannot be read or written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        where: str,
        clock: Clock,
        segment_bytes: int = SEGMENT_BYTES,
        segment_s: float = SEGMENT_S,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._file: int | None = None
        self._size = 0
        self._begun_at = 0.0
        self._head = Head(secrets.token_hex(8), 0, "", 0.0, where)
        self._running = ""  # What the next entry's hash goes by: the last one, or the header of an empty segment.
        self._thread = ThreadPoolExecutor(1, "audit")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._resume()
        except OSError as error:
            raise ConfigurationError(
                f"the audit log {folder} cannot be opened: {error.strerror}",
                hint="check [data] dir and the rights of the user that runs bellbuoy",
            ) from error

    @property
    def head(self) -> Head:
        """See `AuditLog.head`."""
        return self._head

    async def append(self, entries: Sequence[Entry]) -> None:
        """See `AuditLog.append`."""
        await self._do(lambda: self._append(entries))

    async def older(self, before: float) -> int:
        """See `AuditLog.older`."""
        return await self._do(lambda: self._older(before))

    async def forget(self, up_to: int) -> int:
        """See `AuditLog.forget`."""
        return await self._do(lambda: self._forget(up_to))

    async def aclose(self) -> None:
        """See `AuditLog.aclose`."""
        self._thread.shutdown(wait=True)
        self._close()

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except OSError as error:
            raise Full(
                f"the audit log on the disk of {self._folder.parent} cannot be written: {error.strerror}",
                hint="make room in the data directory",
                retry_after_s=5.0,
            ) from error

    # Writing, in the one thread.

    def _append(self, entries: Sequence[Entry]) -> None:
        now = self._clock.time()
        if self._file is None or self._size >= self._segment_bytes or now - self._begun_at >= self._segment_s:
            self._begin(now)
        assert self._file is not None
        n, running, lines = self._head.n, self._running, []
        for entry in entries:
            n += 1
            running, line = sealed(running, replace(entry, n=n))
            lines.append(line)
        data = b"".join(lines)
        try:
            _write(self._file, data)
        except OSError:
            self._abandon()
            raise
        self._size += len(data)
        self._running = running
        self._head = replace(self._head, n=n, hash=running, at=now)

    def _begin(self, now: float) -> None:
        """Begin the next segment; one that was begun and has no entry yet is begun anew."""
        self._close()
        header = Header(self._head.chain, self._head.n + 1, self._head.hash, now)
        running, line = sealed_header(header)
        path = self._folder / f"{header.first:020}{SUFFIX}"
        # A pipe of that name refuses at once, rather than to wait for who reads it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(path, flags, 0o600)
        try:
            _write(file, line)
            sync(self._folder)
        except OSError:
            os.close(file)
            raise
        self._file, self._size, self._begun_at, self._running = file, len(line), now, running

    def _abandon(self) -> None:
        """Cut off what was not written whole; where even that fails it stays, and shows as torn."""
        assert self._file is not None
        try:
            os.ftruncate(self._file, self._size)
            os.fdatasync(self._file)
        except OSError:
            self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _older(self, before: float) -> int:
        # A segment ends where the next one begins, so the last one is never old enough.
        pairs = itertools.pairwise(_segments(self._folder))
        begun = [int(after.stem) for _, after in itertools.takewhile(lambda pair: _begun(pair[1]) < before, pairs)]
        return begun[-1] - 1 if begun else 0

    def _forget(self, up_to: int) -> int:
        pairs = itertools.pairwise(_segments(self._folder))
        old = [path for path, after in pairs if int(after.stem) - 1 <= up_to]
        if not old:
            return 0
        first = int(old[0].stem)
        self._append([Entry(0, self._clock.time(), "pruned", target=str(up_to))])
        for path in old:
            path.unlink()
        sync(self._folder)
        return up_to - first + 1

    # Going on after a restart.

    def _resume(self) -> None:
        """Go on where the last segment ends, without what a crash has torn.

        What does not check otherwise is left for whoever verifies, and the chain goes on from what stands there.
        """
        paths = _segments(self._folder)
        if not paths:
            return
        path = paths[-1]
        with path.open("rb") as file:
            line = file.readline(LINE_BYTES_MAX)
            header, whole = header_of(line), len(line)
            n, last = int(path.stem) - 1, ""
            for line in iter(lambda: file.readline(LINE_BYTES_MAX), b""):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                found = parts(line)
                entry = entry_of(found[1]) if found is not None else None
                n = entry.n if entry is not None else n + 1
                last = found[0] if found is not None else last
        if header is not None:
            self._head = replace(self._head, chain=header.chain, n=n, hash=last or header.previous)
        else:
            self._head = replace(self._head, n=n, hash=last)
        torn = path.stat().st_size - whole
        if torn > 0:
            os.truncate(path, whole)
        if last and header is not None:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            self._size, self._begun_at, self._running = whole, header.at, last
        if torn > 0:
            self._append([Entry(0, self._clock.time(), "torn", count=torn)])


def _segments(folder: Path) -> list[Path]:
    # Whatever else has such a name is left for whoever verifies: to open it might fail, or wait for ever.
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix == SUFFIX
        and path.stem.isascii()
        and path.stem.isdigit()
        and path.is_file()
        and not path.is_symlink()
    )


def _begun(path: Path) -> float:
    """When a segment was begun, in epoch seconds; never, where that cannot be read."""
    with path.open("rb") as file:
        header = header_of(file.readline(LINE_BYTES_MAX))
    return header.at if header is not None else float("inf")


def _write(file: int, data: bytes) -> None:
    written = 0
    while written < len(data):
        written += os.write(file, data[written:])
    os.fdatasync(file)
