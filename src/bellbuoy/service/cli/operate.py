"""Commands for what an operator looks at and turns: keys, breakers, modes."""

from __future__ import annotations

from typing import Annotated

import typer

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli import output, show
from bellbuoy.service.cli.client import path_of
from bellbuoy.service.cli.options import DataDir, Json, Key, Limit, Url, client_of

keys_app = typer.Typer(help="API keys. Without a command: the list.")
breakers_app = typer.Typer(help="Circuit breakers. Without a command: the list.")
incidents_app = typer.Typer(help="Failures, and what is tried about them. Without a command: the list.")
modes_app = typer.Typer(help="Modes of working. Without a command: the list.")


@keys_app.command("list")
def keys_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All keys, revoked ones too."""
    items = client_of(url, key, data_dir).get("/v1/keys")["items"]
    show.rows(items, ("id", "name", "scopes", "created_at", "revoked_at", "replaced"), as_json)


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
    made = client_of(url, key, data_dir).post("/v1/keys", {"name": name, "scopes": scope})
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
    ended = client_of(url, key, data_dir).delete(path_of("v1", "keys", key_id))
    output.show_json(ended) if as_json else print(f"revoked {ended['id']}")


@breakers_app.command("list")
def breakers_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All breakers and their states."""
    items = client_of(url, key, data_dir).get("/v1/breakers")["items"]
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
    if action not in ("isolate", "close", "reset"):
        raise ConfigurationError(f"{action} is nothing that can be done to a breaker", hint="isolate, close or reset")
    now = client_of(url, key, data_dir).post(path_of("v1", "breakers", name), {"action": action})
    output.show_json(now) if as_json else print(f"{now['name']} is {now['state']}")


@modes_app.command("list")
def modes_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All modes, and why those that are active are so."""
    items = client_of(url, key, data_dir).get("/v1/modes")["items"]
    show.rows(items, ("name", "active", "pinned", "since", "because"), as_json)


@modes_app.command("pin")
def modes_pin(
    name: str,
    state: Annotated[str, typer.Argument(help="on, off, or auto to let it follow what is wrong.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Hold a mode on or off, whatever is wrong, until it is let go again."""
    states = {"on": True, "off": False, "auto": None}
    if state not in states:
        raise ConfigurationError(f"{state} is no state of a pin", hint="on, off or auto")
    now = client_of(url, key, data_dir).put(path_of("v1", "modes", name), {"pinned": states[state]})
    output.show_json(now) if as_json else print(f"{now['name']} is {'active' if now['active'] else 'not active'}")


@incidents_app.command("list")
def incidents_list(
    url: Url = None, key: Key = None, data_dir: DataDir = None, limit: Limit = 50, as_json: Json = False
) -> None:
    """The newest, with their plans and how far those are."""
    items = client_of(url, key, data_dir).get("/v1/incidents", limit=limit)["items"]
    columns = ("id", "issue", "component", "status", "plan", "attempts", "next_attempt_at", "opened_at", "resolved_at")
    show.rows(items, columns, as_json)


def _incident(verb: str, incident_id: str, url: Url, key: Key, data_dir: DataDir, as_json: bool) -> None:
    now = client_of(url, key, data_dir).post(path_of("v1", "incidents", incident_id, verb))
    output.show_json(now) if as_json else print(f"{now['id']} is {now['status']}")


@incidents_app.command("acknowledge")
def incidents_acknowledge(
    incident_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """You have it in hand: nothing more is tried by itself."""
    _incident("acknowledge", incident_id, url, key, data_dir, as_json)


@incidents_app.command("resolve")
def incidents_resolve(
    incident_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """It is over."""
    _incident("resolve", incident_id, url, key, data_dir, as_json)


@incidents_app.command("retry")
def incidents_retry(
    incident_id: Annotated[str, typer.Argument(metavar="ID")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Have its plan tried again now, from the first attempt."""
    _incident("retry", incident_id, url, key, data_dir, as_json)
