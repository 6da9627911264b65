"""What humans are told of an incident, and what is to be done next with what is queued for them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from bellbuoy.model.operation import Alert, AlertAction, Incident

ACTIONS: tuple[AlertAction, ...] = ("trigger", "acknowledge", "resolve")
"""In the order in which they are told."""

Status = Literal["waiting", "sending", "sent", "uncertain", "failed", "withdrawn"]


class Queued(Struct, frozen=True, omit_defaults=True):
    """An alert for one target.

    Args:
        alert: what is told.
        target: whom.
        next_at: the epoch second before which it is not attempted.
        status: waiting; sending while an attempt is recorded and its end is not; sent; uncertain when it may have been
            and is not tried again; failed when it was given up; withdrawn when it need not be told any more.
        attempts: that were recorded.
        until: the epoch second at which whoever sends it must have ended or died.
        unknowns: attempts that may have told.
        reference: what the target calls it.
        error: the code of the last attempt that failed.
    """

    alert: Alert
    target: str
    next_at: float
    status: Status = "waiting"
    attempts: int = 0
    until: float = 0.0
    unknowns: int = 0
    reference: str | None = None
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more is done with it."""
        return self.status not in ("waiting", "sending")

    @property
    def told(self) -> bool:
        """Whether the target may know of it."""
        return self.status == "sent" or self.unknowns > 0


Step = tuple[Literal["send", "withdraw"], AlertAction]


def next_step(queued: Mapping[AlertAction, Queued]) -> Step | None:
    """What to do with the alerts of one incident for one target; None when nothing is left to do.

    One after the other: what is under way comes to its end first. What was not told by the time the incident is over
    need not be told any more, and the end of what nobody was told of need not be either.
    """
    for action in ACTIONS:
        one = queued.get(action)
        if one is None or one.over:
            continue
        if one.status == "sending":
            return "send", action
        trigger = queued.get("trigger")
        late = action != "resolve" and "resolve" in queued
        unheard = action != "trigger" and (trigger is None or not trigger.told)
        return "withdraw" if late or unheard else "send", action
    return None


def alert_of(incident: Incident, action: AlertAction, *, runbooks: str, now: float) -> Alert:
    """Word what is told of an incident.

    Args:
        runbooks: the URL under which the pages of `docs/runbooks` are found.
        now: epoch seconds.
    """
    what = f"{incident.issue} ({incident.component})"
    title, description, at = _WORDED[action](incident, what, now)
    page = incident.plan or incident.issue
    return Alert(
        incident=incident.id,
        action=action,
        title=title,
        description=description,
        component=incident.component,
        at=at,
        runbook=f"{runbooks}/{page}.md",
    )


Worded = tuple[str, str, float]


def _triggered(incident: Incident, what: str, _: float) -> Worded:
    if not incident.attempts:
        return f"{what} needs a person", incident.detail, incident.opened_at
    steps = ", ".join(f"{one.name} {one.status}" + (f" ({one.error})" if one.error else "") for one in incident.steps)
    times = "once" if incident.attempts == 1 else f"{incident.attempts} times"
    tried = f"Its plan, {incident.plan}, was tried {times}."
    last = f"Steps of the last attempt: {steps}." if steps else ""
    title = f"{what}: automatic recovery failed {times}"
    return (
        title,
        " ".join(part for part in (incident.detail.rstrip(".") + ".", tried, last) if part),
        incident.opened_at,
    )


def _acknowledged(incident: Incident, what: str, now: float) -> Worded:
    by = incident.acknowledged_by or "somebody"
    return f"{what}: {by} has it in hand", "Nothing more is tried by itself.", incident.acknowledged_at or now


def _resolved(incident: Incident, what: str, now: float) -> Worded:
    at = incident.resolved_at or now
    by = incident.resolved_by or "itself"
    end = "ended by itself" if by == "itself" else f"{by} ended it"
    lasted = f"It lasted {max(0.0, at - incident.opened_at):.0f} s, and {end}."
    return f"{what} is over", lasted, at


_WORDED = {"trigger": _triggered, "acknowledge": _acknowledged, "resolve": _resolved}
