"""What an operator sees and handles: the books, dead letters, tombstones, keys, dependencies' health."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from bellbuoy.model.recipient import Channel

Scope = Literal["send", "read", "operate", "admin"]
SCOPES: tuple[Scope, ...] = ("send", "read", "operate", "admin")


class Books(Struct, frozen=True):
    """Every accepted notification is in exactly one of the other terms, so `difference` is 0.

    `accepted` is counted from the append-only log of acceptances, the rest from the notifications themselves; `missing`
    are ids that were accepted and are in no term, `unknown` ids that are in a term and were never accepted (at most 100
    of each are listed). `possible_duplicates` counts attempts made after one whose outcome is unknown.
    """

    accepted: int
    delivered: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    suppressed: int = 0
    dead_lettered: int = 0
    uncertain: int = 0
    pending: int = 0
    difference: int = 0
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    possible_duplicates: int = 0

    @classmethod
    def balanced(
        cls, accepted: int, counts: Mapping[str, int], *, missing: list[str], unknown: list[str], duplicates: int
    ) -> Books:
        """Add up how many notifications there are of each status, against how many were accepted."""
        finals = ("delivered", "failed", "expired", "cancelled", "suppressed", "dead_lettered", "uncertain")
        pending = sum(counts.get(s, 0) for s in ("accepted", "scheduled", "queued", "delivering"))
        terms = {name: counts.get(name, 0) for name in finals}
        return cls(
            accepted=accepted,
            pending=pending,
            difference=accepted - pending - sum(terms.values()),
            missing=missing,
            unknown=unknown,
            possible_duplicates=duplicates,
            **terms,
        )


class DeadLetter(Struct, frozen=True):
    """A delivery that has run out of attempts. `endpoint` is masked; `at` is in epoch seconds."""

    id: str
    notification_id: str
    channel: Channel
    provider: str
    endpoint: str
    attempts: int
    error_code: str | None
    provider_status: int | None
    at: float


class Skip(Struct, frozen=True):
    """A dead letter that was not replayed, and why."""

    id: str
    why: str


class Replayed(Struct, frozen=True):
    """What a replay did, or with `dry_run` would do; `matched` counts what was replayed and what `skipped` lists."""

    matched: int
    replayed: int
    skipped: list[Skip]
    dry_run: bool = False


class Discarded(Struct, frozen=True):
    """How many dead letters matched, and how many of them were, or with `dry_run` would be, taken off the list."""

    matched: int
    discarded: int
    dry_run: bool = False


class Tombstone(Struct, frozen=True):
    """A token that its provider called gone. `seen_at` is when the attempt was made; all times are epoch seconds."""

    tenant: str
    user_id: str
    device_id: str
    provider: str
    at: float
    seen_at: float
    because: str
    restored_at: float | None = None


class ApiKey(Struct, frozen=True):
    """A key as it is stored: `hash` is the SHA-256 of the secret, which nobody can read back. `made_by` is the id of
    the key that asked for it, None for one that came with a start. One that is `replaced` is no good, and has not ended
    either: a start that has it at hand makes it good again.
    """

    id: str
    name: str
    tenant: str
    scopes: tuple[Scope, ...]
    hash: bytes
    created_at: float
    revoked_at: float | None = None
    made_by: str | None = None
    replaced: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether it is no good any more, for good."""
        return self.revoked_at is not None and not self.replaced


class Issue(Struct, frozen=True):
    """Something wrong that a person should know of. `name` is stable (`credential_rejected`), `since` epoch seconds."""

    name: str
    component: str
    detail: str
    since: float


class Mode(Struct, frozen=True):
    """How the service works because of something that is wrong.

    `pinned` True or False: an operator holds it on or off; None: it follows the issues. `since` is the epoch second at
    which it became active, None when it is not; `because` are the issues it is active for.
    """

    name: str
    active: bool
    pinned: bool | None = None
    since: float | None = None
    because: tuple[str, ...] = ()


IncidentStatus = Literal["open", "recovering", "settling", "exhausted", "resolved"]


class StepReport(Struct, frozen=True):
    """How one step of a plan went at the last attempt: pending, begun, done, failed, undone; `error` is a code."""

    name: str
    status: str
    error: str | None = None


AlertAction = Literal["trigger", "acknowledge", "resolve"]


class Alert(Struct, frozen=True):
    """What a human is told of an incident.

    Args:
        incident: the incident's id, by which all that is told of it is recognised, everywhere and after a restart.
        action: that it began, that somebody has it in hand, that it is over.
        title: one line.
        description: some more.
        component: what is wrong.
        at: when that what is told happened, in epoch seconds.
        runbook: the URL of what to do.
        severity: nobody is told of anything less.
        repeated: an attempt before this one may have told already.
        reference: what the target called the incident when it was told that it began, None when that is not known.
    """

    incident: str
    action: AlertAction
    title: str
    description: str
    component: str
    at: float
    runbook: str
    severity: Literal["critical"] = "critical"
    repeated: bool = False
    reference: str | None = None


class EscalationReport(Struct, frozen=True):
    """That a human was told, or is to be: where, what (`trigger`, `acknowledge`, `resolve`), and how far that is.

    `status` is `waiting`, `sending`, `sent`, `uncertain` (it may have been), `failed` (given up) or `withdrawn`; `at`
    the epoch second of the last change, `reference` what the target calls it, None when it gave no name.
    """

    target: str
    action: str
    status: str
    at: float
    reference: str | None = None


class Incident(Struct, omit_defaults=True):
    """The record of a failure, from its beginning to its end. Times are epoch seconds.

    Args:
        id: its name; pages, tickets and messages about it carry it.
        key: what its attempts are counted by, the plan and the component.
        issue, component: what is wrong with what.
        plan: the one that is tried; None where there is none and a human is told at once.
        detail: what was seen.
        opened_at: when the issue began.
        status: open until its plan runs, recovering while it does, settling after it succeeded, exhausted after the
            last attempt, resolved at the end.
        attempts: that were made and failed.
        next_at: when the next one is made, None when none is.
        run: names the present attempt's saga; a number that grows.
        settled_at: when the plan succeeded, None before.
        steps: how the steps of the last attempt went.
        escalations: whom it was told.
        acknowledged_at, acknowledged_by: that a human has it in hand; nothing more is tried by itself then.
        resolved_at, resolved_by: its end; `by` is `itself`, `recovery`, or who did it.
    """

    id: str
    key: str
    issue: str
    component: str
    plan: str | None
    detail: str
    opened_at: float
    status: IncidentStatus = "open"
    attempts: int = 0
    next_at: float | None = None
    run: int = 0
    settled_at: float | None = None
    steps: list[StepReport] = field(default_factory=list)
    escalations: list[EscalationReport] = field(default_factory=list)
    escalated: bool = False
    acknowledged_at: float | None = None
    acknowledged_by: str | None = None
    resolved_at: float | None = None
    resolved_by: str | None = None
