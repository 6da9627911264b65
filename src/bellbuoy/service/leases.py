"""Giving back what processes of this machine had in hand when they ended without a word.

Their leases would end by themselves, a minute later. But who holds the lock of a folder knows that whoever had it
before is no more: the system lets go of a lock when its process ends, and never earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from bellbuoy.clock import Clock
from bellbuoy.errors import StoreError
from bellbuoy.intake.homes import Homes
from bellbuoy.ports.operations import Telemetry

NAMES_MAX = 1_000
"""Processes that are remembered until their leases are given back; more have leases that ended long ago."""

LOOK_S = 1.0
"""Seconds between two looks at whether it can be done."""


class LeftLeases:
    """Gives back the leases of those who had this process's folders before it, and writes down its own name there.

    Args:
        own: the lock file of this process's folder; it holds the names of who had it.
        left: those of folders that ended processes left.
        owner: this process, as leases name it.
        homes: the way to the ledger.
        clock: for waiting.
        telemetry: is told what was given back.
    """

    def __init__(
        self, own: IO[str], left: Sequence[IO[str]], *, owner: str, homes: Homes, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._own = own
        self._owner = owner
        self._homes = homes
        self._clock = clock
        self._telemetry = telemetry
        self._gone = [name for file in (own, *left) for name in _names(file)][-NAMES_MAX:]
        # First into ours, so that a crash in between forgets none.
        _write(own, [*self._gone, owner])
        for file in left:
            _write(file, [])

    async def run(self) -> None:
        """Do it once the ledger knows all that was done without it; then there is nothing left to do.

        Before that another worker could send what the ended process had sent already.
        """
        while self._gone:
            await self._clock.sleep(LOOK_S)
            if self._homes.away or self._homes.kept.pending():
                continue
            try:
                now = self._clock.time()
                count = sum([await self._homes.hand_back(name, now=now) for name in self._gone])
            except StoreError as error:
                self._telemetry.event("hand_back_failed", code=error.code)
                continue
            self._gone = []
            _write(self._own, [self._owner])
            if count:
                self._telemetry.event("leases_recovered", count=count)
                self._homes.nudge()


def _names(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.read().split()


def _write(file: IO[str], names: Sequence[str]) -> None:
    file.seek(0)
    file.truncate()
    file.write("\n".join(names))
    file.flush()
