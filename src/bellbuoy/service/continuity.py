"""Backups while the service runs: shipping, the schedule, the proof that they can be restored, what is told of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from random import Random

from bellbuoy.clock import Clock
from bellbuoy.continuity.absence import SILENT_S, torn
from bellbuoy.continuity.backup import encode_sends
from bellbuoy.continuity.manifest import Kind, sends_name
from bellbuoy.continuity.schedule import Times, due
from bellbuoy.continuity.vault import Listed
from bellbuoy.errors import Conflict, Unavailable, code_of
from bellbuoy.model.operation import Issue
from bellbuoy.ports.sends import Sends
from bellbuoy.service import archive
from bellbuoy.service.archive import OpenSends
from bellbuoy.service.keeper import WITHOUT_A_RECORD, Keeper, build_keeper
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import Stores
from bellbuoy.service.telemetry import ServiceTelemetry

LOOK_S = 300.0
"""Seconds between two looks at which backups there are."""
HEAL_TURNS = 3
"""Turns of the loop from one time that a target which was away is asked to the next, since asking takes its time."""
OUT_OF_TURN_S, OUT_OF_TURN_MAX = 300.0, 3
"""In so many seconds so many full backups are taken because changes cannot be shipped, and then no more."""
STALE = "backup_stale"


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
        self._ours_until = 0.0  # When our sends are shipped, that is looked at again then.
        self._out_of_turn: deque[float] = deque(maxlen=OUT_OF_TURN_MAX)
        self._series, self._shipped_at = owner, clock.time()
        self._shipped = 0  # The number of the last batch of the send journal that is in the archive.
        self._damage = 0, 0  # Entries of the send journal, and files, that were told of.

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
        self._tell_damage(self.sends)
        batches = journal.batches()
        if batches and self._clock.monotonic() >= self._ours_until:
            await self.keeper.refuse_another()
            self._ours_until = self._clock.monotonic() + LOOK_S
        for batch in batches:
            sent = await journal.read(batch)
            self._tell_damage(self.sends)
            now = self._clock.time()
            if self._shipped and now - self._shipped_at > SILENT_S:
                self._series, self._shipped = f"{self._owner}.{int(now)}", 0  # How far the last one went is forgotten.
            await self.keeper.vault.put(sends_name(now, self._series, self._shipped + 1), encode_sends(sent))
            self._shipped, self._shipped_at = self._shipped + 1, now  # Now only: one that is missing was lost.
            await journal.forget(batch)

    def _tell_damage(self, sends: OpenSends) -> None:
        """Say once what cannot be read back of the send journal: a restore would send it again."""
        damaged, files = sends.journal.damage()
        if damaged > self._damage[0] or len(files) > self._damage[1]:
            self._damage = damaged, len(files)
            detail = f"{damaged} entries of the send journal could not be read: {', '.join(files)}"
            self._telemetry.raise_issue(Issue("journal_damaged", "sends", detail, self._clock.time()))
            self._telemetry.event("journal_damaged", count=damaged, files=files)

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
        ready = await self.keeper.ship()
        listed = await self._look()
        ready = ready and not torn(listed.backups)
        kind = due(self._schedules, listed.backups, self._clock.time()) if ready else self._unless_too_many()
        if kind is None:
            return
        self._listed = None
        async with self.keeper.shipping(self._ship_sends):
            await self._take(kind)
        if not ready:
            self._out_of_turn.append(self._clock.monotonic())

    def _unless_too_many(self) -> Kind | None:
        """A full backup for changes that follow none; not one after the other where somebody keeps breaking the row."""
        taken = self._out_of_turn
        if len(taken) < OUT_OF_TURN_MAX or self._clock.monotonic() - taken[0] >= OUT_OF_TURN_S:
            return "full"
        self._telemetry.event("backup_gap", source="ledger", detail=WITHOUT_A_RECORD)
        return None

    async def _take(self, kind: Kind) -> None:
        """Take one, prove it, and delete what has become too old."""
        taken = await self.keeper.take(kind)
        if taken is None:
            return
        if self._settings.verify:
            await self.keeper.prove()
        await self.keeper.prune(unattended=True)
        self.keeper.vault.suspect()

    async def _look(self) -> Listed:
        now = self._clock.monotonic()
        if self._listed is None or now - self._listed[0] > LOOK_S:
            self._listed = now, await self.keeper.vault.backups()
        return self._listed[1]

    async def _tell(self, *, mine: bool) -> None:
        """Keep the metrics and the alert up to date; only who has the lock alerts, so that one does.

        What was raised stays for as long as nothing was proven since, whoever has the lock for a moment.
        """
        now = self._clock.time()
        if not mine:
            raised = self._telemetry.issues.get((STALE, "backup"))
            if raised is not None:
                proven = await self.keeper.last_verified()
                if proven.backup and proven.at > raised.since:
                    self._telemetry.clear_issue(STALE, "backup")
            return
        vault = self.keeper.vault
        for target in vault.targets:
            lag_s = now - vault.complete_at.get(target, self._began_at)
            self._telemetry.backup_lag.labels(target).set(max(0.0, lag_s))
        last = await self.keeper.last_verified()
        age_s = now - last.at
        self._telemetry.backup_verified.set(max(0.0, age_s))
        if self._refused is not None:  # No time mends that.
            self._telemetry.raise_issue(Issue(STALE, "backup", f"no backup is taken: {self._refused}", now))
        elif age_s > self._settings.stale_s:
            which = f"the last was {last.backup}" if last.backup else "there was none yet"
            detail = f"no backup was restored and found sound for {age_s:.0f} s; {which}"
            if not self._settings.verify:
                detail += "; [backup] verify is off, so only bellbuoy backup verify proves one"
            self._telemetry.raise_issue(Issue(STALE, "backup", detail, now))
        else:
            self._telemetry.clear_issue(STALE, "backup")


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
    archive.make_folders(settings)
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
