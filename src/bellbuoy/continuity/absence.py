"""What an archive should have and has not, where no manifest names it as its own. Pure.

Each manifest says what else had to be there when it was written, and until when; and how far each series of numbers was
gathered, so that a number which is missing after that is a loss, as one is that could not be gathered then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from bellbuoy.continuity.chain import Spans, follow, holes, merged
from bellbuoy.continuity.manifest import (
    FOLDERS,
    OWNER,
    SENDS,
    Absent,
    Covered,
    Kind,
    Known,
    Manifest,
    SendsPart,
    Shipped,
    Tip,
    began_at,
    changes_series,
    ended_after,
    is_manifest,
    is_merged,
    is_tip,
    manifest_name,
    sends_at,
    sends_of,
    shipped_of,
)
from bellbuoy.continuity.retention import DAY_S, Keep, needed

SILENT_S = DAY_S
"""A process that wrote nothing of the send journal for so long begins another series."""
FORGOTTEN_S = 7 * DAY_S
"""So long after the last part of it, far longer than `SILENT_S`, nobody asks any more how far a series was gathered."""

Loose = Shipped | SendsPart


class Look(Struct, frozen=True):
    """An archive as it was at a moment.

    Args:
        targets: the names of the objects in each target that was there.
        names: those of all of them.
        backups: those whose manifests can be read, oldest first.
        tips: those that can be read, by the series of their changes.
        pruned: what was deleted before the time that a manifest gives it, with that epoch second.
    """

    targets: dict[str, frozenset[str]]
    names: frozenset[str]
    backups: list[Manifest]
    tips: dict[str, Tip]
    pruned: dict[str, float]


class Hole(Struct, frozen=True, order=True):
    """Numbers of a series that are lost: those after `after` and up to `upto`."""

    series: str
    after: int
    upto: int


# Objects that had to be there.


def promised(look: Look, now: float) -> dict[str, float]:
    """What the manifests say has to be there, by name, with the epoch second until when."""
    found: dict[str, float] = {}
    for manifest in look.backups:
        for name, until in manifest.standing.items():
            if until > now and name not in look.pruned:
                found[name] = max(until, found.get(name, 0.0))
    return found


def lost(look: Look, now: float) -> list[str]:
    """What has to be there, and is in no target."""
    return sorted(promised(look, now).keys() - look.names)


def uneven(look: Look) -> dict[tuple[str, str], str]:
    """What a target lacks and another has: that other one, by target and name."""
    return {
        (target, name): next(other for other, has in look.targets.items() if name in has)
        for target, names in look.targets.items()
        for name in sorted(look.names - names)
        if not is_tip(name)  # The next one that is shipped is written to both.
    }


def forsaken(look: Look, going: Iterable[str], keep: Keep, now: float) -> dict[str, float]:
    """What of the objects that are about to be pruned somebody would look for, with the epoch second until when."""
    going = set(going)
    known, until = _known(look.backups), now + _days(keep) * DAY_S
    parts = {one.name: until for one in sends_of(going) if one.upto > known.get(one.series, 0)}
    return parts | {name: until for name, until in promised(look, now).items() if name in going}


# Series of numbers.


def lost_changes(look: Look, now: float) -> list[Hole]:
    """Changes that are missing although they are promised: nothing after them can be restored without another copy."""
    firsts: dict[str, int] = {}
    for series, full in copies(look.backups):
        firsts[series] = min(full.upto, firsts.get(series, full.upto))
    # What is lost before the first copy leads nowhere.
    return [one for one in _missing(look, now) if one.series in firsts and one.upto > firsts[one.series]]


def lost_sends(look: Look, now: float) -> list[Hole]:
    """Parts of the send journal that are missing: what they told would be sent again after a restore."""
    return [one for one in _missing(look, now) if one.series.startswith(f"{SENDS}/")]


def unfounded(look: Look) -> list[str]:
    """The series of changes that follow no full copy which is there."""
    known, founded = _known(look.backups), {series for series, _ in copies(look.backups)}
    found = {one.series for one in shipped_of(look.names) if one.upto > known.get(one.series, 0)} | look.tips.keys()
    if not _keeps_account(look.backups):
        found |= stretches(look.backups).keys()
    return sorted(found - founded)


def tipless(look: Look) -> list[str]:
    """The series of changes whose tip is in no target: nobody knows how far they should go."""
    found = {one.series for one in shipped_of(look.names)} | stretches(look.backups).keys()
    found &= {series for series, _ in copies(look.backups)}  # With the last of those the tip is pruned.
    found |= {series for series, _ in _newest(look.backups).values()}  # A full backup ends with a shipping.
    return sorted(one for one in found if f"{one}/tip" not in look.names)


def torn(backups: Sequence[Manifest]) -> bool:
    """Whether changes after the newest copy of a source are lost, so that only another leads to what came later."""
    newest, there = _newest(backups), stretches(backups)
    return any(
        one.series == series and one.upto > full.upto and holes(one.after, one.upto, there[series])
        for one in _recorded(backups)
        for series, full in newest.values()
    )


def accounted(
    manifest: Manifest,
    look: Look,
    keep: Keep,
    now: float,
    *,
    listed: Sequence[Loose] = (),
    read: Sequence[Loose] = (),
    newest: int = 0,
) -> Manifest:
    """A manifest that is about to be written, with its number, and its account of the archive and of each series.

    Args:
        manifest: what was copied or gathered.
        look: at the archive, before anything that was gathered is deleted.
        keep: for how long backups are kept.
        now: epoch seconds.
        listed: what was to be gathered.
        read: what of that could be.
        newest: the greatest number that is known of, since a target that has it may be away.
    """
    before, keeps = _known(look.backups), _keeps_account(look.backups)
    pruned = sends_of(look.pruned)
    loose, there = _loose(look), _spans([*look.backups, manifest], [read, pruned])
    gathered = _carried(look, [*look.backups, manifest], loose, now)
    absent = {
        (one.series, one.after, one.upto): one
        for one in _recorded(look.backups)
        if one.until > now and holes(one.after, one.upto, there[one.series])
    }
    fresh: list[Hole] = [] if keeps else _walked(look)
    due = _by_series((*listed, *pruned))
    tips = look.tips if manifest.kind == "incremental" else {}
    for series in {*due, *(tips.keys() & before.keys())}:
        start, upto = _start(series, before, loose, keeps=keeps), _end(due[series], tips.get(series))
        fresh += [Hole(series, *hole) for hole in holes(start, upto, there[series])]
        at = max((getattr(one, "at", now) for one in due[series]), default=now)
        gathered[series] = Known(max(upto, before.get(series, 0)), at)
    for hole in fresh:
        until = now + (_days(keep) if hole.series.startswith(f"{SENDS}/") else keep.incremental_days) * DAY_S
        absent.setdefault((hole.series, hole.after, hole.upto), Absent(hole.series, hole.after, hole.upto, until))
    for series, full in copies([manifest]):
        gathered.setdefault(series, Known(min((s.after for s in loose[series]), default=full.upto), now))
    for series in () if keeps else loose:
        gathered.setdefault(series, Known(_start(series, before, loose, keeps=False), now))
    number = 1 + max([newest, *(one.number for one in look.backups)])
    standing = _standing(look, keep, now) | _standing_ended(look, keep, now, number, manifest.kind)
    return replace(manifest, number=number, standing=standing, gathered=gathered, absent=list(absent.values()))


def _standing(look: Look, keep: Keep, now: float) -> dict[str, float]:
    """What has to be there from now on: what is there, and what is missing although its time is not over."""
    times = {name: _until(name, keep, now) for name in look.names}
    # Also that of a timeline which has just ended: it alone says how far that went.
    tips = {f"{series}/tip" for series, _ in _newest(look.backups).values()}
    times |= dict.fromkeys(tips & look.names, now + keep.incremental_days * DAY_S)
    names = {one.id: manifest_name(one.kind, one.id) for one in look.backups}
    ends = {one.id: one.ended_at + _kept_days(one.kind, keep) * DAY_S for one in look.backups}
    for one in look.backups:
        for other in {one.id} | (needed(one, look.backups) if one.kind == "incremental" else set()):
            times[names[other]] = max(times.get(names[other], 0.0), ends[one.id])
    return promised(look, now) | {name: until for name, until in times.items() if until > now}


def _standing_ended(look: Look, keep: Keep, now: float, number: int, kind: Kind) -> dict[str, float]:
    """Until when keys that have ended have to be there: as long as a backup that may have them alive.

    `number` and `kind` are those of the backup that is being taken.
    """
    ends = [(one.number, one.ended_at + _kept_days(one.kind, keep) * DAY_S) for one in look.backups]
    ends.append((number, now + _kept_days(kind, keep) * DAY_S))
    after = {name: ended for name in look.names if (ended := ended_after(name)) is not None}
    times = {name: max((at for one, at in ends if one <= ended + 1), default=0.0) for name, ended in after.items()}
    return {name: until for name, until in times.items() if until > now}


def _until(name: str, keep: Keep, now: float) -> float:
    """Up to which epoch second an object has to be there by its name alone, 0 where that does not say so."""
    if name == OWNER:
        return now + keep.full_days * DAY_S
    if is_merged(name):
        return (sends_at(name) or 0.0) + _days(keep) * DAY_S
    folder, _, rest = name.partition("/")
    kind = next((kind for kind, of in FOLDERS.items() if of == folder), None)
    if kind is None or not is_manifest(name):
        return 0.0
    return (began_at(rest.partition("/")[0]) or 0.0) + _kept_days(kind, keep) * DAY_S


def _kept_days(kind: Kind, keep: Keep) -> float:
    return keep.full_days if kind == "full" else keep.incremental_days


def _carried(look: Look, backups: Sequence[Manifest], loose: Mapping[str, object], now: float) -> dict[str, Known]:
    """How far series were gathered that somebody may still ask for."""
    founded = {series for series, _ in copies(backups)}
    found: dict[str, Known] = {}
    for manifest in look.backups:
        for series, one in (manifest.gathered or {}).items():
            if series in founded or series in loose or (series.startswith(f"{SENDS}/") and now - one.at < FORGOTTEN_S):
                found[series] = max(one, found.get(series, one), key=lambda any: any.upto)
    return found


def _missing(look: Look, now: float) -> list[Hole]:
    known, keeps = _known(look.backups), _keeps_account(look.backups)
    loose = _loose(look)
    there = _spans(look.backups, loose.values())
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for one in _recorded(look.backups):
        if one.until > now:
            found[one.series] += holes(one.after, one.upto, there[one.series])
    for series in {*loose, *(look.tips.keys() & known.keys())}:
        end = _end(loose[series], look.tips.get(series))
        found[series] += holes(_start(series, known, loose, keeps=keeps), end, there[series])
    for hole in [] if keeps else _walked(look):
        found[hole.series].append((hole.after, hole.upto))
    return sorted(Hole(series, *one) for series, ranges in found.items() for one in merged(ranges))


def _walked(look: Look) -> list[Hole]:
    """What is missing on the ways from full copies, where no manifest kept account of what was gathered."""
    found: list[Hole] = []
    fulls: dict[str, list[int]] = defaultdict(list)
    for series, full in copies(look.backups):
        fulls[series].append(full.upto)
    there = _spans(look.backups, _loose(look).values())
    for series, begins in fulls.items():
        reached = [(begin, follow(begin, there[series])[1]) for begin in begins]
        ends = [*begins, *(one.upto for one in there[series])]
        for one in there[series]:
            if one.upto > min(begins) and not any(begin < one.upto <= upto for begin, upto in reached):
                before = max((end for end in ends if end <= one.after), default=0)
                found += [Hole(series, *hole) for hole in holes(before, one.after, ())]
    for series, full in _newest(look.backups).values():
        if series in look.tips:
            found += [Hole(series, *hole) for hole in holes(full.upto, look.tips[series].upto, there[series])]
    return found


def _newest(backups: Sequence[Manifest]) -> dict[str, tuple[str, Covered]]:
    """The newest copy of each source that has changes, with the series of those."""
    return {full.source: (series, full) for series, full in copies(backups)}


def _spans(backups: Sequence[Manifest], loose: Iterable[Sequence[Loose]]) -> defaultdict[str, list[Spans]]:
    """The numbers that are in incrementals, or loose, by their series."""
    found: defaultdict[str, list[Spans]] = defaultdict(list)
    for series, ones in stretches(backups).items():
        found[series] += ones
    for some in loose:
        for one in some:
            found[one.series].append(one)
    return found


def _start(series: str, known: Mapping[str, int], loose: Mapping[str, Sequence[Spans]], *, keeps: bool) -> int:
    """After which number of a series everything has to be there."""
    if series in known:
        return known[series]
    if keeps and series.startswith(f"{SENDS}/"):
        return 0
    return min((one.after for one in loose.get(series, ())), default=0)


def _end(loose: Sequence[Loose], tip: Tip | None) -> int:
    """Up to which number of a series everything has to be there."""
    return max([one.upto for one in loose] + ([tip.upto] if tip is not None else []), default=0)


def _keeps_account(backups: Sequence[Manifest]) -> bool:
    """Whether what was gathered is known; of an archive from before that was written down it is not."""
    return not backups or any(one.gathered is not None for one in backups)


def _recorded(backups: Sequence[Manifest]) -> list[Absent]:
    """What could not be gathered, as the newest account has it: what was there again later is in none that follows."""
    return next((one.absent for one in reversed(backups) if one.gathered is not None), [])


def _known(backups: Sequence[Manifest]) -> dict[str, int]:
    """How far each series was gathered."""
    found: dict[str, int] = {series: max(s.upto for s in spans) for series, spans in stretches(backups).items()}
    for manifest in backups:
        for series, one in (manifest.gathered or {}).items():
            found[series] = max(one.upto, found.get(series, 0))
    return found


def stretches(backups: Sequence[Manifest]) -> defaultdict[str, list[Covered]]:
    """The changes in incrementals."""
    found: defaultdict[str, list[Covered]] = defaultdict(list)
    for manifest in backups:
        for one in manifest.sources if manifest.kind == "incremental" else ():
            if one.timeline:
                found[changes_series(one.source, one.timeline)].append(one)
    return found


def _loose(look: Look) -> defaultdict[str, list[Loose]]:
    """What was shipped and is in no incremental, and parts of the send journal, those that were pruned too."""
    return _by_series([*shipped_of(look.names), *sends_of({*look.names, *look.pruned})])


def _by_series(ones: Iterable[Loose]) -> defaultdict[str, list[Loose]]:
    found: defaultdict[str, list[Loose]] = defaultdict(list)
    for one in ones:
        found[one.series].append(one)
    return found


def copies(backups: Sequence[Manifest]) -> list[tuple[str, Covered]]:
    """The copies that changes follow, each with the series of those, oldest first."""
    return [
        (changes_series(one.source, one.timeline), one)
        for manifest in backups
        if manifest.kind == "full"
        for one in manifest.sources
        if one.timeline
    ]


def _days(keep: Keep) -> float:
    """For how many days the send journal is kept."""
    return max(keep.full_days, keep.incremental_days)
