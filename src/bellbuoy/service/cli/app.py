"""All commands: `bellbuoy --help` lists them, and each says what it does.

Exit status: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from bellbuoy import __version__
from bellbuoy.clock import Clock
from bellbuoy.errors import BellbuoyError, ConfigurationError
from bellbuoy.service.cli import backup, breach, letters, operate, output, show, steer, templates
from bellbuoy.service.cli import load as loading
from bellbuoy.service.cli.client import path_of
from bellbuoy.service.cli.drill import drill_app
from bellbuoy.service.cli.options import (
    Config,
    DataDir,
    Host,
    Json,
    Key,
    Port,
    Url,
    Workers,
    client_of,
    settings_of,
)
from bellbuoy.service.settings import Settings

app = typer.Typer(
    name="bellbuoy", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)
users_app = typer.Typer(no_args_is_help=True, help="Recipients and their devices.")
LISTS: dict[str, tuple[typer.Typer, Callable[..., None]]] = {
    "keys": (operate.keys_app, operate.keys_list),
    "dead-letters": (letters.letters_app, letters.letters_list),
    "breakers": (operate.breakers_app, operate.breakers_list),
    "modes": (operate.modes_app, operate.modes_list),
    "flags": (steer.flags_app, steer.flags_list),
    "settings": (steer.settings_app, steer.settings_list),
    "templates": (templates.templates_app, templates.templates_list),
    "breach": (breach.breach_app, breach.status),
    "incidents": (operate.incidents_app, operate.incidents_list),
    "tombstones": (letters.tombstones_app, letters.tombstones_list),
}
"""Groups of commands, and what each shows without one of its commands."""

END_S_MAX = 5.0
"""Seconds after its last word in which a process that serves must have ended."""


def _listing(
    ctx: typer.Context, url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """A group of commands without one of them lists what it is about."""
    if ctx.invoked_subcommand is None:
        LISTS[ctx.info_name or ""][1](url=url, key=key, data_dir=data_dir, as_json=as_json)


app.add_typer(users_app, name="users")
app.add_typer(backup.backup_app, name="backup")
for name, (group, _) in LISTS.items():
    group.callback(invoke_without_command=True)(_listing)
    app.add_typer(group, name=name)
app.command()(steer.rollback)
app.add_typer(drill_app, name="drill")


def main() -> None:
    """Run a command; an error is one line and its cure, not a traceback: with `--json` one document."""
    try:
        app()
    except BellbuoyError as error:
        if "--json" in sys.argv:
            output.complain_json(error)
        else:
            output.complain(str(error), error.hint)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        sys.exit(1)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """A notification service that keeps delivering when its parts fail."""


def _run(settings: Settings, *, accepting: bool, working: bool, clock: Clock | None = None) -> None:
    import uvloop

    from bellbuoy.service import runtime
    from bellbuoy.service.telemetry import configure_logging

    configure_logging(settings.log.level, settings.log.format)
    os.umask(0o077)  # The ledger holds recipients and content, whoever made the directory it lies in.

    def announce(line: str) -> None:
        print(line, flush=True)

    several = settings.server.workers > 1
    with _one_error():
        status = uvloop.run(
            to_the_end(
                runtime.supervise(settings, accepting=accepting, working=working, announce=announce)
                if several
                else runtime.run(settings, accepting=accepting, working=working, announce=announce, clock=clock)
            )
        )
    if status:
        raise typer.Exit(status)


async def to_the_end(serving: Coroutine[Any, Any, int | None]) -> int | None:
    """Run it, and see to it that the process ends after it.

    A driver's call that does not let itself be cancelled would keep the loop from ending; by then all is closed.
    """
    status: int | None = 1
    try:
        status = await serving
        return status
    finally:
        ending = threading.Timer(END_S_MAX, os._exit, (status or 0,))
        ending.daemon = True
        ending.start()


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Raise what a task group failed with as the error it is."""
    try:
        yield
    except ExceptionGroup as group:
        for error in group.exceptions:
            if isinstance(error, BellbuoyError):
                raise error from None
        raise


@app.command(hidden=True)
def node(link: int) -> None:
    """Be one of several processes; the supervisor at the other end of the socket LINK says as what."""
    import socket

    import uvloop

    from bellbuoy.service import runtime
    from bellbuoy.service.telemetry import configure_logging

    os.umask(0o077)
    with _one_error():
        uvloop.run(to_the_end(runtime.obey(socket.socket(fileno=link), configure_logging)))


@app.command()
def serve(
    sandbox: Annotated[
        bool, typer.Option("--sandbox", help="Start stand-ins for every provider and use them.")
    ] = False,
    config: Config = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    workers: Workers = None,
) -> None:
    """Everything in one command: HTTP and deliveries, in one process or several."""
    settings = settings_of(config, data_dir, host=host, port=port, workers=workers)
    if sandbox:
        from bellbuoy.service.settings import with_overrides

        settings = with_overrides(settings, {"sandbox": {"enabled": True}})
    _run(settings, accepting=True, working=True)


@app.command(hidden=True)
def drilled(data_dir: DataDir = None, port: Port = None) -> None:
    """Be one process by a clock that a drill sets."""
    from bellbuoy.service.drills.shifted import ShiftedClock

    settings = settings_of(None, data_dir, port=port, workers=1)
    _run(settings, accepting=True, working=True, clock=ShiftedClock(settings.data.dir))


@app.command()
def api(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    workers: Workers = None,
) -> None:
    """Serve HTTP only; a worker on the same ledger delivers."""
    _run(settings_of(config, data_dir, host=host, port=port, workers=workers), accepting=True, working=False)


@app.command()
def worker(config: Config = None, data_dir: DataDir = None, workers: Workers = None) -> None:
    """Deliver only."""
    _run(settings_of(config, data_dir, workers=workers), accepting=False, working=True)


@app.command()
def sandbox(
    port: Annotated[int, typer.Option("--port", help="The control port.")] = 8471,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Stand-ins for every outside system alone; prints the settings that point a service at them."""
    from bellbuoy.service.cli.sandbox import run_sandbox

    asyncio.run(run_sandbox(port, data_dir, as_json=as_json))


@app.command()
def send(
    file: Annotated[
        Path, typer.Option("-f", "--file", help="NDJSON, one notification a line; without it standard input.")
    ] = Path("-"),
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    once: Annotated[
        str | None,
        typer.Option("--once", help="A name for this sending: repeating it under the name sends nothing twice."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send notifications from a file, and say of each line that was refused why."""
    sys.exit(loading.send(client_of(url, key, data_dir), file, once=once, as_json=as_json))


@users_app.command("import")
def users_import(
    file: Annotated[Path, typer.Argument(help="NDJSON, one user with devices a line; - reads standard input.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write users and devices from a file, and say of each line that was refused why."""
    sys.exit(loading.import_users(client_of(url, key, data_dir), file, as_json=as_json))


@app.command()
def status(
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Health, dependencies and the books at a glance."""
    client = client_of(url, key, data_dir)
    healthy = show.status(client, as_json=as_json, watch=watch)
    sys.exit(0 if healthy else 1)


@app.command()
def explain(
    notification_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What happened to a notification, why, and what happens next."""
    show.explain(client_of(url, key, data_dir).get(path_of("v1", "notifications", notification_id, "explain")), as_json)


@app.command()
def audit(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Balance the books; exit status 1 when they do not balance."""
    books = client_of(url, key, data_dir).get("/v1/audit")
    show.books(books, as_json)
    sys.exit(1 if books["difference"] or books["missing"] or books["unknown"] else 0)


@app.command()
def doctor(
    config: Config = None,
    data_dir: DataDir = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Mend what can be mended: build a shared ledger's indexes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check configuration and connections; every finding comes with its cure."""
    from bellbuoy.service.cli.doctor import examine

    sys.exit(asyncio.run(examine(settings_of(config, data_dir), fix=fix, as_json=as_json)))
