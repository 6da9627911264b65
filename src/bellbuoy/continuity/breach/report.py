"""What to tell whoever asks: the timeline, the scope, what was done and when; as a document and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec import Struct

from bellbuoy.continuity.breach.chains import Chain, Checked
from bellbuoy.continuity.breach.scope import Scope
from bellbuoy.model.audit import Entry

LINES_MAX = 2_000
"""The most lines of a timeline; the rest is in the evidence."""

_NO_HEAD = (
    "Every entry follows from the one before it; that the whole was not written anew, only a recorded head can show."
)


class Line(Struct, frozen=True):
    """Something that happened, in epoch seconds."""

    at: float
    what: str
    by: str | None = None


class Report(Struct, frozen=True):
    """A breach as far as it is known. `state` is how the service is isolated, None where nobody could be asked."""

    made_at: float
    since: float | None
    until: float | None
    timeline: list[Line]
    left_out: int
    scope: Scope
    checked: Checked
    state: Mapping[str, Any] | None


def acts(entries: Iterable[Entry]) -> list[Line]:
    """What operators did: everything but reading, sending, and writing users."""
    return [
        Line(
            entry.at,
            entry.action + (f" {entry.target}" if entry.target else "") + _answered(entry),
            entry.key,
        )
        for entry in entries
        if entry.status and not entry.fields and not entry.action.startswith("GET ") and entry.status < 400
    ]


def _answered(entry: Entry) -> str:
    return f", {entry.count} times" if entry.count > 1 else ""


def put_together(
    lines: Sequence[Line], *, scope: Scope, checked: Checked, state: Mapping[str, Any] | None, now: float
) -> Report:
    """The report of what happened in the scope's time."""
    since, until = scope.since, scope.until
    inside = [line for line in lines if (since is None or line.at >= since) and (until is None or line.at <= until)]
    if scope.first is not None and scope.key is not None:
        inside.append(Line(scope.first, "first use of the key", scope.key))
    if scope.last is not None and scope.key is not None:
        inside.append(Line(scope.last, "last use of the key", scope.key))
    inside.sort(key=lambda line: line.at)
    kept = inside[-LINES_MAX:]
    return Report(now, since, until, kept, len(inside) - len(kept), scope, checked, state)


def markdown(report: Report) -> str:
    """The report for people."""
    scope, checked = report.scope, report.checked
    whose = f"the key `{scope.key}`" if scope.key else "any key"
    lines = [
        "# Breach report",
        "",
        f"Made {_stamp(report.made_at)}. What {whose} did, from {_stamp(report.since)} to {_stamp(report.until)}.",
        "",
        "## State",
        "",
    ]
    if report.state is None:
        lines.append("The service could not be asked.")
    else:
        stopped = ("sending_stopped", "accepting_stopped")
        lines += [f"- {name}: {'yes' if report.state[name] else 'no'}" for name in stopped]
        revoked = [f"`{one['id']}` ({one['revoked_at']})" for one in report.state["revoked"]]
        lines.append(f"- revoked keys: {', '.join(revoked) or 'none'}")
    lines += ["", "## Audit log", ""]
    read = ", ".join(
        f"{one.folder} entries {one.first} to {one.last} ({one.heads} recorded heads)" for one in checked.chains
    )
    lines.append(f"Read: {read or 'nothing'}.")
    lines += [f"- {one.place}: {one.what}" for one in checked.findings]
    lines += [f"- {one}" for one in forgotten(checked.chains)]
    if not checked.findings:
        lines.append(f"{', '.join(checked.alone)}: {_NO_HEAD}" if checked.alone else "It is as it was written.")
    lines += ["", "## Scope", ""]
    lines.append(
        f"{len(scope.users)} users were touched, {scope.unnamed} times somebody without a user id; {scope.refused} "
        "requests were refused."
    )
    fields = sorted({name for touch in scope.users.values() for name in touch.fields})
    lines.append(f"Fields: {', '.join(fields) or 'none'}.")
    lines += ["", "| action | times |", "|---|---|"]
    lines += [f"| `{action}` | {times} |" for action, times in sorted(scope.actions.items())]
    lines += ["", "## Timeline", "", "| when | what | by |", "|---|---|---|"]
    lines += [f"| {_stamp(one.at)} | {_cell(one.what)} | {_cell(one.by or '')} |" for one in report.timeline]
    if report.left_out:
        lines.append(f"| earlier | {report.left_out} more, in the evidence | |")
    return "\n".join(lines) + "\n"


def forgotten(chains: Sequence[Chain]) -> list[str]:
    """What the chains say that they have forgotten, and who says so, a line each."""
    lines = []
    for chain in chains:
        if chain.forgotten is not None:
            gone = chain.forgotten
            by = "the service has recorded that" if gone.shown else "only the log itself says so"
            lines.append(
                f"{chain.folder}: entries 1 to {gone.up_to} were forgotten at {_stamp(gone.at)}, when each was at "
                f"least {gone.age_s / 86_400.0:.1f} days old: {by}"
            )
    return lines


def _stamp(epoch_s: float | None) -> str:
    if epoch_s is None:
        return "any time"
    try:
        when = datetime.fromtimestamp(epoch_s, UTC)
    except (ValueError, OverflowError):  # An entry that somebody made up may have any number.
        return f"{epoch_s:g} s"
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
