"""How a target is laid out, and the manifests that say what belongs to a backup.

    fulls/ID/manifest                       written last, so that what is half uploaded is no backup
    fulls/ID/SOURCE/FILE.000000             the files of a full copy, in parts
    incrementals/ID/manifest
    incrementals/ID/SOURCE/changes.000000   the changes since the last incremental
    log/SOURCE/TIMELINE/AFTER-UPTO          changes that were shipped since then
    log/SOURCE/TIMELINE/tip                 up to which change and which second that is all there is
    sends/AT-OWNER-NUMBER                   what was sent
    ended/NUMBER-HASH                       API keys that have ended, as the newest backup was NUMBER
    pruned/UNTIL-AT                         what was deleted before the time that a manifest gives it
    owner                                   whose archive it is

An ID is the time at which the backup began and some chance, so names sort by time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from random import Random
from typing import Literal

import msgspec
from msgspec import Struct, field

from bellbuoy.errors import Damaged

FORMAT = 1
PART_BYTES = 8 * 1024 * 1024
"""A file is kept in parts of this many bytes, so that neither side ever needs a whole one in memory."""

Kind = Literal["full", "incremental"]
FOLDERS: dict[Kind, str] = {"full": "fulls", "incremental": "incrementals"}
LOG, SENDS, ENDED, PRUNED = "log", "sends", "ended", "pruned"
MERGED = "all"
"""The owner of what was gathered from many objects of the send journal."""
OWNER = "owner"
"""The object that names the installation whose archive it is."""
_MANIFEST = "/manifest"
_OF_BACKUPS = re.compile(r"(fulls|incrementals)/[^/]+/(manifest|[^/]+/.+\.[0-9]{6})")
_LOOSE = re.compile(
    r"owner|log/[^/]+/[^/]+/(tip|[0-9]{20}-[0-9]{20})|sends/[0-9]{15,}-.+-[0-9]{20}|ended/[0-9]{12,}-[0-9a-f]{16}"
    r"|pruned/[0-9]{15,}-[0-9]{15,}"
)


class Part(Struct, frozen=True):
    """An object of a backup as it is stored: its name, its size in bytes, and the SHA-256 of those bytes."""

    name: str
    size: int
    sha256: str


class Covered(Struct, frozen=True):
    """What a backup holds of one source.

    Args:
        source, guarantee: its name, and what a restore of it brings.
        timeline: of its changes, empty where it has none.
        after: of an incremental, the number of the change before its first; of a full copy 0.
        upto: the number of the last change that is in it.
        at: of a copy, the epoch second whose state it is.
        until: the epoch second up to which all changes are in it; `at` of a full copy.
        files: the parts of each file of a copy by its name; of changes, those of `changes`.

    An incremental holds changes of the sources that have a timeline, and copies of the others.
    """

    source: str
    guarantee: str
    timeline: str
    after: int
    upto: int
    at: float
    until: float
    files: dict[str, list[Part]]


class Known(Struct, frozen=True):
    """Up to which number a series was gathered, and the epoch second of what was gathered last."""

    upto: int
    at: float


class Absent(Struct, frozen=True):
    """Numbers of a series, after `after` and up to `upto`, that could not be gathered.

    `until` is the epoch second from which on nobody is promised what was in them.
    """

    series: str
    after: int
    upto: int
    until: float


class Manifest(Struct, frozen=True):
    """A backup that is complete.

    Args:
        id, kind: its name, and what it is.
        began_at, ended_at: epoch seconds, by a clock that may have been wrong.
        sources: what it holds.
        sends: parts of the send journal.
        format: of this.
        number: one more than that of any backup before it, so that no clock decides which is newest.
        standing: what else had to be in the archive when it was written, each by name with the epoch second until when.
        gathered: how far each series was gathered; None where its writer kept no account of that.
        absent: what of the series is lost, as far as it still matters.

    A series is a row of numbers without gaps: of the changes of a timeline, or of what a process wrote of the send
    journal.
    """

    id: str
    kind: Kind
    began_at: float
    ended_at: float
    sources: list[Covered]
    sends: list[Part] = field(default_factory=list)
    format: int = FORMAT
    number: int = 0
    standing: dict[str, float] = field(default_factory=dict)
    gathered: dict[str, Known] | None = None
    absent: list[Absent] = field(default_factory=list)

    @property
    def parts(self) -> list[Part]:
        """All objects that it needs besides itself."""
        return [part for one in self.sources for parts in one.files.values() for part in parts] + self.sends

    @property
    def size(self) -> int:
        """Their bytes."""
        return sum(part.size for part in self.parts)

    def of(self, source: str) -> Covered | None:
        """What a full holds of a source, None when nothing. An incremental may hold several stretches of one."""
        return next((one for one in self.sources if one.source == source), None)


class Tip(Struct, frozen=True):
    """Up to which change of a timeline, and up to which epoch second, everything has been shipped."""

    timeline: str
    upto: int
    until: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Manifest).decode


def encode(manifest: Manifest) -> bytes:
    """The manifest as it is sealed."""
    return _encode(manifest)


def decode(name: str, data: bytes) -> Manifest:
    """The manifest of that name.

    Raises:
        Damaged: it is none, not that of its folder, or of a newer format.
    """
    try:
        manifest = _decode(data)
    except msgspec.DecodeError:
        raise Damaged(f"{name} is no manifest") from None
    if manifest.format > FORMAT:
        raise Damaged(f"{name} has format {manifest.format}", hint="a newer Bellbuoy wrote it; use that one")
    if manifest_name(manifest.kind, manifest.id) != name:
        raise Damaged(f"{name} is the manifest of {manifest.id}")
    return manifest


def new_id(at: float, rng: Random) -> str:
    """A name for a backup that begins at the epoch second `at`."""
    return f"{datetime.fromtimestamp(at, UTC):%Y%m%dT%H%M%SZ}-{rng.getrandbits(24):06x}"


def began_at(backup_id: str) -> float | None:
    """When the backup of that name began, in epoch seconds; None for any other text."""
    try:
        return datetime.strptime(backup_id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def manifest_name(kind: Kind, backup_id: str) -> str:
    """Where the manifest of a backup is."""
    return f"{FOLDERS[kind]}/{backup_id}{_MANIFEST}"


def is_manifest(name: str) -> bool:
    """Whether an object of that name is a manifest."""
    return name.endswith(_MANIFEST) and is_ours(name)


def is_loose(name: str) -> bool:
    """Whether an object of that name belongs to an archive, and to no backup in it."""
    return _LOOSE.fullmatch(name) is not None


def is_ours(name: str) -> bool:
    """Whether an archive gives such a name; what has another somebody put there, and it is left alone."""
    return is_loose(name) or _OF_BACKUPS.fullmatch(name) is not None


def part_name(kind: Kind, backup_id: str, source: str, file: str, number: int) -> str:
    """Where a part of a file is."""
    return f"{FOLDERS[kind]}/{backup_id}/{source}/{file}.{number:06}"


def log_name(source: str, timeline: str, after: int, upto: int) -> str:
    """Where changes are that were shipped."""
    return f"{LOG}/{source}/{timeline}/{after:020}-{upto:020}"


def tip_name(source: str, timeline: str) -> str:
    """Where the tip of a timeline is."""
    return f"{LOG}/{source}/{timeline}/tip"


def is_tip(name: str) -> bool:
    """Whether an object of that name is written over each time, where all others are written once."""
    return name.endswith("/tip") and is_loose(name)


class Shipped(Struct, frozen=True, order=True):
    """What the name of a shipped object says of the changes in it."""

    source: str
    timeline: str
    after: int
    upto: int

    @property
    def name(self) -> str:
        """Of the object."""
        return log_name(self.source, self.timeline, self.after, self.upto)

    @property
    def series(self) -> str:
        """Of the changes."""
        return changes_series(self.source, self.timeline)


def shipped_of(names: Iterable[str]) -> list[Shipped]:
    """Those of some objects that hold changes which were shipped, in order; any other name is none of them."""
    found: list[Shipped] = []
    for name in names:
        parts = name.split("/")
        if len(parts) == 4 and parts[0] == LOG:
            after, _, upto = parts[3].partition("-")
            if after.isdecimal() and upto.isdecimal():
                one = Shipped(parts[1], parts[2], int(after), int(upto))
                if one.name == name and one.after < one.upto:
                    found.append(one)
    return sorted(found)


def changes_series(source: str, timeline: str) -> str:
    """The series of the changes of a timeline."""
    return f"{LOG}/{source}/{timeline}"


def sends_name(at: float, owner: str, number: int) -> str:
    """Where a part of the send journal is that was written at the epoch second `at`; of an owner it is that number."""
    return f"{SENDS}/{int(at * 1000):015}-{owner}-{number:020}"


def sends_at(name: str) -> float | None:
    """The epoch second of an object of the send journal, None for any other."""
    folder, _, rest = name.partition("/")
    stamp = rest.partition("-")[0]
    return int(stamp) / 1000 if folder == SENDS and is_loose(name) else None


class SendsPart(Struct, frozen=True):
    """What the name of an object of the send journal says: when and by whom it was written, and its number of those."""

    name: str
    at: float
    owner: str
    upto: int

    @property
    def after(self) -> int:
        """The number before it."""
        return self.upto - 1

    @property
    def series(self) -> str:
        """Of its owner."""
        return f"{SENDS}/{self.owner}"


def sends_of(names: Iterable[str]) -> list[SendsPart]:
    """Those of some objects that are of the send journal as processes wrote it, in order; no gathered ones."""
    found: list[SendsPart] = []
    for name in sorted(names):
        at = sends_at(name)
        owner, _, number = name.partition("-")[2].rpartition("-")
        if at is not None and owner and owner != MERGED and number.isdecimal() and len(number) == 20:
            found.append(SendsPart(name, at, owner, int(number)))
    return found


def is_merged(name: str) -> bool:
    """Whether an object holds what was gathered of the send journal."""
    return name.startswith(f"{SENDS}/") and name.partition("-")[2].startswith(f"{MERGED}-")


def ended_name(number: int, digest: bytes) -> str:
    """Where keys are that have ended, told when the newest backup had that number; `digest` is that of one of them."""
    return f"{ENDED}/{number:012}-{digest.hex()[:16]}"


def ended_after(name: str) -> int | None:
    """The number of the newest backup there was when those keys had ended, None for the name of any other object.

    That and the next one may have been copied before. All later ones have those keys as ended.
    """
    folder, _, rest = name.partition("/")
    return int(rest.partition("-")[0]) if folder == ENDED and is_loose(name) else None


def pruned_name(until: float, at: float) -> str:
    """Where the names are that were deleted at the epoch second `at`, to be kept up to `until`."""
    return f"{PRUNED}/{int(until * 1000) + 1:015}-{int(at * 1000):015}"


def pruned_until(name: str) -> float | None:
    """Up to which epoch second somebody may look for what was deleted, None for the name of any other object."""
    folder, _, rest = name.partition("/")
    stamp = rest.partition("-")[0]
    return int(stamp) / 1000 if folder == PRUNED and is_loose(name) else None


def sends_place(name: str) -> tuple[str, int] | None:
    """Who wrote an object of the send journal, and its place among theirs; None for any other."""
    owner, _, number = name.partition("-")[2].rpartition("-")
    return (owner, int(number)) if sends_at(name) is not None and owner and number.isdecimal() else None


def digest(chunks: Iterable[bytes]) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    hashed = hashlib.sha256()
    for chunk in chunks:
        hashed.update(chunk)
    return hashed.hexdigest()
