"""`bellbuoy drill`: break something on purpose, and see that nothing is lost."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.markup import escape

from bellbuoy.clock import SystemClock
from bellbuoy.continuity.catalogue import DRILLS, PLANNED, REHEARSALS
from bellbuoy.continuity.drill import DrillReport, Due
from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli import output
from bellbuoy.service.cli.client import key_of
from bellbuoy.service.cli.options import Config, DataDir, Json, Key, settings_of

drill_app = typer.Typer(no_args_is_help=True, help="Planned failures with a checked result.")
MARKS = {"passed": "green", "failed": "red", "aborted": "red", "inconclusive": "yellow"}


@drill_app.command("list")
def drill_list(config: Config = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Every drill: what it does, when it was last run and when it is due."""
    from bellbuoy.service.drills.due import planned
    from bellbuoy.service.drills.records import Records

    settings, now = settings_of(config, data_dir), time.time()
    records = Records(settings.data.dir)
    kept = records.all()
    for name in kept.unreadable:
        output.complain(f"the record {name} cannot be read, and counts as none", "move it out of the folder of drills")
    due_of = {one.drill: one for one in planned(settings.drills, kept.reports, since=records.since(now))}
    last_of = {report.drill: report for report in kept.reports}
    rows = [_row(name, due_of.get(name), last_of.get(name), now) for name in PLANNED]
    if as_json:
        output.show_json({"items": rows})
        return
    columns = ("drill", "stack", "every", "last_run", "result", "due")
    output.table(None, columns, [[row[column] for column in columns] for row in rows])


def _row(name: str, due: Due | None, last: DrillReport | None, now: float) -> dict[str, Any]:
    drill = PLANNED[name]
    when = None if due is None else "overdue" if due.overdue(now) else _day(due.due_at)
    return {
        "drill": name,
        "stack": drill.stack,
        "every": due.every if due else None,
        "last_run": _day(last.started_at) if last else None,
        "result": last.result if last else None,
        "by": last.by if last else None,
        "due": when,
        "hypothesis": drill.hypothesis,
        "fault": drill.fault,
        "named": drill.named,
    }


@drill_app.command("run")
def drill_run(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Of `bellbuoy drill list`.")],
    duration: Annotated[
        float | None, typer.Option("--duration", min=0.5, max=3_600, help="Seconds of the fault; else its short form.")
    ] = None,
    rate: Annotated[float, typer.Option("--rate", min=1, max=500, help="Notifications a second.")] = 24.0,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with charts.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Drill a stack that runs already.")] = None,
    key: Key = None,
    confirm: Annotated[str, typer.Option("--confirm", metavar="HOST:PORT", help="Its name, typed by you.")] = "",
    control: Annotated[
        str | None, typer.Option("--control", metavar="URL", help="Its sandbox's, if not on the port of --url.")
    ] = None,
    mongodb_uri: Annotated[
        str | None, typer.Option("--mongodb-uri", help="A MongoDB for drills of a cluster; else one is started.")
    ] = None,
    small_disk: Annotated[
        Path | None,
        typer.Option("--small-disk", help="A directory on a small file system, for disk_full and backup_target_full."),
    ] = None,
    keep: Annotated[Path | None, typer.Option("--keep", help="Leave the stack's data and logs there.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Run drills on a stack of their own, or on one that you name; exit status 0 passed, 1 failed, 2 not run."""
    from bellbuoy.service.drills import session
    from bellbuoy.service.drills.conduct import Pace
    from bellbuoy.service.drills.records import Records, who

    unknown = [name for name in names if name not in DRILLS]
    if unknown and unknown[0] in REHEARSALS:
        raise ConfigurationError(
            f"{unknown[0]} is rehearsed by people", hint=f"then bellbuoy drill record {unknown[0]}; see docs/runbooks"
        )
    if unknown:
        raise ConfigurationError(f"there is no drill {unknown[0]}", hint="bellbuoy drill list shows them")
    if html is not None:
        _writable(html)
    settings = settings_of(config, data_dir)
    records = Records(settings.data.dir)
    plan = session.Plan(
        pace=Pace(rate_per_s=rate, seconds=duration),
        mongodb_uri=mongodb_uri,
        small_disk=small_disk,
        url=url,
        key=key_of(settings, key) if url is not None else "",
        confirmed=confirm,
        control=control,
        keep=keep,
    )
    reports: list[DrillReport] = []

    def done(report: DrillReport) -> None:
        try:
            records.add(report)
        except OSError as error:  # What it came to is shown all the same.
            output.complain(
                f"the record of {report.drill} could not be kept: {error}", "make room in the data directory"
            )
        reports.append(report)
        if not as_json:
            _show(report)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    tell = _quiet if as_json else _tell
    whole = session.run(names, plan, by=who(), clock=SystemClock(), tell=tell, done=done)
    if as_json:
        output.show_json({"reports": msgspec.to_builtins(reports)})
    if html is not None:
        from bellbuoy.service.drills.page import page

        html.write_text(page(reports))
    sys.exit(_status(reports) if whole else 1)


@drill_app.command("record")
def drill_record(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What was rehearsed: rebuild.")],
    passed: Annotated[bool, typer.Option("--passed/--failed", help="What it came to.")],
    note: Annotated[str, typer.Option("--note", help="What was found and measured, for whoever reads it later.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Write down what came of a rehearsal that no program can run, with who says so, now."""
    from bellbuoy.service.drills.records import Records, who

    if name not in REHEARSALS:
        hint = f"bellbuoy drill run {name}" if name in DRILLS else f"there is: {', '.join(REHEARSALS)}"
        raise ConfigurationError(f"{name} is nothing that people rehearse", hint=hint)
    if not note.strip():
        raise ConfigurationError("a record without a note proves little", hint='--note "RTO 38 min, RPO 4 s; ..."')
    drill = REHEARSALS[name]
    report = DrillReport(
        drill=name,
        stack=drill.stack,
        hypothesis=drill.hypothesis,
        fault=drill.fault,
        by=who(),
        started_at=time.time(),
        result="passed" if passed else "failed",
        why=note,
    )
    try:
        path = Records(settings_of(config, data_dir).data.dir).add(report)
    except OSError as error:
        raise ConfigurationError(
            f"the record could not be kept: {error.strerror}", hint="make room in the data directory, or give another"
        ) from None
    output.out.print(f"{report.result}, by {escape(report.by)}: {escape(str(path))}")


def _writable(page: Path) -> None:
    """Find out before the drill, which takes its time, whether its page can be written."""
    try:
        page.touch()
    except OSError as error:
        raise ConfigurationError(
            f"{page} cannot be written: {error.strerror}", hint="give --html another path"
        ) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _status(reports: list[DrillReport]) -> int:
    results = {report.result for report in reports}
    return 1 if results & {"failed", "aborted"} else 2 if "inconclusive" in results else 0


def _quiet(line: str) -> None:
    """JSON is all that is to be printed."""


def _tell(line: str) -> None:
    output.err.print(f"[dim]{escape(line)}[/]")


def _show(report: DrillReport) -> None:
    """A report for people."""
    colour = MARKS[report.result]
    output.out.print(f"\n[bold]{report.drill}[/]  [{colour}]{report.result}[/]  {escape(report.why)}")
    output.out.print(f"  {escape(report.fault)}\n  expected: {escape(report.hypothesis)}")
    for check in report.checks:
        mark = "[green]ok[/]  " if check.passed else "[red]FAIL[/]"
        detail = f" ({check.detail})" if check.detail else ""
        output.out.print(f"  {mark} {escape(check.says + detail)}")
    if report.counts:
        shown = ("accepted", "lost", "duplicates", "refused", "broken", "p50_ms", "p99_ms", "delivered_p99_s")
        output.out.print("  " + ", ".join(f"{name} {report.counts[name]:g}" for name in shown if name in report.counts))
    spans = ", ".join(f"{phase.name} {phase.to_s - phase.from_s:.1f} s" for phase in report.phases)
    modes = list(dict.fromkeys(mode for reading in report.timeline for mode in reading.modes or ()))
    output.out.print(f"  {spans}" + (f"; modes: {', '.join(modes)}" if modes else ""))


def _day(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(epoch_s))
