"""Let go what was held for a provider, when it is back, at a bounded rate; and bury the tokens that are gone indeed.

A provider that has just recovered must not be stampeded: release starts at a tenth of its rate and grows to the whole
over `ramp_s`. While it is in trouble only a few are let go now and then, to find out whether it still is.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.delivery.send import Lane
from bellbuoy.delivery.worker import Worker
from bellbuoy.errors import code_of
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.operations import Telemetry


class ReleaseSettings(Struct, frozen=True):
    """How fast what was held comes back.

    Args:
        every_s: seconds between two looks.
        rate_per_s: notifications let go a second for one provider, once it has recovered.
        ramp_s: seconds over which the rate grows from a tenth of that; the guide of one provider asks for a minute.
        trials: notifications let go to test a provider in trouble.
        reconsidered_max: deliveries brought back in one look, when answers turn out not to be believed.
        credential_wait_s: seconds that such a delivery waits for the credential to be mended before it is due again.
    """

    every_s: float = 0.5
    rate_per_s: float = 500.0
    ramp_s: float = 60.0
    trials: int = 3
    reconsidered_max: int = 500
    credential_wait_s: float = 300.0


class Release:
    """Runs beside the worker and hands held work back to it through the ledger."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        lanes: Mapping[str, Lane],
        worker: Worker,
        settings: ReleaseSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._ledger = ledger
        self._lanes = lanes
        self._worker = worker
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._since: dict[str, float] = {}
        self._sweeping: dict[str, int | None] = {}

    def configure(self, settings: ReleaseSettings) -> None:
        """Go by other numbers from now on."""
        self._settings = settings

    async def run(self) -> None:
        """Look every `every_s`, until cancelled."""
        while True:
            await self._clock.sleep(self._settings.every_s)
            try:
                await self.step()
            except Exception as error:  # A defect too: what is held must not stay so for ever.
                self._telemetry.event("release_failed", code=code_of(error))

    def sweep(self, provider: str) -> None:
        """Let go once all that waits for a provider now, at the usual pace: there is another way by now."""
        self._sweeping[provider] = None  # How many that are is known at the next look.

    async def step(self) -> None:
        """Look once at every provider."""
        held = await self._ledger.held()
        for lane in self._lanes.values():
            try:
                await self._look_at(lane, held.get(lane.name, 0))
            except Exception as error:  # One provider's trouble is not the others'.
                self._telemetry.event("release_failed", provider=lane.name, code=code_of(error))

    async def _look_at(self, lane: Lane, waiting: int) -> None:
        await self._let_go(lane, waiting)
        acquitted = lane.purge.acquitted[: self._settings.reconsidered_max]
        if acquitted:
            now = self._clock.time()
            leased = await self._ledger.reconsider(acquitted, now=now, wait_s=self._settings.credential_wait_s)
            lane.purge.acquitted = lane.purge.acquitted[len(acquitted) :] + leased
            count = len(acquitted) - len(leased)
            if count:
                self._telemetry.event("deliveries_reconsidered", provider=lane.name, count=count)
        gone = lane.purge.convicted()
        if gone:
            count = await self._ledger.invalidate(gone)
            self._telemetry.event("tokens_invalidated", provider=lane.name, count=count)

    async def _let_go(self, lane: Lane, waiting: int) -> None:
        if not waiting:
            self._since.pop(lane.name, None)
            self._sweeping.pop(lane.name, None)
            return
        count = lane.releasable(self._pace(lane.name), self._settings.trials)
        if lane.name in self._sweeping:
            left = self._sweeping.pop(lane.name)
            left = waiting if left is None else left
            count = max(count, min(left, self._pace(lane.name)))
            if left > count:
                self._sweeping[lane.name] = left - count
        if count:
            released = await self._ledger.release_held(lane.provider.name, now=self._clock.time(), limit=count)
            self._telemetry.event("held_released", provider=lane.name, count=released, left=waiting - released)
            self._worker.nudge()
        if not lane.recovered:
            self._since.pop(lane.name, None)

    def _pace(self, name: str) -> int:
        """How many to let go in this look: a tenth of the rate at first, the whole after `ramp_s`."""
        settings = self._settings
        now = self._clock.monotonic()
        begun = self._since.setdefault(name, now)
        share = min(1.0, 0.1 + 0.9 * (now - begun) / settings.ramp_s)
        return max(1, int(settings.rate_per_s * settings.every_s * share))
