"""A ledger that fails when it is told to, with its journal behind it and the healing between them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bellbuoy.adapters.journal import FileJournal
from bellbuoy.adapters.sqlite import SqliteLedger
from bellbuoy.clock import ManualClock
from bellbuoy.errors import StoreError, Unavailable
from bellbuoy.intake.heal import Healing, HealingSettings
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Content, Request
from bellbuoy.model.recipient import Recipient
from bellbuoy.ports.ledger import Offer
from bellbuoy.resilience import MONGODB, CircuitBreaker
from bellbuoy.service.watch import WatchedLedger
from tests.support.flow import RecordingTelemetry

AWAY = Unavailable("away")


class Breakable:
    """A ledger that fails when it is told to."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.failure: StoreError | None = None
        self.hang = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def accept(self, offers: Sequence[Offer]) -> Any:
        if self.hang:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return await self.ledger.accept(offers)


class House:
    """One machine: the ledger is the queue too, and the journal the only other home."""

    def __init__(self, path: Path, kept_max: int = 1_000) -> None:
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.ledger = Breakable(SqliteLedger(path / "ledger.db", clock=self.clock, inline=True))
        self.journal = FileJournal(path / "journal", bytes_max=100_000)
        self.nudges = 0
        self.homes = Homes(
            WatchedLedger(self.ledger, clock=self.clock, breaker=CircuitBreaker("ledger", MONGODB, clock=self.clock)),
            Kept(self.journal, kept_max=kept_max, clock=self.clock),
            settings=HomesSettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )
        self.homes.nudge = self.nudged
        self.healing = Healing(self.homes, settings=HealingSettings(), clock=self.clock, telemetry=self.telemetry)

    def nudged(self) -> None:
        self.nudges += 1

    def offer(self, name: str, body: bytes = b"h") -> Offer:
        now = self.clock.time()
        request = Request(recipient=Recipient(email="a@example.com"), content=Content(title="t"))
        record = Record(id=name, tenant="default", request=request, accepted_at=now, expires_at=now + 60)
        return Offer(record, body, now + 60.0, "w-1")
