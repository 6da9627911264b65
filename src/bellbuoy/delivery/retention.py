"""Forget what is over and old, in batches small enough that nothing else has to wait for them."""

from __future__ import annotations

from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import code_of
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.operations import Telemetry


class RetentionSettings(Struct, frozen=True):
    """How long what is over is kept.

    Args:
        keep_s: seconds after its last event; at least a day, for which a repeated Idempotency-Key is honoured.
        every_s: seconds between two rounds.
        batch: notifications looked at in one transaction.
        pause_s: seconds between two batches.
    """

    keep_s: float
    every_s: float = 600.0
    batch: int = 500
    pause_s: float = 0.1


class Retention:
    """Runs beside the worker."""

    def __init__(self, *, ledger: Ledger, settings: RetentionSettings, clock: Clock, telemetry: Telemetry) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry

    async def run(self) -> None:
        """Make a round every `every_s`, until cancelled."""
        while True:
            try:
                await self.round()
            except Exception as error:  # A defect too: the next round may fare better.
                self._telemetry.event("retention_failed", code=code_of(error))
            await self._clock.sleep(self._settings.every_s)

    async def round(self) -> None:
        """Forget all that is old enough now."""
        before = self._clock.time() - self._settings.keep_s
        notifications = tombstones = 0
        cursor: str | None = None
        while True:
            done = await self._ledger.forget(before=before, limit=self._settings.batch, cursor=cursor)
            notifications += done.notifications
            tombstones += done.tombstones
            cursor = done.next_cursor
            if cursor is None and done.tombstones < self._settings.batch:
                break
            await self._clock.sleep(self._settings.pause_s)
        if notifications or tombstones:
            self._telemetry.event("old_records_forgotten", notifications=notifications, tombstones=tombstones)
