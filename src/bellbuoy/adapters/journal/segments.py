"""Entries in segment files: plain, synchronous, and sure of what is on the disk.

A segment is named after the number of its first entry. An entry is its length, a CRC-32 of its number and data, and the
data; the numbers follow from the place. A crash can leave the last entry of the last segment torn, and only that: it
was never confirmed, so it is cut off. Anything else that does not check is damage, which is counted and never skipped
in silence; the segment that it stands in stays under a second name, `.damaged`, when its other entries are taken off,
for whoever wants to look what it was. `taken` holds the number up to which entries are taken off.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from bellbuoy.adapters.folders import sync
from bellbuoy.ports.journal import JournalEntry

SEGMENT_BYTES = 8 * 1024 * 1024
ENTRY_BYTES_MAX = 1024 * 1024
"""Far above any notification; a length beyond it is damage."""

_HEAD = struct.Struct(">II")
_NUMBER = struct.Struct(">Q")
_SUFFIX = ".log"
DAMAGED = ".damaged"
_LOST_MAX = 1_000
"""So many entries one behind the other may be damaged, and those behind them are still found."""
_TAKEN = "taken"


class SegmentLog:
    """A folder of segments with one writer. Not safe for two threads or two processes at once.

    Args:
        folder: made with mode 0700 when it is not there; its parent exists.
        segment_bytes: a segment of at least this many bytes is followed by another.

    Raises:
        OSError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        self.damaged = 0
        self.bytes_used = 0
        self._file: int | None = None
        self._size = 0  # Bytes of the open segment that are whole entries.
        self._segments: deque[int] = deque()
        self._ends: dict[int, int] = {}  # For each segment the number after its last entry.
        made = not folder.exists()
        folder.mkdir(mode=0o700, exist_ok=True)
        if made:
            sync(folder.parent)
        self._taken = self._read_taken()
        self._next = self._taken + 1
        self._recover()

    @property
    def pending(self) -> int:
        """Entries that are not taken off."""
        return sum(end - max(first, self._taken + 1) for first, end in self._ends.items() if end > self._taken + 1)

    @property
    def kept(self) -> list[Path]:
        """Segments with damage, under their second names, until somebody takes them away."""
        return sorted(self._folder.glob("*" + DAMAGED))

    def append(self, entries: Sequence[bytes], *, sync: bool = True) -> int:
        """Write entries and wait until the disk has them.

        Args:
            entries: what they hold.
            sync: False does not wait; the end of this process loses none, a power cut may.

        Returns:
            The number of the first.

        Raises:
            OSError: nothing of them is there. Where even that cannot be made sure, the segment is left for good and
                the next call begins another.
        """
        first = self._next
        data = b"".join(_framed(first + at, entry) for at, entry in enumerate(entries))
        if self._file is None or self._size >= self._segment_bytes:
            self._begin(first)
        assert self._file is not None
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            if sync:
                os.fdatasync(self._file)
        except OSError:
            self._abandon()
            raise
        self._size += len(data)
        self.bytes_used += len(data)
        self._next = first + len(entries)
        self._ends[self._segments[-1]] = self._next
        return first

    def read(self, limit: int) -> list[JournalEntry]:
        """The oldest entries that are not taken off."""
        found: list[JournalEntry] = []
        for segment in self._segments:
            if self._ends[segment] <= self._taken + 1:
                continue
            for entry in self._entries(segment):
                if entry is not None and self._taken < entry.number < self._ends[segment]:
                    found.append(entry)
                    if len(found) >= limit:
                        return found
        return found

    def take_off(self, number: int) -> None:
        """Forget entries up to `number`, and remove the segments that hold nothing else."""
        if number <= self._taken:
            return
        self._taken = min(number, self._next - 1)
        temporary = self._folder / (_TAKEN + ".new")
        with open(temporary, "wb", opener=_private) as file:
            file.write(_NUMBER.pack(self._taken) + zlib.crc32(_NUMBER.pack(self._taken)).to_bytes(4))
            file.flush()
            os.fdatasync(file.fileno())
        temporary.rename(self._folder / _TAKEN)
        sync(self._folder)
        self._prune()

    def close(self) -> None:
        """Close the open segment; everything confirmed is on the disk already."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # Writing.

    def _begin(self, first: int) -> None:
        self.close()
        path = self._path(first)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        sync(self._folder)
        self._size = 0
        if not self._segments or self._segments[-1] != first:
            self._segments.append(first)
        self._ends[first] = first

    def _abandon(self) -> None:
        """A write failed half-way, and after a failed sync nobody knows what the disk has: cut it off, write elsewhere.

        Where the cutting fails too, what is behind the last whole entry was never confirmed, and a reader does not go
        past the segment's end as we know it; after a restart it may be taken for whole and be done once more.
        """
        assert self._file is not None
        try:
            os.ftruncate(self._file, self._size)
            os.fdatasync(self._file)
        except OSError:
            pass
        self.close()

    def _prune(self) -> None:
        while self._segments and self._ends[self._segments[0]] <= self._taken + 1:
            if len(self._segments) == 1 and self._file is not None and self._size < self._segment_bytes:
                return  # It is being written.
            segment = self._segments.popleft()
            del self._ends[segment]
            if not self._segments:
                self.close()
            path = self._path(segment)
            self.bytes_used -= path.stat().st_size
            path.unlink()
        if not self._segments:
            self.bytes_used = 0

    # Reading.

    def _read_taken(self) -> int:
        """The number up to which entries are taken off; 0 when there is none or it is damaged, and all is repeated."""
        try:
            data = (self._folder / _TAKEN).read_bytes()
        except FileNotFoundError:
            return 0
        if len(data) != 12 or zlib.crc32(data[:8]) != int.from_bytes(data[8:]):
            self.damaged += 1
            return 0
        return int(_NUMBER.unpack(data[:8])[0])

    def _recover(self) -> None:
        names = (path.name for path in self._folder.iterdir() if path.suffix == _SUFFIX)
        segments = sorted(int(name.removesuffix(_SUFFIX)) for name in names)
        for at, segment in enumerate(segments):
            last = at == len(segments) - 1
            end, whole, damaged = self._examine(segment)
            path = self._path(segment)
            if last:
                # A crash tears at most the last write, so there is nothing whole behind what does not check.
                os.truncate(path, whole)
            if self._segments:
                # The segment before this one should have gone on to where this one begins.
                missing = segment - max(self._ends[self._segments[-1]], self._taken + 1)
                self._spoilt(self._segments[-1], missing)
            self._spoilt(segment, damaged)
            self._segments.append(segment)
            self._ends[segment] = end
            self.bytes_used += path.stat().st_size
            self._next = max(self._next, end)
        self._prune()

    def _spoilt(self, segment: int, damaged: int) -> None:
        """So many entries of a segment cannot be read: count them, and keep it."""
        if damaged > 0:
            self.damaged += damaged
            path = self._path(segment)
            # Without room for a name, or on a file system that has no second ones, the count alone says so.
            with contextlib.suppress(OSError):
                path.with_suffix(DAMAGED).hardlink_to(path)

    def _examine(self, segment: int) -> tuple[int, int, int]:
        """The number after a segment's last whole entry, the bytes up to there, and how many before it are damaged."""
        end, whole, damaged, at, number = segment, 0, 0, 0, segment
        broken = 0
        for entry, size in _walk(self._path(segment).read_bytes(), segment):
            at += size
            number += 1
            if entry is None:
                broken += 1
            else:
                damaged += broken
                broken = 0
                end, whole = number, at
        return end, whole, damaged

    def _entries(self, segment: int) -> Iterator[JournalEntry | None]:
        return (entry for entry, _ in _walk(self._path(segment).read_bytes(), segment))

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:020}{_SUFFIX}"


def _walk(data: bytes, number: int) -> Iterator[tuple[JournalEntry | None, int]]:
    """The entries of a segment that begins with `number`, None for one that does not check, each with its size."""
    at = 0
    while at < len(data):
        body = _sound(data, at, number)
        if body is not None:
            size = _HEAD.size + len(body)
            yield JournalEntry(number, body), size
            at += size
            number += 1
            continue
        found = _beyond(data, at, number)
        if found is None:
            return
        later, next_number = found
        yield None, later - at
        for _ in range(number + 1, next_number):
            yield None, 0
        at, number = later, next_number


def _beyond(data: bytes, at: int, number: int) -> tuple[int, int] | None:
    """Where the next sound entry is behind one that does not check, and its number; None when there is none.

    The length of what is damaged may be part of the damage, and so may be what follows, so the place is looked for and
    not reckoned. The number is in the checksum only, so those that can be meant are tried: as many entries as had room.
    """
    starts = [zlib.crc32(_NUMBER.pack(number + ahead)) for ahead in range(1, _LOST_MAX + 1)]
    for later in range(at + 1, len(data) - _HEAD.size + 1):
        size, checksum = _HEAD.unpack_from(data, later)
        start = later + _HEAD.size
        if size > ENTRY_BYTES_MAX or start + size > len(data):
            continue
        # Nothing at all has too many places in zeros to be tried for more than the next number.
        room = max(1, (later - at) // _HEAD.size) if size else 1
        body = data[start : start + size]
        for ahead, crc in enumerate(starts[:room], 1):
            if zlib.crc32(body, crc) == checksum:
                return later, number + ahead
    return None


def _sound(data: bytes, at: int, number: int) -> bytes | None:
    """The data of the entry at a place, None when no sound entry of that number is there."""
    if at + _HEAD.size > len(data):
        return None
    size, checksum = _HEAD.unpack_from(data, at)
    start = at + _HEAD.size
    if size > ENTRY_BYTES_MAX or start + size > len(data):
        return None
    body = data[start : start + size]
    return body if zlib.crc32(body, zlib.crc32(_NUMBER.pack(number))) == checksum else None


def _framed(number: int, data: bytes) -> bytes:
    return _HEAD.pack(len(data), zlib.crc32(data, zlib.crc32(_NUMBER.pack(number)))) + data


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
