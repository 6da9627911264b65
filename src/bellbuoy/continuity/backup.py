"""Taking backups: full copies, changes shipped every few seconds, and incrementals that gather what was shipped."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.continuity.manifest import (
    LOG,
    PART_BYTES,
    SENDS,
    Covered,
    Kind,
    Manifest,
    Part,
    Shipped,
    Tip,
    log_name,
    new_id,
    part_name,
    sends_at,
    sends_name,
    shipped_of,
)
from bellbuoy.continuity.vault import Vault
from bellbuoy.errors import Damaged, Gap, Unavailable
from bellbuoy.ports.archive import Changes, Snapshot, Source
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.sends import Sent

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and how many there are."""

MERGED = "all"
"""The owner of what was gathered from many objects of the send journal."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Changes).decode
_decode_sends = msgspec.json.Decoder(list[Sent]).decode
_encode_sends = msgspec.json.Encoder().encode


def silent(what: str, done: int, of: int) -> None:
    """For whoever wants to know of no progress."""


class Backup:
    """Takes backups of some sources into an archive.

    Args:
        sources: what is backed up, each under its own name.
        vault: the archive.
        scratch: a folder with room for one copy; what is left in it by a crash is deleted.
        clock, rng: for times and names.
        telemetry: is told what was done.

    Concurrency: one of these at a time writes to an archive; see the lock in `schedule`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        vault: Vault,
        *,
        scratch: Path,
        clock: Clock,
        rng: Random,
        telemetry: Telemetry,
    ) -> None:
        self.sources = sources
        self.vault = vault
        self._scratch = scratch
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._shipping = asyncio.Lock()

    # Full copies.

    async def full(self, progress: Progress = silent) -> Manifest:
        """Copy every source; the changes after it are shipped from there.

        One that is away is left out, and told of, unless it is the first: a copy of the ledger is worth having.

        Raises:
            Unavailable, Full: the first source, the scratch folder or every target failed; nothing is listed then.
        """
        began_at = self._clock.time()
        backup_id = new_id(began_at, self._rng)
        covered = await self._copy("full", backup_id, self.sources, progress)
        return await self._finish(Manifest(backup_id, "full", began_at, self._clock.time(), covered))

    async def _copy(self, kind: Kind, backup_id: str, sources: Sequence[Source], progress: Progress) -> list[Covered]:
        """Copies of some sources, the first of all only if it is there. Raises as `full`."""
        covered: list[Covered] = []
        for source in sources:
            with _folder(self._scratch) as folder:
                try:
                    snapshot = await source.full(folder)
                except Unavailable as error:
                    if source is self.sources[0]:
                        raise
                    self._telemetry.event("backup_source_left_out", source=source.name, detail=str(error))
                    continue
                covered.append(await self._upload(kind, backup_id, source, snapshot, folder, progress))
        return covered

    async def _finish(self, manifest: Manifest) -> Manifest:
        """Now it is a backup."""
        before = (await self.vault.backups()).backups
        manifest = replace(manifest, number=before[-1].number + 1 if before else 1)
        await self.vault.put_manifest(manifest)
        self._telemetry.event("backup_taken", kind=manifest.kind, backup=manifest.id, bytes=manifest.size)
        return manifest

    async def _upload(
        self, kind: Kind, backup_id: str, source: Source, snapshot: Snapshot, folder: Path, progress: Progress
    ) -> Covered:
        sizes = {name: (folder / name).stat().st_size for name in snapshot.files}
        files: dict[str, list[Part]] = {}
        done = 0
        for name in snapshot.files:
            files[name] = []
            for number, chunk in enumerate(_chunks(folder / name)):
                part = part_name(kind, backup_id, source.name, name, number)
                files[name].append(await self.vault.put(part, chunk))
                done += len(chunk)
                progress(source.name, done, sum(sizes.values()))
        at = snapshot.at
        return Covered(source.name, source.guarantee, snapshot.timeline, 0, snapshot.number, at, at, files)

    # Changes.

    async def ship(self) -> bool:
        """Write what was changed since the last time into the archive.

        Returns:
            False when a source has no full copy that its changes could follow: one is to be taken first.

        Raises:
            Unavailable, Full: it could not; the next call ships it.
        """
        async with self._shipping:  # Of two at once the slower would take the tip back.
            ready = [await self._ship_source(source) for source in self.sources]
        return all(ready)

    async def _ship_source(self, source: Source) -> bool:
        position = await source.position()
        if position is None:
            return True
        try:
            return await self._ship(source, position[0])
        except (Gap, Damaged) as error:
            self._telemetry.event("backup_gap", source=source.name, detail=str(error))
            await source.renew()
            return False

    async def _ship(self, source: Source, timeline: str) -> bool:
        tip = await self._tip(source.name, timeline)
        if tip is None:
            return False
        while True:
            found = await source.changes(tip.upto, bytes_max=PART_BYTES)
            if found.timeline != timeline:
                return False  # Another has just begun; the next call sees to it.
            if found.changes:
                await self.vault.put(log_name(source.name, timeline, found.after, found.upto), _encode(found))
            tip = Tip(timeline, found.upto, max(tip.until, found.until))
            await self.vault.put_tip(source.name, tip)
            await source.shipped(timeline, found.upto)
            if not found.more:
                return True

    async def _tip(self, source: str, timeline: str) -> Tip | None:
        """Where to go on: after what was shipped of this timeline, else after its first full copy."""
        tip = await self.vault.tip(source, timeline)
        if tip is not None:
            return tip
        for manifest in (await self.vault.backups("full")).backups:
            full = manifest.of(source)
            if full is not None and full.timeline == timeline:
                return Tip(timeline, full.upto, full.until)
        return None

    # Incrementals.

    async def incremental(self, progress: Progress = silent) -> Manifest | None:
        """Gather what was shipped since the last incremental, and delete it where it was.

        A gap in what was shipped is told of and parts what comes before it from what comes after. What is copied often
        is copied anew, if there is anything else to keep.

        Returns:
            The backup; None when there was nothing to gather.

        Raises:
            Damaged: some of what was shipped was changed.
            Unavailable, Full: a target failed; nothing is listed and nothing was deleted.
        """
        began_at = self._clock.time()
        backup_id = new_id(began_at, self._rng)
        shipped = shipped_of(one.name for one in await self.vault.names(f"{LOG}/"))
        covered: list[Covered] = []
        for stretch in _stretches(shipped):
            covered.append(await self._gather(backup_id, len(covered), stretch, progress))
        sends, old = await self._gather_sends(began_at)
        if not covered and not sends:
            return None
        often = [source for source in self.sources if source.often]
        covered += await self._copy("incremental", backup_id, often, progress)
        manifest = await self._finish(Manifest(backup_id, "incremental", began_at, self._clock.time(), covered, sends))
        await self.vault.delete([*(one.name for one in shipped), *old])
        return manifest

    async def _gather(self, backup_id: str, number: int, stretch: Sequence[Shipped], progress: Progress) -> Covered:
        """Put a stretch without gaps into as few objects as hold it."""
        first = stretch[0]
        file = f"changes-{number}"
        parts: list[Part] = []

        async def put(group: Changes) -> None:
            name = part_name("incremental", backup_id, first.source, file, len(parts))
            parts.append(await self.vault.put(name, _encode(group)))

        group: Changes | None = None
        for at, one in enumerate(stretch):
            more = _decode(await self.vault.get(one.name))
            if group is not None and _bytes(group) + _bytes(more) > PART_BYTES:
                await put(group)
                group = None
            group = more if group is None else _joined(group, more)
            progress(first.source, at + 1, len(stretch))
        assert group is not None
        await put(group)
        tip = await self.vault.tip(first.source, first.timeline)
        until = tip.until if tip is not None and tip.upto == group.upto else group.until
        guarantee = next((source.guarantee for source in self.sources if source.name == first.source), "")
        return Covered(first.source, guarantee, first.timeline, first.after, group.upto, until, until, {file: parts})

    async def _gather_sends(self, before: float) -> tuple[list[Part], list[str]]:
        """Put the small objects of the send journal together; returns the new ones, and the names of the old."""
        found = await self.vault.names(f"{SENDS}/")
        small = [one for one in found if f"-{MERGED}-" not in one.name and (sends_at(one.name) or before) < before]
        parts: list[Part] = []
        group: list[Sent] = []
        size = 0
        for at, one in enumerate(small):
            group += _decode_sends(await self.vault.get(one.name))
            size += one.size
            if size > PART_BYTES or at == len(small) - 1:
                stamp = sends_at(one.name) or before
                parts.append(await self.vault.put(sends_name(stamp, MERGED, len(parts)), _encode_sends(group)))
                group, size = [], 0
        return parts, [one.name for one in small]


def decode_changes(data: bytes) -> Changes:
    """Changes as they were shipped or gathered."""
    return _decode(data)


def decode_sends(data: bytes) -> list[Sent]:
    """What an object of the send journal tells."""
    return _decode_sends(data)


def encode_sends(sends: Sequence[Sent]) -> bytes:
    """An object of the send journal."""
    return _encode_sends(sends)


def _stretches(shipped: Sequence[Shipped]) -> list[list[Shipped]]:
    """What follows on each other without a gap, in order."""
    found: list[list[Shipped]] = []
    last: Shipped | None = None
    for one in shipped:
        if last is None or (one.source, one.timeline) != (last.source, last.timeline) or one.after > last.upto:
            found.append([])
            last = one
        found[-1].append(one)
        last = max(last, one, key=lambda any: any.upto)
    return found


def _joined(one: Changes, other: Changes) -> Changes:
    """Two groups of changes as one; what is in both, after a crash between gathering and deleting, is in it once."""
    fresh = [change for change in other.changes if change.number > one.upto]
    return replace(one, upto=max(one.upto, other.upto), until=other.until, changes=[*one.changes, *fresh], more=False)


def _bytes(changes: Changes) -> int:
    return sum(len(change.data) for change in changes.changes)


def _chunks(path: Path) -> Iterator[bytes]:
    """A file in parts; one that is empty is one empty part."""
    with path.open("rb") as file:
        chunk = file.read(PART_BYTES)
        yield chunk
        while chunk := file.read(PART_BYTES):
            yield chunk


class _folder:
    """A folder below another for as long as it is used."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Path:
        if self._root.exists():
            shutil.rmtree(self._root)
        self._root.mkdir(mode=0o700, parents=True)
        return Path(tempfile.mkdtemp(dir=self._root))

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._root, ignore_errors=True)
