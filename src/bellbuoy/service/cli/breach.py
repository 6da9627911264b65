"""Commands for a breach that ask the service: isolate it, let go of that, tell those who were touched."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Meta, Struct

from bellbuoy.errors import BellbuoyError, ConfigurationError
from bellbuoy.model.delivery import PENDING
from bellbuoy.service.cli import evidence, output
from bellbuoy.service.cli.client import ApiError, Client
from bellbuoy.service.cli.options import DataDir, Json, Key, Url, client_of


class _Told(Struct, frozen=True):
    """What is read of a scope, which has more; its id goes into a header."""

    id: Annotated[str, Meta(pattern="^[!-~]{1,100}$")]
    users: dict[str, Any]
    verified: bool | None = None


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
    only: Annotated[
        list[str] | None, typer.Option("--user", metavar="ID", help="Only this user of the scope; may be repeated.")
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", min=0, max=86_400, help="Seconds to wait for who was reached, and who was not.")
    ] = 0.0,
    url: Url = None,
    key: Key = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Tell every user of a scope, once: repeating it over the same channels tells nobody again.

    What is accepted is not yet told: repeat it with --wait to see who was not reached, and tell those another way, as
    by --channel sms --user ID.
    """
    client = client_of(url, key, data_dir)
    asked, users = _scope(scope)
    unknown = set(only or ()) - set(users)
    if unknown:
        raise ConfigurationError(
            f"{', '.join(sorted(unknown))} is not in the scope", hint=f"give ids that are in {scope}"
        )
    users = [user for user in users if not only or user in only]
    if not dry_run:
        _check_open(client.get("/v1/breach"), allow=allow)
    message = {
        "content": {"title": title, "body": body},
        "priority": "high",
        **({"channels": channel} if channel else {}),
    }
    told, refused = _tell(client, asked, [] if dry_run else users, message)
    ends = _ends(client, told, wait) if wait else {}
    reached = sum(1 for one in ends.values() if one["status"] == "delivered")
    not_reached = [{"user_id": user, **one} for user, one in ends.items() if one["status"] != "delivered"]
    if as_json:
        found = {"reached": reached, "not_reached": not_reached} if wait else {}
        output.show_json({"users": len(users), "accepted": len(told), "refused": refused, "dry_run": dry_run, **found})
    else:
        print(f"{len(users)} would be told" if dry_run else f"{len(told)} of {len(users)} notifications accepted")
        for one in refused:
            output.err.print(f"{one['user_id']}: {one['code']}: {one['why']}", markup=False)
        if wait:
            print(f"{reached} reached, {len(not_reached)} not")
            for one in not_reached:
                output.err.print(f"{one['user_id']}: {one['status']} {one['code'] or ''}".rstrip(), markup=False)
        elif told:
            print("accepted is not told: repeat this with --wait 300 to see who was reached")
    if refused or not_reached:
        raise typer.Exit(1)


def _check_open(state: dict[str, Any], *, allow: bool) -> None:
    """Raise where the service would take no message, or with no `allow` would keep it until it is lifted."""
    if state["accepting_stopped"]:
        raise BellbuoyError("accepting is stopped, so nobody can be told", hint="bellbuoy breach lift first")
    if state["sending_stopped"] and not allow:
        raise BellbuoyError("sending is stopped", hint="bellbuoy breach lift first, or give --allow")


def _tell(
    client: Client, asked: str, users: Sequence[str], message: dict[str, Any]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The notification of each user that was accepted, and why the others were refused."""
    told, refused = dict[str, str](), list[dict[str, Any]]()
    for user in users:
        document = {"recipient": {"user_id": user}, **message}
        try:
            told[user] = str(
                client.post("/v1/notifications", document, key=_once(asked, user, message.get("channels", ())))["id"]
            )
        except ApiError as error:
            if error.status in (401, 403, 503):
                raise  # The next would fare no better.
            refused.append({"user_id": user, "code": error.code, "why": str(error)})
    return told, refused


def _ends(client: Client, told: dict[str, str], wait_s: float) -> dict[str, dict[str, Any]]:
    """What became of each user's notification within so many seconds: its id, status and code."""
    end = time.monotonic() + wait_s
    found: dict[str, dict[str, Any]] = {}
    while True:
        for user, one in told.items():
            if user not in found or found[user]["status"] in PENDING:
                now = client.get(f"/v1/notifications/{one}")
                found[user] = {"id": one, "status": now["status"], "code": now.get("code")}
        if all(one["status"] not in PENDING for one in found.values()) or time.monotonic() >= end:
            return found
        time.sleep(min(1.0, max(0.0, end - time.monotonic())))


def _once(scope_id: str, user: str, channels: Sequence[str]) -> str:
    """The Idempotency-Key under which a user is told of a scope over some channels; ids may hold what no header can."""
    whom = hashlib.sha256("\0".join((user, *sorted(channels))).encode()).hexdigest()[:32]
    return f"breach-{scope_id}-{whom}"


def _scope(path: Path) -> tuple[str, list[str]]:
    try:
        scope = msgspec.json.decode(path.read_bytes(), type=_Told)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"{path} is no scope: {error}", hint="bellbuoy breach scope --key-id ID --json > scope.json"
        ) from None
    if scope.verified is False:
        output.err.print("the audit log that this scope was read from did not verify: it may name too few users")
    return scope.id, list(scope.users)


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
