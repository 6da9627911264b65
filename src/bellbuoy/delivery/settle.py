"""Decide what is next: which deliveries to attempt now, and what an outcome means for the one it ended.

Pure: a record, an outcome, the time and the rules go in; the worker writes the result down before it acts on it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct, field

from bellbuoy.delivery.router import enter_step, look_again, route, wait_for_quiet_hours
from bellbuoy.errors import (
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    TimeoutExceeded,
    Transient,
    code_of,
)
from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Outcome, Record
from bellbuoy.model.recipient import User
from bellbuoy.model.routes import CALM, Circumstances


class Rules(Struct, frozen=True):
    """The numbers that settling goes by.

    Args:
        delay_s: seconds to wait after the n-th counted attempt (from 1), given the provider's Retry-After in seconds.
        attempts_max: counted attempts of one delivery before it is exhausted.
        doubts_max: attempts of one delivery whose outcome is unknown, counted or not, since each may be a duplicate.
        server_error_wait_s: for each provider, the least wait in seconds after its 5xx without a Retry-After.
        hold_over_s: a wait at least this long is a wait for the provider, and ends early when the provider recovers.
        credential_wait_s: seconds to wait for a person to mend a credential before looking again.
    """

    delay_s: Callable[[int, float | None], float]
    attempts_max: int = 3
    doubts_max: int = 30
    server_error_wait_s: dict[str, float] = field(default_factory=dict)
    hold_over_s: float = 30.0
    credential_wait_s: float = 300.0


def next_attempts(
    record: Record, user: User | None, now: float, *, claimed: bool, at: Circumstances = CALM
) -> list[Delivery]:
    """Bring a record up to `now` and return the deliveries to attempt at once.

    `claimed` is true when the record has just been claimed: then what was held may be tried, since either its time
    has come or its provider is being tried again. `at` is how the service works at the moment. Gives the record its
    status when nothing is to be attempted now.
    """
    if record.over:
        return []
    if not record.once and now >= record.expires_at:
        transitions.finish_open(record, now, "expired", "its time to live ended")
        return []
    if record.not_before is not None and record.not_before > now:
        return []
    if record.chain is None:
        route(record, user, now)
    else:
        look_again(record, user, now, at)
    if record.over or wait_for_quiet_hours(record, user, now):
        return []
    while True:
        ready = [d for d in record.deliveries if _ready(d, now, claimed)]
        if ready:
            return ready
        if not _step_on(record, user, now, at):
            transitions.conclude(record, now)
            return []


def _ready(delivery: Delivery, now: float, claimed: bool) -> bool:
    if delivery.status not in ("pending", "retrying") or delivery.due_at is None:
        return False
    return delivery.due_at <= now or (claimed and delivery.held is not None)


def _step_on(record: Record, user: User | None, now: float, at: Circumstances) -> bool:
    """Enter the next step when the present one has nothing more to give in time; False when the record stays."""
    if record.final or not record.chain:
        return False
    here = [d for d in record.deliveries if d.step == record.step]
    if here:
        following = _following(record, here, now, at)
        if following is None:
            return False
        record.note(now, "next_channel", f"{record.chain[record.step]} gives way to {record.chain[following]}")
        record.step = following
    while not enter_step(record, user, now, at):
        if record.step + 1 >= len(record.chain):
            return False
        record.step += 1
    return True


def _following(record: Record, here: list[Delivery], now: float, at: Circumstances) -> int | None:
    """The step to go on to, None to stay."""
    assert record.chain is not None
    later = range(record.step + 1, len(record.chain))
    if not later or (record.request.on_uncertain == "stop" and any(d.status == "uncertain" for d in here)):
        return None
    waiting = [d for d in here if d.open]
    late = record.request.fallback_after_s
    if not waiting or (late is not None and record.step_at is not None and now >= record.step_at + late):
        return later[0]
    if not all(d.held for d in waiting):
        return None
    # In an outage, what is urgent or was given an order of its own passes on to the next channel. The rest is held: the
    # recipient chose the channel, and it will be back; unless the operator has opened another while FCM is down.
    if record.request.priority == "high" or record.request.channels is not None:
        return later[0]
    if any(d.provider != "fcm" for d in waiting):
        return None
    return next((step for step in later if record.chain[step] in at.opened), None)


def settle(
    record: Record,
    delivery: Delivery,
    error: Exception,
    now: float,
    latency_ms: float | None,
    rules: Rules,
    *,
    probing: bool = False,
) -> Outcome:
    """Record an attempt that did not deliver, and what becomes of its delivery.

    Args:
        record, delivery: whose last attempt ended; the delivery is `sending`.
        error: what the provider's `send`, or the guard around it, raised.
        now: epoch seconds.
        latency_ms: how long the attempt took, None when that is not known.
        rules: the numbers.
        probing: the provider's breaker was not closed, so the attempt tested the provider and does not use up the
            delivery's attempts.

    Returns:
        The outcome of the attempt.
    """
    attempt = delivery.attempts[-1]
    attempt.latency_ms = latency_ms
    outcome, wait_s, held = _judge(error, delivery, rules)
    attempt.outcome = outcome
    if isinstance(error, ProviderError):
        attempt.provider_status = error.provider_status
        attempt.error_code = error.error_code or error.code
    else:
        attempt.error_code = code_of(error)
    throttled = isinstance(error, Transient) and error.throttled
    attempt.counted = not (probing or throttled or outcome == "credential_rejected")
    why = f"{attempt.error_code} at attempt {attempt.n}"
    spent = delivery.spent >= rules.attempts_max or delivery.doubts >= rules.doubts_max
    if outcome in ("permanent", "recipient_gone"):
        transitions.fail(record, delivery, now, exhausted=False, why=why)
    elif outcome == "uncertain" and (spent or record.once or record.request.on_uncertain == "stop"):
        transitions.leave_uncertain(record, delivery, now, why)
    elif spent and not record.once:
        transitions.fail(record, delivery, now, exhausted=True, why=why)
    else:
        transitions.retry(record, delivery, now, wait_s, why, held=held)
    return outcome


def _judge(error: Exception, delivery: Delivery, rules: Rules) -> tuple[Outcome, float, str | None]:
    """What an error means, how many seconds to wait if it is tried again, and what is wrong with the provider if so."""
    if isinstance(error, RecipientGone):
        return "recipient_gone", 0.0, None
    if isinstance(error, Permanent):
        return "permanent", 0.0, None
    if isinstance(error, CredentialRejected):
        return "credential_rejected", rules.credential_wait_s, "credential_rejected"
    n = max(1, delivery.spent)
    if isinstance(error, OutcomeUnknown) or (isinstance(error, TimeoutExceeded) and error.started):
        return "uncertain", rules.delay_s(n, None), None
    told = error.retry_after_s if isinstance(error, Transient) else None
    throttled = isinstance(error, Transient) and error.throttled
    # A throttled attempt does not count, so the wait grows with all of them, or it would never grow.
    wait_s = rules.delay_s(delivery.tries if throttled else n, told)
    if isinstance(error, Transient) and not throttled and told is None and (error.provider_status or 0) >= 500:
        wait_s = max(wait_s, rules.server_error_wait_s.get(delivery.provider, 0.0))
        if wait_s >= rules.hold_over_s:
            return "retryable", wait_s, "provider_error"
    return "retryable", wait_s, None


def worker_lost(record: Record, now: float, rules: Rules) -> None:
    """Settle attempts that were being made when their worker vanished: nobody knows how they ended."""
    for delivery in [d for d in record.deliveries if d.status == "sending"]:
        settle(record, delivery, _WORKER_LOST, now, None, rules, probing=True)
        if delivery.due_at is not None:
            delivery.due_at = now


_WORKER_LOST = OutcomeUnknown("the worker ended during the attempt", error_code="worker_lost")
