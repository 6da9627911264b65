"""More or fewer workers, within bounds, and back again: one port, whatever does it.

Scaling is asked for under a name, so that asking again after a crash changes nothing, and asking back under the same
name takes back just that.
"""

from __future__ import annotations

from typing import Protocol


class Scaling(Protocol):
    """What can change how many workers there are."""

    @property
    def able(self) -> bool:
        """Whether it can be changed here at all."""
        ...

    async def scale(self, factor: float, *, why: str) -> None:
        """Have `factor` times as many workers as usual, within bounds, for the reason `why` until it is taken back.

        Raises:
            Unavailable: it could not be asked for.
        """
        ...

    async def scale_back(self, *, why: str) -> None:
        """The reason is gone; without any other there are as many as usual."""
        ...

    async def replace(self, *, why: str) -> None:
        """Replace all workers one by one without losing a lease; once for each `why`."""
        ...


class Alone:
    """A process that nobody supervises: there is nothing to scale or to replace it with."""

    able = False

    async def scale(self, factor: float, *, why: str) -> None:
        """Nothing; the concurrency inside the process is what its modes change."""

    async def scale_back(self, *, why: str) -> None:
        """Nothing."""

    async def replace(self, *, why: str) -> None:
        """Nothing."""
