"""The journal: entries of many callers share one sync of the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bellbuoy.adapters.journal.segments import ENTRY_BYTES_MAX, SEGMENT_BYTES, SegmentLog
from bellbuoy.errors import ConfigurationError, Full
from bellbuoy.ports.journal import JournalEntry, JournalState

BYTES_MAX = 1024 * 1024 * 1024
PENDING_MAX = 20_000
"""Entries that may wait for the disk; the next is refused with `Full` rather than grow the queue."""


class FileJournal:
    """A journal in a folder. See `bellbuoy.ports.journal.Journal`.

    Args:
        folder: of this process alone; made when it is not there.
        bytes_max: of the disk, at most; more is refused with `Full`.
        segment_bytes: see `SegmentLog`.

    Raises:
        ConfigurationError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, *, bytes_max: int = BYTES_MAX, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        try:
            self._log = SegmentLog(folder, segment_bytes=segment_bytes)
        except OSError as error:
            raise ConfigurationError(
                f"the journal {folder} cannot be opened: {error.strerror}",
                hint="check [data] dir and the rights of the user that runs bellbuoy",
            ) from error
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")
        self._closed = False
        self._kept = tuple(f"{folder.name}/{path.name}" for path in self._log.kept)  # Nothing is damaged later on.
        self._state = self._look()

    async def append(self, data: bytes) -> int:
        """See `Journal.append`."""
        if len(data) > ENTRY_BYTES_MAX:
            raise Full(f"an entry of {len(data)} bytes does not fit into the journal")
        used = self._state.bytes_used + self._waiting_bytes
        if self._closed or len(self._waiting) >= PENDING_MAX or used + len(data) > self._bytes_max:
            raise Full(
                "the journal is full" if not self._closed else "the journal is closed",
                hint="it empties itself when the ledger is back; make room in the data directory meanwhile",
                retry_after_s=5.0,
            )
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((data, done))
        self._waiting_bytes += len(data)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="journal")
        return await done

    async def read(self, *, limit: int) -> Sequence[JournalEntry]:
        """See `Journal.read`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._log.read, limit)

    async def take_off(self, number: int) -> None:
        """See `Journal.take_off`."""
        self._state = await asyncio.get_running_loop().run_in_executor(self._thread, self._take_off, number)

    def state(self) -> JournalState:
        """See `Journal.state`."""
        return self._state

    async def aclose(self) -> None:
        """See `Journal.aclose`."""
        self._closed = True
        if self._writing is not None:
            await asyncio.wait([self._writing])
        self._thread.shutdown(wait=True)
        self._log.close()

    async def _write(self) -> None:
        """Write what waits, in as many turns as it takes; what comes meanwhile shares the next turn."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting, self._waiting_bytes = self._waiting, [], 0
            try:
                first = await loop.run_in_executor(self._thread, self._append, [data for data, _ in batch])
            except OSError:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(_disk_failed(self._folder))
                continue
            for at, (_, done) in enumerate(batch):
                if not done.done():
                    done.set_result(first + at)
        self._writing = None

    def _append(self, entries: list[bytes]) -> int:
        try:
            return self._log.append(entries)
        finally:
            self._state = self._look()

    def _take_off(self, number: int) -> JournalState:
        self._log.take_off(number)
        return self._look()

    def _look(self) -> JournalState:
        return JournalState(self._log.pending, self._log.bytes_used, self._bytes_max, self._log.damaged, self._kept)


def _disk_failed(folder: Path) -> Full:
    return Full(
        f"the disk of {folder.parent} is full or failing",
        hint="make room in the data directory; nothing accepted is lost",
        retry_after_s=5.0,
    )
