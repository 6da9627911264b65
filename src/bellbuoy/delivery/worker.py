"""The worker claims notifications, works each one out in a task of its own, and writes down what became of it.

What it holds in memory is always leased in the ledger, so that a crash loses nothing: the lease ends and another
worker claims it. Attempts are written down before they are made and outcomes before the lease is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any

from msgspec import Struct

from bellbuoy.clock import Clock, heard, within
from bellbuoy.delivery.router import divert, message_for
from bellbuoy.delivery.send import Lane
from bellbuoy.delivery.settle import Rules, next_attempts, settle, worker_lost
from bellbuoy.errors import (
    BulkheadFull,
    CredentialRejected,
    ExecutionRejected,
    Full,
    LeaseLost,
    RecipientGone,
    Unavailable,
    code_of,
)
from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Receipt, Record
from bellbuoy.model.routes import CALM, Circumstances
from bellbuoy.ports.ledger import Claim, Ledger
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.sends import Sends

_URGENCY = {"high": 0, "normal": 1, "low": 2}


class WorkerSettings(Struct, frozen=True):
    """How much a worker takes on, and for how long.

    Args:
        in_hand_max: notifications leased and in memory at once, most of them waiting for a place with their provider.
        claim_batch: notifications claimed at a time.
        lease_s: how long a claim lasts without renewal.
        poll_s_max: longest wait between two looks for due work.
        place_wait_s: how long a delivery waits in the ledger when its provider's bulkhead is full.
        hold_s_max: longest wait for a provider before it is looked at again, for one that is isolated too.
        drain_s: how long a stopping worker lets attempts end before it leaves them uncertain.
        save_tries_max: how often an outcome is offered, about once a second, to a ledger that has no room.
    """

    in_hand_max: int = 10_000
    claim_batch: int = 500
    lease_s: float = 60.0
    poll_s_max: float = 0.5
    place_wait_s: float = 2.0
    hold_s_max: float = 900.0
    drain_s: float = 25.0
    save_tries_max: int = 600


class Worker:
    """Works off what is due, until it is told to stop.

    Args:
        owner: this worker's name in the leases; unique among all workers there ever are.
        ledger: where work comes from and outcomes go to.
        lanes: the providers by name; a provider without a lane is off.
        rules: the numbers for settling.
        settings: the numbers for working.
        clock, rng: time and chance.
        telemetry: is told what happens.
        circumstances: how the service works at the moment.
        sends: where attempts are written down outside the ledger as well; None where they are not.
    """

    def __init__(
        self,
        owner: str,
        *,
        ledger: Ledger,
        lanes: Mapping[str, Lane],
        rules: Rules,
        settings: WorkerSettings,
        clock: Clock,
        rng: Random,
        telemetry: Telemetry,
        circumstances: Callable[[], Circumstances] = lambda: CALM,
        sends: Sends | None = None,
    ) -> None:
        self.owner = owner
        self._ledger = ledger
        self._lanes = lanes
        self._rules = rules
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._circumstances = circumstances
        self._sends = sends
        self._running: set[asyncio.Task[bool]] = set()
        self._tended: set[asyncio.Task[None]] = set()
        self._orphans: dict[str, int] = {}  # Claims that failed in our hands, by notification, with their fence.
        self._wake = asyncio.Event()
        self._stopping = False
        self._more = False  # Whether the ledger had more that was due than we claimed.

    def configure(self, settings: WorkerSettings) -> None:
        """Go by other numbers from now on; what is in hand stays so."""
        self._settings = settings

    def go_by(self, rules: Rules) -> None:
        """Settle by other numbers from now on."""
        self._rules = rules

    # What intake sees.

    def room(self) -> int:
        """How many more notifications this worker would take over at once; 0 once it is stopping, and while paused."""
        return 0 if self._stopping or self._paused else max(0, self._settings.in_hand_max - len(self._running))

    @property
    def lease_s(self) -> float:
        """For how many seconds a notification is leased to this worker when it is handed over."""
        return self._settings.lease_s

    def hand_over(self, claim: Claim) -> asyncio.Task[bool] | None:
        """Take a notification that was accepted with a lease for this worker; it need not be claimed again.

        Returns:
            The task that works on it, which ends with whether what became of it is written down; None when the worker
            is stopping: the notification stays leased until the lease is handed back.
        """
        if self._stopping:
            return None
        task = asyncio.create_task(self._work(claim), name=claim.record.id)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def look_after(self, rest: Coroutine[Any, Any, None]) -> None:
        """Run what remains to be done about a notification; it is waited for before the worker stops."""
        task = asyncio.create_task(rest, name="worker-rest")
        self._tended.add(task)
        task.add_done_callback(self._tended.discard)

    @property
    def _paused(self) -> bool:
        """Whether nothing is to be sent; what was accepted waits where it is, with all of its ways open."""
        return self._circumstances().paused

    # Running.

    async def run(self) -> None:
        """Work until `stop` is called and everything in hand is settled or given back.

        Cancellation: attempts under way are left; their leases end, and they count as uncertain.
        """
        renewing = asyncio.create_task(self._renew(), name="worker-renew")
        try:
            while not self._stopping:
                try:
                    await self._claim()
                except Exception as error:  # A defect too: the next look may fare better, and nobody else looks.
                    self._telemetry.event("claim_failed", code=code_of(error))
                await self._nap()
            await self._drain()
        finally:
            renewing.cancel()
            for task in (*self._running, *self._tended):
                task.cancel()

    def stop(self) -> None:
        """Take nothing more; `run` returns when what is in hand is settled or given back."""
        self._stopping = True
        self._wake.set()

    def nudge(self) -> None:
        """Look for due work now: somebody knows that there is some."""
        self._wake.set()

    async def _claim(self) -> None:
        """Lease what is due, as long as there is room for it."""
        while not (self._stopping or self._paused) and len(self._running) <= self._settings.in_hand_max // 2:
            now = self._clock.time()
            claims = await self._ledger.claim(
                self.owner, now=now, lease_s=self._settings.lease_s, limit=self._settings.claim_batch
            )
            self._more = len(claims) == self._settings.claim_batch
            for claim in claims:
                self.hand_over(claim)
            if not self._more:
                return

    async def _nap(self) -> None:
        """Wait for a nudge, but no longer than until the next claim may be due."""
        self._wake.clear()
        await heard(self._wake, self._settings.poll_s_max, clock=self._clock)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._settings.lease_s / 3)
            for step in (self._abandon, self._prolong):
                try:
                    await step()
                except Exception as error:  # A defect too: if this loop ended, so would every lease.
                    self._telemetry.event("lease_renewal_failed", code=code_of(error))

    async def _prolong(self) -> None:
        await self._ledger.renew(self.owner, until=self._clock.time() + self._settings.lease_s)

    async def _abandon(self) -> None:
        """Give back what failed in our hands, before renewing the leases would keep it there."""
        for notification_id, fence in list(self._orphans.items()):
            due_at = self._clock.time() + self._settings.lease_s
            await self._ledger.abandon(notification_id, fence, due_at=due_at)
            del self._orphans[notification_id]

    async def _drain(self) -> None:
        """Give back what has not begun, let what has begun end."""
        if self._running or self._tended:
            ending = asyncio.ensure_future(asyncio.wait({*self._running, *self._tended}))
            await within(ending, self._settings.drain_s, clock=self._clock)
            ending.cancel()
        try:
            await self._ledger.hand_back(self.owner, now=self._clock.time())
        except (Full, Unavailable) as error:
            self._telemetry.event("hand_back_failed", code=error.code)

    def _done(self, task: asyncio.Task[bool]) -> None:
        self._running.discard(task)
        if self._more and len(self._running) <= self._settings.in_hand_max // 2:
            self._wake.set()

    # One notification.

    async def _work(self, claim: Claim) -> bool:
        try:
            await self._work_out(claim.record, claim.fence)
            return True
        except LeaseLost:
            self._telemetry.event("lease_lost", notification_id=claim.record.id)
            self._orphans[claim.record.id] = claim.fence
        except Exception as error:
            # A store that failed, or a defect of ours: it must not stop the others, and this one must come back.
            self._telemetry.event("worker_error", notification_id=claim.record.id, error=repr(error))
            self._orphans[claim.record.id] = claim.fence
        return False

    async def _work_out(self, record: Record, fence: int) -> None:
        """Bring one notification as far as it goes now, then give it back with the time it is due next."""
        worker_lost(record, self._clock.time(), self._rules)
        user_id = record.request.recipient.user_id
        claimed, go_on = True, True
        while go_on and not (self._stopping or self._paused) and not record.over:
            # Anew each time round: an attempt may take long, and the recipient may have changed meanwhile.
            user = await self._ledger.user(record.tenant, user_id) if user_id is not None else None
            now = self._clock.time()
            at = self._circumstances()
            ready = next_attempts(record, user, now, claimed=claimed, at=at)
            claimed = False
            if not ready:
                break
            admitted = [d for d in ready if not divert(record, user, d, now, at) and self._admit(record, d, now)]
            if len(admitted) == 1:
                go_on = await self._enter(record, fence, admitted[0])
            elif admitted:
                go_on = all(await asyncio.gather(*(self._enter(record, fence, d) for d in admitted)))
        if any(d.status == "sending" for d in record.deliveries):
            return  # Its lease runs on: whoever claims it next knows that the outcome is unknown.
        await self._save(record, fence, release=True)
        if record.over:
            self._telemetry.over(record.request.category, record.status)

    def _admit(self, record: Record, delivery: Delivery, now: float) -> bool:
        """Whether to attempt a delivery now; when not, it is held or failed."""
        lane = self._lanes.get(delivery.provider)
        if lane is None:
            transitions.fail(record, delivery, now, exhausted=False, why=f"provider_off: {delivery.provider}")
            return False
        refusal = lane.refusal()
        if refusal is not None:
            self._hold(record, delivery, *refusal)
        return refusal is None

    def _hold(self, record: Record, delivery: Delivery, why: str, wait_s: float) -> None:
        # The release of what is held ends the wait when the provider is back; this only bounds it, spread out so that
        # a long queue does not come due at one moment.
        bounded_s = min(wait_s * self._rng.uniform(1.5, 3.0), self._settings.hold_s_max)
        transitions.hold(record, delivery, self._clock.time(), bounded_s, why)

    async def _enter(self, record: Record, fence: int, delivery: Delivery) -> bool:
        """Attempt a delivery when its provider's bulkhead has a place; False when its sender cancelled meanwhile."""
        lane = self._lanes[delivery.provider]
        try:
            return await lane.bulkhead.call_at(
                _URGENCY[record.request.priority], self._attempt, lane, record, fence, delivery
            )
        except BulkheadFull:
            self._wait_for_place(delivery)
            return True

    def _wait_for_place(self, delivery: Delivery) -> None:
        wait_s = self._settings.place_wait_s * self._rng.uniform(0.5, 1.5)
        transitions.wait(delivery, self._clock.time(), wait_s)

    async def _attempt(self, lane: Lane, record: Record, fence: int, delivery: Delivery) -> bool:
        """Write the attempt down, make it, and settle it."""
        if lane.pace is not None and not await lane.pace.turn():
            self._wait_for_place(delivery)
            return True
        if self._paused:
            self._wait_for_place(delivery)
            return True
        refusal = lane.refusal()
        if refusal is not None:
            self._hold(record, delivery, *refusal)  # It closed while we waited for a place.
            return True
        now, probing = self._clock.time(), lane.probing
        transitions.start(delivery, now)
        transitions.conclude(record, now)
        if await self._save(record, fence, release=False):
            transitions.unstart(delivery, now)
            transitions.cancel_open(record, now)
            return False
        if self._sends is not None:
            await self._sends.note(record, delivery, now=now)
        began = self._clock.monotonic()
        try:
            receipt = await lane.send(message_for(record, delivery, now))
        except ExecutionRejected as error:
            transitions.unstart(delivery, now)
            self._hold(record, delivery, "breaker_open", max(1.0, error.retry_after_s or 1.0))
        except Exception as error:
            self._failed(lane, record, delivery, error, (self._clock.monotonic() - began) * 1000, probing)
        else:
            self._delivered(lane, record, delivery, receipt, (self._clock.monotonic() - began) * 1000)
        if self._sends is not None:
            await self._sends.note(record, delivery, now=self._clock.time())
        if any(d.status == "sending" for d in record.deliveries):
            await self._save(record, fence, release=False)  # The others may take long; this outcome must not wait.
        return True

    def _delivered(self, lane: Lane, record: Record, delivery: Delivery, receipt: Receipt, latency_ms: float) -> None:
        now = self._clock.time()
        first = record.status != "delivered"
        transitions.delivered(record, delivery, receipt, now, latency_ms)
        self._telemetry.attempt(lane.name, "delivered", latency_ms / 1000)
        if first:
            self._telemetry.delivered(now - max(record.accepted_at, record.not_before or 0.0))
        if delivery.tries > 1:
            self._tell("retry_success", record, delivery)

    def _failed(
        self, lane: Lane, record: Record, delivery: Delivery, error: Exception, latency_ms: float, probing: bool
    ) -> None:
        now = self._clock.time()
        if isinstance(error, RecipientGone) and not lane.believe(error, record, delivery, now):
            error = CredentialRejected(
                "many tokens are called gone at once",
                provider_status=error.provider_status,
                error_code=error.error_code,
            )
        outcome = settle(record, delivery, error, now, latency_ms, self._rules, probing=probing)
        self._telemetry.attempt(lane.name, outcome, latency_ms / 1000)
        lane.failed(error, outcome)
        if delivery.status == "retrying":
            self._tell("retry_attempt", record, delivery, next_in_s=round((delivery.due_at or now) - now, 3))
        elif delivery.exhausted:
            self._tell("retry_exhausted", record, delivery)
        else:
            self._tell("retry_non_retryable", record, delivery)

    def _tell(self, event: str, record: Record, delivery: Delivery, **fields: object) -> None:
        last = delivery.attempts[-1]
        self._telemetry.event(
            event,
            notification_id=record.id,
            delivery_id=delivery.id,
            provider=delivery.provider,
            attempt=last.n,
            outcome=last.outcome,
            code=last.error_code,
            **fields,
        )

    async def _save(self, record: Record, fence: int, *, release: bool) -> bool:
        """Write the record down, however long the disk takes to have room again; True when its sender cancelled it.

        Raises:
            LeaseLost: another worker has it now, so nothing more may be done with it here.
        """
        for tries in range(self._settings.save_tries_max):
            now = self._clock.time()
            due_at = transitions.due_at(record) if release else now + self._settings.lease_s
            held = transitions.held_for(record) if release else ()
            try:
                return await self._ledger.save(record, fence, now=now, due_at=due_at, held=held, release=release)
            except (Full, Unavailable) as error:
                if tries == 0:
                    self._telemetry.event("save_failed", notification_id=record.id, code=error.code)
                await self._clock.sleep(self._rng.uniform(0.5, 1.5))
        raise LeaseLost(f"the ledger did not take {record.id} until its lease ended")
