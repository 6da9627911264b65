"""Commands for what came to an end too early: dead letters, and tokens that were called gone."""

from __future__ import annotations

from typing import Annotated

import typer

from bellbuoy.errors import ConfigurationError, NotFound
from bellbuoy.service.cli import output, show
from bellbuoy.service.cli.options import DataDir, Json, Key, Limit, Url, client_of

letters_app = typer.Typer(help="Deliveries that ran out of attempts. Without a command: the list.")
tombstones_app = typer.Typer(help="Tokens that their provider called gone. Without a command: the list.")


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
    found = client_of(url, key, data_dir).get("/v1/dead-letters", provider=provider, error_code=error_code, limit=limit)
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
    done = client_of(url, key, data_dir).post(
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
    client = client_of(url, key, data_dir)
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


@tombstones_app.command("list")
def tombstones_list(
    url: Url = None, key: Key = None, data_dir: DataDir = None, limit: Limit = 50, as_json: Json = False
) -> None:
    """The newest invalidated tokens."""
    items = client_of(url, key, data_dir).get("/v1/tombstones", limit=limit)["items"]
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
    done = client_of(url, key, data_dir).post(
        "/v1/tombstones/restore", {"user_id": user_id, "provider": provider, "since": since}
    )
    output.show_json(done) if as_json else print(f"restored {done['restored']}")
