"""Commands for backups. They work on the data directory themselves, whether the service runs or not."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from bellbuoy.clock import SystemClock
from bellbuoy.errors import BellbuoyError, Busy, ConfigurationError
from bellbuoy.service.cli import output
from bellbuoy.service.cli.options import Config, DataDir, Json, epoch_of, settings_of

T = TypeVar("T")

backup_app = typer.Typer(no_args_is_help=True, help="Backups: take, list, restore, verify and prune them.")

TURN_S_MAX = 60.0
"""How long a command waits for another process that is at work on the same archive."""


@backup_app.command("full")
def backup_full(
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Have the archive although another installation wrote it.")
    ] = False,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Copy everything. The service may run meanwhile."""
    _take("full", config, data_dir, as_json, take_over=take_over)


@backup_app.command("incremental")
def backup_incremental(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Ship what was changed until now, and gather what was shipped since the last incremental."""
    _take("incremental", config, data_dir, as_json)


@backup_app.command("list")
def backup_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """The backups that are complete, oldest first. Exit status 1 when the manifest of one cannot be read.

    A target that does not answer is named; what only that one has is not in the list.
    """
    from bellbuoy.continuity.verify import unread

    async def look() -> Any:
        vault = _vault(config, data_dir)
        return await vault.backups(), {target: unread(error) for target, error in vault.silent.items()}

    listed, away = _run(look)
    items = [
        {
            "id": one.id,
            "kind": one.kind,
            "at": _utc(one.began_at),
            "bytes": one.size,
            "reaches": _reaches(one),
            "sources": [{"name": s.source, "guarantee": s.guarantee} for s in one.sources],
        }
        for one in listed.backups
    ]
    if as_json:
        output.show_json({"items": items, "damaged": listed.damaged, "away": away})
    else:
        rows = [(i["id"], i["kind"], i["bytes"], i["reaches"]) for i in items]
        output.table(None, ("id", "kind", "bytes", "reaches"), rows)
        if not items:
            output.err.print("there is no backup there; if there was one: is that place mounted, and the right one?")
        for target, why in away.items():
            output.err.print(f"{target}: {why}", markup=False)
        for name, why in listed.damaged.items():
            output.complain(why, f"{name} belongs to no backup that can be restored")
    sys.exit(1 if listed.damaged else 0)


def _directory(text: str) -> Path:
    if not text.strip():
        raise typer.BadParameter("it names no directory; is a variable not set?")
    return Path(text)


@backup_app.command("restore")
def backup_restore(
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", metavar="PATH", parser=_directory, help="The data directory to restore, without a ledger in it."
        ),
    ] = None,
    to_database: Annotated[
        str | None,
        typer.Option("--to-database", help="With MongoDB: the database to restore into, on its server."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="The second, as 2026-12-01T08:00:05Z; without it the newest.")
    ] = None,
    backup: Annotated[
        str | None, typer.Option("--backup", help="The ID of a full backup, to restore it without what came after.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the ledger that is there.")] = False,
    accept_earlier: Annotated[
        bool,
        typer.Option("--accept-earlier", help="Restore although what is beside the ledger reaches less."),
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="OBJECT", help="Leave out an object of sends/ or ended/. May be repeated."),
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Restore to a second, and bring that up to what was sent since, so that nothing is sent again."""
    from bellbuoy.service.restoring import restore_into

    settings = settings_of(config, data_dir)
    if settings.ledger.embedded and (to is None or to_database is not None):
        raise ConfigurationError("the embedded ledger is restored into a directory", hint="give --to DIRECTORY")
    if at is not None and backup is not None:
        raise ConfigurationError(
            "--backup restores a full backup as it is, and no other second", hint="leave --at off, or --backup"
        )
    folder = to or settings.data.dir / "restored"
    second = None if at is None else epoch_of(at)

    async def restore() -> Any:
        with _progress(as_json) as progress:
            return await restore_into(
                settings,
                folder,
                database=to_database,
                at=second,
                backup=backup,
                force=force,
                accept_earlier=accept_earlier,
                without=without or (),
                clock=SystemClock(),
                telemetry=_telemetry(),
                progress=progress,
            )

    report = _run(restore)
    if at is not None or backup is not None:
        output.err.print(
            "users are as they were at that second: delete again whom you deleted since; keys that the archive knows "
            "to have ended have ended again"
        )
    _tell_restored(report, folder, as_json, embedded=settings.ledger.embedded)


@backup_app.command("verify")
def backup_verify(
    backup: Annotated[str | None, typer.Argument(metavar="ID", help="One backup; without it all of them.")] = None,
    restore: Annotated[
        bool, typer.Option("--restore/--no-restore", help="Restore the newest into a scratch place and balance it.")
    ] = True,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Read every object in every target, and name each that is not what was written, and what is missing.

    Exit status 1 for any. Works without a ledger too, so that an archive can be proven before it is restored.
    """
    from bellbuoy.continuity.verify import verify_backup

    async def verify() -> Any:
        async with _keeper(config, data_dir, alone=True) as keeper:
            if backup is not None:
                return await verify_backup(keeper.vault, backup)
            found = await keeper.verify()
            if not restore or found.unproven:
                return found
            try:
                with _progress(as_json) as progress:
                    proven = await _at_work(keeper, lambda: keeper.prove(progress))
            except BellbuoyError as error:  # What was read is told all the same.
                return msgspec.structs.replace(found, unproven=f"{error}; {error.hint}" if error.hint else str(error))
            return msgspec.structs.replace(found, checked=proven.checked)

    found = _run(verify)
    if as_json:
        output.show_json({**msgspec.to_builtins(found), "sound": found.sound})
    else:
        for name, why in found.bad.items():
            output.complain(why, name)
        output.out.print(f"{found.objects} objects read, {len(found.bad)} bad or missing")
        if found.checked is not None:
            books = found.checked.books
            output.out.print(
                f"restored: {books.accepted} accepted, difference {books.difference}; "
                f"{found.checked.sampled} compared, {len(found.checked.different)} differ"
            )
        if found.unproven is not None:
            output.complain(f"nothing was restored: {found.unproven}")
    sys.exit(0 if found.sound else 1)


@backup_app.command("prune")
def backup_prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Delete what is older than it is to be kept, and nothing that a kept backup needs."""

    async def prune() -> Any:
        async with _keeper(config, data_dir, alone=True) as keeper:
            return await _in_turn(keeper, lambda: keeper.prune(dry_run=dry_run))

    gone = _run(prune)
    if as_json:
        output.show_json({"backups": gone.backups, "objects": len(gone.names), "dry_run": dry_run})
    else:
        for one in gone.backups:
            output.out.print(one)
        output.out.print(f"{len(gone.backups)} backups, {len(gone.names)} objects{' would go' if dry_run else ' gone'}")


@backup_app.command("key")
def backup_key(
    name: Annotated[str | None, typer.Argument(metavar="ID", help="Its name; without it, this second.")] = None,
) -> None:
    """Print a new line for the key file; the last line's key seals, all of them open."""
    from bellbuoy.service.archive import new_key

    print(new_key(name or f"k{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"))


def _reaches(one: Any) -> str:
    """The last second that a backup leads to, for `--at`; the one that a full copy was begun in came before it."""
    main = one.of("ledger")
    until = main.until if main is not None else one.ended_at
    return _utc(math.ceil(until) if one.kind == "full" else until)


def _has_key(folder: Path) -> bool:
    """Whether somebody who serves from a directory has a key to ask with."""
    return "BELLBUOY_BOOTSTRAP_KEY" in os.environ or (folder / "bootstrap.key").exists()


def _tell_restored(report: Any, folder: Path, as_json: bool, *, embedded: bool) -> None:
    """What was restored, and how to serve it."""
    if embedded and not _has_key(folder):
        output.err.print(
            "a backup holds no key itself, only its hash: keys that somebody still has work; for another, put the old "
            "bootstrap.key into the directory, or start the service with a new BELLBUOY_BOOTSTRAP_KEY"
        )
    for one in report.silent_targets:
        output.err.print(f"the target {one} did not answer: what only it has is not in this restore", markup=False)
    for one in report.absent_sends:
        output.err.print(f"{one} is not known: what it told of sends may be sent again", markup=False)
    for one in report.absent_ended:
        output.err.print(f"{one} is not known: keys of which only it tells that they ended work again", markup=False)
    if as_json:
        output.show_json(msgspec.to_builtins(report))
        return
    done, taken_in = report.restored, report.reconciled
    output.facts(
        {
            "restored": report.where,
            "from": done.backup,
            "asked for": _utc(done.asked),
            "reached": _utc(done.reached),
            **{f"{name} reached only": _utc(second) for name, second in done.earlier.items()},
            "changes applied": done.changes,
            "sent since, taken in": f"{taken_in.delivered} delivered, {taken_in.uncertain} uncertain",
            "sent since, absent": taken_in.absent,
            "expired": taken_in.expired,
            "waiting": taken_in.waiting,
            "keys ended since, ended": report.ended_keys,
            "accepted": report.checked.books.accepted,
            "RPO": f"{report.rpo_s:.1f} s before this restore are not in it",
            "RTO": f"{report.rto_s:.1f} s",
        }
    )
    if embedded:
        output.out.print(f"serve it with: bellbuoy serve --data-dir {report.where}")
    else:
        output.out.print("serve it with that database in [ledger] url, and with an empty broker and an empty Redis")


def _take(kind: Any, config: Path | None, data_dir: Path | None, as_json: bool, *, take_over: bool = False) -> None:
    async def take() -> Any:
        async with _keeper(config, data_dir, taking=True) as keeper:
            with _progress(as_json) as progress:
                return await _at_work(keeper, lambda: keeper.take(kind, progress, take_over=take_over))

    taken = _run(take)
    if taken is None:
        output.show_json({"id": None}) if as_json else output.out.print("nothing was changed since the last one")
    elif as_json:
        output.show_json({"id": taken.id, "kind": taken.kind, "bytes": taken.size, "seconds": _seconds(taken)})
    else:
        output.out.print(f"{taken.id}: {taken.size} bytes in {_seconds(taken):.1f} s")


async def _at_work(keeper: Any, work: Callable[[], Awaitable[T]]) -> T:
    """Do `work` when nobody else writes to the archive, and go on shipping meanwhile in place of who did."""

    async def shipping() -> T:
        async with keeper.shipping():
            return await work()

    return await _in_turn(keeper, shipping)


def _seconds(taken: Any) -> float:
    return float(taken.ended_at - taken.began_at)


@asynccontextmanager
async def _keeper(
    config: Path | None, data_dir: Path | None, *, alone: bool = False, taking: bool = False
) -> AsyncIterator[Any]:
    """What takes backups; with `alone` also where there is no ledger, which is then said.

    Folders of targets are made for who is `taking` the first backup of an installation, and for nobody else.
    """
    from bellbuoy.service import archive
    from bellbuoy.service.keeper import OWNER, build_keeper

    settings = settings_of(config, data_dir)
    clock, telemetry = SystemClock(), _telemetry()
    if alone and not archive.has_ledger(settings):
        output.err.print(f"there is no ledger in {settings.data.dir}: only the archive itself is looked at")
        yield build_keeper(settings, None, None, clock=clock, rng=Random(), telemetry=telemetry)
        return
    async with archive.opened(settings, clock=clock) as (ledger, control):
        if taking and await control.read("backup", OWNER) is None:
            archive.make_folders(settings)
        keeper = build_keeper(settings, ledger, control, clock=clock, rng=Random(), telemetry=telemetry)
        try:
            yield keeper
        finally:
            await keeper.aclose()


async def _in_turn(keeper: Any, work: Callable[[], Awaitable[T]]) -> T:
    """Do it when no other process is at work on the archive."""
    clock = SystemClock()
    end = clock.monotonic() + TURN_S_MAX
    while True:
        done: tuple[T] | None = await keeper.in_turn(f"cli-{os.getpid()}", work)
        if done is not None:
            return done[0]
        if clock.monotonic() > end:
            raise Busy("another process is at work on the backups", hint="wait for it; its lock ends a minute after it")
        await clock.sleep(0.2)


def _vault(config: Path | None, data_dir: Path | None) -> Any:
    from bellbuoy.service.archive import open_vault

    return open_vault(settings_of(config, data_dir), clock=SystemClock(), telemetry=_telemetry())


def _telemetry() -> Any:
    from bellbuoy.service.telemetry import ServiceTelemetry, configure_logging

    configure_logging("error", "console")
    return ServiceTelemetry()


def _run(work: Callable[[], Awaitable[T]]) -> T:
    os.umask(0o077)
    return asyncio.run(work())  # type: ignore[arg-type]


@contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each thing that is done, on a terminal; elsewhere nothing."""
    if as_json or not output.err.is_terminal:
        yield lambda what, done, of: None
        return
    from rich.progress import Progress, TaskID

    with Progress(console=output.err, transient=True) as bars:
        known: dict[str, TaskID] = {}

        def show(what: str, done: int, of: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=of)
            bars.update(known[what], completed=done, total=of)

        yield show


def _utc(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
