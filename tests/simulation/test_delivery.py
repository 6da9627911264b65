"""The whole delivery flow under seeded chance: faults, crashes, cancels and full disks, on a clock of its own.

A seed that fails replays exactly: `SEED=... make test TESTS=tests/simulation`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bellbuoy.delivery.retention import Retention, RetentionSettings
from bellbuoy.errors import (
    Conflict,
    CredentialRejected,
    NotFound,
    OutcomeUnknown,
    Permanent,
    RecipientGone,
    Transient,
)
from bellbuoy.model.delivery import Message, Receipt, Record
from tests.support.flow import TENANT, Flow, android, iphone, to_user

SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else list(range(int(os.environ.get("SEEDS", "12"))))


class World:
    """Providers that answer by chance, and an account of what they took."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.calls: Counter[str] = Counter()
        self.took: Counter[str] = Counter()
        self.stormy = True

    def answer(self, message: Message) -> Any:
        self.calls[message.delivery_id] += 1
        if not self.stormy:
            return self._take(message)
        draw = self.rng.random()
        if draw < 0.55:
            return self._take(message)
        if draw < 0.70:
            return Transient("busy", provider_status=503, error_code="UNAVAILABLE")
        if draw < 0.78:
            return Transient("refused", error_code="connect")
        if draw < 0.84:
            return Transient("slow down", throttled=True, retry_after_s=self.rng.uniform(1, 20))
        if draw < 0.90:
            # The worst kind: it was taken, and nobody is told.
            if self.rng.random() < 0.5:
                self._take(message)
            return OutcomeUnknown("silence")
        if draw < 0.93:
            return self._hang(message)
        if draw < 0.96:
            return Permanent("no", error_code="INVALID_ARGUMENT")
        return RecipientGone("gone", error_code="UNREGISTERED") if draw < 0.99 else CredentialRejected("who")

    async def _hang(self, message: Message) -> Receipt:
        self._take(message)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def _take(self, message: Message) -> Receipt:
        self.took[message.delivery_id] += 1
        return Receipt(200, "m")


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_and_nothing_is_doubled_without_doubt(seed: int, tmp_path: Path) -> None:
    rng = Random(seed)
    world = World(rng)
    flow = Flow(tmp_path, seed=seed)
    for provider in flow.providers.values():
        provider.script = world.answer
    async with flow:
        await _users(flow, rng)
        sent: list[str] = []
        forgotten: list[Record] = []
        for round_number in range(12):
            for _ in range(rng.randrange(1, 12)):
                sent.append(await flow.send(_document(rng), rng.choice([None, f"key-{len(sent)}"])))
            await flow.pass_time(rng.uniform(0, 8))
            if rng.random() < 0.3:
                await _cancel(flow, rng.choice(sent))
            if rng.random() < 0.5:
                await _change(flow, rng)
            if rng.random() < 0.3:
                forgotten += await _forget(flow, [one for one in sent if one not in {r.id for r in forgotten}])
            if rng.random() < 0.35:
                await flow.crash()
                await flow.restart(f"w-{round_number}")
            assert (await flow.books()).difference == 0
        world.stormy = False
        await flow.pass_time(1_500)
        gone = {record.id for record in forgotten}
        records = forgotten + [await flow.record(one) for one in sent if one not in gone]
        books = await flow.books()
    assert books.accepted == len(sent) - len(forgotten)
    assert len(records) == len(sent)
    assert (books.difference, books.pending, books.missing, books.unknown) == (0, 0, [], [])
    for record in records:
        _check(record, world)


async def _users(flow: Flow, rng: Random) -> None:
    for n in range(8):
        devices = tuple(d for d in (android(f"a-{n}"), iphone(f"i-{n}", f"{n:064x}")) if rng.random() < 0.7)
        address = {"email": f"u{n}@example.com"} if rng.random() < 0.7 else {}
        await flow.add_user(f"u-{n}", devices=devices, **address)


def _document(rng: Random) -> dict[str, Any]:
    fields: dict[str, Any] = {"on_uncertain": rng.choice(["retry", "retry", "stop"])}
    if rng.random() < 0.3:
        fields["priority"] = rng.choice(["high", "low"])
    if rng.random() < 0.2:
        fields["ttl_s"] = rng.choice([0, 5, 60])
    if rng.random() < 0.2:
        fields["fallback_after_s"] = rng.choice([0, 2, 10])
    if rng.random() < 0.3:
        fields["category"] = "news"
    if rng.random() < 0.3:
        fields["channels"] = rng.sample(["push", "email", "sms"], rng.randrange(1, 4))
    return to_user(f"u-{rng.randrange(10)}", **fields)


async def _change(flow: Flow, rng: Random) -> None:
    """A recipient moves, opts out, goes away or sleeps."""
    user_id, now = f"u-{rng.randrange(8)}", flow.clock.time()
    draw = rng.random()
    if draw < 0.3:
        await flow.ledger.put_device(TENANT, user_id, android(f"a-{user_id[2:]}", f"t-{rng.random()}"), now=now)
    elif draw < 0.5:
        await flow.add_user(user_id, email=f"new-{rng.random()}@example.com")
    elif draw < 0.7:
        await flow.add_user(user_id, email="u@example.com", preferences={"categories": {"news": False}})
    elif draw < 0.85:
        # The clock begins at 08:00 UTC, so this comes soon and is over before the end.
        quiet = {"quiet_hours": {"start": "08:00", "end": "08:02"}}
        await flow.add_user(user_id, email="u@example.com", preferences=quiet)
    else:
        with contextlib.suppress(NotFound):
            await flow.ledger.delete_user(TENANT, user_id)


async def _cancel(flow: Flow, notification_id: str) -> None:
    with contextlib.suppress(Conflict, NotFound):  # It may be over already, or forgotten.
        await flow.ledger.cancel(notification_id, TENANT, now=flow.clock.time())


async def _forget(flow: Flow, ids: list[str]) -> list[Record]:
    """Forget what was over ten seconds ago; returns it as it was."""
    before = flow.clock.time() - 10
    old = [record for record in [await flow.record(one) for one in ids] if record.over and record.last_at < before]
    settings = RetentionSettings(keep_s=10, batch=5, pause_s=0)
    await Retention(ledger=flow.ledger, settings=settings, clock=flow.clock, telemetry=flow.telemetry).round()
    for record in old:
        with pytest.raises(NotFound):
            await flow.record(record.id)
    return old


def _check(record: Record, world: World) -> None:
    assert record.final, record
    for delivery in record.deliveries:
        attempts = delivery.attempts
        outcomes = [a.outcome for a in attempts]
        assert None not in outcomes
        assert delivery.status not in ("pending", "sending", "retrying")
        # Whatever was taken is explained: one delivery, and one more at most for each outcome that was unknown.
        doubts = outcomes.count("uncertain")
        assert world.took[delivery.id] <= outcomes.count("delivered") + doubts, record
        assert world.calls[delivery.id] <= len(attempts)
        # Nothing is tried after it was delivered, or after its sender said to stop at a doubt.
        assert "delivered" not in outcomes[:-1]
        if record.request.on_uncertain == "stop":
            assert "uncertain" not in outcomes[:-1]
        if delivery.status == "delivered":
            assert outcomes[-1] == "delivered"
            assert record.status == "delivered"
        assert [a.n for a in attempts] == list(range(1, len(attempts) + 1))
        if record.once:
            assert len(attempts) <= 1
