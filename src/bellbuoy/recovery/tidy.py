"""Forgetting incidents and sagas that are over, so that what operating the service has to remember stays small."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import msgspec

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, code_of
from bellbuoy.model.operation import Incident
from bellbuoy.ports.control import ControlStore, Kept, Kind
from bellbuoy.ports.operations import Telemetry
from bellbuoy.resilience import SagaState

KEPT_MAX: Mapping[Kind, int] = {"incident": 400, "saga": 400}
"""How many of a kind are kept, those that are not over besides; fewer than are listed, so none is ever out of sight."""

LOOKED_AT = 1_000
"""How many are looked at in one round, those that were written last; more go in the rounds after it."""

EVERY_S = 600.0

_incident = msgspec.json.Decoder(Incident).decode
_saga = msgspec.json.Decoder(SagaState).decode


class Tidying:
    """Runs beside recovery.

    Args:
        stores: what is kept where; the same one twice does no harm.
        clock, telemetry: time, and who is told.
    """

    def __init__(self, stores: Sequence[ControlStore], *, clock: Clock, telemetry: Telemetry) -> None:
        self._stores = stores
        self._clock = clock
        self._telemetry = telemetry

    async def run(self) -> None:
        """Make a round every `EVERY_S` seconds, until cancelled."""
        while True:
            try:
                await self.round()
            except Exception as error:  # A defect too: the next round may fare better.
                self._telemetry.event("retention_failed", code=code_of(error))
            await self._clock.sleep(EVERY_S)

    async def round(self) -> None:
        """Forget what is over and has `KEPT_MAX` newer ones. Raises Unavailable."""
        for store in self._stores:
            for kind, most in KEPT_MAX.items():
                for one in (await store.page(kind, limit=LOOKED_AT))[most:]:
                    if _OVER[kind](one):
                        with contextlib.suppress(Conflict):  # Somebody has just written it, so it is not old.
                            await store.delete(kind, one.id, version=one.version)


def _incident_over(one: Kept) -> bool:
    return _incident(one.data).status == "resolved"


def _saga_over(one: Kept) -> bool:
    return _saga(one.data).over


_OVER: Mapping[Kind, Callable[[Kept], bool]] = {"incident": _incident_over, "saga": _saga_over}
