"""All commands: `bellbuoy --help` lists them, and each says what it does.

Exit status: 0 done, 1 failed, 2 wrong use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from bellbuoy import __version__
from bellbuoy.errors import BellbuoyError, ConfigurationError, NotFound
from bellbuoy.service.cli import load as loading
from bellbuoy.service.cli import output, show
from bellbuoy.service.cli.client import Client, connect, path_of
from bellbuoy.service.settings import Settings, load

app = typer.Typer(
    name="bellbuoy", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=__doc__
)
users_app = typer.Typer(no_args_is_help=True, help="Recipients and their devices.")
keys_app = typer.Typer(help="API keys. Without a command: the list.")
letters_app = typer.Typer(help="Deliveries that ran out of attempts. Without a command: the list.")
breakers_app = typer.Typer(help="Circuit breakers. Without a command: the list.")
tombstones_app = typer.Typer(help="Tokens that their provider called gone. Without a command: the list.")
for name, group in (
    ("users", users_app),
    ("keys", keys_app),
    ("dead-letters", letters_app),
    ("breakers", breakers_app),
    ("tombstones", tombstones_app),
):
    app.add_typer(group, name=name)

Config = Annotated[Path | None, typer.Option("--config", help="The TOML file; bellbuoy.toml if it is there.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Host = Annotated[str | None, typer.Option("--host", help="The address to listen on.")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, max=64, help="How many processes.")]
Port = Annotated[int | None, typer.Option("--port", help="The port to listen on; 0 takes a free one.")]
Url = Annotated[str | None, typer.Option("--url", help="The service; else BELLBUOY_URL, else this machine's.")]
Key = Annotated[str | None, typer.Option("--key", help="The API key; else BELLBUOY_API_KEY, else bootstrap.key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many.")]


def main() -> None:
    """Run a command; an error is one line and its cure, not a traceback."""
    try:
        app()
    except BellbuoyError as error:
        output.complain(str(error), error.hint)
        sys.exit(2 if isinstance(error, ConfigurationError) else 1)
    except BrokenPipeError:
        sys.exit(1)


def _settings(config: Path | None, data_dir: Path | None, **server: Any) -> Settings:
    overrides: dict[str, dict[str, Any]] = {}
    if data_dir is not None:
        overrides["data"] = {"dir": str(data_dir)}
    given = {k: v for k, v in server.items() if v is not None}
    if given:
        overrides["server"] = given
    return load(config, overrides)


def _client(url: str | None, key: str | None, data_dir: Path | None, config: Path | None = None) -> Client:
    return connect(_settings(config, data_dir), url, key)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """A notification service that keeps delivering when its parts fail."""


def _run(settings: Settings, *, accepting: bool, working: bool) -> None:
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
            (runtime.supervise if several else runtime.run)(
                settings, accepting=accepting, working=working, announce=announce
            )
        )
    if status:
        raise typer.Exit(status)


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
        uvloop.run(runtime.obey(socket.socket(fileno=link), configure_logging))


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
    settings = _settings(config, data_dir, host=host, port=port, workers=workers)
    if sandbox:
        from bellbuoy.service.settings import with_overrides

        settings = with_overrides(settings, {"sandbox": {"enabled": True}})
    _run(settings, accepting=True, working=True)


@app.command()
def api(
    config: Config = None,
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    workers: Workers = None,
) -> None:
    """Serve HTTP only; a worker on the same ledger delivers."""
    _run(_settings(config, data_dir, host=host, port=port, workers=workers), accepting=True, working=False)


@app.command()
def worker(config: Config = None, data_dir: DataDir = None, workers: Workers = None) -> None:
    """Deliver only."""
    _run(_settings(config, data_dir, workers=workers), accepting=False, working=True)


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
    sys.exit(loading.send(_client(url, key, data_dir), file, once=once, as_json=as_json))


@users_app.command("import")
def users_import(
    file: Annotated[Path, typer.Argument(help="NDJSON, one user with devices a line; - reads standard input.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write users and devices from a file, and say of each line that was refused why."""
    sys.exit(loading.import_users(_client(url, key, data_dir), file, as_json=as_json))


@app.command()
def status(
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every two seconds, until interrupted.")] = False,
    as_json: Json = False,
) -> None:
    """Health, dependencies and the books at a glance."""
    client = _client(url, key, data_dir)
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
    show.explain(_client(url, key, data_dir).get(path_of("v1", "notifications", notification_id, "explain")), as_json)


@app.command()
def audit(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Balance the books; exit status 1 when they do not balance."""
    books = _client(url, key, data_dir).get("/v1/audit")
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

    sys.exit(asyncio.run(examine(_settings(config, data_dir), fix=fix, as_json=as_json)))


def _listing(
    ctx: typer.Context, url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """A group of commands without one of them lists what it is about."""
    if ctx.invoked_subcommand is None:
        lists: dict[str, Callable[..., None]] = {
            "keys": keys_list,
            "dead-letters": letters_list,
            "breakers": breakers_list,
            "tombstones": tombstones_list,
        }
        lists[ctx.info_name or ""](url=url, key=key, data_dir=data_dir, as_json=as_json)


for group in (keys_app, letters_app, breakers_app, tombstones_app):
    group.callback(invoke_without_command=True)(_listing)


@keys_app.command("list")
def keys_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All keys, revoked ones too."""
    items = _client(url, key, data_dir).get("/v1/keys")["items"]
    show.rows(items, ("id", "name", "scopes", "created_at", "revoked_at"), as_json)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    scope: Annotated[list[str], typer.Option("--scope", help="send, read, operate or admin; may be repeated.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it; it cannot be shown again."""
    made = _client(url, key, data_dir).post("/v1/keys", {"name": name, "scopes": scope})
    output.show_json(made) if as_json else print(made["key"])


@keys_app.command("revoke")
def keys_revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """End a key at once."""
    ended = _client(url, key, data_dir).delete(path_of("v1", "keys", key_id))
    output.show_json(ended) if as_json else print(f"revoked {ended['id']}")


@letters_app.command("list")
def letters_list(
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    provider: Annotated[str | None, typer.Option("--provider")] = None,
    error_code: Annotated[str | None, typer.Option("--error-code")] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Those that wait, oldest first."""
    found = _client(url, key, data_dir).get("/v1/dead-letters", provider=provider, error_code=error_code, limit=limit)
    columns = ("id", "notification_id", "provider", "endpoint", "attempts", "error_code", "provider_status", "at")
    show.rows(found["items"], columns, as_json, more=found["next_cursor"] is not None)


@letters_app.command("replay")
def letters_replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="These; else all that match.")] = None,
    provider: Annotated[str | None, typer.Option("--provider")] = None,
    error_code: Annotated[str | None, typer.Option("--error-code")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Needed to replay without any filter.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    rate: Annotated[float | None, typer.Option("--rate", help="At most so many a second.")] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Bring dead letters back to work, each at most once."""
    if not (ids or provider or error_code or everything or dry_run):
        raise ConfigurationError("this would replay every dead letter", hint="narrow it, or say --all")
    filters = {"ids": ids or None, "provider": provider, "error_code": error_code}
    done = _client(url, key, data_dir).post(
        "/v1/dead-letters/replay", {"filter": filters, "dry_run": dry_run, "rate_per_s": rate}
    )
    show.replayed(done, as_json)


@letters_app.command("discard")
def letters_discard(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="These; else all that match.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Those that have outlived their time to live.")] = False,
    provider: Annotated[str | None, typer.Option("--provider")] = None,
    error_code: Annotated[str | None, typer.Option("--error-code")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Take dead letters off the list for good; their notifications stay dead-lettered."""
    if not (ids or expired or provider or error_code or dry_run):
        raise ConfigurationError(
            "this would discard every dead letter", hint="give ids, --expired, --provider or --error-code"
        )
    filters = {"ids": ids or None, "provider": provider, "error_code": error_code, "expired": expired}
    client = _client(url, key, data_dir)
    done = client.post("/v1/dead-letters/discard", {"filter": filters, "dry_run": dry_run})
    while not dry_run and done["discarded"] < done["matched"]:
        more = client.post("/v1/dead-letters/discard", {"filter": filters})
        done["discarded"] += more["discarded"]
        if not more["discarded"]:
            break
    if ids and not done["matched"]:
        raise NotFound(f"there is no dead letter {', '.join(ids)}")
    verb = "would be discarded" if dry_run else "discarded"
    output.show_json(done) if as_json else print(f"{done['matched']} matched, {done['discarded']} {verb}")


@breakers_app.command("list")
def breakers_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All breakers and their states."""
    items = _client(url, key, data_dir).get("/v1/breakers")["items"]
    show.rows(items, ("name", "state", "failure_count", "success_count", "opened_at", "retry_after_s"), as_json)


@breakers_app.command("set")
def breakers_set(
    name: str,
    action: Annotated[str, typer.Argument(help="isolate, close or reset.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Open a breaker by hand, close it, or forget what it counted."""
    now = _client(url, key, data_dir).post(path_of("v1", "breakers", name), {"action": action})
    output.show_json(now) if as_json else print(f"{now['name']} is {now['state']}")


@tombstones_app.command("list")
def tombstones_list(
    url: Url = None, key: Key = None, data_dir: DataDir = None, limit: Limit = 50, as_json: Json = False
) -> None:
    """The newest invalidated tokens."""
    items = _client(url, key, data_dir).get("/v1/tombstones", limit=limit)["items"]
    show.rows(items, ("user_id", "device_id", "provider", "because", "at", "restored_at"), as_json)


@tombstones_app.command("restore")
def tombstones_restore(
    user_id: Annotated[str | None, typer.Option("--user")] = None,
    provider: Annotated[str | None, typer.Option("--provider")] = None,
    since: Annotated[str | None, typer.Option("--since", help="RFC 3339.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Needed to restore without any filter.")] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Take invalidated tokens back into use."""
    if not (user_id or provider or since or everything):
        raise ConfigurationError("this would restore every token", hint="narrow it, or say --all")
    done = _client(url, key, data_dir).post(
        "/v1/tombstones/restore", {"user_id": user_id, "provider": provider, "since": since}
    )
    output.show_json(done) if as_json else print(f"restored {done['restored']}")
