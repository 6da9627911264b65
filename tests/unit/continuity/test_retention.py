"""What is pruned, over random schedules and times: never what a kept incremental needs, and all else in the end."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bellbuoy.continuity.manifest import Covered, Kind, Manifest, Part, log_name, manifest_name, part_name, sends_name
from bellbuoy.continuity.retention import DAY_S, STEADY_S, Keep, needed, prune, steady

NOW = 1_800_000_000.0

# What happened one after the other: a full, an incremental, changes, or a new timeline; and hours until the next thing.
EVENTS = st.lists(st.tuples(st.sampled_from(["full", "incremental", "changes", "timeline"]), st.floats(0.1, 60)))
KEEPS = st.builds(Keep, full_days=st.floats(0.5, 40), incremental_days=st.floats(0.5, 40))


def _archive(events: list[tuple[str, float]]) -> tuple[list[Manifest], list[str], float]:
    at, number, sealed, timeline = NOW, 0, 0, 0
    backups: list[Manifest] = []
    names: list[str] = []
    for place, (event, hours) in enumerate(events):
        at += hours * 3600
        if event == "changes":
            number += 5
        elif event == "timeline":
            timeline, sealed = timeline + 1, number
        elif event == "full":
            backups.append(_manifest("full", place, at, str(timeline), 0, number))
        elif number > sealed:
            backups.append(_manifest("incremental", place, at, str(timeline), sealed, number))
            sealed = number
    for one in backups:
        names += [manifest_name(one.kind, one.id), *(part.name for part in one.parts)]
    names.append(log_name("ledger", str(timeline), sealed, number + 1))
    return backups, names, at


def _manifest(kind: Kind, place: int, at: float, timeline: str, after: int, upto: int) -> Manifest:
    name = f"20260101T000000Z-{place:06}"
    part = Part(part_name(kind, name, "ledger", "f", 0), 1, "x")
    copied = Part(part_name(kind, name, "cache", "f", 0), 1, "x")
    ledger = Covered("ledger", "", timeline, after, upto, at, at, {"f": [part]})
    return Manifest(name, kind, at, at, [ledger, Covered("cache", "", "", 0, 0, at, at, {"f": [copied]})])


@given(events=EVENTS, keep=KEEPS, later_days=st.floats(0, 60))
def test_what_is_kept_is_of_use(events: list[tuple[str, float]], keep: Keep, later_days: float) -> None:
    backups, names, end = _archive(events)
    now = end + later_days * DAY_S
    gone = prune(backups, names, keep, now)
    kept = [one for one in backups if one.id not in gone.backups]
    left = set(names) - set(gone.names)
    for one in kept:
        assert {manifest_name(one.kind, one.id), *(part.name for part in one.parts)} <= left
        if one.kind == "incremental":
            assert needed(one, backups) <= {other.id for other in kept}
            assert _restorable(one, kept) or not _restorable(one, backups)
    for one in backups:
        age_days = (now - one.ended_at) / DAY_S
        if age_days <= (keep.full_days if one.kind == "full" else keep.incremental_days):
            assert one in kept
    fulls = [one for one in backups if one.kind == "full"]
    assert not fulls or fulls[-1] in kept


@given(events=EVENTS, keep=KEEPS, later_days=st.floats(0, 60))
@example(  # Of two copies of the same state the later one is enough.
    events=[("full", 1.0), ("full", 1.0), ("changes", 1.0), ("incremental", 1.0)], keep=Keep(1.0, 1.0), later_days=2.0
)
def test_what_is_kept_longer_than_asked_is_needed(
    events: list[tuple[str, float]], keep: Keep, later_days: float
) -> None:
    backups, names, end = _archive(events)
    now = end + later_days * DAY_S
    kept = [one for one in backups if one.id not in prune(backups, names, keep, now).backups]
    days = {"full": keep.full_days, "incremental": keep.incremental_days}
    young = [one for one in kept if one.ended_at >= now - days[one.kind] * DAY_S]
    wanted = {one.id for one in young} | {
        other for one in young if one.kind == "incremental" for other in needed(one, backups)
    }
    newest = next((one for one in reversed(backups) if one.kind == "full"), None)
    if newest is not None:
        of = newest.sources[0]
        ahead = [one for one in backups if one.kind == "incremental" and one.sources[0].timeline == of.timeline]
        ahead = [one for one in ahead if one.sources[0].upto > of.upto]
        wanted |= {newest.id, *(one.id for one in ahead), *(other for one in ahead for other in needed(one, backups))}
    assert {one.id for one in kept} <= wanted


@given(events=EVENTS, keep=KEEPS, later_days=st.floats(0, 400))
def test_the_newest_state_can_be_restored_however_long_nothing_was_taken(
    events: list[tuple[str, float]], keep: Keep, later_days: float
) -> None:
    backups, names, end = _archive(events)
    kept = [one for one in backups if one.id not in prune(backups, names, keep, end + later_days * DAY_S).backups]
    newest = next((one for one in reversed(backups) if one.kind == "full"), None)
    for one in backups:
        if newest is not None and one.kind == "incremental" and one.sources[0].upto > newest.sources[0].upto:
            same = one.sources[0].timeline == newest.sources[0].timeline
            assert not same or (_restorable(one, kept) or not _restorable(one, backups))
            assert not same or one in kept


@given(events=EVENTS, keep=KEEPS, later_days=st.floats(0, 60))
def test_pruning_twice_is_pruning_once(events: list[tuple[str, float]], keep: Keep, later_days: float) -> None:
    backups, names, end = _archive(events)
    now = end + later_days * DAY_S
    gone = prune(backups, names, keep, now)
    kept = [one for one in backups if one.id not in gone.backups]
    again = prune(kept, set(names) - set(gone.names), keep, now)
    assert again.backups == []
    assert again.names == []


def _restorable(incremental: Manifest, among: list[Manifest]) -> bool:
    """Whether its first change can be reached, worked out by walking and not by the rules under test."""
    goal = incremental.sources[0]
    stretches = [one.sources[0] for one in among if one.kind == "incremental"]
    for full in (one.sources[0] for one in among if one.kind == "full"):
        at, moved = full.upto, True
        while at < goal.after and moved:
            following = [s.upto for s in stretches if s.timeline == goal.timeline and s.after <= at < s.upto]
            moved = bool(following)
            at = max(following, default=at)
        if full.timeline == goal.timeline and full.upto <= goal.after and at >= goal.after:
            return True
    return False


def test_what_no_manifest_names_goes_after_a_day() -> None:
    old = part_name("full", "20260101T000000Z-aaaaaa", "ledger", "f", 0)
    young = part_name("full", "20270115T075000Z-bbbbbb", "ledger", "f", 0)
    gone = prune([], [old, young], Keep(), NOW)
    assert gone.names == [old]


def test_sends_are_kept_for_as_long_as_a_full_can_be_restored() -> None:
    old, young = (sends_name(NOW - days * DAY_S, "w", 1) for days in (31, 29))
    assert prune([], [old, young], Keep(), NOW).names == [old]


@pytest.mark.parametrize("name", ["log/tip", "log/ledger/tip", "log/a/b/c/tip"])
def test_a_tip_of_no_timeline_is_left_alone(name: str) -> None:
    assert prune([], [name], Keep(), NOW).names == []


def test_a_manifest_that_cannot_be_read_stays() -> None:
    assert prune([], [manifest_name("full", "20260101T000000Z-aaaaaa")], Keep(), NOW).names == []


@given(events=EVENTS, keep=KEEPS, ahead_days=st.floats(1, 4000), more=st.floats(0, STEADY_S - 1))
def test_a_clock_that_is_ahead_for_a_moment_deletes_nothing_that_would_have_stayed(
    events: list[tuple[str, float]], keep: Keep, ahead_days: float, more: float
) -> None:
    backups, names, end = _archive(events)

    def gone(at: float, *, unattended: bool) -> set[str]:
        """What goes when two more are taken, at that time by the clock."""
        taken = [_manifest("full", 1000, at, "x", 0, 1), _manifest("incremental", 1001, at + more, "x", 1, 2)]
        of = [name for one in taken for name in (manifest_name(one.kind, one.id), *(part.name for part in one.parts))]
        now = steady([*backups, *taken], at + more + 1) if unattended else at + more + 1
        return set(prune([*backups, *taken], names + of, keep, now).backups)

    # What is too old by the right time as well would have gone.
    assert gone(end + ahead_days * DAY_S, unattended=True) <= gone(end, unattended=False)


def test_ages_are_counted_up_to_the_backup_before_the_last() -> None:
    backups = [_manifest("full", n, NOW + n * DAY_S, "x", 0, n) for n in range(4)]
    assert steady(backups, NOW + 3.1 * DAY_S) == NOW + 2 * DAY_S
    assert steady(backups, NOW + 1.5 * DAY_S) == NOW + 1.5 * DAY_S
    assert steady(backups[:1], NOW) == steady([], NOW) == 0.0
