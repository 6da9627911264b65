"""Whoever takes, proves and prunes backups: the process that serves, and the command line."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TypeVar

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.continuity.absence import forsaken
from bellbuoy.continuity.backup import Backup, Progress, silent
from bellbuoy.continuity.ended import EndedKeys
from bellbuoy.continuity.look import encode_pruned, look_at
from bellbuoy.continuity.manifest import Kind, Manifest, pruned_name, pruned_until
from bellbuoy.continuity.restore import Plan, Restore
from bellbuoy.continuity.retention import Keep, Pruned, prune, steady
from bellbuoy.continuity.turn import take_turn
from bellbuoy.continuity.vault import Vault
from bellbuoy.continuity.verify import Verified, check_ledger, verify_archive, witnesses
from bellbuoy.errors import Conflict, Gap, StoreError, Unavailable
from bellbuoy.model.delivery import Record
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.shared import Locks
from bellbuoy.service import archive
from bellbuoy.service.destination import Destination, rehearsal
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry

T = TypeVar("T")

_VERIFIED, _NEWEST, OWNER = "verified", "newest", "owner"

WITHOUT_A_RECORD = (
    "if this comes again, fulls are deleted from the archive, or a process without [backup] in its settings writes to "
    "the same ledger"
)

_NAMELESS = "no target says whose archive it is, and this installation has written to its own before: is it mounted?"


class LastVerified(Struct, frozen=True):
    """The last backup that was restored and found sound, and the epoch second of that. Without a name there was none
    yet, and that has been waited for since then.
    """

    backup: str
    at: float


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(LastVerified).decode


class Keeper:
    """Takes, proves and prunes backups; the process that serves and the command line each have one.

    Args:
        backup: takes them.
        live: the ledger, to compare with; None for none.
        rehearse: a place to restore into for a proof, given a folder for files.
        locks: leave for one at a time.
        control: remembers which backup was proven last; None for nobody.
        keep: for how long they are kept.
        scratch: a folder with room for a copy to be proven in.
        ship_s: seconds between two times that changes are shipped while a backup is taken.
        clock, rng, telemetry: time, chance, and who is told.
    """

    def __init__(
        self,
        backup: Backup,
        *,
        live: Ledger | None,
        rehearse: Callable[[Path], Destination],
        locks: Locks,
        control: ControlStore | None,
        keep: Keep,
        scratch: Path,
        ship_s: float,
        clock: Clock,
        rng: Random,
        telemetry: ServiceTelemetry,
    ) -> None:
        self.backup = backup
        self.vault: Vault = backup.vault
        self._live = live
        self._ended = EndedKeys(live, backup.vault) if live is not None else None
        self._rehearse = rehearse
        self._locks = locks
        self._control = control
        self._keep = keep
        self._scratch = scratch
        self._ship_s = ship_s
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry

    async def in_turn(self, owner: str, work: Callable[[], Awaitable[T]]) -> tuple[T] | None:
        """Do `work` while nobody else writes to the archive; see `take_turn`."""
        return await take_turn(self._locks, owner, work, clock=self._clock)

    @asynccontextmanager
    async def shipping(self, also: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[None]:
        """Go on shipping beside what is done in the block, which may take long; whoever enters it has the lock.

        Args:
            also: what else is to be shipped each time; None for nothing.
        """

        async def ship() -> None:
            while True:
                await self._clock.sleep(self._ship_s)
                try:
                    if also is not None:
                        await also()
                    await self.ship()
                except StoreError as error:
                    self._telemetry.event("backup_failed", what="ship", code=error.code)

        shipping = asyncio.create_task(ship(), name="backup-ship")
        try:
            yield
        finally:
            shipping.cancel()
            await asyncio.wait([shipping])

    async def ship(self) -> bool:
        """Ship what was changed, and which keys have ended. Returns and raises as `Backup.ship`."""
        ready = await self.backup.ship()
        if self._ended is not None:
            await self._ended.ship(await self._recall_newest())
        return ready

    async def _recall_newest(self) -> int:
        """The greatest number of a backup, as the ledger remembers it: two targets may be away one after the other."""
        kept = await self._control.read("backup", _NEWEST) if self._control is not None else None
        self.backup.newest = max(self.backup.newest, int(kept.data) if kept is not None else 0)
        return self.backup.newest

    async def _remember_newest(self) -> None:
        if self._control is None:
            return
        kept = await self._control.read("backup", _NEWEST)
        data = str(self.backup.newest).encode()
        await self._control.write("backup", _NEWEST, data, version=kept.version if kept else 0)

    async def own(self, *, take_over: bool = False) -> None:
        """Make sure that the archive is that of this installation; one that is nobody's becomes ours.

        A new ledger over an old archive is another installation too: its first full would be the newest, and what the
        archive was kept for would be pruned in time.

        Args:
            take_over: have it, whoever's it was.

        Raises:
            Conflict: it is another's.
            Damaged, ConfigurationError, Unavailable, Full: nobody can say, or it could not be written.
        """
        if self._control is None:
            return
        mine, theirs = await self._owners(take_over=take_over)
        name = mine or uuid.uuid4().hex
        if mine is None:
            await self._control.write("backup", OWNER, name.encode(), version=0)
        elif theirs is None:
            self._telemetry.event("backup_archive_empty", targets=sorted(self.vault.targets))
        if theirs != name:
            await self.vault.put_owner(name)

    async def refuse_another(self) -> None:
        """Raise where the archive is known to be another installation's, and write nothing. Raises as `own`."""
        if self._control is not None:
            await self._owners()

    async def _owners(self, *, take_over: bool = False) -> tuple[str | None, str | None]:
        """Our name and that in the archive, None for none. Raises as `own`."""
        assert self._control is not None
        kept = await self._control.read("backup", OWNER)
        mine, theirs = kept.data.decode() if kept is not None else None, await self.vault.owner()
        if theirs is not None and theirs != mine and not take_over:
            raise Conflict(
                "the archive is another installation's, or that of a ledger before this one",
                hint="restore from it, or give this one a [backup] url of its own; or bellbuoy backup full --take-over",
            )
        return mine, theirs

    async def take(self, kind: Kind, progress: Progress = silent, *, take_over: bool = False) -> Manifest | None:
        """A full backup, or an incremental: None when there is nothing to gather. `take_over` as in `own`.

        Raises as `own`, `Backup.full` and `Backup.incremental`, and Gap for an incremental that no full comes before.
        """
        await self.own(take_over=take_over)
        with contextlib.suppress(Unavailable):  # So that a target which is away is not waited for with every object.
            await self.vault.heal()
        await self._recall_newest()
        if kind == "full":
            taken: Manifest | None = await self.backup.full(progress)
            with contextlib.suppress(StoreError):  # It is taken all the same, and shipping goes on by itself.
                await self._remember_newest()
                await self.ship()
            return taken
        if not await self.ship():
            raise Gap("what was changed follows no full backup", hint=f"bellbuoy backup full; {WITHOUT_A_RECORD}")
        taken = await self.backup.incremental(progress)
        if taken is not None:
            with contextlib.suppress(StoreError):
                await self._remember_newest()
        return taken

    async def verify(self) -> Verified:
        """As `verify_archive`; an installation that has shipped before knows that an archive without a name is not its.

        Raises as that.
        """
        found = await verify_archive(self.vault, clock=self._clock)
        kept = await self._control.read("backup", OWNER) if self._control is not None else None
        if kept is None or any(one.name == OWNER for one in await self.vault.names("")):
            return found
        return msgspec.structs.replace(found, bad={OWNER: _NAMELESS, **found.bad})

    async def prove(self, progress: Progress = silent, *, at: float | None = None) -> Verified:
        """Restore into a scratch place, balance the books there, and compare samples with the live ledger.

        Without `at` what is live is shipped first, so that samples of it have to be in what is restored; whoever calls
        has the lock then.

        Raises:
            NotFound, Missed, Damaged, Gap: it cannot be restored.
            Conflict: it is another installation's, into which nothing of ours is shipped.
            Unavailable, Full: a target or the scratch folder failed.
        """
        seen: list[Record] = []
        if at is None and self._live is not None:
            await self.refuse_another()
            seen = await witnesses(self._live, self._rng)
            if not await self.ship():
                seen = []
        restore = Restore(self.vault, scratch=self._scratch / "download", clock=self._clock)
        plan = await restore.plan(at)
        async with self._rehearsed(restore, plan, progress) as ledger:
            checked = await check_ledger(ledger, self._live, reached=plan.reached, rng=self._rng, seen=seen)
        found = Verified(sum(len(way.copy.files) for way in plan.ways), {}, checked)
        if found.sound:
            await self._remember(plan.full.id)
            self._telemetry.event(
                "backup_verified", backup=plan.full.id, objects=found.objects, sampled=checked.sampled
            )
        else:
            self._telemetry.event("backup_not_sound", backup=plan.full.id, bad=checked.different[:10])
        return found

    async def prune(self, *, dry_run: bool = False, unattended: bool = False) -> Pruned:
        """Delete what is older than it is to be kept, manifests first.

        Args:
            dry_run: only say what would go.
            unattended: nobody looks, so the clock alone is not believed; see `steady`.

        Raises:
            As `own`, and Unavailable.
        """
        await self.own()
        look, now = await look_at(self.vault), self._clock.time()
        gone = prune(look.backups, look.names, self._keep, steady(look.backups, now) if unattended else now)
        if not dry_run and gone.names:
            early = forsaken(look, gone.names, self._keep, now)
            if early:  # The settings say less than when it was written, and nobody shall take it for lost.
                await self.vault.put(pruned_name(max(early.values()), now), encode_pruned(early))
            told = [name for name in look.names if (pruned_until(name) or now) < now]
            await self.vault.delete([*gone.names, *told])
            self._telemetry.event("backup_pruned", backups=gone.backups, objects=len(gone.names))
        return gone

    async def last_verified(self) -> LastVerified:
        """The last backup that was proven; when none was, since when that has been waited for. Raises Unavailable.

        That is remembered, so that a process which is often started anew counts no age from its own beginning. One of a
        time that is still to come was proven by a clock that was wrong then, and counts for none.
        """
        now = self._clock.time()
        kept = await self._control.read("backup", _VERIFIED) if self._control is not None else None
        last = _decode(kept.data) if kept else None
        if last is not None and last.at <= now:
            return last
        await self._remember("")
        return LastVerified("", now)

    async def aclose(self) -> None:
        """Let go of the sources' connections."""
        for source in self.backup.sources:
            await source.aclose()

    @asynccontextmanager
    async def _rehearsed(self, restore: Restore, plan: Plan, progress: Progress) -> AsyncIterator[Ledger]:
        """The ledger as a plan restores it, for as long as it is looked at."""
        scratch = self._scratch / "rehearsal"
        scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=scratch))
        place = self._rehearse(folder)
        try:
            await restore.run(plan, place.places, progress)
            async with place.opened() as (ledger, _):
                yield ledger
        finally:
            with contextlib.suppress(StoreError):  # What it leaves has a name of its own, and harms nobody.
                await place.discard()
            await place.aclose()
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _remember(self, backup: str) -> None:
        if self._control is None:
            return
        kept = await self._control.read("backup", _VERIFIED)
        data = _encode(LastVerified(backup, self._clock.time()))
        await self._control.write("backup", _VERIFIED, data, version=kept.version if kept else 0)


def build_keeper(
    settings: Settings,
    store: Ledger | None,
    control: ControlStore | None,
    *,
    clock: Clock,
    rng: Random,
    telemetry: ServiceTelemetry,
) -> Keeper:
    """What takes backups as `[backup]` says.

    Args:
        store: the ledger itself; None where it is lost, to prove and prune without it.
        control: of all who share it, with the lock.

    Raises:
        ConfigurationError: `[backup]` is off or not usable.
    """
    vault = archive.open_vault(settings, clock=clock, telemetry=telemetry)
    scratch = archive.scratch_of(settings)
    keep = Keep(settings.backup.full_days, settings.backup.incremental_days)
    backup = Backup(
        [] if store is None else archive.sources(settings, store, control, clock=clock, rng=rng),
        vault,
        scratch=scratch / "copy",
        keep=keep,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
    )
    return Keeper(
        backup,
        live=store,
        rehearse=lambda folder: rehearsal(settings, folder, clock=clock),
        locks=archive.locks_of(control, clock=clock),
        control=control,
        keep=keep,
        scratch=scratch,
        ship_s=settings.backup.ship_s,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
    )
