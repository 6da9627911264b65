"""Send a delivery inside its provider's guard, and know when not to try.

A lane is a provider with everything around it: bulkhead, breaker, timeout, the purge guard, and the memory of whether
the provider is in trouble. Lanes share nothing, so an outage in one is not felt in another.
"""

from __future__ import annotations

from bellbuoy.clock import Clock
from bellbuoy.delivery.pace import Pace
from bellbuoy.delivery.purge import PurgeGuard
from bellbuoy.errors import CredentialRejected, ExecutionRejected, OutcomeUnknown, RecipientGone, Transient
from bellbuoy.model.delivery import Delivery, Message, Outcome, Receipt, Record
from bellbuoy.model.operation import Issue, Tombstone
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.provider import Provider
from bellbuoy.resilience import Bulkhead, CircuitBreaker, Guard


class Lane:
    """One provider and what protects it and us.

    `sent_at` is the monotonic second at which the last attempt that was taken began.

    Args:
        provider: the adapter.
        bulkhead: how many attempts run and wait at once.
        breaker: judges the provider's health.
        guard: the breaker and the timeout, around the provider's `send`.
        purge: judges whether tokens are gone.
        pace: the rate that is kept to, None for none.
        clock: for the holds.
        telemetry: is told of issues.
        credential_hold_s: seconds between looks at a provider that rejects our credential.
        trial_s: seconds between trials of a provider in trouble whose breaker is still closed.
    """

    def __init__(
        self,
        provider: Provider,
        *,
        bulkhead: Bulkhead,
        breaker: CircuitBreaker,
        guard: Guard,
        purge: PurgeGuard,
        pace: Pace | None = None,
        clock: Clock,
        telemetry: Telemetry,
        credential_hold_s: float,
        trial_s: float,
    ) -> None:
        self.name = provider.name
        self.provider = provider
        self.bulkhead = bulkhead
        self.breaker = breaker
        self.guard = guard
        self.purge = purge
        self.pace = pace
        self._clock = clock
        self._telemetry = telemetry
        self._credential_hold_s = credential_hold_s
        self._trial_s = trial_s
        self.latency_ms: float | None = None  # Of recent successes, exponentially weighted.
        self._blocked_until: float | None = None
        self._rejected = False
        self._trouble = False
        self._next_trial = 0.0
        self._probe_failed = False
        self.sent_at = float("-inf")

    def refusal(self) -> tuple[str, float] | None:
        """Why an attempt would be refused now and for how many seconds, None when it may be made."""
        if self._blocked_until is not None:
            left = self._blocked_until - self._clock.monotonic()
            if left > 0:
                return "credential_rejected", left
        wait_s = self.breaker.retry_after_s
        return ("breaker_open", max(1.0, wait_s)) if wait_s is not None and wait_s > 0 else None

    @property
    def probing(self) -> bool:
        """Whether an attempt now tests the provider rather than just delivers."""
        return self.breaker.state != "closed"

    async def send(self, message: Message) -> Receipt:
        """One guarded attempt; raises what the provider raises, TimeoutExceeded, or CircuitOpen."""
        began = self._clock.monotonic()
        receipt: Receipt = await self.guard.call(self.provider.send, message)
        taken_ms = (self._clock.monotonic() - began) * 1000
        self.latency_ms = taken_ms if self.latency_ms is None else self.latency_ms * 0.9 + taken_ms * 0.1
        self._trouble = False
        self._blocked_until = None
        self.sent_at = began
        self.purge.answered()
        if self._rejected:
            self._rejected = False
            self._telemetry.clear_issue("credential_rejected", self.name)
        return receipt

    async def probe(self) -> None:
        """One real operation that delivers nothing; raises as the provider does, or CircuitOpen.

        A breaker that is not closed is tried by it, since without traffic nothing else would find out that the provider
        is back. While it is closed the second failure in a row counts, so that one lost packet does not.
        """
        if self.breaker.state != "closed":
            await self.guard.call(self.provider.probe)
            return
        try:
            await self.provider.probe()
        except Exception as error:
            failed, self._probe_failed = self._probe_failed, is_outage(error)
            if failed and self._probe_failed:
                self.breaker.admit().failure(error)
            raise
        self._probe_failed = False

    def believe(self, error: RecipientGone, record: Record, delivery: Delivery, now: float) -> bool:
        """Whether the endpoint is gone indeed; if so, and it is a registered device's, it becomes a suspect.

        A provider that says since when it is gone speaks of an earlier registration if the token was put later.
        """
        verdict = (record.id, delivery.id)
        user_id, registered_at = record.request.recipient.user_id, delivery.registered_at
        if error.quarantine:
            detail = "a token belongs to another sender id; it is set aside"
            self._telemetry.raise_issue(Issue("sender_id_mismatch", self.name, detail, now))
        if error.since is not None and registered_at is not None and error.since < registered_at:
            return self.purge.gone(None, verdict)
        if user_id is None or delivery.device_id is None:
            return self.purge.gone(None, verdict)
        suspect = Tombstone(
            tenant=record.tenant,
            user_id=user_id,
            device_id=delivery.device_id,
            provider=self.name,
            at=now,
            seen_at=delivery.attempts[-1].started_at,
            because=error.error_code or error.code,
        )
        return self.purge.gone(suspect, verdict)

    def failed(self, error: Exception, outcome: Outcome) -> None:
        """An attempt did not deliver: remember it if it says something about the provider."""
        if outcome in ("permanent", "recipient_gone"):
            return
        if not self._trouble:
            self._trouble = True
            self._next_trial = self._clock.monotonic() + self._trial_s
        if isinstance(error, CredentialRejected):
            self._blocked_until = self._clock.monotonic() + self._credential_hold_s
            self._rejected = True
            self._telemetry.raise_issue(Issue("credential_rejected", self.name, str(error), self._clock.time()))

    @property
    def recovered(self) -> bool:
        """Whether the provider is well as far as we know."""
        return not self._trouble and self.breaker.state == "closed"

    def releasable(self, most: int, trials: int) -> int:
        """How many held notifications may be let go now: `most` when all is well, `trials` as a test, or none."""
        if self.refusal() is not None:
            return 0
        if self.recovered:
            return most
        now = self._clock.monotonic()
        if self.breaker.state == "closed" and now < self._next_trial:
            return 0
        self._next_trial = now + self._trial_s
        return trials


def is_outage(error: BaseException) -> bool:
    """Whether an error of a provider says that it is down; that it says no, or less, shows that it is there."""
    if isinstance(error, Transient):
        return not error.throttled
    return isinstance(error, (OutcomeUnknown, TimeoutError, OSError, ExecutionRejected))
