"""Restoring a data directory: the state of a second, brought up to what was sent since, and handed over at the end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.continuity.absence import Look, lost
from bellbuoy.continuity.backup import Progress
from bellbuoy.continuity.ended import end_again, read_ended
from bellbuoy.continuity.look import look_at
from bellbuoy.continuity.manifest import ended_after, sends_at
from bellbuoy.continuity.reconcile import Reconcile, Reconciled, gather
from bellbuoy.continuity.restore import Restore, Restored
from bellbuoy.continuity.survey import absent_sends
from bellbuoy.continuity.verify import check_ledger
from bellbuoy.errors import ConfigurationError, Conflict, Damaged
from bellbuoy.ports.archive import Checked
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.sends import Sent
from bellbuoy.service import archive
from bellbuoy.service.destination import Destination, Directory, SharedDatabase, name_of
from bellbuoy.service.keeper import OWNER
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry

_TIMELINE = "timeline"
LOCK, SCRATCH = "bellbuoy.lock", ".bellbuoy-restoring"
"""What a restore makes in the directory for as long as it goes on. Anything else in it is somebody's."""

LEASES_MAX = 1_000

CLOCKS_APART_S = 300.0
"""What was sent in so many seconds before the restored one is looked at as well: clocks of machines differ."""


class Report(Struct, frozen=True):
    """What was restored.

    Args:
        where: the data directory, or the database.
        timeline: the new one.
        restored: how far it got.
        reconciled: what was taken in from the send journal.
        checked: the books afterwards.
        rpo_s: seconds before this restore began of which it knows nothing.
        rto_s: seconds that all of it took.
        absent_sends: parts of the send journal that are lost or left out, and its directory when it is not there; so
            what they told may be sent again.
        absent_ended: objects with keys that have ended which are lost or left out; what only they told works again.
        silent_targets: those that did not answer; what only they have is not in it.
        ended_keys: how many of its API keys had ended since that second, and have ended again.
    """

    where: str
    timeline: str
    restored: Restored
    reconciled: Reconciled
    checked: Checked
    rpo_s: float
    rto_s: float
    absent_sends: list[str] = []
    absent_ended: list[str] = []
    silent_targets: list[str] = []
    ended_keys: int = 0


class Began(Struct, frozen=True):
    """The beginning of a timeline: what it was restored from, and when, in epoch seconds."""

    timeline: str
    backup: str
    reached: float
    at: float


async def restore_into(
    settings: Settings,
    to: Path,
    *,
    database: str | None = None,
    at: float | None,
    backup: str | None,
    force: bool,
    accept_earlier: bool = False,
    without: Sequence[str] = (),
    clock: Clock,
    telemetry: ServiceTelemetry,
    progress: Progress,
) -> Report:
    """Restore a data directory that nobody uses. Until the last moment it holds nothing that can be served from.

    Args:
        settings: say where the backups and the send journal are.
        to: the directory; made when it is not there. With a shared ledger it gets the settings, and no more.
        database: the name of the one to restore into where the ledger is shared; None for the one configured.
        at: the epoch second, None for the newest.
        backup: the id of a full backup to restore as it is, None for any.
        force: replace a ledger that is there.
        accept_earlier: whether what is beside the ledger may reach less than the second asked for.
        without: objects of the send journal, and of keys that ended, to leave out.

    Raises:
        ConfigurationError: something else is to be left out.
        Conflict: the directory is in use, not empty, or in the folder of a target.
        NotFound, Missed: the second cannot be reached; nothing was done.
        Damaged: an object is not what it was, or what was restored does not balance.
        Unavailable, Full: a target or the directory's disk failed; the directory is as it was.
    """
    began_at, began = clock.time(), clock.monotonic()
    _keep_apart(settings, to)
    _only_sends(without)
    made, locked = not to.exists(), (to / LOCK).exists()
    hold = _held(settings, to, force=force)
    destination = _destination(settings, to, database, force=force, clock=clock)
    try:
        vault = archive.open_vault(settings, clock=clock, telemetry=telemetry)
        scratch = to / SCRATCH
        await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)  # Of one that was killed.
        restore = Restore(vault, scratch=scratch, clock=clock)
        plan = await restore.plan(at, backup=backup, accept_earlier=accept_earlier)
        # Before all that takes long, since a person has to choose when some of it cannot be read.
        since = min(plan.reached, began_at) - CLOCKS_APART_S
        look = await look_at(vault)
        _there(without, look)
        local = _sends_dirs(settings, to)
        told = await gather(_sent(restore, local, since, without, telemetry))
        ended, unread = await read_ended(vault, without=without), []
        try:
            ended += await destination.ended()
        except Damaged as error:  # It makes way for that.
            unread = [str(error)]
        restored = await restore.run(plan, destination.places, progress)
        timeline = uuid.uuid4().hex
        async with destination.opened() as (ledger, control):
            await destination.take_in(ledger)
            ended_again = await end_again(ledger, ended)
            reconciled, checked = await _reconciled(settings, ledger, told, plan.reached, clock)
            owner = await vault.owner() if _in_place(settings, to, database) else None
            await _sign(control, Began(timeline, plan.full.id, plan.reached, began_at), owner)
        # The ledger last: a directory without one is as good as empty.
        for place in sorted(destination.places, key=lambda one: one.name == "ledger"):
            await place.finish(timeline)
        made, locked = False, True
    finally:
        await destination.aclose()
        await asyncio.to_thread(_tidy, to, made, locked, destination)
        if hold is not None:
            hold.close()
    rpo_s = max(0.0, began_at - plan.reached)
    rto_s = clock.monotonic() - began
    return Report(
        destination.where,
        timeline,
        restored,
        reconciled,
        checked,
        rpo_s,
        rto_s,
        absent_sends=[*absent_sends(look, began_at), *filter(sends_at, without), *_missing_dir(settings, local)],
        absent_ended=[
            *sorted({one for one in (*lost(look, began_at), *without) if ended_after(one) is not None}),
            *unread,
        ],
        silent_targets=sorted(vault.targets.keys() - look.targets.keys()),
        ended_keys=ended_again,
    )


def _tidy(to: Path, made: bool, locked: bool, destination: Destination) -> None:
    """Leave nothing that is not whole; nor the directory, when it was made for what came to nothing."""
    destination.tidy()
    with contextlib.suppress(OSError):
        (to / SCRATCH).rmdir()
    with contextlib.suppress(OSError):
        if not locked:
            (to / LOCK).unlink(missing_ok=True)
        if made:
            to.rmdir()


def _keep_apart(settings: Settings, to: Path) -> None:
    """Refuse a directory in a target's folder: a ledger in the clear has no place among sealed objects."""
    for target in archive.folders(settings):
        if to.resolve().is_relative_to(target.resolve()):
            raise Conflict(f"{to} is where the backups are, in {target}", hint="restore --to another directory")


def _only_sends(without: Sequence[str]) -> None:
    """Refuse to leave out what a ledger cannot be restored without."""
    for name in without:
        if sends_at(name) is None and ended_after(name) is None:
            raise ConfigurationError(
                f"{name} is no object of the send journal, and tells of no keys",
                hint="leave out names that begin with sends/ or ended/, and no others",
            )


def _there(without: Sequence[str], look: Look) -> None:
    """Refuse to leave out what is not there: the name is mistyped, and what was meant would be read."""
    for name in without:
        if name not in look.names:
            raise ConfigurationError(
                f"there is no object {name} to leave out", hint="bellbuoy backup verify names them"
            )


def _sends_dirs(settings: Settings, to: Path) -> list[Path]:
    """Where what was sent may still be written down: as the settings say, and in the directory that is restored."""
    dirs = dict.fromkeys([archive.sends_of(settings)])
    if settings.backup.sends_dir is None and settings.ledger.embedded:
        dirs[to / "sends"] = None
    return [one for one in dirs if one.is_dir()]


def _missing_dir(settings: Settings, there: Sequence[Path]) -> list[str]:
    return [] if there else [f"what was sent after the last shipping, in {archive.sends_of(settings)},"]


def _in_place(settings: Settings, to: Path, database: str | None) -> bool:
    """Whether it is restored to where the settings say that it is, and not beside it, perhaps only to look at it."""
    if settings.ledger.embedded:
        return to.resolve() == settings.data.dir.resolve()
    return database is None or database == name_of(settings)


def _held(settings: Settings, to: Path, *, force: bool) -> IO[str] | None:
    if settings.ledger.embedded:
        return archive.hold_directory(to, force=force)
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    return None


def _destination(settings: Settings, to: Path, database: str | None, *, force: bool, clock: Clock) -> Destination:
    if settings.ledger.embedded:
        return Directory(to, clock=clock, replace=force)
    return SharedDatabase(settings, database, to, clock=clock, replace=force)


async def _reconciled(
    settings: Settings,
    ledger: Ledger,
    told: Mapping[str, Sequence[Sent]],
    reached: float,
    clock: Clock,
) -> tuple[Reconciled, Checked]:
    reconcile = Reconcile(
        ledger,
        rate_per_s=settings.delivery.release_per_s,
        ramp_s=settings.delivery.release_ramp_s,
        clock=clock,
    )
    reconciled = await reconcile.run(told)
    checked = await check_ledger(ledger, None, reached=reached)
    if not checked.sound:
        raise Damaged(
            f"the books of what was restored do not balance: {checked.books.difference} are missing",
            hint="restore another second, or another full backup with --backup",
        )
    return reconciled, checked


async def _sent(
    restore: Restore, local: Sequence[Path], since: float, without: Sequence[str], telemetry: ServiceTelemetry
) -> AsyncIterator[Sequence[Sent]]:
    """What was sent since a second: what was shipped of the send journal, and all that is still in its directory.

    What the ledger knows as well changes nothing, so more of it does no harm.
    """
    async for group in restore.sent_since(since, without=without):
        yield group
    for folder in local:
        there = archive.open_sends(folder, telemetry=telemetry)
        try:
            for batch in there.journal.batches():
                yield await there.journal.read(batch)
        finally:
            there.close()


async def _sign(control: ControlStore, began: Began, owner: str | None) -> None:
    """Write down in what the machine remembers that a new timeline begins here, and whether the archive is its own.

    Whoever had a lease when it was copied has none here, and would be waited for.
    """
    for lease in await control.page("lease", limit=LEASES_MAX):
        await control.delete("lease", lease.id, version=lease.version)
    documents = {_TIMELINE: msgspec.json.encode(began), OWNER: None if owner is None else owner.encode()}
    for name, data in documents.items():
        kept = await control.read("backup", name)
        if data is not None:
            await control.write("backup", name, data, version=kept.version if kept else 0)
        elif kept is not None:
            await control.delete("backup", name, version=kept.version)
