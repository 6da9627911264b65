"""Commands for what an operator changes while the service runs: flags, settings, and taking changes back."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli import output, show
from bellbuoy.service.cli.client import path_of
from bellbuoy.service.cli.options import DataDir, Json, Key, Limit, Url, client_of

flags_app = typer.Typer(help="Flags. Without a command: the list.")
settings_app = typer.Typer(help="Settings that may change while the service runs. Without a command: the list.")

_MADE = ("version", "changed_at", "changed_by", "status")


@flags_app.command("list")
def flags_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All flags, as they are set and as they are in effect."""
    items = client_of(url, key, data_dir).get("/v1/flags")["items"]
    show.rows(items, ("name", "enabled", "effective", *_MADE, "description"), as_json)


@flags_app.command("set")
def flags_set(
    name: str,
    state: Annotated[str, typer.Argument(help="on or off.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Switch a flag; every process goes by it within about a second."""
    states = {"on": True, "off": False}
    if state not in states:
        raise ConfigurationError(f"{state} is no state of a flag", hint="on or off")
    now = client_of(url, key, data_dir).put(path_of("v1", "flags", name), {"enabled": states[state]})
    effective = "" if now["effective"] == now["enabled"] else ", held off by a mode"
    output.show_json(now) if as_json else print(f"{now['name']} is {'on' if now['enabled'] else 'off'}{effective}")


@flags_app.command("history")
def flags_history(name: str, url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Who changed a flag when, and what came of it."""
    items = client_of(url, key, data_dir).get(path_of("v1", "flags", name))["history"]
    show.rows(items, ("version", "value", "changed_at", "changed_by", "status", "why"), as_json)


@settings_app.command("list")
def settings_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All settings that may change while the service runs, and what is configured."""
    items = client_of(url, key, data_dir).get("/v1/settings")["items"]
    show.rows(items, ("name", "value", "default", *_MADE), as_json)


# A negative number is no option, though it begins like one; what is wrong with it the service says best.
@settings_app.command("set", context_settings={"ignore_unknown_options": True})
def settings_set(
    name: str,
    value: Annotated[str, typer.Argument(help="A number, or default for what is configured.")],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Change a setting; every process goes by it within about a second."""
    now = client_of(url, key, data_dir).put(path_of("v1", "settings", name), {"value": _number(value)})
    output.show_json(now) if as_json else print(f"{now['name']} is {now['value']}")


def _number(text: str) -> int | float | None:
    if text == "default":
        return None
    try:
        number = int(text) if text.lstrip("-").isdigit() else float(text)
        if not math.isfinite(number):
            raise ValueError
        return number
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{text} is no number", hint="a number, or default") from None


def rollback(
    change: Annotated[str | None, typer.Argument(metavar="ID", help="Without it: the changes there were.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it instead, whatever its watch says.")] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """Take a change of a flag, a setting or a template back; the last one of each value can be."""
    client = client_of(url, key, data_dir)
    if change is None:
        if keep:
            raise ConfigurationError("--keep needs the change that stays", hint="bellbuoy rollback lists them")
        items: list[dict[str, Any]] = client.get("/v1/changes", limit=limit)["items"]
        show.rows(items, ("id", "value_before", "value", "changed_at", "changed_by", "status", "why"), as_json)
        return
    now = client.post(path_of("v1", "changes", change, "keep" if keep else "rollback"))
    output.show_json(now) if as_json else print(f"{now['id']} is {now['status']}")
