"""Where backups are kept, what they are taken of, and where they are restored into.

A backup of a source is a full copy and, where the source can tell, the changes after it. Changes carry numbers that
grow, and every group of them says after which number it begins, so that whoever puts them together sees a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from bellbuoy.errors import Gap
from bellbuoy.model.operation import Books

OBJECT_BYTES_MAX = 64 * 1024 * 1024
"""The largest object that is kept, in bytes; what is larger is kept in parts."""

LISTED_MAX = 200_000
"""The most objects that are listed under one prefix."""


class Stored(Struct, frozen=True):
    """An object: its name below the target's root, its size in bytes, and the epoch second at which it was written."""

    name: str
    size: int
    at: float


class ObjectStore(Protocol):
    """A target: objects by name, each written whole or not at all. Names are of letters, digits and `-_./`."""

    async def put(self, name: str, data: bytes) -> None:
        """Write an object, over one of that name; nobody ever sees a part of it, and it is durable on return.

        Raises:
            Unavailable: the target cannot be reached; whether it was written is not known.
            Full: it has no room.
            ValueError: it is larger than `OBJECT_BYTES_MAX`.
        """
        ...

    async def get(self, name: str) -> bytes:
        """The object. Raises NotFound, Unavailable, and Damaged where it is larger than `OBJECT_BYTES_MAX`."""
        ...

    async def list(self, prefix: str) -> Sequence[Stored]:
        """The objects whose names begin with `prefix`, a folder's name with its slash or empty, in order of names.

        Raises:
            Unavailable: the target cannot be reached.
            Full: there are more than `LISTED_MAX`.
        """
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Delete objects; one that is not there is no error. Raises Unavailable, and some may be deleted then."""
        ...

    async def exists(self, name: str) -> bool:
        """Whether it is there. Raises Unavailable."""
        ...


class Sealer(Protocol):
    """Makes of a plain object what is stored, and back. What was sealed under a name opens under that name only."""

    def seal(self, name: str, data: bytes) -> bytes:
        """What is stored for `data` under `name`."""
        ...

    def open(self, name: str, sealed: bytes) -> bytes:
        """What was sealed.

        Raises:
            Damaged: it was changed, cut short, or sealed under another name.
            ConfigurationError: the key that it needs is not here; names the key's id.
        """
        ...


class Change(Struct, frozen=True, array_like=True):
    """What one transaction changed, in the source's own form.

    `number` is greater than that of every change before it, and `at` the epoch second of its commit.
    """

    number: int
    at: float
    data: bytes


class Changes(Struct, frozen=True):
    """Changes in order, without a gap.

    Args:
        timeline: of the source; changes of one mean nothing on another.
        after: the number before the first. The first change comes next after it.
        upto: the number of the last; `after` when there are none.
        until: the epoch second up to which this is all that was changed: what comes later has a later `at`.
        changes: oldest first.
        more: whether there were more than was asked for; `until` is then that of the last one here.
    """

    timeline: str
    after: int
    upto: int
    until: float
    changes: list[Change]
    more: bool = False


class Snapshot(Struct, frozen=True):
    """A full copy of a source.

    Args:
        timeline: of the source at that moment, empty for a source without changes.
        number: of the last change in it; 0 for a source without changes.
        at: the epoch second whose state it is.
        files: what was written, relative to the folder.
    """

    timeline: str
    number: int
    at: float
    files: list[str]


class Source(Protocol):
    """Something that is backed up.

    Args:
        name: a folder's name.
        guarantee: what a restore brings, in a sentence.
        often: whether it is copied anew with every incremental: it records no changes, and a copy harms nothing.
    """

    name: str
    guarantee: str
    often: bool

    async def full(self, folder: Path) -> Snapshot:
        """Write a consistent copy as files into an empty folder, without stopping whoever writes to the source.

        Raises:
            Unavailable: the source cannot be read.
            Full: the folder's disk has no room.
        """
        ...

    async def position(self) -> tuple[str, int] | None:
        """Its timeline and the number of its last change; None where a source knows no changes."""
        ...

    async def changes(self, after: int, *, bytes_max: int) -> Changes:
        """What was committed after the change of that number, about `bytes_max` bytes of it at most.

        Raises:
            Gap: some of it is no longer there, or the source was changed without a record of it.
            Unavailable: the source cannot be read.
        """
        ...

    async def shipped(self, timeline: str, upto: int) -> None:
        """Changes up to this number are safe in a target, and need not be kept here. Raises Unavailable."""
        ...

    async def renew(self) -> None:
        """Begin another timeline, after a gap: what is changed from now on follows a full copy of its own."""
        ...

    async def aclose(self) -> None:
        """Let go of connections of its own; safe to call twice."""
        ...


class Unchanging:
    """What is the same for every source that is only ever copied whole."""

    name: str
    often = True

    async def position(self) -> tuple[str, int] | None:
        """None: it has no changes."""
        return None

    async def changes(self, after: int, *, bytes_max: int) -> Changes:
        """It has none. Raises Gap."""
        raise Gap(f"{self.name} records no changes")

    async def shipped(self, timeline: str, upto: int) -> None:
        """It keeps no changes."""

    async def renew(self) -> None:
        """It has no timeline."""

    async def aclose(self) -> None:
        """It holds nothing open."""


class Place(Protocol):
    """Somewhere empty that one source is restored into; nobody uses it before `finish`. `name` is the source's."""

    name: str

    async def begin(self, folder: Path) -> None:
        """Put the files of a full copy in.

        Raises:
            Conflict: it is not empty.
            Damaged: the files are no copy of this kind of source.
        """
        ...

    async def apply(self, changes: Sequence[Change]) -> None:
        """Apply what was committed after the copy, in order.

        Raises:
            Damaged: a change does not fit what is there; its number is named.
        """
        ...

    async def finish(self, timeline: str) -> None:
        """Give it a timeline of its own and hand it over. Nothing is applied after that."""
        ...


class Checked(Struct, frozen=True):
    """What a restored ledger holds.

    Args:
        books: counted from the data.
        sampled: how many notifications were compared with what the live ledger says of them.
        different: the ids of those that were not the same.
    """

    books: Books
    sampled: int
    different: list[str]

    @property
    def sound(self) -> bool:
        """Whether the books balance and nothing differs."""
        return not (self.books.difference or self.books.missing or self.books.unknown or self.different)
