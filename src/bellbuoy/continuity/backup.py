"""Taking backups: full copies, changes shipped every few seconds, and incrementals that gather what was shipped."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.continuity.absence import Loose, accounted
from bellbuoy.continuity.look import look_at
from bellbuoy.continuity.manifest import (
    LOG,
    MERGED,
    PART_BYTES,
    SENDS,
    Covered,
    Kind,
    Manifest,
    Part,
    SendsPart,
    Shipped,
    Tip,
    log_name,
    new_id,
    part_name,
    sends_name,
    sends_of,
    shipped_of,
)
from bellbuoy.continuity.retention import Keep
from bellbuoy.continuity.vault import Vault
from bellbuoy.errors import ConfigurationError, Damaged, Gap, NotFound, Unavailable
from bellbuoy.ports.archive import Changes, Snapshot, Source
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.sends import Sent

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many bytes of it are done, and how many there are."""

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
        keep: for how long backups are kept, which their manifests say of each other.
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
        keep: Keep,
        clock: Clock,
        rng: Random,
        telemetry: Telemetry,
    ) -> None:
        self.sources = sources
        self.newest = 0  # The greatest number of a backup that is known of.
        self.vault = vault
        self._scratch = scratch
        self._keep = keep
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._shipping = asyncio.Lock()
        self._unread = set[str]()  # What the last incremental had to leave where it was.

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
        now = self._clock.time()
        manifest = Manifest(backup_id, "full", began_at, now, covered)
        return await self._finish(accounted(manifest, await look_at(self.vault), self._keep, now, newest=self.newest))

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
        await self.vault.put_manifest(manifest)
        self.newest = manifest.number
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

        What is damaged is told of and stays where it is; it and a gap in what was shipped part what comes before them
        from what comes after. What is copied often is copied anew, if there is anything else to keep.

        Returns:
            The backup; None when there was nothing to gather, and nothing was lost either.

        Raises:
            Unavailable, Full: a target failed; nothing is listed and nothing was deleted.
        """
        began_at = self._clock.time()
        if not any(name not in self._unread for name in await self._loose(began_at)):
            return None
        backup_id = new_id(began_at, self._rng)
        look = await look_at(self.vault)
        shipped, sends = shipped_of(look.names), [one for one in sends_of(look.names) if one.at < began_at]
        covered, read = await self._gather(backup_id, shipped, progress)
        parts, noted = await self._gather_sends(sends)
        listed: list[Loose] = [*shipped, *sends]
        gathered: list[Loose] = [*read, *noted]
        manifest = Manifest(backup_id, "incremental", began_at, began_at, covered, parts)
        manifest = accounted(manifest, look, self._keep, began_at, listed=listed, read=gathered, newest=self.newest)
        names = {one.name for one in gathered}
        taken: Manifest | None = None
        if names or not {one for other in look.backups for one in other.absent}.issuperset(manifest.absent):
            often = [source for source in self.sources if source.often]
            covered += await self._copy("incremental", backup_id, often, progress)
            taken = await self._finish(replace(manifest, ended_at=self._clock.time(), sources=covered))
            await self.vault.delete(sorted(names))
        self._unread = {one.name for one in listed} - names
        return taken

    async def _loose(self, before: float) -> list[str]:
        """The names of what is there to be gathered."""
        shipped = shipped_of(one.name for one in await self.vault.names(f"{LOG}/"))
        sends = sends_of(one.name for one in await self.vault.names(f"{SENDS}/"))
        return [one.name for one in shipped] + [one.name for one in sends if one.at < before]

    async def _gather(
        self, backup_id: str, shipped: Sequence[Shipped], progress: Progress
    ) -> tuple[list[Covered], list[Shipped]]:
        """Put each stretch without gaps into as few objects as hold it; returns the stretches, and what was read."""
        covered: list[Covered] = []
        read: list[Shipped] = []
        run: _Run | None = None
        for at, one in enumerate(shipped):
            found = await self._sound(one.name, partial(decode_shipped, one))
            if found is not None:
                read.append(one)
                if run is not None and run.goes_on_with(one):
                    await self._put_on(backup_id, run, one, found)
                else:
                    covered += [await self._closed(backup_id, run)] if run is not None else []
                    run = _Run(one, f"changes-{len(covered)}", [], found, one.upto)
            progress(one.source, at + 1, len(shipped))
        covered += [await self._closed(backup_id, run)] if run is not None else []
        return covered, read

    async def _put_on(self, backup_id: str, run: _Run, one: Shipped, found: Changes) -> None:
        if _bytes(run.group) + _bytes(found) > PART_BYTES:
            await self._put(backup_id, run)
            run.group = found
        else:
            run.group = _joined(run.group, found)
        run.upto = max(run.upto, one.upto)

    async def _put(self, backup_id: str, run: _Run) -> None:
        name = part_name("incremental", backup_id, run.first.source, run.file, len(run.parts))
        run.parts.append(await self.vault.put(name, _encode(run.group)))

    async def _closed(self, backup_id: str, run: _Run) -> Covered:
        await self._put(backup_id, run)
        first, until = run.first, run.group.until
        with contextlib.suppress(Damaged, ConfigurationError):  # The changes themselves say how far they go.
            tip = await self.vault.tip(first.source, first.timeline)
            until = tip.until if tip is not None and tip.upto == run.upto else until
        guarantee = next((source.guarantee for source in self.sources if source.name == first.source), "")
        files = {run.file: run.parts}
        return Covered(first.source, guarantee, first.timeline, first.after, run.upto, until, until, files)

    async def _gather_sends(self, small: Sequence[SendsPart]) -> tuple[list[Part], list[SendsPart]]:
        """Put small objects of the send journal together; returns what they are now in, and those that were read."""
        parts: list[Part] = []
        read: list[SendsPart] = []
        group: list[Sent] = []
        size = 0
        for one in small:
            found = await self._sound(one.name, lambda data: (decode_sends(data), len(data)))
            if found is not None:
                read.append(one)
                group, size = group + found[0], size + found[1]
            if group and (size > PART_BYTES or one is small[-1]):
                name = sends_name(read[-1].at, MERGED, len(parts))
                parts.append(await self.vault.put(name, _encode_sends(group)))
                group, size = [], 0
        return parts, read

    async def _sound(self, name: str, of: Callable[[bytes], T]) -> T | None:
        """What an object holds; None for one that no target has whole, which is told of the first time."""
        try:
            return of(await self.vault.get(name))
        except NotFound:
            return None
        except (Damaged, ConfigurationError) as error:
            if name not in self._unread:
                self._telemetry.event("backup_object_damaged", object=name, detail=str(error))
            return None


class _Run(Struct):
    """A stretch without gaps on its way into as few objects as hold it: those there are, and what is to be put next."""

    first: Shipped
    file: str
    parts: list[Part]
    group: Changes
    upto: int

    def goes_on_with(self, one: Shipped) -> bool:
        """Whether nothing is missing in between."""
        return one.series == self.first.series and one.after <= self.upto


def decode_changes(data: bytes) -> Changes:
    """Changes as they were shipped or gathered. Raises Damaged for anything else."""
    try:
        return _decode(data)
    except msgspec.DecodeError:
        raise Damaged("these are no changes") from None


def decode_sends(data: bytes) -> list[Sent]:
    """What an object of the send journal tells. Raises Damaged for anything else."""
    try:
        return _decode_sends(data)
    except msgspec.DecodeError:
        raise Damaged("this is no part of the send journal") from None


def encode_sends(sends: Sequence[Sent]) -> bytes:
    """An object of the send journal."""
    return _encode_sends(sends)


def decode_shipped(one: Shipped, data: bytes) -> Changes:
    """Changes as they were shipped. Raises Damaged for anything else, and for those of another name."""
    found = decode_changes(data)
    if (found.timeline, found.after, found.upto) != (one.timeline, one.after, one.upto):
        raise Damaged(f"{one.name} holds other changes than its name says")
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
