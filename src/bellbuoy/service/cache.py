"""What processes tell each other, as the rest of the service uses it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bellbuoy.ports.shared import (
    Announcements,
    Circuits,
    FlagStore,
    IdempotencyMemory,
    Locks,
    RateLimit,
    Recipients,
)
from bellbuoy.service.watch import WatchedCache


@dataclass
class Cache:
    """Hints that processes share. `watched` is the server's guard, None where this process shares them with nobody."""

    recipients: Recipients
    idempotency: IdempotencyMemory
    flags: FlagStore
    announcements: Announcements
    limits: RateLimit
    locks: Locks
    circuits: Circuits
    watched: WatchedCache | None = None


class Sharing(Protocol):
    """Something that keeps in step with other processes."""

    async def run(self) -> None:
        """Do so until cancelled."""
        ...
