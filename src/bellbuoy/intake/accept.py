"""Identify a notification, put it into its homes, and answer only when it is safe there."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import Invalid, RateLimited, StoreError
from bellbuoy.model.delivery import Record
from bellbuoy.model.identity import derived, timed
from bellbuoy.model.notification import Request
from bellbuoy.model.routes import CALM, Circumstances, is_held
from bellbuoy.ports.ledger import Claim, NotificationLedger, Offer, Registry, Taken
from bellbuoy.ports.operations import Telemetry

_NAMESPACE = uuid.UUID("b0b6d0a4-6e1f-5c55-8b0b-3f0c3a1d9e52")
_encode = msgspec.json.Encoder(order="deterministic").encode


class Takeover(Protocol):
    """A worker in this process that takes accepted notifications over at once, sparing them the claim."""

    owner: str

    @property
    def lease_s(self) -> float: ...

    def room(self) -> int: ...

    def hand_over(self, claim: Claim) -> object: ...


class Home(NotificationLedger, Registry, Protocol):
    """Where notifications are kept, and recipients known."""


class Accepted(Struct, frozen=True):
    """A notification that is safe. `replayed`: it was accepted before under the same key."""

    record: Record
    replayed: bool


class IntakeSettings(Struct, frozen=True):
    """Bounds of the intake.

    Args:
        ttl_s_default: time to live in seconds where the sender gives none.
        in_flight_max: notifications being written at once; more are refused before memory grows.
    """

    ttl_s_default: int = 86_400
    in_flight_max: int = 5_000


class Intake:
    """Takes notifications in.

    Args:
        ledger: the home, and where recipients are known.
        worker: takes over what is due now, None when no worker runs in this process.
        settings: the bounds.
        clock, rng: time and chance.
        telemetry: counts and measures.
        circumstances: how the service works at the moment.
    """

    def __init__(
        self,
        *,
        ledger: Home,
        worker: Takeover | None,
        settings: IntakeSettings,
        clock: Clock,
        rng: Random,
        telemetry: Telemetry,
        circumstances: Callable[[], Circumstances] = lambda: CALM,
    ) -> None:
        self._circumstances = circumstances
        self._ledger = ledger
        self._worker = worker
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._in_flight = 0

    async def accept(self, tenant: str, requests: Sequence[tuple[Request, str | None]]) -> list[Accepted | Invalid]:
        """Accept notifications, each with its idempotency key or None; when this returns they are durable.

        The id under a key is derived from the tenant and the key, so two nodes that cannot see each other derive the
        same one.

        Returns:
            For each, in order: the accepted notification, or Invalid with code `idempotency_key_reused` when the key
            came with another request before.

        Raises:
            RateLimited: too many are in flight; nothing was accepted.
            Full: the home has no room; nothing was accepted.
            Unavailable: no home could take them; nothing was confirmed.
        """
        if self._in_flight + len(requests) > self._settings.in_flight_max:
            raise RateLimited("too many notifications are being accepted", retry_after_s=self._rng.uniform(1.0, 3.0))
        self._in_flight += len(requests)
        began, failed = self._clock.monotonic(), True
        try:
            at = self._circumstances()
            held = [await self._is_held(tenant, request, at) for request, _ in requests] if at.down else ()
            offers = [
                self._offer(tenant, request, key, at, held=bool(held and held[index]))
                for index, (request, key) in enumerate(requests)
            ]
            taken = await self._ledger.accept(offers)
            failed = False
        finally:
            self._in_flight -= len(requests)
            self._telemetry.measured("ledger", self._clock.monotonic() - began, failed=failed)
        return [self._answer(offer, one) for offer, one in zip(offers, taken, strict=True)]

    def configure(self, settings: IntakeSettings) -> None:
        """Go by other bounds from now on."""
        self._settings = settings

    async def _is_held(self, tenant: str, request: Request, at: Circumstances) -> bool:
        """Whether it will wait for a provider that is down; asked only while one is."""
        user = None
        if request.recipient.user_id is not None:
            try:
                user = await self._ledger.user(tenant, request.recipient.user_id)
            except StoreError:
                return False  # Nobody can say now where it leads; the worker will find out.
        return is_held(request, user, at)

    def _offer(self, tenant: str, request: Request, key: str | None, at: Circumstances, *, held: bool) -> Offer:
        now = self._clock.time()
        record = Record(
            id=self._identify(tenant, key, now),
            tenant=tenant,
            request=request,
            accepted_at=now,
            expires_at=now,
            once=request.ttl_s == 0,
        )
        begin = now
        if request.send_at is not None:
            begin = max(now, request.send_at.timestamp())
            if begin > now:
                record.status = record.answered = "scheduled"
                record.not_before = begin
        if held and record.not_before is None:
            record.status = record.answered = "queued"
        record.degraded = at.modes
        record.expires_at = begin + (self._settings.ttl_s_default if request.ttl_s is None else request.ttl_s)
        # Without a key every id is new, so there is nothing to compare the body with.
        body_hash = hashlib.sha256(_encode(request)).digest() if key is not None else b""
        if begin > now:
            record.note(now, "accepted", "scheduled for its send_at")
            return Offer(record, body_hash, begin)
        record.note(now, "accepted", "safe in the ledger")
        if self._worker is not None and self._worker.room() > self._in_flight:
            return Offer(record, body_hash, now + self._worker.lease_s, self._worker.owner)
        return Offer(record, body_hash, now)

    def _answer(self, offer: Offer, taken: Taken) -> Accepted | Invalid:
        if taken.kind == "other":
            return Invalid(
                "this Idempotency-Key came with another notification before",
                errors=[("Idempotency-Key", "already used with a different body")],
                code="idempotency_key_reused",
                hint="use a new key for a new notification",
            )
        if taken.kind == "new":
            home = taken.record.homes[0]
            self._telemetry.accepted(home, 1)
            # What the journal has is worked on when the ledger has it too, since every attempt is written there first.
            if offer.owner is not None and self._worker is not None and home == "ledger":
                self._worker.hand_over(Claim(taken.record, fence=1))
        return Accepted(taken.record, replayed=taken.kind == "same")

    def _identify(self, tenant: str, key: str | None, now: float) -> str:
        """UUIDv5 of tenant and key; without a key UUIDv7 (RFC 9562), which sorts by time."""
        if key is not None:
            return derived(_NAMESPACE, f"{len(tenant)}:{tenant}:{key}")
        return timed(now, self._rng)
