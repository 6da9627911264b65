"""What a drill is, when it is called off, and what its result means. Pure: the running of it is somewhere else.

A drill first shows that the stack is well under load, then breaks one thing, and then asks what clients, providers and
the ledger each know, and whether their accounts agree.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct, field

StackKind = Literal[
    "alone",
    "small_disk",
    "shifted_clock",
    "backed_up",
    "small_target",
    "shared",
    "cluster",
    "backed_up_cluster",
    "people",
]
Result = Literal["passed", "failed", "aborted", "inconclusive"]
Every = Literal["monthly", "quarterly", "annual"]
DAYS: Mapping[Every, int] = {"monthly": 31, "quarterly": 92, "annual": 366}
"""After how many days a drill is due again."""

TOLD_TWICE_SHARE_MAX = 0.05
"""The share of notifications that may be sent twice by workers that cannot know of each other, and say so."""


class Limits(Struct, frozen=True):
    """When a drill is called off.

    Args:
        error_share_max: share of the calls of the last seconds that were refused or broke.
        p99_s_max: seconds, of the answers of the last seconds.
        pending_max: accepted notifications that have come to no end.
    """

    error_share_max: float = 0.05
    p99_s_max: float = 10.0
    pending_max: int = 20_000


STEADY = Limits(error_share_max=0.0, p99_s_max=2.0, pending_max=2_000)
"""Within what a stack is well: the hypothesis of every drill."""


class Drill(Struct, frozen=True, kw_only=True):
    """A planned failure with a checked result.

    Args:
        name: unique.
        stack: what it is run on: one process with an embedded ledger, on a disk with little room, by a clock that can
            be set, with backups, or with a target of them that has little room; several that share one; a cluster, or
            one with backups. Of what people rehearse, `people`.
        hypothesis: what is expected of the service, one sentence.
        fault: what is done to it, one sentence.
        seconds: how long the fault lasts in the short form.
        limits: when it is called off.
        allows: checks of `CHECKS` that the fault makes impossible, and that are left out.
        named: whether it can be run on a stack that the operator names: it breaks nothing but stand-ins and switches.
    """

    name: str
    stack: StackKind
    hypothesis: str
    fault: str
    seconds: float = 2.0
    limits: Limits = Limits()
    allows: frozenset[str] = frozenset()
    named: bool = False


CHECKS: Mapping[str, str] = {
    "steady": "under load the stack is well: all accepted, quickly, and nothing piles up",
    "felt": "the fault was felt",
    "contained": "the drill's limits were kept",
    "recovered": "after the fault the stack is well again, and everything comes to an end",
    "nothing_lost": "every notification that was answered 202 is in the ledger and has come to an end",
    "nothing_unknown": "no provider got what is not in the ledger",
    "no_secret_duplicate": "what a provider got twice was in doubt, and the books say so",
    "one_key_one_id": "one key is one notification",
    "nothing_refused": "no request was refused",
    "nothing_wrong": "no answer was an error of ours",
    "found_at_once": "what was answered 202 could be read at once",
    "all_delivered": "everything was delivered",
    "books_balance": "the books balance",
}
"""What is checked, by name; a drill adds what is its own."""


class Check(Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    says: str
    passed: bool
    detail: str = ""


class Reading(Struct, frozen=True):
    """How the stack was at a moment, over the span before it.

    Times in seconds since the drill's beginning; latencies in seconds, None where nothing was answered; `pending` and
    `modes` are None where the stack could not be asked.
    """

    at_s: float
    span_s: float
    sent: int = 0
    accepted: int = 0
    refused: int = 0
    broken: int = 0
    p50_s: float | None = None
    p99_s: float | None = None
    pending: int | None = None
    modes: tuple[str, ...] | None = None
    issues: tuple[str, ...] | None = None

    @property
    def error_share(self) -> float:
        return (self.refused + self.broken) / self.sent if self.sent else 0.0


class Phase(Struct, frozen=True):
    """A part of a drill, in seconds since its beginning."""

    name: str
    from_s: float
    to_s: float


class DrillReport(Struct, frozen=True, kw_only=True):
    """What a drill came to; `started_at` in epoch seconds, `by` who ran it."""

    drill: str
    stack: str
    hypothesis: str
    fault: str
    by: str
    started_at: float
    result: Result
    why: str
    checks: list[Check] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    timeline: list[Reading] = field(default_factory=list)


def beyond(reading: Reading, limits: Limits) -> str | None:
    """Which limit a reading is beyond, in words; None while it is within all. What was not measured is beyond none."""
    if reading.error_share > limits.error_share_max:
        return f"{reading.error_share:.0%} of the calls failed, more than {limits.error_share_max:.0%}"
    if reading.p99_s is not None and reading.p99_s > limits.p99_s_max:
        return f"p99 is {reading.p99_s:.1f} s, more than {limits.p99_s_max:g} s"
    if reading.pending is not None and reading.pending > limits.pending_max:
        return f"{reading.pending} are pending, more than {limits.pending_max}"
    return None


def conclude(checks: Sequence[Check], *, aborted: str | None) -> tuple[Result, str]:
    """What the checks come to, and why in words. A fault that was not felt has shown nothing."""
    failed = [check for check in checks if not check.passed]
    if aborted is not None:
        return "aborted", aborted
    if any(check.name == "steady" for check in failed):
        return "inconclusive", "it was not run: " + next(c.detail for c in failed if c.name == "steady")
    if failed and {check.name for check in failed} != {"felt"}:
        return "failed", "; ".join(f"not so: {check.says}" for check in failed)
    if failed:
        return "inconclusive", "the fault was not felt, so nothing was shown"
    return "passed", "everything that was checked holds"


def wanting(
    drill: Drill,
    *,
    lost: Sequence[str],
    unexpected: Sequence[str],
    secret: Sequence[str],
    split: Sequence[str],
    refused: int,
    wrong: Sequence[str],
    not_found: Sequence[str],
    undelivered: Mapping[str, int],
    books: Mapping[str, Any],
    own: Collection[Check],
) -> list[Check]:
    """The checks over the whole history, each with what was found wanting; those that the drill allows for left out."""
    unbalanced = {name: books.get(name) for name in ("difference", "missing", "unknown") if books.get(name)}
    found: dict[str, str] = {
        "nothing_lost": _listed(lost),
        "nothing_unknown": _listed(unexpected),
        "no_secret_duplicate": _listed(secret),
        "one_key_one_id": _listed(split),
        "nothing_refused": f"{refused} calls" if refused else "",
        "nothing_wrong": _listed(wrong),
        "found_at_once": _listed(not_found),
        "all_delivered": ", ".join(f"{count} {status}" for status, count in sorted(undelivered.items())),
        "books_balance": ", ".join(f"{name} {value}" for name, value in unbalanced.items()),
    }
    checks = [Check(name, CHECKS[name], not what, what) for name, what in found.items() if name not in drill.allows]
    return [*checks, *own]


def _listed(found: Sequence[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


class Due(Struct, frozen=True):
    """When a drill was last passed, and when it is due again; epoch seconds, `last_at` None when it never was."""

    drill: str
    every: Every
    last_at: float | None
    last_result: Result | None
    due_at: float

    def overdue(self, now: float) -> bool:
        return now >= self.due_at


def due(plan: Mapping[Every, Sequence[str]], records: Sequence[DrillReport], *, since: float) -> list[Due]:
    """When each planned drill is due.

    Args:
        plan: the names by how often; one that is named twice goes by the more frequent.
        records: of what was run, in any order. Only what passed counts as done.
        since: epoch seconds from which a drill that was never passed is waited for.
    """
    found: dict[str, Due] = {}
    for every in ("monthly", "quarterly", "annual"):
        for name in plan.get(every, ()):
            mine = sorted((one for one in records if one.drill == name), key=lambda one: one.started_at)
            passed = [one.started_at for one in mine if one.result == "passed"]
            from_s = passed[-1] if passed else since
            last = mine[-1] if mine else None
            found.setdefault(
                name,
                Due(
                    name,
                    every,
                    last.started_at if last else None,
                    last.result if last else None,
                    from_s + DAYS[every] * 86_400.0,
                ),
            )
    return list(found.values())
