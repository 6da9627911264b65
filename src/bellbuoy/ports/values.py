"""Values that operators change while the service runs: flags, settings, templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from bellbuoy.model.change import Valued, ValueKind

VALUES_MAX = 500
"""The most values of one kind."""


class Values(Protocol):
    """Every value that was ever changed, with its versions, for all who share the store."""

    async def all(self, kind: ValueKind) -> Sequence[Valued]:
        """All of a kind, by name. Raises Unavailable."""
        ...

    async def find(self, kind: ValueKind, name: str) -> Valued:
        """One; without versions when it was never changed. Raises Unavailable."""
        ...

    async def change(self, kind: ValueKind, name: str, how: Callable[[Valued], Valued]) -> Valued:
        """Change one as `how` says, from what it is now; durable when this returns. What `how` leaves is not written.

        Args:
            how: may be called several times, since others may change the value meanwhile.

        Raises:
            Conflict: others change it all the time, or there are `VALUES_MAX` already.
            Full, Unavailable: the store did not take it; nothing has changed.
            Whatever `how` raises; nothing has changed then.
        """
        ...
