"""What an archive lacks, in words: objects, changes, parts of the send journal, and the seconds lost with them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime

from bellbuoy.continuity.absence import (
    Hole,
    Look,
    copies,
    lost,
    lost_changes,
    lost_sends,
    promised,
    stretches,
    tipless,
    uneven,
    unfounded,
)
from bellbuoy.continuity.backup import decode_changes
from bellbuoy.continuity.chain import follow
from bellbuoy.continuity.look import look_at
from bellbuoy.continuity.manifest import Manifest, shipped_of
from bellbuoy.continuity.vault import Vault
from bellbuoy.errors import ConfigurationError, StoreError

_UNFOUNDED = "there is no full copy that its changes could follow"
_NO_FULL = (
    "there is no full backup that can be read, so nothing can be restored; if there was one: is that place mounted, "
    "and the right one? bellbuoy backup full takes one"
)


async def survey(vault: Vault, now: float) -> dict[str, str]:
    """What should be in an archive and is not, by what it is called, each with what that means. Raises Unavailable."""
    look = await look_at(vault)
    found = {
        f"{target}: {name}": f"it is missing here; {other} has it; the next heal copies it"
        for (target, name), other in uneven(look).items()
    }
    gone = "gone from every target" if look.targets.keys() == vault.targets.keys() else "in no target that answers"
    for name in lost(look, now):
        found[name] = f"it is {gone}, and had to be there until {_utc(promised(look, now)[name])}"
    for hole in lost_changes(look, now):
        changes = _numbers("change", hole)
        found[f"{hole.series}/{hole.after + 1}-{hole.upto}"] = f"{changes} missing: {await _seconds(vault, look, hole)}"
    for series in unfounded(look):
        found[f"{series} without a copy"] = _UNFOUNDED
    if not any(one.kind == "full" for one in look.backups):
        found["fulls/"] = _NO_FULL
    for series in tipless(look):
        found[f"{series}/tip"] = "it is missing, so nobody knows how far the changes should go"
    return found | absent_sends(look, now)


def absent_sends(look: Look, now: float) -> dict[str, str]:
    """Parts of the send journal that are missing, by what they are called, and what that means for a restore."""
    return {
        f"{hole.series} {hole.after + 1}-{hole.upto}": f"{_numbers('part', hole)} missing: what it told would be sent "
        "again after a restore"
        for hole in lost_sends(look, now)
    }


async def _seconds(vault: Vault, look: Look, hole: Hole) -> str:
    """Which seconds cannot be restored because of a hole."""
    known = [(full.upto, full.until) for series, full in copies(look.backups) if series == hole.series]
    known += [(one.upto, one.until) for one in stretches(look.backups)[hole.series]]
    for one in shipped_of(look.names):
        if one.series == hole.series and one.upto == hole.after:
            with contextlib.suppress(StoreError, ConfigurationError):  # What was known before it is still true.
                known.append((one.upto, decode_changes(await vault.get(one.name)).until))
    before = max((pair for pair in known if pair[0] <= hole.after), default=None)
    after = min(
        (full.at for series, full in copies(look.backups) if series == hole.series and full.upto >= hole.upto),
        default=None,
    )
    begins = "" if before is None else f" after {_utc(before[1])}"
    ends = "" if after is None else f" before {_utc(after)}"
    return f"no second{begins}{ends} can be restored"


def unreached(backup: Manifest, wanted: Sequence[Manifest]) -> dict[str, str]:
    """What is missing for the changes of an incremental, among the backups that it needs."""
    bad: dict[str, str] = {}
    there = stretches(wanted)
    for series, ones in stretches([backup]).items():
        fulls = [full.upto for other, full in copies(wanted) if other == series]
        upto = max((follow(full, there[series])[1] for full in fulls), default=None)
        if upto is None:
            bad[f"{series} without a copy"] = _UNFOUNDED
        elif upto < max(one.upto for one in ones):
            bad[f"{series} after {upto}"] = "changes are missing, so those of this backup lead nowhere"
    return bad


def _numbers(what: str, hole: Hole) -> str:
    one = hole.upto == hole.after + 1
    return f"{what} {hole.upto} is" if one else f"{what}s {hole.after + 1} to {hole.upto} are"


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
