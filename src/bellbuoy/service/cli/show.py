"""How answers look on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from bellbuoy.service.cli import output
from bellbuoy.service.cli.client import Client

_COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


def status(client: Client, *, as_json: bool, watch: bool) -> bool:
    """Show health and books; returns whether the service is healthy or degraded, not unhealthy."""
    while True:
        health, books = client.get("/v1/health"), client.get("/v1/audit")
        if as_json:
            output.show_json({"health": health, "books": books})
        else:
            if watch:
                output.out.clear()
            _status(health, books)
        if not watch:
            return bool(health["status"] != "unhealthy")
        time.sleep(2)


def _status(health: dict[str, Any], books: dict[str, Any]) -> None:
    state = health["status"]
    output.out.print(
        f"[{_COLOURS[state]} bold]{state}[/]" + (f"  {', '.join(health['issues'])}" if health["issues"] else "")
    )
    output.table(
        None,
        ("dependency", "status", "latency ms", "breaker"),
        [(n, d["status"], d["latency_ms"], d["breaker"]) for n, d in health["dependencies"].items()],
    )
    for issue in health["details"]:
        output.out.print(f"[red]{escape(issue['name'])}[/] {escape(issue['component'])}: {escape(issue['detail'])}")
    output.out.print(
        f"accepted {books['accepted']}, delivered {books['delivered']}, pending {books['pending']}, "
        f"dead-lettered {books['dead_lettered']}, difference {books['difference']}"
    )


def explain(document: dict[str, Any], as_json: bool) -> None:
    """The timeline, and what is next."""
    if as_json:
        output.show_json(document)
        return
    output.out.print(f"{document['id']} is [bold]{document['status']}[/]")
    for line in document["timeline"]:
        output.out.print(f"{line['at']}  {line['event']:<22} {escape(line['detail'])}")
    following = document["next"]
    if following is None:
        output.out.print("nothing more will happen by itself")
    else:
        output.out.print(f"{following['at']}  next: {escape(following['what'])}, because {escape(following['why'])}")


def books(document: dict[str, Any], as_json: bool) -> None:
    """Every term, and whether they add up."""
    if as_json:
        output.show_json(document)
        return
    lists = ("missing", "unknown")
    output.facts({name: value for name, value in document.items() if name not in lists})
    for name in lists:
        if document[name]:
            output.out.print(f"[red]{name}[/]: {', '.join(document[name])}")
    balanced = not (document["difference"] or document["missing"] or document["unknown"])
    output.out.print("[green]the books balance[/]" if balanced else "[red bold]the books do not balance[/]")


def rows(items: list[dict[str, Any]], columns: Sequence[str], as_json: bool, *, more: bool = False) -> None:
    """A list of things as a table."""
    if as_json:
        output.show_json({"items": items})
        return
    cells = [[", ".join(v) if isinstance(v := item.get(c), list) else v for c in columns] for item in items]
    output.table(None, columns, cells)
    if not items:
        output.out.print("none")
    if more:
        output.out.print("there are more; raise --limit")


def replayed(document: dict[str, Any], as_json: bool) -> None:
    """What a replay did."""
    if as_json:
        output.show_json(document)
        return
    verb = "would be replayed" if document["dry_run"] else "replayed"
    output.out.print(
        f"{document['matched']} matched, {document['replayed']} {verb}, {len(document['skipped'])} skipped"
    )
    for skip in document["skipped"]:
        output.out.print(f"{skip['id']}: {escape(skip['why'])}")
