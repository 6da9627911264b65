"""Restoring to a second: the full copy before it, then every change up to it, and never past a gap in silence."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.continuity.backup import Progress, decode_changes, decode_sends, silent
from bellbuoy.continuity.chain import follow
from bellbuoy.continuity.manifest import (
    LOG,
    SENDS,
    Covered,
    Manifest,
    Part,
    is_merged,
    sends_at,
    sends_place,
    shipped_of,
)
from bellbuoy.continuity.vault import Listed, Vault
from bellbuoy.errors import BellbuoyError, Damaged, Full, NotFound
from bellbuoy.ports.archive import Change, Place
from bellbuoy.ports.sends import Sent

MISS_S_MAX = 1.0
"""A restore that misses the second it was asked for by more than this fails."""


class Missed(BellbuoyError):
    """The second that was asked for cannot be reached; `reachable` is the last one that can, in epoch seconds."""

    code = "second_not_reached"

    def __init__(self, message: str, *, reachable: float | None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reachable = reachable


class Stretch(Struct, frozen=True):
    """Changes that lie in the archive: after which number they begin, the last one's, until when they are all."""

    after: int
    upto: int
    until: float | None
    objects: list[tuple[str, Part | None]]


class Way(Struct, frozen=True):
    """How one source gets to a second: from its full copy over these stretches, to `reached` in epoch seconds.

    `gap` names the first change that is missing after that, None when there is no later one.
    """

    copy: Covered
    stretches: list[Stretch]
    reached: float
    gap: int | None = None


class Plan(Struct, frozen=True):
    """What a restore would do: `asked` and `reached` are epoch seconds."""

    full: Manifest
    asked: float
    reached: float
    ways: list[Way]


class Restored(Struct, frozen=True):
    """What a restore did.

    Args:
        backup: the full copy that it began with.
        asked, reached: epoch seconds.
        changes: how many were applied.
        seconds: how long it took, the recovery time.
        earlier: sources beside the main one of which less was shipped, each with the epoch second that it reached.
    """

    backup: str
    asked: float
    reached: float
    changes: int
    seconds: float
    earlier: dict[str, float] = {}


class Restore:
    """Restores from an archive.

    Args:
        vault: the archive.
        scratch: a folder with room for one copy.
        clock: for how long it took, and for what is newest.
    """

    def __init__(self, vault: Vault, *, scratch: Path, clock: Clock) -> None:
        self._vault = vault
        self._scratch = scratch
        self._clock = clock

    async def plan(
        self, at: float | None, *, main: str = "ledger", backup: str | None = None, accept_earlier: bool = False
    ) -> Plan:
        """Find out what would be restored, and how far that leads.

        Args:
            at: the epoch second, None for the newest that there is.
            main: the source whose second counts.
            backup: the id of a full backup to restore as it is, without the changes after it; None for any.
            accept_earlier: whether the others may reach less than the second asked for.

        Raises:
            NotFound: there is no full backup from before.
            Missed: the second cannot be reached.
            Unavailable: no target answers.
        """
        listed = await self._vault.backups()
        full = _full(listed, at, backup)
        copies = [(one, one.timeline and backup is None) for one in full.sources]
        ways = [await self._way(one, listed.backups) if more else Way(one, [], one.at) for one, more in copies]
        way = next((one for one in ways if one.copy.source == main), None)
        if way is None:
            raise NotFound(f"the backup {full.id} holds no {main}")
        now = self._clock.time()
        newest = way.reached if way.gap is None else max(now, way.reached + 2 * MISS_S_MAX)
        asked = newest if at is None or backup is not None else at
        needed = [way] if at is None or accept_earlier else [way, *(one for one in ways if one.copy.timeline)]
        for one in needed:
            # No changes are known of a time that has not come, whatever a clock that was ahead said of it.
            if asked - (one.reached if at is None else min(one.reached, now)) > MISS_S_MAX:
                raise _missed(one, full, asked, now, main)
        if backup is None:
            ways = [way if way.copy.timeline else _fresher(way, listed.backups, asked) for way in ways]
        return Plan(full, asked, min(asked, way.reached), ways)

    async def run(self, plan: Plan, places: Sequence[Place], progress: Progress = silent) -> Restored:
        """Do it: each place has the state of that second then, and is not handed over yet.

        Raises:
            Conflict: a place is not empty.
            Damaged: an object or a change is not what it was; the place is worth nothing.
            Unavailable, Full: a target or the place failed.
        """
        began = self._clock.monotonic()
        changes = 0
        by_name = {place.name: place for place in places}
        for way in plan.ways:
            place = by_name.get(way.copy.source)
            if place is None:
                continue
            with _scratch(self._scratch) as folder:
                await self._download(way.copy, folder, progress)
                await place.begin(folder)
            changes += await self._apply(way, place, plan.asked, progress)
        earlier = {
            way.copy.source: way.reached
            for way in plan.ways
            if way.copy.timeline and way.copy.source in by_name and plan.reached - way.reached > MISS_S_MAX
        }
        return Restored(plan.full.id, plan.asked, plan.reached, changes, self._clock.monotonic() - began, earlier)

    async def sent_since(self, at: float, *, without: Sequence[str] = ()) -> AsyncIterator[list[Sent]]:
        """What the send journal tells since an epoch second, an object at a time.

        An object is named after the time at which it was written, which is after all that is in it. Where a process's
        clock was set back, all that it wrote since then is told.

        Args:
            at: epoch seconds.
            without: objects that are left out.

        Raises:
            Damaged: an object cannot be read.
            Unavailable: no target answers.
        """
        latest: dict[str, float] = {}
        names = [one.name for one in await self._vault.names(f"{SENDS}/")]
        for name in sorted(names, key=lambda name: sends_place(name) or ("", 0)):
            stamp, place = sends_at(name), sends_place(name)
            if stamp is None or place is None:
                continue
            # What was gathered is of many processes, and stands for itself.
            owner = name if is_merged(name) else place[0]
            latest[owner] = max(stamp, latest.get(owner, 0.0))
            if latest[owner] < at or name in without:
                continue
            since = at if stamp == latest[owner] else 0.0
            yield [sent for sent in await self._sends(name) if sent.at >= since]

    async def _sends(self, name: str) -> list[Sent]:
        try:
            return decode_sends(await self._vault.get(name))
        except Damaged as error:
            raise Damaged(
                f"{error}: what was sent then is not known from it",
                hint=f"restore with --without {name}, and what only it tells is sent again",
            ) from None

    async def _way(self, copy: Covered, backups: Sequence[Manifest]) -> Way:
        stretches = [
            Stretch(one.after, one.upto, one.until, [(part.name, part) for part in parts])
            for manifest in backups
            if manifest.kind == "incremental"
            for one in manifest.sources
            if (one.source, one.timeline) == (copy.source, copy.timeline)
            for parts in one.files.values()
        ]
        prefix = f"{LOG}/{copy.source}/{copy.timeline}/"
        shipped = shipped_of(one.name for one in await self._vault.names(prefix))
        stretches += [Stretch(one.after, one.upto, None, [(one.name, None)]) for one in shipped]
        taken, upto = follow(copy.upto, stretches)
        try:
            tip = await self._vault.tip(copy.source, copy.timeline)
        except Damaged:
            tip = None  # The changes themselves say how far they go.
        furthest = max([one.upto for one in stretches] + ([tip.upto] if tip is not None else []), default=upto)
        gap = upto + 1 if furthest > upto else None
        reached = copy.until
        if tip is not None and tip.upto == upto:
            reached = max(reached, tip.until)
        elif taken:
            last = taken[-1]
            reached = last.until or decode_changes(await self._vault.get(last.objects[-1][0])).until
        return Way(copy, taken, reached, gap)

    async def _download(self, copy: Covered, folder: Path, progress: Progress) -> None:
        of = sum(part.size for parts in copy.files.values() for part in parts)
        done = 0
        for name, parts in copy.files.items():
            path = folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for part in parts:
                        file.write(await self._vault.get(part.name, part))
                        done += part.size
                        progress(copy.source, done, of)
            except OSError as error:
                raise Full(
                    f"there is no room for {name} in {self._scratch}: {error.strerror}",
                    hint="make room there, or take a directory on another disk",
                ) from None

    async def _apply(self, way: Way, place: Place, asked: float, progress: Progress) -> int:
        number, count, reached = way.copy.upto, 0, way.copy.until
        objects = [one for stretch in way.stretches for one in stretch.objects]
        for at, (name, part) in enumerate(objects):
            try:
                found = decode_changes(await self._vault.get(name, part))
            except Damaged as error:
                # From `reached` on nothing is known, so the second before is the last one.
                hint = f"the last second before it is --at {_utc(reached)}"
                raise Damaged(str(error), hint=hint) from None
            fresh: list[Change] = [one for one in found.changes if one.number > number and one.at <= asked]
            if fresh:
                await place.apply(fresh)
                number, count = fresh[-1].number, count + len(fresh)
            reached = max(reached, found.until)
            progress(f"{way.copy.source} changes", at + 1, len(objects))
            if len(fresh) < sum(1 for one in found.changes if one.number > number):
                break  # The rest is later than what was asked for.
        return count


def _full(listed: Listed, at: float | None, backup: str | None) -> Manifest:
    """The newest full backup from before a second, or the one that was named."""
    fulls = [one for one in listed.backups if one.kind == "full"]
    if backup is not None:
        found = [one for one in fulls if one.id == backup]
        if not found:
            raise NotFound(f"there is no full backup {backup}", hint="bellbuoy backup list")
        return found[0]
    if not fulls and listed.damaged:
        raise Damaged(
            f"no full backup in the archive can be read: {next(iter(listed.damaged.values()))}",
            hint="bellbuoy backup list names all that cannot be read; [backup] key_file needs the key that is named",
        )
    if not fulls:
        raise NotFound(
            "there is no full backup in the archive", hint="check [backup] url and second_url; bellbuoy backup list"
        )
    before = [one for one in fulls if at is None or _at(one) <= at]
    if not before:
        hint = f"the first second that can be reached is {_utc(_first(fulls[0]))}"
        raise NotFound("there is no full backup from before that second", hint=hint)
    return before[-1]


def _missed(way: Way, full: Manifest, asked: float, now: float, main: str) -> Missed:
    """Why a second cannot be reached, and which can."""
    reachable = min(way.reached, now)
    why = f"change {way.gap} is missing" if way.gap is not None else "no later change was shipped"
    if asked - now > MISS_S_MAX:
        why = "by the clock of this machine it has not come yet"
    hint = f"the last second that can is --at {_utc(max(math.floor(reachable), _first(full)))}"
    if way.copy.source != main:
        why += f" of {way.copy.source}"
        hint = f"--accept-earlier has {way.copy.source} as it was at its last second; {hint}"
    return Missed(f"{_utc(asked)} cannot be reached: {why}", reachable=reachable, hint=hint)


def _fresher(way: Way, backups: Sequence[Manifest], asked: float) -> Way:
    """The way to a source without changes: its newest copy from before a second, which an incremental may have."""
    copies = [copy for one in backups for copy in one.sources if (copy.source, copy.timeline) == (way.copy.source, "")]
    newest = max((copy for copy in copies if copy.at <= asked), key=lambda copy: copy.at, default=way.copy)
    return Way(newest, [], newest.at)


def _at(full: Manifest) -> float:
    """The moment of a full backup: when the last of its sources was copied."""
    return max((one.at for one in full.sources), default=0.0)


def _first(full: Manifest) -> int:
    """The first whole second that a full backup leads to; the one it was taken in began before it."""
    return math.ceil(_at(full))


def _utc(at: float) -> str:
    from datetime import UTC, datetime

    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


class _scratch:
    """A folder for as long as it is used."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __enter__(self) -> Path:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=self._root))
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
