"""Whether a backup can be relied on: every object is what was written, and what is restored of it balances."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

import msgspec
from msgspec import Struct, field

from bellbuoy.clock import Clock
from bellbuoy.continuity.backup import decode_sends, decode_shipped
from bellbuoy.continuity.ended import decode_ended
from bellbuoy.continuity.look import decode_pruned
from bellbuoy.continuity.manifest import (
    ENDED,
    SENDS,
    Manifest,
    Part,
    is_loose,
    is_manifest,
    is_tip,
    manifest_name,
    pruned_until,
    shipped_of,
)
from bellbuoy.continuity.retention import needed
from bellbuoy.continuity.survey import survey, unreached
from bellbuoy.continuity.vault import Vault, decode_tip
from bellbuoy.errors import BellbuoyError, ConfigurationError, Damaged, NotFound, StoreError, Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.ports.archive import Checked
from bellbuoy.ports.ledger import Ledger

SAMPLED_MAX = 200
"""Notifications that are compared with what the live ledger says."""
_PAGE, _PAGES = 200, 10
_NO_FULL = "there is no full backup that can be read"

_Read = tuple[int, dict[str, BellbuoyError]]
"""How many objects were read, and what is wrong with some of them."""


class Verified(Struct, frozen=True):
    """What was found.

    Args:
        objects: how many were read.
        bad: what is wrong with each that cannot be relied on, by target and name.
        checked: what the restored ledger holds, None when it was not restored.
        unproven: why it could not be restored, None when it was, or nobody tried.
    """

    objects: int
    bad: dict[str, str] = field(default_factory=dict)
    checked: Checked | None = None
    unproven: str | None = None

    @property
    def sound(self) -> bool:
        """Whether everything can be relied on."""
        return not self.bad and self.unproven is None and (self.checked is None or self.checked.sound)


async def verify_archive(vault: Vault, *, clock: Clock) -> Verified:
    """Read every object of an archive in every target, and name what should be there and is not.

    Whoever writes to it meanwhile makes nothing look lost: what is missing has to be so before everything was read and
    after that. A target that does not answer is named as bad, and the other is read.

    Raises:
        Unavailable: no target answers.
    """
    before = await survey(vault, clock.time())
    listed = await vault.backups()
    found = await verify_objects(vault, listed.backups, listed.damaged)
    after = await survey(vault, clock.time())
    absent = {name: why for name, why in after.items() if name in before}
    restorable = any(one.kind == "full" for one in listed.backups)
    return Verified(found.objects, found.bad | absent, unproven=None if restorable else _NO_FULL)


async def verify_backup(vault: Vault, backup_id: str) -> Verified:
    """Read every object of a backup in every target, and of what it needs to be of use.

    Raises:
        NotFound: there is no such backup.
        Unavailable: no target answers.
    """
    backups = (await vault.backups()).backups
    chosen = next((one for one in backups if one.id == backup_id), None)
    if chosen is None:
        raise NotFound(f"there is no backup {backup_id}", hint="bellbuoy backup list")
    ids = {backup_id} | (needed(chosen, backups) if chosen.kind == "incremental" else set())
    wanted = [one for one in backups if one.id in ids]
    objects: dict[str, Part | None] = {manifest_name(one.kind, one.id): None for one in wanted}
    objects |= {part.name: part for one in wanted for part in one.parts}

    async def read(target: str) -> _Read:
        return len(objects), await _read(vault, target, objects)

    count, found, away = await _in_each(vault, read)
    return Verified(count, away | {name: str(error) for name, error in found.items()} | unreached(chosen, wanted))


async def verify_objects(vault: Vault, backups: Sequence[Manifest], damaged: dict[str, str]) -> Verified:
    """Read every object of these backups, of the shipped changes and of the send journal, in every target.

    What is deleted meanwhile, since it was gathered or has become too old, is not bad.

    Args:
        vault: the archive.
        backups: whose objects to read.
        damaged: manifests that cannot be read, with the reason.

    Raises:
        Unavailable: no target answers.
    """
    of = {part.name: (manifest_name(one.kind, one.id), part) for one in backups for part in one.parts}
    parts: dict[str, Part | None] = {name: part for name, (_, part) in of.items()}

    async def read(target: str) -> _Read:
        names = [one.name for one in await vault.targets[target].list("")]
        objects = dict.fromkeys(one for one in names if is_manifest(one) or is_loose(one)) | parts
        return len(objects), await _read(vault, target, objects)

    count, found, away = await _in_each(vault, read)
    there = {one.name for one in await vault.names("")}
    bad = {
        entry: str(error)
        for entry, error in found.items()
        if not isinstance(error, NotFound) or of.get(_name(entry), ("",))[0] in there
    }
    named = {_name(entry) for entry in bad}
    return Verified(count, away | bad | {name: why for name, why in damaged.items() if name not in named})


async def _in_each(
    vault: Vault, read: Callable[[str], Awaitable[_Read]]
) -> tuple[int, dict[str, BellbuoyError], dict[str, str]]:
    """Read in each target; how many objects that were, what is wrong with them, and why a target was not read.

    Raises Unavailable when none answers.
    """
    count, found = 0, dict[str, BellbuoyError]()
    away: dict[str, Unavailable] = {}
    for target in vault.targets:
        try:
            objects, bad = await read(target)
        except Unavailable as error:
            away[target] = error
        else:
            count, found = count + objects, found | bad
    if len(away) == len(vault.targets):
        raise next(iter(away.values()), Unavailable("there is no target of the backups"))
    return count, found, {target: unread(error) for target, error in away.items()}


def unread(error: BellbuoyError) -> str:
    """What is said of a target that does not answer."""
    return f"it does not answer, so nothing was read there: {error}" + (f"; {error.hint}" if error.hint else "")


def _name(entry: str) -> str:
    """Of the object, without its target."""
    return entry.partition(": ")[2]


async def _read(vault: Vault, target: str, objects: Mapping[str, Part | None]) -> dict[str, BellbuoyError]:
    """Read objects of a target; returns what is wrong with those that are not what they have to be."""
    bad: dict[str, BellbuoyError] = {}
    for name, part in objects.items():
        try:
            _decoded(name, await vault.open(vault.targets[target], name, part), part)
        except Unavailable:
            raise
        except (StoreError, ConfigurationError) as error:
            bad[f"{target}: {name}"] = error
    return bad


def _decoded(name: str, data: bytes, part: Part | None) -> None:
    """Raise where an object that no manifest vouches for does not hold what its name says."""
    if part is not None:
        return
    try:
        for one in shipped_of([name]):
            decode_shipped(one, data)
        if is_tip(name):
            decode_tip(data)
        elif name.startswith(f"{SENDS}/"):
            decode_sends(data)
        elif name.startswith(f"{ENDED}/"):
            decode_ended(data)
        elif pruned_until(name) is not None:
            decode_pruned(data)
    except msgspec.DecodeError:
        raise Damaged(f"{name} does not hold what its name says") from None


async def witnesses(live: Ledger, rng: Random) -> list[Record]:
    """Some notifications of the live ledger with which nothing more happens by itself.

    Read before changes are shipped, they tell what a restore of everything shipped since then has to bring back.
    """
    found = [record for newest in await _newest(live) for record in _sampled(newest, rng)]
    return [record for record in found if record.over]


async def check_ledger(
    restored: Ledger, live: Ledger | None, *, reached: float, rng: Random | None = None, seen: Sequence[Record] = ()
) -> Checked:
    """Balance a restored ledger's books, and compare some of its notifications with the live ledger.

    Args:
        restored: from a backup, in a scratch place.
        live: None where there is none to compare with.
        reached: the epoch second that was restored; what happened to a notification since then is no difference.
        rng: chooses which; needed with `live`.
        seen: `witnesses` of a moment before `reached`.
    """
    books = await restored.books()
    if live is None or rng is None:
        return Checked(books, 0, [])
    compared, different = set[str](), set[str]()
    for record in [record for newest in await _newest(restored) for record in _sampled(newest, rng)]:
        now = await _get(live, record.id)
        if now is None:
            continue  # Its time has come since then, and it was forgotten.
        compared.add(record.id)
        # Of one that is still open its worker changes more than its story tells.
        if record.over and now.last_at <= reached and now != record:
            different.add(record.id)
    for witness in seen:
        # One that is no longer what was seen may have changed before the restored second or after it.
        if await _get(restored, witness.id) != witness and await _get(live, witness.id) == witness:
            different.add(witness.id)
        compared.add(witness.id)
    return Checked(books, len(compared), sorted(different))


async def _get(ledger: Ledger, notification_id: str) -> Record | None:
    try:
        return await ledger.get(notification_id)
    except NotFound:
        return None


def _sampled(records: Sequence[Record], rng: Random) -> list[Record]:
    return rng.sample(records, min(len(records), SAMPLED_MAX))


async def _newest(ledger: Ledger) -> list[list[Record]]:
    """The newest notifications of each tenant."""
    return [await _newest_of(ledger, tenant) for tenant in sorted({key.tenant for key in await ledger.keys()})]


async def _newest_of(ledger: Ledger, tenant: str) -> list[Record]:
    found: list[Record] = []
    cursor: str | None = None
    for _ in range(_PAGES):
        page = await ledger.page(tenant, status=None, user_id=None, limit=_PAGE, cursor=cursor)
        found += page.records
        cursor = page.next_cursor
        if cursor is None:
            break
    return found
