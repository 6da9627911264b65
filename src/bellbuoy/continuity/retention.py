"""What may be deleted from an archive, and what may not because something that is kept needs it. Pure.

An incremental is worth nothing without a full copy before its changes and everything between the two, so whatever a
kept incremental needs is kept as well, however old. The newest full copy and what follows it are always kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from bellbuoy.continuity.manifest import (
    FOLDERS,
    Covered,
    Manifest,
    began_at,
    ended_after,
    is_manifest,
    is_tip,
    manifest_name,
    sends_at,
    shipped_of,
)

DAY_S = 86_400.0
UNFINISHED_S = DAY_S
"""For how long what no manifest names may be a backup that is still being written."""
STEADY_S = 3600.0
"""Backups of less than this apart are believed to be of the same moment of a clock."""


class Keep(Struct, frozen=True):
    """For how many days backups are kept."""

    full_days: float = 30.0
    incremental_days: float = 7.0


class Pruned(Struct, frozen=True):
    """The ids of backups that go, and the names of all objects that do; manifests are the first of those."""

    backups: list[str]
    names: list[str]


def prune(backups: Sequence[Manifest], names: Iterable[str], keep: Keep, now: float) -> Pruned:
    """What goes.

    Args:
        backups: all whose manifests can be read.
        names: of all objects in the target.
        keep: for how long.
        now: epoch seconds.
    """
    kept = _kept(backups, keep, now)
    going = [one for one in backups if one.id not in kept]
    there = set(names)
    manifests = [manifest_name(one.kind, one.id) for one in going]
    staying = {part.name for one in backups if one.id in kept for part in one.parts}
    staying |= {manifest_name(one.kind, one.id) for one in backups if one.id in kept}
    rest = [name for name in there - staying - set(manifests) if _goes(name, backups, kept, keep, now)]
    return Pruned([one.id for one in going], [name for name in manifests if name in there] + sorted(rest))


def steady(backups: Sequence[Manifest], now: float) -> float:
    """The time to count ages from where nobody looks: that of the backup before the last, when it is earlier than now.

    A clock that is ahead for a moment in which a backup is taken then makes no other look old.

    Args:
        backups: all whose manifests can be read.
        now: epoch seconds.
    """
    ends = sorted(one.ended_at for one in backups)
    before = [at for at in ends if at < ends[-1] - STEADY_S]
    return min(now, before[-1] if before else 0.0)


def needed(incremental: Manifest, backups: Sequence[Manifest]) -> set[str]:
    """The ids of what an incremental needs to be of use: the full copy before it, and what lies between the two."""
    found: set[str] = set()
    for stretch in incremental.sources:
        if not stretch.timeline:
            continue  # A copy that is whole by itself.
        full = _base(stretch, backups)
        if full is None:
            continue
        found.add(full.id)
        copy = full.of(stretch.source)
        assert copy is not None
        found |= {
            one.id
            for one in backups
            if one.kind == "incremental"
            and any(_same(s, stretch) and s.upto > copy.upto and s.after < stretch.after for s in one.sources)
        }
    return found


def _kept(backups: Sequence[Manifest], keep: Keep, now: float) -> set[str]:
    days = {"full": keep.full_days, "incremental": keep.incremental_days}
    kept = {one.id for one in backups if one.ended_at >= now - days[one.kind] * DAY_S}
    fulls = [one for one in backups if one.kind == "full"]
    if fulls:
        newest = max(fulls, key=lambda one: (one.number, one.began_at))
        kept |= {newest.id, *(one.id for one in backups if _follows(one, newest))}
    for one in backups:
        if one.kind == "incremental" and one.id in kept:
            kept |= needed(one, backups)
    return kept


def _follows(incremental: Manifest, full: Manifest) -> bool:
    """Whether an incremental leads on from a full copy: without it nothing that was shipped later could be restored."""
    copies = [(copy, stretch) for stretch in incremental.sources if (copy := full.of(stretch.source)) is not None]
    return incremental.kind == "incremental" and any(
        stretch.timeline and _same(copy, stretch) and stretch.upto > copy.upto for copy, stretch in copies
    )


def _base(stretch: Covered, backups: Sequence[Manifest]) -> Manifest | None:
    """The newest full copy from before the first change of a stretch; else the first one that lies within it."""
    copies = [
        (copy.upto, one)
        for one in backups
        if one.kind == "full" and (copy := one.of(stretch.source)) is not None and _same(copy, stretch)
    ]
    before = [pair for pair in copies if pair[0] <= stretch.after]
    within = [pair for pair in copies if stretch.after < pair[0] <= stretch.upto]
    if before:
        return max(before, key=lambda pair: (pair[0], pair[1].number, pair[1].began_at))[1]
    return min(within, key=lambda pair: pair[0])[1] if within else None


def _same(one: Covered, other: Covered) -> bool:
    return one.source == other.source and one.timeline == other.timeline


def _goes(name: str, backups: Sequence[Manifest], kept: set[str], keep: Keep, now: float) -> bool:
    """Whether an object that no kept backup names is of no more use."""
    if is_manifest(name):
        return False  # It cannot be read; a person has to see that.
    folder, _, rest = name.partition("/")
    if folder in FOLDERS.values():
        backup_id = rest.partition("/")[0]
        began = began_at(backup_id)
        return backup_id not in kept and began is not None and began < now - UNFINISHED_S
    ended = ended_after(name)
    if ended is not None:
        return all(one.number > ended + 1 for one in backups if one.id in kept)
    sent = sends_at(name)
    if sent is not None:
        return sent < now - max(keep.full_days, keep.incremental_days) * DAY_S
    return _log_goes(name, [one for one in backups if one.id in kept])


def _log_goes(name: str, kept: Sequence[Manifest]) -> bool:
    """Whether shipped changes are in a kept incremental, or of a timeline of which no full copy is kept."""
    timelines = {(s.source, s.timeline) for one in kept if one.kind == "full" for s in one.sources}
    if is_tip(name):
        _, source, timeline, _ = name.split("/")
        return (source, timeline) not in timelines
    shipped = shipped_of([name])
    if not shipped:
        return False
    one = shipped[0]
    gathered = any(
        s.source == one.source and s.timeline == one.timeline and s.after <= one.after and one.upto <= s.upto
        for manifest in kept
        if manifest.kind == "incremental"
        for s in manifest.sources
    )
    return gathered or (one.source, one.timeline) not in timelines
