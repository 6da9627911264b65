"""Backups while the service runs: shipping, the schedule, the proof that they can be restored, what is told of them."""

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
from bellbuoy.continuity.backup import Backup, Progress, encode_sends, silent
from bellbuoy.continuity.manifest import Kind, Manifest, sends_name
from bellbuoy.continuity.restore import Plan, Restore
from bellbuoy.continuity.retention import Keep, Pruned, prune
from bellbuoy.continuity.schedule import Times, due
from bellbuoy.continuity.turn import take_turn
from bellbuoy.continuity.vault import Listed, Vault
from bellbuoy.continuity.verify import Verified, check_ledger, witnesses
from bellbuoy.errors import Conflict, Gap, StoreError, Unavailable, code_of
from bellbuoy.model.delivery import Record
from bellbuoy.model.operation import Issue
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.sends import Sends
from bellbuoy.ports.shared import Locks
from bellbuoy.service import archive
from bellbuoy.service.archive import OpenSends
from bellbuoy.service.destination import Destination, rehearsal
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import Stores
from bellbuoy.service.telemetry import ServiceTelemetry

T = TypeVar("T")

LOOK_S = 300.0
"""Seconds between two looks at which backups there are."""
HEAL_TURNS = 3
"""Turns of the loop from one time that a target which was away is asked to the next, since asking takes its time."""
OUT_OF_TURN_S = 300.0
"""Seconds from one full backup that is taken because changes cannot be shipped to the next for that reason."""
STALE = "backup_stale"
_VERIFIED, OWNER = "verified", "owner"

WITHOUT_A_RECORD = "if this comes again, a process without [backup] in its settings writes to the same ledger"


class LastVerified(Struct, frozen=True):
    """The last backup that was restored and found sound, and the epoch second of that."""

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
                    await self.backup.ship()
                except StoreError as error:
                    self._telemetry.event("backup_failed", what="ship", code=error.code)

        shipping = asyncio.create_task(ship(), name="backup-ship")
        try:
            yield
        finally:
            shipping.cancel()
            await asyncio.wait([shipping])

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
        kept = await self._control.read("backup", OWNER)
        mine, theirs = kept.data.decode() if kept is not None else None, await self.vault.owner()
        if theirs is not None and theirs != mine and not take_over:
            raise Conflict(
                "the archive is another installation's, or that of a ledger before this one",
                hint="restore from it, or give this one a [backup] url of its own; or bellbuoy backup full --take-over",
            )
        name = mine or uuid.uuid4().hex
        if mine is None:
            await self._control.write("backup", OWNER, name.encode(), version=0)
        if theirs != name:
            await self.vault.put_owner(name)

    async def take(self, kind: Kind, progress: Progress = silent, *, take_over: bool = False) -> Manifest | None:
        """A full backup, or an incremental: None when there is nothing to gather. `take_over` as in `own`.

        Raises as `own`, `Backup.full` and `Backup.incremental`, and Gap for an incremental that no full comes before.
        """
        await self.own(take_over=take_over)
        with contextlib.suppress(Unavailable):  # So that a target which is away is not waited for with every object.
            await self.vault.heal()
        if kind == "full":
            return await self.backup.full(progress)
        if not await self.backup.ship():
            raise Gap("what was changed follows no full backup", hint=f"bellbuoy backup full; {WITHOUT_A_RECORD}")
        return await self.backup.incremental(progress)

    async def prove(self, progress: Progress = silent, *, at: float | None = None) -> Verified:
        """Restore into a scratch place, balance the books there, and compare samples with the live ledger.

        Without `at` what is live is shipped first, so that samples of it have to be in what is restored; whoever calls
        has the lock then.

        Raises:
            NotFound, Missed, Damaged, Gap: it cannot be restored.
            Unavailable, Full: a target or the scratch folder failed.
        """
        seen: list[Record] = []
        if at is None and self._live is not None:
            seen = await witnesses(self._live, self._rng)
            if not await self.backup.ship():
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

    async def prune(self, *, dry_run: bool = False) -> Pruned:
        """Delete what is older than it is to be kept, manifests first. Raises as `own`, and Unavailable."""
        await self.own()
        listed = await self.vault.backups()
        names = [one.name for one in await self.vault.names("")]
        gone = prune(listed.backups, names, self._keep, self._clock.time())
        if not dry_run and gone.names:
            await self.vault.delete(gone.names)
            self._telemetry.event("backup_pruned", backups=gone.backups, objects=len(gone.names))
        return gone

    async def last_verified(self) -> LastVerified | None:
        """The last backup that was proven, None when none was. Raises Unavailable."""
        kept = await self._control.read("backup", _VERIFIED) if self._control is not None else None
        return _decode(kept.data) if kept else None

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


class Continuity:
    """The loop: ships changes, and takes, proves and prunes backups when they are due.

    Every process ships what it sent itself; for all else one has the lock.

    Args:
        owner: this process.
        keeper: does the work.
        sends: of this process; None where it sends nothing.
        schedules: when which kind is due.
        settings: checked.
        clock, telemetry: time, and who is told.
    """

    def __init__(
        self,
        owner: str,
        keeper: Keeper,
        *,
        sends: OpenSends | None,
        schedules: dict[Kind, Times],
        settings: Settings,
        clock: Clock,
        telemetry: ServiceTelemetry,
    ) -> None:
        self.keeper = keeper
        self.sends = sends
        self._owner = owner
        self._schedules = schedules
        self._settings = settings.backup
        self._clock = clock
        self._telemetry = telemetry
        self._began_at = clock.time()
        self._listed: tuple[float, Listed] | None = None
        self._turns = 0
        self._refused: str | None = None  # Why the archive is not ours.
        self._ours = False  # That it still is, is looked at with each backup.
        self._patient_until = 0.0
        self._shipped = 0  # Batches of the send journal, so that their names differ.

    @property
    def journal(self) -> Sends | None:
        """Where this process writes down what it sends, None where it sends nothing."""
        return self.sends.journal if self.sends is not None else None

    async def run(self) -> None:
        """Do so every `[backup] ship_s` seconds, until cancelled."""
        while True:
            await self.step()
            await self._clock.sleep(self._settings.ship_s)

    async def step(self) -> None:
        """One turn. Never raises: what fails now is told of and tried at the next."""
        mine, self._refused = False, None
        for what, work in (("sends", self._ship_sends), ("backup", self._take_turn)):
            try:
                mine = bool(await work())
            except Exception as error:  # A defect too: without this loop nothing is backed up any more.
                if isinstance(error, Conflict):
                    self._refused, self._ours = str(error), False
                self._listed = None
                mine = True
                self._telemetry.event("backup_failed", what=what, code=code_of(error), why=repr(error))
        try:
            await self._tell(mine=mine)
        except Exception as error:
            self._telemetry.event("backup_failed", what="state", code=code_of(error), why=repr(error))

    async def aclose(self) -> None:
        """Ship what was sent last, as far as a target is there, and close the send journal and the sources."""
        await self.keeper.aclose()
        if self.sends is not None:
            try:
                async with asyncio.timeout(5.0):
                    await self._ship_sends()
            except Exception as error:  # The next process finds it in the journal.
                self._telemetry.event("backup_failed", what="sends", code=code_of(error), why=repr(error))
            self.sends.close()

    async def _ship_sends(self) -> None:
        if self.sends is None:
            return
        journal = self.sends.journal
        for batch in journal.batches():
            self._shipped += 1
            name = sends_name(self._clock.time(), self._owner, self._shipped)
            await self.keeper.vault.put(name, encode_sends(await journal.read(batch)))
            await journal.forget(batch)

    async def _take_turn(self) -> bool:
        return await self.keeper.in_turn(self._owner, self._work) is not None

    async def _work(self) -> None:
        if not self._ours:
            await self.keeper.own()
            self._ours = True
        if self._turns % HEAL_TURNS == 0:
            with contextlib.suppress(Unavailable):  # It was told of when it went away, and is asked again.
                await self.keeper.vault.heal()
        self._turns += 1
        ready = await self.keeper.backup.ship()
        listed = await self._look()
        kind = due(self._schedules, listed.backups, self._clock.time()) if ready else self._out_of_turn()
        if kind is None:
            return
        self._listed = None
        async with self.keeper.shipping(self._ship_sends):
            await self._take(kind)
        if not ready:
            self._patient_until = self._clock.monotonic() + OUT_OF_TURN_S

    def _out_of_turn(self) -> Kind | None:
        """A full backup for changes that follow none; not again at once, whoever it is that keeps breaking the row."""
        if self._clock.monotonic() >= self._patient_until:
            return "full"
        self._telemetry.event("backup_gap", source="ledger", detail=WITHOUT_A_RECORD)
        return None

    async def _take(self, kind: Kind) -> None:
        """Take one, prove it, and delete what has become too old."""
        taken = await self.keeper.take(kind)
        if taken is None:
            return
        if kind == "full":
            await self.keeper.backup.ship()
        if self._settings.verify:
            await self.keeper.prove()
        await self.keeper.prune()
        self.keeper.vault.suspect()

    async def _look(self) -> Listed:
        now = self._clock.monotonic()
        if self._listed is None or now - self._listed[0] > LOOK_S:
            self._listed = now, await self.keeper.vault.backups()
        return self._listed[1]

    async def _tell(self, *, mine: bool) -> None:
        """Keep the metrics and the alert up to date; only who has the lock alerts, so that one does."""
        now = self._clock.time()
        if not mine:
            self._telemetry.clear_issue(STALE, "backup")
            return
        vault = self.keeper.vault
        for target in vault.targets:
            lag_s = now - vault.complete_at.get(target, self._began_at)
            self._telemetry.backup_lag.labels(target).set(max(0.0, lag_s))
        last = await self.keeper.last_verified()
        age_s = now - (last.at if last is not None else self._began_at)
        self._telemetry.backup_verified.set(max(0.0, age_s))
        if self._refused is not None:  # No time mends that.
            self._telemetry.raise_issue(Issue(STALE, "backup", f"no backup is taken: {self._refused}", now))
        elif age_s > self._settings.stale_s:
            which = f"the last was {last.backup}" if last is not None else "there was none yet"
            detail = f"no backup was restored and found sound for {age_s:.0f} s; {which}"
            self._telemetry.raise_issue(Issue(STALE, "backup", detail, now))
        else:
            self._telemetry.clear_issue(STALE, "backup")


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
    backup = Backup(
        [] if store is None else archive.sources(settings, store, control, clock=clock, rng=rng),
        vault,
        scratch=scratch / "copy",
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
        keep=Keep(settings.backup.full_days, settings.backup.incremental_days),
        scratch=scratch,
        ship_s=settings.backup.ship_s,
        clock=clock,
        rng=rng,
        telemetry=telemetry,
    )


def build_continuity(
    owner: str,
    settings: Settings,
    stores: Stores,
    *,
    working: bool,
    clock: Clock,
    rng: Random,
    telemetry: ServiceTelemetry,
) -> Continuity | None:
    """The loop of this process; None where backups are off.

    Raises:
        ConfigurationError: `[backup]` is not usable.
    """
    if not settings.backup.on:
        return None
    keeper = build_keeper(settings, stores.store, stores.control, clock=clock, rng=rng, telemetry=telemetry)
    sends = archive.open_sends(archive.sends_of(settings), telemetry=telemetry) if working else None
    return Continuity(
        owner,
        keeper,
        sends=sends,
        schedules=archive.schedules(settings),
        settings=settings,
        clock=clock,
        telemetry=telemetry,
    )
