"""How the ledger stands: whether it takes things, and whether it knows all that was done meanwhile."""

from __future__ import annotations

from bellbuoy.clock import Clock
from bellbuoy.errors import Full, StoreError
from bellbuoy.model.operation import Issue
from bellbuoy.ports.operations import Telemetry


class Standing:
    """What is noticed of the ledger at real work. Who meets a failure says so, and healing says when it is over.

    Args:
        beside: whether a queue is beside the ledger, so that work goes on without it.
        clock: for the time of an issue.
        telemetry: is told of the issue, and that it is over.
    """

    def __init__(self, *, beside: bool, clock: Clock, telemetry: Telemetry) -> None:
        self._beside = beside
        self._clock = clock
        self._telemetry = telemetry
        self._away = False
        self._ailing = False

    @property
    def away(self) -> bool:
        """Whether the ledger failed, and what was done meanwhile may not have come to it yet."""
        return self._away

    @property
    def ailing(self) -> bool:
        """Whether the ledger refused something, and has not been found well since."""
        return self._ailing

    def doubt(self) -> None:
        """Somebody may have worked without the ledger, so it may not know all that was done."""
        self._away = self._beside

    def lost(self, error: StoreError) -> None:
        """It refused something."""
        name = "disk_full" if isinstance(error, Full) else "database_down"
        self._telemetry.raise_issue(Issue(name, "homes", f"the ledger takes nothing: {error.code}", self._clock.time()))
        self._ailing = True
        self.doubt()

    def well(self) -> None:
        """It takes things again."""
        self._ailing = False
        for name in ("database_down", "disk_full"):
            self._telemetry.clear_issue(name, "homes")

    def caught_up(self) -> None:
        """It takes things again, and is worked from: what was done meanwhile has come to it as far as one can tell."""
        self._away = False
        self.well()
