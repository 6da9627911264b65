"""Commands for templates of content."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from bellbuoy.errors import ConfigurationError
from bellbuoy.service.cli import output, show
from bellbuoy.service.cli.client import path_of
from bellbuoy.service.cli.options import DataDir, Json, Key, Url, client_of

templates_app = typer.Typer(help="Templates of content. Without a command: the list.")


@templates_app.command("list")
def templates_list(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """All templates, with the locales of each."""
    items = client_of(url, key, data_dir).get("/v1/templates")["items"]
    show.rows(items, ("name", "locales", "version", "changed_at", "changed_by", "status"), as_json)


@templates_app.command("show")
def templates_show(
    name: str, url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False
) -> None:
    """A template's texts; with --json its versions too."""
    found = client_of(url, key, data_dir).get(path_of("v1", "templates", name))
    if as_json:
        output.show_json(found)
        return
    print(f"{found['name']}, version {found['version']} of {found['changed_at']} by {found['changed_by']}")
    for locale, text in found["locales"].items():
        output.out.print(f"\n[bold]{escape(locale)}[/]  {escape(text['title'])}")
        print(text["body"])


@templates_app.command("set")
def templates_set(
    name: str,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help='{"default": {"title": "…", "body": "…"}, "de": {…}}; - reads stdin.')
    ],
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write a version of a template. `bellbuoy rollback` takes it back."""
    document = {"locales": _document(_read(file), str(file))}
    now = client_of(url, key, data_dir).put(path_of("v1", "templates", name), document)
    output.show_json(now) if as_json else print(f"{now['name']} has version {now['version']}")


@templates_app.command("render")
def templates_render(
    name: str,
    data: Annotated[str, typer.Option("--data", metavar="JSON", help="What it is filled in with.")] = "{}",
    locale: Annotated[str | None, typer.Option("--locale", help="As de-AT; else the default's.")] = None,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Fill a template in, and send nothing."""
    document = {"data": _document(data, "--data"), "locale": locale}
    found = client_of(url, key, data_dir).post(path_of("v1", "templates", name, "render"), document)
    if as_json:
        output.show_json(found)
    else:
        print(f"{found['title']}\n{found['body']}")


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}", hint="give another file") from None


def _document(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(f"{where} is not JSON: {error}", hint='for example {"id": 17}') from None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{where} is no JSON object", hint='for example {"id": 17}')
    return found
