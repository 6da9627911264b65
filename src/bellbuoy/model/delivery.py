"""One notification over one provider to one endpoint: its attempts, states, and the record that holds them all."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from bellbuoy.model.notification import Content, Priority, Request
from bellbuoy.model.recipient import Channel, Platform

ProviderName = Literal["fcm", "apns", "smtp", "sms"]
PROVIDERS: tuple[ProviderName, ...] = ("fcm", "apns", "smtp", "sms")

Outcome = Literal["delivered", "retryable", "permanent", "recipient_gone", "credential_rejected", "uncertain"]
DeliveryStatus = Literal["pending", "sending", "retrying", "delivered", "failed", "uncertain", "cancelled", "expired"]
NotificationStatus = Literal[
    "accepted",
    "scheduled",
    "queued",
    "delivering",
    "delivered",
    "failed",
    "dead_lettered",
    "uncertain",
    "cancelled",
    "expired",
    "suppressed",
]
PENDING: frozenset[NotificationStatus] = frozenset({"accepted", "scheduled", "queued", "delivering"})
"""The states a notification can still leave; the books count them together as pending."""

ATTEMPTS_KEPT = 30
"""Attempts of one delivery that are kept: when there are more, what says least after the first ten makes room."""

TIMELINE_MAX = 60
"""Entries one notification's timeline keeps; when it is full the oldest after the first ten make room."""


class Message(Struct, frozen=True):
    """What a provider is asked to carry, one attempt of one delivery.

    Args:
        delivery_id: a lowercase UUID, the same for every attempt of the delivery.
        notification_id: the notification's id, at most 64 bytes; what a device shows twice under one id it shows once.
        endpoint: the push token, email address or phone number.
        platform: for push; None for email and sms.
        content: what is shown and what the app gets.
        priority: the sender's.
        collapse_key: the sender's, None when it gave none.
        category: the sender's, None when it gave none.
        expires_at: epoch seconds after which the provider must drop it; 0.0 asks for one try, now or never.
        ttl_s: whole seconds left until then, 0 for now or never.
        locale: the recipient's, None when unknown.
    """

    delivery_id: str
    notification_id: str
    endpoint: str
    content: Content
    expires_at: float
    ttl_s: int
    platform: Platform | None = None
    priority: Priority = "normal"
    collapse_key: str | None = None
    category: str | None = None
    locale: str | None = None


class Receipt(Struct, frozen=True):
    """The provider has taken the message. `message_id` is its own name for it, None when it gives none."""

    provider_status: int
    message_id: str | None = None


class Attempt(Struct, omit_defaults=True):
    """One try of a delivery. It is recorded before it is made; `outcome` None means it is being made now.

    `n` counts all that were ever made, those too that are no longer kept. `counted` False: it was a try on behalf of
    the provider (a breaker's probe in an outage), and does not use up the delivery's attempts.
    """

    n: int
    started_at: float
    latency_ms: float | None = None
    outcome: Outcome | None = None
    provider_status: int | None = None
    error_code: str | None = None
    provider_message_id: str | None = None
    counted: bool = True


class Delivery(Struct, omit_defaults=True):
    """One notification over one provider to one endpoint.

    `step` is its place in the chain of channels. `due_at` is the epoch second of the next attempt, None when there
    is none. `held` names why it waits for its provider rather than for its own retry, None when it does not.
    `exhausted` is true once it has run out of attempts. `spared` is the number of the last attempt that no longer
    counts, since the delivery was brought back after it.
    """

    id: str
    step: int
    channel: Channel
    provider: ProviderName
    endpoint: str
    status: DeliveryStatus = "pending"
    platform: Platform | None = None
    device_id: str | None = None
    registered_at: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    due_at: float | None = None
    held: str | None = None
    exhausted: bool = False
    spared: int = 0

    @property
    def tries(self) -> int:
        """Attempts that were ever made."""
        return self.attempts[-1].n if self.attempts else 0

    @property
    def spent(self) -> int:
        """Attempts that count against the most a delivery may have."""
        return sum(1 for attempt in self.attempts if attempt.counted and attempt.n > self.spared)

    @property
    def doubts(self) -> int:
        """Attempts, counted or not, whose outcome is unknown."""
        return sum(1 for attempt in self.attempts if attempt.outcome == "uncertain" and attempt.n > self.spared)

    @property
    def open(self) -> bool:
        """Whether another attempt may still be made."""
        return self.status in ("pending", "sending", "retrying")


class Entry(Struct, frozen=True):
    """A line of a notification's story: when (epoch seconds), what, and why."""

    at: float
    event: str
    detail: str


class Record(Struct, omit_defaults=True):
    """A notification and all that has become of it: what the ledger keeps under one id.

    Args:
        id, tenant: its name and whose it is.
        request: what the client asked.
        accepted_at, expires_at: epoch seconds; `expires_at` counts `ttl_s` from acceptance or from `send_at`.
        once: `ttl_s` was 0, so one attempt is made however late, and no second.
        status: see `NotificationStatus`; `code` says why where the status alone does not (`no_route`).
        answered: the status the client was told when it was accepted.
        degraded: the modes that the client was told of then.
        homes: where it was safe when it was accepted.
        chain: the channels in order; None until it is routed.
        step: the place in the chain that is being tried.
        step_at: when the present step began, epoch seconds.
        not_before: send nothing before this epoch second (`send_at`, or the end of quiet hours); None for now.
        locale: the recipient's, once routed.
        replays: how many times it was brought back from the dead letters.
    """

    id: str
    tenant: str
    request: Request
    accepted_at: float
    expires_at: float
    status: NotificationStatus = "accepted"
    answered: NotificationStatus = "accepted"
    degraded: tuple[str, ...] = ()
    homes: tuple[str, ...] = ("ledger",)
    once: bool = False
    code: str | None = None
    chain: tuple[Channel, ...] | None = None
    step: int = 0
    step_at: float | None = None
    not_before: float | None = None
    locale: str | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    timeline: list[Entry] = field(default_factory=list)
    replays: int = 0

    @property
    def final(self) -> bool:
        """Whether its status can no longer change by itself."""
        return self.status not in PENDING

    @property
    def over(self) -> bool:
        """Whether nothing more will be done by itself: it is final, and no delivery is open."""
        return self.final and not any(delivery.open for delivery in self.deliveries)

    @property
    def last_at(self) -> float:
        """The epoch second of the last thing that became of it."""
        noted = (entry.at for entry in self.timeline[-1:])
        return max([self.accepted_at, *noted, *(d.attempts[-1].started_at for d in self.deliveries if d.attempts)])

    @property
    def possible_duplicates(self) -> int:
        """Attempts made although an earlier one of the same delivery was delivered, or may have been."""
        count = 0
        for delivery in self.deliveries:
            doubt = next((a.n for a in delivery.attempts if a.outcome in ("uncertain", "delivered")), None)
            if doubt is not None:
                count += delivery.tries - doubt
        return count

    def note(self, at: float, event: str, detail: str) -> None:
        """Add a line to the timeline, at `at` epoch seconds, keeping at most `TIMELINE_MAX`."""
        if len(self.timeline) >= TIMELINE_MAX:
            del self.timeline[10]
        self.timeline.append(Entry(at, event, detail))
