"""What processes tell each other beside the homes: hints, each of which may be lost, late or away at any time.

Nothing here is a home. A notification that was accepted does not depend on it, and whoever uses one of these says what
it does instead when the call raises Unavailable or Full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from bellbuoy.model.delivery import NotificationStatus
from bellbuoy.model.recipient import User

UserKey = tuple[str, str]
"""A tenant and a user's id in it."""

REMEMBERED_S = 24 * 3600.0
"""Seconds for which an Idempotency-Key is remembered here; the ledger remembers it for longer."""


class Recipients(Protocol):
    """The last known state of users, for the time in which the ledger cannot say."""

    async def find(self, tenant: str, user_id: str) -> User | None:
        """The user as last kept; None when nothing is known. Raises Unavailable."""
        ...

    async def keep(self, tenant: str, user: User, *, after: str = "") -> bool:
        """Remember what the ledger just said; False when it may be old, since the user was changed a moment ago.

        Args:
            after: the last change that the ledger had certainly made when it was read, empty when none is known of.
        """
        ...

    async def forget(self, keys: Sequence[UserKey] | None, *, change: str) -> None:
        """Somebody changed these users (None: any number of them): every process is told, and nothing is known of them.

        For some seconds nothing is kept of them either, since somebody may have read them before the change. `change`
        names it, unlike any other; what was read after it may be kept.
        """
        ...

    def listen(self, changed: Callable[[UserKey | None], None]) -> None:
        """Have `changed` called with each user that is forgotten; with None when any may have changed."""
        ...

    @property
    def live(self) -> bool:
        """Whether every change is heard of at this moment."""
        ...


class Remembered(Struct, frozen=True):
    """That a home confirmed a notification under a key, and what its client was told.

    `accepted_at` is in epoch seconds, `body_hash` as in `ports.ledger.Offer`.
    """

    id: str
    body_hash: bytes
    answered: NotificationStatus
    homes: tuple[str, ...]
    accepted_at: float


class IdempotencyMemory(Protocol):
    """Which keys were used in the last day. What it does not know may have been used all the same."""

    async def find(self, ids: Sequence[str]) -> Mapping[str, Remembered]:
        """What is known of these ids. Raises Unavailable."""
        ...

    async def remember(self, accepted: Sequence[Remembered]) -> None:
        """These were confirmed by a home; what is known of an id already stays. Raises Full, Unavailable."""
        ...


class FlagStore(Protocol):
    """Operators' switches."""

    async def read(self) -> Mapping[str, bool]:
        """All that were ever switched. Raises Unavailable."""
        ...

    async def write(self, name: str, on: bool | None) -> None:
        """Switch one on or off; None forgets it. Raises Full, Unavailable."""
        ...

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called soon after a switch, in every process, and when one may have been missed."""
        ...


class Announcements(Protocol):
    """Who works in which modes."""

    async def announce(self, worker: str, modes: Sequence[str], *, life_s: float) -> None:
        """`worker` is in these modes; forgotten after `life_s` seconds unless announced again."""
        ...

    async def withdraw(self, worker: str) -> None:
        """`worker` is no more."""
        ...

    async def announced(self) -> Mapping[str, tuple[str, ...]]:
        """Every worker that announced itself and its modes. Raises Unavailable."""
        ...


class RateLimit(Protocol):
    """So many a second over all who take from the same name: the generic cell rate algorithm (ITU-T I.371)."""

    async def reserve(self, name: str, *, rate_per_s: float, burst: int, wait_s_max: float) -> float | None:
        """Take one place.

        Args:
            rate_per_s: places a second; `burst` may be taken at once after a pause.
            wait_s_max: longest wait, in seconds, that is accepted.

        Returns:
            Seconds to wait until the place may be used; None when that is more than `wait_s_max`: nothing was taken.
        """
        ...


class Lock(Struct, frozen=True):
    """A lock that `owner` has until its lease ends.

    `fence` grows each time anybody gets the lock of this name. Whoever was frozen past the lease still believes to have
    it, so whatever is written under a lock names its fence, and a lower one than the highest seen is refused there.
    """

    name: str
    owner: str
    fence: int


class Locks(Protocol):
    """Leave for one at a time. A lease, not a guarantee: what must not happen twice is guarded by the fence."""

    async def acquire(self, name: str, owner: str, *, lease_s: float) -> Lock | None:
        """The lock, None when somebody has it, `owner` included. Raises Full, Unavailable."""
        ...

    async def renew(self, lock: Lock, *, lease_s: float) -> bool:
        """Keep it for `lease_s` seconds from now; False when it is lost."""
        ...

    async def release(self, lock: Lock) -> bool:
        """Give it back; False, and nothing changes, when it was lost before."""
        ...


class Circuit(Struct, frozen=True):
    """A breaker's state as told last: open for `open_s` more seconds; `version` grows by one with each change."""

    state: str
    open_s: float
    version: int


class Circuits(Protocol):
    """Where breakers of several processes meet; its own clock is the only one whose times count."""

    async def read(self, name: str) -> Circuit:
        """What is known of a breaker: closed and version 0 when nothing is."""
        ...

    async def publish(self, name: str, state: str, open_s: float, version: int) -> bool:
        """Write over `version`; False when somebody else has written since."""
        ...

    async def lease_probe(self, name: str, owner: str, lease_s: float) -> bool:
        """Leave to probe, for one owner at a time; whoever has it gets it for longer."""
        ...

    async def release_probe(self, name: str, owner: str) -> None:
        """Give the leave back; changes nothing unless `owner` has it."""
        ...
