"""The journal is a log on the local disk: the last home of a notification, and where outcomes wait for the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct


class JournalEntry(Struct, frozen=True):
    """What was written, with its number. Numbers grow by one from entry to entry and are never used again."""

    number: int
    data: bytes


class JournalState(Struct, frozen=True):
    """How full the journal is.

    Args:
        pending: entries that are not taken off yet.
        bytes_used, bytes_max: of the disk, and the bound.
        damaged: entries that could not be read back, since the journal was opened. Anything but 0 is for a person.
        kept: files that have, or had, entries which could not be read back, until somebody takes them away.
    """

    pending: int
    bytes_used: int
    bytes_max: int
    damaged: int
    kept: tuple[str, ...] = ()


class Journal(Protocol):
    """An append-only log of entries, read and taken off in the order in which they were written."""

    async def append(self, data: bytes) -> int:
        """Write an entry; when this returns it survives a power cut.

        Returns:
            Its number.

        Raises:
            Full: the journal or the disk has no room, or the disk failed; the entry is not there.

        Cancellation: the entry may be there all the same.
        """
        ...

    async def read(self, *, limit: int) -> Sequence[JournalEntry]:
        """The oldest entries that are not taken off, at most `limit`; empty when there are none."""
        ...

    async def take_off(self, number: int) -> None:
        """Forget all entries up to `number`; what is repeated after a crash is only what came after the last call."""
        ...

    def state(self) -> JournalState:
        """How full it is."""
        ...

    async def aclose(self) -> None:
        """Write what was handed over, then close. Safe to call twice."""
        ...
