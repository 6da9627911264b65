"""The send journal: attempts in segment files beside the ledger, until they are in a backup's target.

An entry is handed to the system before the attempt and not synced to the disk: a process that is killed loses none, and
after a power cut it is the ledger itself that knows. So an entry costs a few microseconds and no wait. Entries lie in a
folder for each time that they are shipped, and one that is shipped is deleted as a whole, but for segments with damage:
those stay as `.damaged` beside the folders, for whoever wants to look what it was.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bellbuoy.adapters.journal.segments import DAMAGED, SEGMENT_BYTES, SegmentLog
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
            self._bytes_closed = sum(_size(batch) for batch in self._closed)
            self._damage = {file: 0 for root in (*left, folder) for file in sorted(root.glob("*" + DAMAGED))}
        except OSError as error:
            raise ConfigurationError(
                f"the send journal {folder} cannot be opened: {error.strerror}", hint="check [backup] sends_dir"
            ) from None
        numbers = (one.name.partition("-")[0] for one in folder.iterdir())  # Of batches, and of what is left of them.
        self._number = max((int(number) for number in numbers if number.isdecimal()), default=0)

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
        """What is in one of them; entries that do not check are counted, see `damage`."""
        found, damaged = await asyncio.to_thread(_read, batch)
        if damaged:
            self._damage[batch] = damaged
        return found

    def damage(self) -> tuple[int, list[str]]:
        """How many entries of what was read do not check, and the files with them that stay, relative to the folder.

        Those of earlier processes that somebody has still to look at and move away are named as well.
        """
        files = {f"{file.parent.name}/{file.name}" for one in self._damage for file in _kept(one)}
        return sum(self._damage.values()), sorted(files)

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


def _read(batch: Path) -> tuple[list[Sent], int]:
    log = SegmentLog(batch)
    try:
        return [_decode(entry.data) for entry in log.read(log.pending)], log.damaged
    finally:
        log.close()


def _remove(batch: Path) -> int:
    """Delete a batch, and move what of it is to be kept beside it; returns the bytes that it had."""
    size = _size(batch)
    for file in batch.glob("*" + DAMAGED):
        file.rename(_beside(file))
    shutil.rmtree(batch)
    return size


def _size(batch: Path) -> int:
    """In bytes, without what is there under a second name."""
    return sum(file.stat().st_size for file in batch.iterdir() if file.suffix != DAMAGED)


def _kept(one: Path) -> list[Path]:
    """The segments with damage of a batch, wherever they are now; `one` itself where it is such a segment."""
    if one.suffix == DAMAGED:
        return [one]
    return sorted([*one.glob("*" + DAMAGED), *one.parent.glob(f"{one.name}-*{DAMAGED}")])


def _beside(file: Path) -> Path:
    return file.parent.parent / f"{file.parent.name}-{file.name}"
