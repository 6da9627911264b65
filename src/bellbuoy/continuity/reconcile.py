"""After a restore: what was sent since that second is taken in, what is stale expires, and the rest comes back slowly.

A ledger that was set back does not know of what was sent after that second, and would send it again. The send journal
does. Until this is done nobody uses the ledger, so nothing is sent.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping, Sequence

from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import NotFound
from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.ports.ledger import Account, Ledger
from bellbuoy.ports.sends import Sent

OWNER = "restore"
RESTORED = "restored"
"""Why a delivery is held after a restore."""
_BATCH = 500
_EVER = 1e12
"""An epoch second after everything that is due."""
_LEASE_S = 1e9


class Reconciled(Struct, frozen=True):
    """What was done.

    Args:
        delivered: notifications that the send journal knows as delivered and the ledger did not.
        uncertain: that have an attempt of which the journal knows the beginning and not the end.
        absent: in the journal and not in the ledger, since they were accepted later than the second restored to.
        expired: that had outlived their time to live.
        waiting: that come back, those among them that are uncertain too, slower at first.
    """

    delivered: int = 0
    uncertain: int = 0
    absent: int = 0
    expired: int = 0
    waiting: int = 0


class Reconcile:
    """Brings a restored ledger up to what was sent.

    Args:
        ledger: restored, and used by nobody else.
        rate_per_s: notifications that come back in a second, after the ramp.
        ramp_s: seconds over which the rate grows from a tenth of that.
        clock: says what is stale.
    """

    def __init__(self, ledger: Ledger, *, rate_per_s: float, ramp_s: float, clock: Clock) -> None:
        self._ledger = ledger
        self._rate_per_s = rate_per_s
        self._ramp_s = ramp_s
        self._clock = clock

    async def run(self, told: Mapping[str, Sequence[Sent]]) -> Reconciled:
        """Take in what the send journal tells, then let the rest wait.

        Args:
            told: by notification; see `gather`. What the ledger knows already changes nothing.

        Raises:
            Full, Unavailable: the ledger could not be written; doing it again does it all.
        """
        rest = dict(told)
        counts = {"delivered": 0, "uncertain": 0, "expired": 0, "waiting": 0}
        leased = await self._lease_all()
        for at in range(0, len(leased), _BATCH):
            group = leased[at : at + _BATCH]
            # Together, so that they share the ledger's commits.
            ends = await asyncio.gather(
                *(self._set_out(one, fence, rest.pop(one, ()), at + n) for n, (one, fence) in enumerate(group))
            )
            for what in ends:
                counts[what] += 1
        absent = 0
        for notification_id, sent in rest.items():
            absent += not await self._was_over(notification_id, sent)
        waiting = counts["waiting"] + counts["uncertain"]
        return Reconciled(counts["delivered"], counts["uncertain"], absent, counts["expired"], waiting)

    async def _lease_all(self) -> list[tuple[str, int]]:
        """Lease everything that is open, before anything is given back and could be leased again: ids and fences."""
        found: list[tuple[str, int]] = []
        while True:
            claims = await self._ledger.claim(OWNER, now=_EVER, lease_s=_LEASE_S, limit=_BATCH)
            found += [(claim.record.id, claim.fence) for claim in claims]
            if len(claims) < _BATCH:
                return found

    async def _set_out(self, notification_id: str, fence: int, told: Sequence[Sent], place: int) -> str:
        """Bring one that is open up to what was sent, and give it back: over, or to come due in its place."""
        record, now = await self._ledger.get(notification_id), self._clock.time()
        _take_in(record, told, now)
        if record.over:
            what = "delivered"
        elif _under_way(record):
            what = "uncertain"
        elif not record.once and now >= record.expires_at:
            transitions.finish_open(record, now, "expired", "it outlived its time to live before the restore")
            what = "expired"
        else:
            self._hold(record, now, place)
            what = "waiting"
        due_at, held = self._due(record, now, place), transitions.held_for(record)
        await self._ledger.save(record, fence, now=now, due_at=due_at, held=held, release=True)
        return what

    async def _was_over(self, notification_id: str, told: Sequence[Sent]) -> bool:
        """Take in what was sent of one that is over, as after a replay; False when the ledger has no such one."""
        try:
            record = await self._ledger.get(notification_id)
        except NotFound:
            return False
        now, was = self._clock.time(), record.status
        if not _take_in(record, told, now):
            return True
        if record.status != was:
            record.replays += 1  # It was over, and only what was brought back is sent after that.
        await self._ledger.absorb([Account(record, b"", transitions.due_at(record))], now=now)
        return True

    def _hold(self, record: Record, now: float, place: int) -> None:
        """Have what waits for an attempt wait for its provider, whose release lets it go at its own pace."""
        for delivery in record.deliveries:
            if delivery.status in ("pending", "retrying") and (delivery.due_at or now) <= now:
                transitions.hold(record, delivery, now, self._after_s(place), RESTORED)
        transitions.conclude(record, now)

    def _due(self, record: Record, now: float, place: int) -> float | None:
        due_at = transitions.due_at(record)
        if _under_way(record):
            return now + self._after_s(place)  # The worker that claims it finds the attempt without an outcome.
        if due_at is None or due_at > now:
            return due_at
        return now + self._after_s(place)

    def _after_s(self, place: int) -> float:
        """Seconds until the notification in this place of the queue has its turn.

        The rate grows evenly from a tenth to the whole over the ramp, so in it the n-th has its turn where the integral
        of the rate is n, which a quadratic equation gives.
        """
        rate, ramp = self._rate_per_s, self._ramp_s
        in_ramp = 0.55 * rate * ramp
        if place >= in_ramp:
            return float(ramp + (place - in_ramp) / rate)
        slope = 0.9 * rate / ramp
        return float((-0.1 * rate + ((0.1 * rate) ** 2 + 2 * slope * place) ** 0.5) / slope)


async def gather(sent: AsyncIterator[Sequence[Sent]]) -> dict[str, list[Sent]]:
    """What is latest of each delivery, by notification, however often and in which order it is told."""
    found: dict[str, dict[str, Sent]] = {}
    async for group in sent:
        for one in group:
            known = found.setdefault(one.notification_id, {})
            before = known.get(one.delivery.id)
            if before is None or _later(one, before):
                known[one.delivery.id] = one
    return {notification: list(known.values()) for notification, known in found.items()}


def _knows(delivery: Delivery) -> tuple[int, bool]:
    """Greater for whoever tells of a later attempt, or how the last one ended."""
    return delivery.tries, bool(delivery.attempts) and delivery.attempts[-1].outcome is not None


def _later(one: Sent, other: Sent) -> bool:
    """Whether one tells of a later moment of the same delivery than the other, also by a clock that was set back."""
    mine, theirs = _knows(one.delivery), _knows(other.delivery)
    if mine[0] == theirs[0]:
        return (mine, one.at) >= (theirs, other.at)
    if max(mine, theirs)[1]:
        return mine > theirs
    return one.at >= other.at  # An attempt that was begun may have been refused then, and does not count any more.


def _take_in(record: Record, told: Sequence[Sent], now: float) -> bool:
    """Put deliveries into the record as they were at their last attempt. What comes next its worker decides.

    Returns:
        False when the record knew it all: then what it says is as late or later, and stays.
    """
    known = {delivery.id: at for at, delivery in enumerate(record.deliveries)}
    news = False
    for one in sorted(told, key=lambda one: one.step):
        at = known.get(one.delivery.id)
        if at is not None and _knows(one.delivery) <= _knows(record.deliveries[at]):
            continue
        news = True
        if at is None:
            record.deliveries.append(copy.deepcopy(one.delivery))
        else:
            record.deliveries[at] = copy.deepcopy(one.delivery)
        if one.chain is not None and (record.chain is None or one.step >= record.step):
            record.chain, record.step, record.step_at = one.chain, one.step, one.step_at
    if news and any(delivery.status == "delivered" for delivery in record.deliveries):
        if record.status != "delivered":
            record.status, record.code = "delivered", None
            record.note(now, "delivered", "before the ledger was restored to an earlier time, as the send journal says")
        for delivery in record.deliveries:
            if delivery.status in ("pending", "retrying"):
                transitions.end(delivery, "cancelled")
    return news


def _under_way(record: Record) -> bool:
    return any(delivery.status == "sending" for delivery in record.deliveries)
