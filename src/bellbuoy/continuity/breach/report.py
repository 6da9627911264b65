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
"""The most lines of a timeline, and names of one action; the rest is counted, and in the evidence."""

_NO_HEAD = (
    "Every entry follows from the one before it; that the whole was not written anew, only a recorded head can show."
)


class Line(Struct, frozen=True):
    """Something that happened, in epoch seconds.

    `kind` is `acts`, `incidents` or `changes`; `about` what an act was done to, after its action.
    """

    at: float
    what: str
    by: str | None = None
    kind: str = "acts"
    about: tuple[str, str] | None = None


class Report(Struct, frozen=True):
    """A breach as far as it is known.

    Args:
        made_at, since, until: epoch seconds, None for no bound.
        timeline: the first and the last use of the key, then what it did, then what else there is room for, by time.
        left_out: how many lines there was no room for, of each kind.
        touched: what the key made or changed, by name, of each action; of everybody when there is no key.
        scope, checked: whom it touched, and whether the log is sound.
        state: how the service is isolated, None where nobody could be asked.
    """

    made_at: float
    since: float | None
    until: float | None
    timeline: list[Line]
    left_out: dict[str, int]
    touched: dict[str, list[str]]
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
            about=(entry.action, entry.target) if entry.target else None,
        )
        for entry in entries
        if entry.status and not entry.fields and not entry.action.startswith("GET ") and entry.status < 400
    ]


def _answered(entry: Entry) -> str:
    return f", {entry.count} times" if entry.count > 1 else ""


def put_together(
    lines: Sequence[Line], *, scope: Scope, checked: Checked, state: Mapping[str, Any] | None, now: float
) -> Report:
    """The report of what happened in the scope's time; what others did makes room for what the key did."""
    since, until, key = scope.since, scope.until, scope.key
    inside = [line for line in lines if (since is None or line.at >= since) and (until is None or line.at <= until)]
    inside.sort(key=lambda line: line.at)
    own = [line for line in inside if key is not None and line.by == key]
    others = [line for line in inside if key is None or line.by != key]
    uses: list[Line] = []
    if key is not None and scope.first is not None and scope.last is not None:
        uses = [Line(scope.first, "first use of the key", key), Line(scope.last, "last use of the key", key)]
    kept: list[Line] = []
    left_out: dict[str, int] = {}
    for lines_of, whose in ((own, " of the key"), (others, "")):
        at = max(0, len(lines_of) - (LINES_MAX - len(uses) - len(kept)))
        kept += lines_of[at:]
        for line in lines_of[:at]:
            left_out[line.kind + whose] = left_out.get(line.kind + whose, 0) + 1
    touched = _touched(inside if key is None else own, left_out)
    kept = sorted([*kept, *uses], key=lambda line: line.at)
    return Report(now, since, until, kept, left_out, touched, scope, checked, state)


def _touched(lines: Sequence[Line], left_out: dict[str, int]) -> dict[str, list[str]]:
    """What was made or changed, each once; of one action many names take no room from another's."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        if line.about is not None:
            action, name = line.about
            found.setdefault(action, {})[name] = None
    for action, names in found.items():
        if len(names) > LINES_MAX:
            left_out[f"names of {action}"] = len(names) - LINES_MAX
    return {action: list(names)[:LINES_MAX] for action, names in sorted(found.items())}


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
    lines.append(f"Fields: {', '.join(scope.fields) or 'none'}.")
    lines += ["", "| action | times |", "|---|---|"]
    lines += [f"| `{action}` | {times} |" for action, times in sorted(scope.actions.items())]
    lines += ["", "## Made or changed", "", "| action | names |", "|---|---|"]
    lines += [f"| `{action}` | {_cell(', '.join(names))} |" for action, names in report.touched.items()]
    lines += ["", "## Timeline", ""]
    if report.left_out:
        left_out = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.left_out.items()))
        lines += [f"Left out, and in the evidence: {left_out}.", ""]
    lines += ["| when | what | by |", "|---|---|---|"]
    lines += [f"| {_stamp(one.at)} | {_cell(one.what)} | {_cell(one.by or '')} |" for one in report.timeline]
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
