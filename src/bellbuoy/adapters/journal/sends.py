"""The send journal: attempts in segment files beside the ledger, until they are in a backup's target.

An entry is handed to the system before the attempt and not synced to the disk: a process that is killed loses none, and
after a power cut it is the ledger itself that knows. So an entry costs a few microseconds and no wait. Entries lie in a
folder for each time that they are shipped, and one that is shipped is deleted as a whole.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bellbuoy.adapters.journal.segments import SEGMENT_BYTES, SegmentLog
from bellbuoy.errors import ConfigurationError, Full
from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.sends import Sent

BYTES_MAX = 1024 * 1024 * 1024
"""Of the disk, while no target takes what is in it; what is sent then is not written down."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Sent).decode


class SendJournal:
    """Implements `bellbuoy.ports.sends.Sends`.

    Args:
        folder: of this process alone; made when it is not there.
        left: the folders that processes which ended left.
        telemetry: is told when sends are not written down, and there is no more than that to be done.

    Raises:
        ConfigurationError: a folder cannot be read or written.

    Concurrency: `note` and `batches` belong to one event loop.
    """

    def __init__(self, folder: Path, left: Sequence[Path] = (), *, telemetry: Telemetry) -> None:
        self._folder = folder
        self._telemetry = telemetry
        self._failing = False
        self._log: SegmentLog | None = None
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []  # At most as many as the worker has in hand.
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._closed = [batch for root in (*left, folder) for batch in sorted(root.iterdir()) if batch.is_dir()]
            self._bytes_closed = sum(file.stat().st_size for batch in self._closed for file in batch.iterdir())
        except OSError as error:
            raise ConfigurationError(
                f"the send journal {folder} cannot be opened: {error.strerror}", hint="check [backup] sends_dir"
            ) from None
        self._number = max((int(batch.name) for batch in folder.iterdir() if batch.name.isdigit()), default=0)

    async def note(self, record: Record, delivery: Delivery, *, now: float) -> None:
        """See `Sends.note`."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] = loop.create_future()
        self._waiting.append(
            (_encode(Sent(now, record.id, record.chain, record.step, record.step_at, delivery)), written)
        )
        if len(self._waiting) == 1:
            loop.call_soon(self._write)
        await written

    def _write(self) -> None:
        """Write what was noted in this turn of the loop in one call.

        Each call lets go of Python's global lock, and has to win it back from the ledger's writer.
        """
        waiting, self._waiting = self._waiting, []
        try:
            self._writable().append([data for data, _ in waiting], sync=False)
        except (OSError, Full) as error:
            if not self._failing:
                self._telemetry.event("sends_not_noted", code=getattr(error, "code", "store_full"))
            self._failing = True
        else:
            self._failing = False
        for _, written in waiting:
            if not written.done():
                written.set_result(None)

    def batches(self) -> list[Path]:
        """What is to be shipped, oldest first; what is noted from now on is in none of them."""
        self._close()
        return list(self._closed)

    async def read(self, batch: Path) -> list[Sent]:
        """What is in one of them."""
        return await asyncio.to_thread(_read, batch)

    async def forget(self, batch: Path) -> None:
        """It is safe elsewhere."""
        size = await asyncio.to_thread(_remove, batch)
        self._closed.remove(batch)
        self._bytes_closed -= size

    def close(self) -> None:
        """Let go of the files; what is in them is found by whoever opens them next."""
        self._close()

    def _writable(self) -> SegmentLog:
        if self._log is not None and self._log.bytes_used >= SEGMENT_BYTES:
            self._close()
        if self._log is None:
            if self._bytes_closed > BYTES_MAX:
                raise Full("the send journal is full", hint="no target of the backups has taken it for long")
            self._number += 1
            self._log = SegmentLog(self._folder / f"{self._number:020}")
        return self._log

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._closed.append(self._folder / f"{self._number:020}")
            self._bytes_closed += self._log.bytes_used
            self._log = None


def _read(batch: Path) -> list[Sent]:
    log = SegmentLog(batch)
    try:
        return [_decode(entry.data) for entry in log.read(log.pending)]
    finally:
        log.close()


def _remove(batch: Path) -> int:
    size = sum(file.stat().st_size for file in batch.iterdir())
    shutil.rmtree(batch)
    return size
