"""Whether a backup can be relied on: every object is what was written, and what is restored of it balances."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from msgspec import Struct, field

from bellbuoy.continuity.backup import decode_changes, decode_sends
from bellbuoy.continuity.manifest import LOG, OWNER, SENDS, Manifest, Part, is_manifest, is_tip, shipped_of
from bellbuoy.continuity.vault import Vault, decode_tip
from bellbuoy.errors import ConfigurationError, NotFound, StoreError, Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.ports.archive import Checked
from bellbuoy.ports.ledger import Ledger

SAMPLED_MAX = 200
"""Notifications that are compared with what the live ledger says."""
_PAGE, _PAGES = 200, 10


class Verified(Struct, frozen=True):
    """What was found.

    Args:
        objects: how many were read.
        bad: what is wrong with each that cannot be relied on, by target and name.
        checked: what the restored ledger holds, None when it was not restored.
    """

    objects: int
    bad: dict[str, str] = field(default_factory=dict)
    checked: Checked | None = None

    @property
    def sound(self) -> bool:
        """Whether everything can be relied on."""
        return not self.bad and (self.checked is None or self.checked.sound)


async def verify_objects(vault: Vault, backups: Sequence[Manifest], damaged: dict[str, str]) -> Verified:
    """Read every object of these backups, of the shipped changes and of the send journal, in every target.

    Args:
        vault: the archive.
        backups: whose objects to read.
        damaged: manifests that cannot be read, with the reason.

    Raises:
        Unavailable: a target does not answer.
    """
    bad: dict[str, str] = {}
    count = 0
    for target, store in vault.targets.items():
        names = [one.name for one in await store.list("")]
        parts: dict[str, Part | None] = {part.name: part for one in backups for part in one.parts}
        loose: dict[str, Part | None] = {one: None for one in names if one.startswith((f"{LOG}/", f"{SENDS}/", OWNER))}
        manifests: dict[str, Part | None] = {one: None for one in names if is_manifest(one)}
        for name, part in (manifests | loose | parts).items():
            count += 1
            try:
                _decoded(name, await vault.open(store, name, part), part)
            except Unavailable:
                raise
            except (StoreError, ConfigurationError) as error:
                bad[f"{target}: {name}"] = str(error)
    named = {entry.partition(": ")[2] for entry in bad}
    return Verified(count, bad | {name: why for name, why in damaged.items() if name not in named})


def _decoded(name: str, data: bytes, part: Part | None) -> None:
    """Raise where an object that no manifest vouches for does not hold what its name says."""
    if part is None and shipped_of([name]):
        decode_changes(data)
    elif part is None and is_tip(name):
        decode_tip(data)
    elif part is None and name.startswith(f"{SENDS}/"):
        decode_sends(data)


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
