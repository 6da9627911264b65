"""What a restored ledger becomes once it is told what was sent after that second."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.continuity.reconcile import RESTORED, Reconcile, Reconciled, gather
from bellbuoy.model import transitions
from bellbuoy.model.delivery import Delivery, Receipt, Record
from bellbuoy.model.notification import Request
from bellbuoy.ports.ledger import Offer
from bellbuoy.ports.sends import Sent

REQUEST = msgspec.convert({"recipient": {"phone": "+15551234567"}, "content": {"title": "t"}}, Request)


class Restored:
    """A ledger that was restored, and what the send journal tells."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.ledger = SqliteLedger(path / "l.db", clock=self.clock, inline=True)
        self.sent: list[Sent] = []

    async def accept(self, name: str, *, ttl_s: float = 60.0, routed: bool = False, **fields: Any) -> Record:
        now = self.clock.time()
        record = Record(name, "t", REQUEST, now, now + ttl_s, **fields)
        if routed:
            self.route(record)
        await self.ledger.accept([Offer(record, b"h", now)])
        return record

    def route(self, record: Record) -> Delivery:
        record.chain, record.step_at, record.status = ("sms",), self.clock.time(), "delivering"
        record.deliveries.append(Delivery(f"d-{record.id}", 0, "sms", "sms", "+1", due_at=self.clock.time()))
        return record.deliveries[0]

    def note(self, record: Record, delivery: Delivery) -> None:
        now = self.clock.time()
        self.sent.append(Sent(now, record.id, record.chain, record.step, record.step_at, copy.deepcopy(delivery)))

    async def run(self, *, rate_per_s: float = 10.0) -> Reconciled:
        async def told() -> AsyncIterator[Sequence[Sent]]:
            # The journal may tell the same twice, and the end before the beginning.
            yield self.sent
            yield self.sent[::-1]

        reconcile = Reconcile(self.ledger, rate_per_s=rate_per_s, ramp_s=10.0, clock=self.clock)
        return await reconcile.run(await gather(told()))

    async def due(self, at: float) -> list[str]:
        claims = await self.ledger.claim("w", now=at, lease_s=1e6, limit=10_000)
        return [claim.record.id for claim in claims]


@pytest.fixture
async def restored(tmp_path: Path) -> AsyncIterator[Restored]:
    made = Restored(tmp_path)
    yield made
    await made.ledger.aclose()


async def attempt(restored: Restored, record: Record, *, end: bool) -> None:
    """Send it after the second that is restored to, and let the journal know."""
    live = copy.deepcopy(record)
    delivery = live.deliveries[0] if live.deliveries else restored.route(live)
    await restored.clock.advance(1)
    transitions.start(delivery, restored.clock.time())
    restored.note(live, delivery)
    if end:
        await restored.clock.advance(1)
        transitions.delivered(live, delivery, Receipt(201, "m"), restored.clock.time(), 5.0)
        restored.note(live, delivery)


@pytest.mark.parametrize("routed", [False, True])
async def test_what_was_delivered_is_not_sent_again(restored: Restored, routed: bool) -> None:
    record = await restored.accept("n", routed=routed)
    await attempt(restored, record, end=True)
    assert await restored.run() == Reconciled(delivered=1)
    found = await restored.ledger.get("n")
    assert found.status == "delivered"
    assert found.deliveries[0].attempts[0].provider_message_id == "m"
    assert await restored.due(1e11) == []
    assert (await restored.ledger.books()).difference == 0


async def test_what_was_begun_is_left_to_its_worker_as_under_way(restored: Restored) -> None:
    record = await restored.accept("n")
    await attempt(restored, record, end=False)
    assert await restored.run() == Reconciled(uncertain=1, waiting=1)
    found = await restored.ledger.get("n")
    assert found.deliveries[0].status == "sending"
    assert await restored.due(restored.clock.time() + 1) == ["n"]


async def test_an_attempt_that_was_refused_counts_for_nothing(restored: Restored) -> None:
    record = await restored.accept("n", routed=True)
    delivery = record.deliveries[0]
    transitions.start(delivery, restored.clock.time())
    restored.note(record, delivery)
    await restored.clock.advance(1)
    transitions.unstart(delivery, restored.clock.time())
    restored.note(record, delivery)

    async def once() -> AsyncIterator[Sequence[Sent]]:
        yield restored.sent

    done = await Reconcile(restored.ledger, rate_per_s=1.0, ramp_s=1.0, clock=restored.clock).run(await gather(once()))
    assert done == Reconciled(waiting=1)
    assert (await restored.ledger.get("n")).deliveries[0].attempts == []


async def test_what_was_accepted_later_stays_absent(restored: Restored) -> None:
    later = Record("later", "t", REQUEST, restored.clock.time(), restored.clock.time() + 60)
    await attempt(restored, later, end=True)
    assert await restored.run() == Reconciled(absent=1)
    assert (await restored.ledger.books()).accepted == 0


async def test_the_stale_expires_and_the_rest_is_held_for_its_provider(restored: Restored) -> None:
    await restored.accept("stale", ttl_s=5, routed=True)
    await restored.accept("unrouted", ttl_s=5)
    await restored.accept("fresh", ttl_s=500, routed=True)
    await restored.clock.advance(10)
    assert await restored.run() == Reconciled(expired=2, waiting=1)
    assert {(await restored.ledger.get(name)).status for name in ("stale", "unrouted")} == {"expired"}
    fresh = await restored.ledger.get("fresh")
    assert (fresh.status, fresh.deliveries[0].held) == ("queued", RESTORED)
    assert await restored.ledger.held() == {"sms": 1}
    assert await restored.due(restored.clock.time() + 3) == ["fresh"]


async def test_what_comes_back_comes_slowly_at_first(restored: Restored) -> None:
    for number in range(1_200):
        await restored.accept(f"n{number}", ttl_s=1e6)
    assert (await restored.run(rate_per_s=10.0)).waiting == 1_200
    now = restored.clock.time()
    # Ten a second after ten seconds, one a second at the beginning, and 5.5 between the two on the average.
    come = [len(await restored.due(now + after)) for after in (0.95, 10, 20, 125)]
    assert come[0] in (1, 2)
    assert come[0] + come[1] == pytest.approx(56, abs=1)
    assert come[2] == pytest.approx(100, abs=1)
    assert sum(come) == 1_200


async def test_one_that_is_sent_later_by_its_sender_keeps_its_time(restored: Restored) -> None:
    at = restored.clock.time() + 3600
    await restored.accept("later", ttl_s=7200, not_before=at, status="scheduled")
    await restored.run()
    assert await restored.due(at - 1) == []
    assert await restored.due(at + 1) == ["later"]


async def test_a_dead_letter_that_was_replayed_and_delivered_is_known_as_delivered(restored: Restored) -> None:
    record = Record("n", "t", REQUEST, restored.clock.time(), restored.clock.time() + 60)
    delivery = restored.route(record)
    for _ in range(2):
        transitions.start(delivery, restored.clock.time())
        delivery.attempts[-1].outcome = "retryable"
    transitions.fail(record, delivery, restored.clock.time(), exhausted=True, why="x")
    transitions.conclude(record, restored.clock.time())
    assert record.status == "dead_lettered"
    await restored.ledger.accept([Offer(record, b"h", restored.clock.time())])
    claim = (await restored.ledger.claim("w", now=restored.clock.time(), lease_s=9, limit=1))[0]
    await restored.ledger.save(record, claim.fence, now=restored.clock.time(), due_at=None, held=(), release=True)
    assert await restored.ledger.dead_letter_count() == 1

    live = copy.deepcopy(record)
    transitions.revive(live, live.deliveries[0], restored.clock.time(), restored.clock.time())
    await attempt(restored, live, end=True)
    assert await restored.run() == Reconciled()
    assert (await restored.ledger.get("n")).status == "delivered"
    assert await restored.ledger.dead_letter_count() == 0


async def test_what_the_ledger_knows_already_is_told_in_vain(restored: Restored) -> None:
    record = await restored.accept("n", routed=True)
    delivery = record.deliveries[0]
    transitions.start(delivery, restored.clock.time())
    restored.note(record, delivery)
    delivery.attempts[-1].outcome = "retryable"
    transitions.retry(record, delivery, restored.clock.time(), 5.0, "x", held=None)
    restored.note(record, delivery)
    transitions.cancel_open(record, restored.clock.time())
    claim = (await restored.ledger.claim("w", now=restored.clock.time(), lease_s=9, limit=1))[0]
    await restored.ledger.save(record, claim.fence, now=restored.clock.time(), due_at=None, held=(), release=True)
    before = await restored.ledger.get("n")
    assert before.over
    assert await restored.run() == Reconciled()
    assert await restored.ledger.get("n") == before


@pytest.mark.parametrize("back_s", [0.0, 600.0])
async def test_the_later_attempt_counts_by_a_clock_that_was_set_back_too(restored: Restored, back_s: float) -> None:
    record = await restored.accept("n", ttl_s=5_000, routed=True)
    live = copy.deepcopy(record)
    delivery = live.deliveries[0]
    for last in (False, True):
        transitions.start(delivery, restored.clock.time())
        restored.note(live, delivery)
        await restored.clock.advance(1)
        if last:
            restored.clock.jump(-back_s)
            transitions.delivered(live, delivery, Receipt(201, "m"), restored.clock.time(), 5.0)
        else:
            delivery.attempts[-1].outcome = "retryable"
            transitions.retry(live, delivery, restored.clock.time(), 5.0, "x", held=None)
        restored.note(live, delivery)
    assert await restored.run() == Reconciled(delivered=1)
