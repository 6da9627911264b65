"""Commands for a breach that ask the service: isolate it, let go of that, tell those who were touched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bellbuoy.errors import BellbuoyError, ConfigurationError
from bellbuoy.service.cli import evidence, output
from bellbuoy.service.cli.client import ApiError
from bellbuoy.service.cli.options import DataDir, Json, Key, Url, client_of

breach_app = typer.Typer(help="What to do about a breach. Without a command: how the service is isolated.")
breach_app.command("verify")(evidence.verify)
breach_app.command("evidence")(evidence.make)
breach_app.command("scope")(evidence.scope)
breach_app.command("report")(evidence.report)


@breach_app.command("status")
def status(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """How the service is isolated."""
    _show(client_of(url, key, data_dir).get("/v1/breach"), as_json)


@breach_app.command("isolate")
def isolate(
    which: Annotated[
        list[str] | None, typer.Option("--key-id", metavar="ID", help="A key to end; may be repeated.")
    ] = None,
    all_keys: Annotated[bool, typer.Option("--all-keys", help="End every key but the one that asks.")] = False,
    stop_sending: Annotated[bool, typer.Option("--stop-sending", help="Send nothing until lift.")] = False,
    stop_accepting: Annotated[
        bool, typer.Option("--stop-accepting", help="Accept no notifications until lift.")
    ] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """End keys, stop sending, stop accepting: on every node, each within a second."""
    if not (which or all_keys or stop_sending or stop_accepting):
        raise ConfigurationError(
            "nothing to isolate was named",
            hint="--key-id ID or --all-keys to end keys, --stop-sending, --stop-accepting, or several of them: "
            "bellbuoy breach isolate --key-id ID --stop-sending",
        )
    document = {
        "keys": which or [],
        "all_keys": all_keys,
        "stop_sending": stop_sending,
        "stop_accepting": stop_accepting,
    }
    now = client_of(url, key, data_dir).post("/v1/breach/isolate", document)
    _show(now, as_json)
    if not as_json and now["ended"]:
        print(f"ended {len(now['ended'])} keys: {', '.join(now['ended'])}")
        print("a new one: bellbuoy keys create NAME --scope send; the key that asked still works, end it last")


@breach_app.command("lift")
def lift(url: Url = None, key: Key = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """Send and accept again; keys that were ended stay so."""
    _show(client_of(url, key, data_dir).post("/v1/breach/lift"), as_json)


@breach_app.command("notify")
def notify(
    scope: Annotated[Path, typer.Option("--scope", help="What `bellbuoy breach scope --json` has printed.")],
    title: Annotated[str, typer.Option("--title")],
    body: Annotated[str, typer.Option("--body")],
    channel: Annotated[list[str] | None, typer.Option("--channel", help="push, email or sms; may be repeated.")] = None,
    allow: Annotated[bool, typer.Option("--allow", help="Even while sending is stopped; it goes out then.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many would be told.")] = False,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Tell every user of a scope, once: repeating it tells nobody again."""
    client = client_of(url, key, data_dir)
    asked, users = _scope(scope)
    state = client.get("/v1/breach")
    if (state["sending_stopped"] or state["accepting_stopped"]) and not (allow or dry_run):
        raise BellbuoyError("the service is isolated", hint="bellbuoy breach lift first, or give --allow")
    told, refused = 0, list[dict[str, Any]]()
    for user in [] if dry_run else users:
        document: dict[str, Any] = {
            "recipient": {"user_id": user},
            "content": {"title": title, "body": body},
            "priority": "high",
        }
        if channel:
            document["channels"] = channel
        try:
            client.post("/v1/notifications", document, key=_once(asked, user))
            told += 1
        except ApiError as error:
            if error.status in (401, 403, 503):
                raise  # The next would fare no better.
            refused.append({"user_id": user, "code": error.code, "why": str(error)})
    if as_json:
        output.show_json({"users": len(users), "accepted": told, "refused": refused, "dry_run": dry_run})
    else:
        print(f"{len(users)} would be told" if dry_run else f"{told} of {len(users)} notifications accepted")
        for one in refused:
            output.err.print(f"{one['user_id']}: {one['code']}: {one['why']}", markup=False)
    if refused:
        raise typer.Exit(1)


def _once(scope_id: str, user: str) -> str:
    """The Idempotency-Key under which a user is told of a scope; ids may hold what no header can."""
    return f"breach-{scope_id}-{hashlib.sha256(user.encode()).hexdigest()[:32]}"


def _scope(path: Path) -> tuple[str, list[str]]:
    try:
        document = json.loads(path.read_bytes())
        return str(document["id"]), [str(user) for user in document["users"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{path} is no scope", hint="bellbuoy breach scope --key-id ID --json > scope.json"
        ) from None


def _show(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.show_json(state)
        return
    facts = {
        "sending": "stopped" if state["sending_stopped"] else "going on",
        "accepting": "stopped" if state["accepting_stopped"] else "going on",
        "revoked keys": ", ".join(one["id"] for one in state["revoked"]) or None,
    }
    output.facts(facts)
    if not state["everywhere"]:
        print("the ledger cannot be told yet: only this machine goes by it; ask every other node as well, with --url")
