"""Healing: once a home is back it gets what only the journal has, and the ledger is worked from when it has all.

Giving a home anything twice is harmless, so an entry leaves the journal only when another home has confirmed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import Busy, Unavailable, code_of
from bellbuoy.intake.homes import Homes
from bellbuoy.intake.kept import Accepted
from bellbuoy.model.operation import Issue
from bellbuoy.ports.ledger import Account
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.queue import Message, Queue


class HealingSettings(Struct, frozen=True):
    """How fast the other homes are given what they missed.

    Args:
        batch: entries of the journal that are given to another home at a time.
        pause_s: seconds between two batches, so that a home that is back is not pressed.
        wait_s: seconds until the next try when nothing takes what the journal has.
        settle_s_max: seconds after which a ledger that is back is worked from although nobody can say whether all that
            was done meanwhile has come to it.
    """

    batch: int = 200
    pause_s: float = 0.05
    wait_s: float = 1.0
    settle_s_max: float = 15.0


class Healing:
    """What one home missed, another gives.

    Args:
        homes: the homes, and the journal behind them.
        queue: that of the homes; None where the ledger is the queue too.
        settings: the bounds.
        clock: for waiting.
        telemetry: is told of what happens.
    """

    def __init__(
        self, homes: Homes, *, queue: Queue | None = None, settings: HealingSettings, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._homes = homes
        self._queue = queue
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry

    async def load(self) -> None:
        """Find again what an earlier process left; before anything else. Raises Full."""
        kept = self._homes.kept
        damaged, files = kept.damage()
        if damaged or files:
            detail = f"{damaged} entries could not be read: {', '.join(files)}"
            self._telemetry.raise_issue(Issue("journal_damaged", "journal", detail, self._clock.time()))
            self._telemetry.event("journal_damaged", count=damaged, files=files)
        await kept.load()
        # Whoever starts cannot know whether the ledger was away a moment ago, with outcomes still on their way to it.
        self._homes.standing.doubt()

    async def run(self) -> None:
        """Give the other homes what only the journal has, whenever there is something, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._healing(), name="heal-journal")
            group.create_task(self._settling(), name="heal-settle")

    async def heal(self) -> int:
        """Give one batch of the journal to a home that takes it; returns how many entries that were.

        Raises:
            Full, Unavailable: none takes anything; all stays in the journal.
        """
        kept, standing = self._homes.kept, self._homes.standing
        entries, last = await kept.oldest(self._settings.batch)
        if not entries:
            return 0
        offers = [offer for entry in entries if isinstance(entry, Accepted) for offer in entry.offers]
        accounts = [entry.account for entry in entries if not isinstance(entry, Accepted)]
        if offers:
            await self._homes.give(offers)
        if accounts:
            await self._hand_in(accounts)
        await kept.let_go(entries, last)
        if not standing.away:
            standing.well()
        self._telemetry.event("journal_healed", count=len(entries), pending=kept.pending())
        self._homes.nudge()
        return len(entries)

    async def _hand_in(self, accounts: Sequence[Account]) -> None:
        """Give accounts to the ledger, or to the queue on their way there. Raises Full, Unavailable."""
        try:
            if await self._homes.absorb(accounts, now=self._clock.time()):
                raise Busy("somebody else holds what was to be written", retry_after_s=1.0)
        except Unavailable:
            if self._queue is None:
                raise
            await self._queue.put("outcomes", [Message(one.record, one.body_hash) for one in accounts])

    async def _healing(self) -> None:
        while True:
            await self._homes.kept.wake.wait()
            try:
                await self.heal()
            except Exception as error:  # A defect too: what is in the journal must not stay there for ever.
                self._telemetry.event("heal_failed", code=code_of(error))
                await self._clock.sleep(self._settings.wait_s)
            else:
                await self._clock.sleep(self._settings.pause_s)

    async def _settling(self) -> None:
        """Find out, after the ledger failed, when it takes things again and has all that was done meanwhile.

        Nobody need send anything for that: where the disk was full, the journal may have nothing to heal.
        """
        standing = self._homes.standing
        quiet, back_s = 0, 0.0
        while True:
            await self._clock.sleep(1.0)
            if not (standing.away or standing.ailing):
                continue
            try:
                await self._homes.probe()
            except Exception as error:  # A defect too: a ledger that is not asked again is never found well.
                self._telemetry.event("ledger_away", code=code_of(error))
                quiet, back_s = 0, 0.0
                continue
            back_s += 1.0
            quiet = 0 if await self._on_its_way() else quiet + 1
            # Twice: an account may be between the queue and the ledger in somebody's hands.
            if quiet >= 2 or (self._queue is not None and back_s >= self._settings.settle_s_max):
                quiet, back_s = 0, 0.0
                standing.caught_up()
                self._homes.nudge()

    async def _on_its_way(self) -> bool:
        """Whether the journal or the queue has something for the ledger, or may have."""
        if self._homes.kept.pending():
            return True
        if self._queue is None:
            return False
        try:
            return (await self._queue.depth())["outcomes"] > 0
        except Unavailable:  # Nobody can say, so there may be.
            return True
