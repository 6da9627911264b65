"""What processes tell each other, for a process that is alone: nothing in it outlives the process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from bellbuoy.clock import Clock
from bellbuoy.model.recipient import User
from bellbuoy.ports.shared import REMEMBERED_S, Circuit, Lock, Remembered, UserKey


class MemoryRecipients:
    """`bellbuoy.ports.shared.Recipients` of one process.

    Args:
        clock: for how long nothing is kept after a change.
        users_max: how many to know; the one kept longest ago makes room.
    """

    GUARD_S = 15.0

    live = True

    def __init__(self, *, clock: Clock, users_max: int = 50_000) -> None:
        self._clock = clock
        self._users_max = users_max
        self._users: OrderedDict[UserKey, User] = OrderedDict()
        self._changed: OrderedDict[UserKey | None, tuple[float, str]] = OrderedDict()
        self._listening: list[Callable[[UserKey | None], None]] = []

    async def find(self, tenant: str, user_id: str) -> User | None:
        """The user as last kept."""
        return self._users.get((tenant, user_id))

    async def keep(self, tenant: str, user: User, *, after: str = "") -> bool:
        """Remember it, unless it was changed a moment ago."""
        key, now = (tenant, user.user_id), self._clock.monotonic()
        for one in (key, None):
            at, change = self._changed.get(one, (float("-inf"), ""))
            if now - at < self.GUARD_S and (one is None or change != after):
                return False
        self._users[key] = user
        self._users.move_to_end(key)
        if len(self._users) > self._users_max:
            self._users.popitem(last=False)
        return True

    async def forget(self, keys: Sequence[UserKey] | None, *, change: str) -> None:
        """They were changed."""
        now = self._clock.monotonic()
        while self._changed and now - next(iter(self._changed.values()))[0] >= self.GUARD_S:
            self._changed.popitem(last=False)
        if keys is None:
            self._users.clear()
        for key in keys if keys is not None else (None,):
            self._changed[key] = (now, change)
            self._changed.move_to_end(key)
            if key is not None:
                self._users.pop(key, None)
            for changed in self._listening:
                changed(key)

    def listen(self, changed: Callable[[UserKey | None], None]) -> None:
        """Have `changed` called with each user that is forgotten."""
        self._listening.append(changed)


class MemoryIdempotency:
    """`bellbuoy.ports.shared.IdempotencyMemory` of one process.

    Args:
        clock: for how long a key is remembered.
        keys_max: how many to remember; the oldest makes room.
    """

    def __init__(self, *, clock: Clock, keys_max: int = 100_000) -> None:
        self._clock = clock
        self._keys_max = keys_max
        self._known: OrderedDict[str, tuple[float, Remembered]] = OrderedDict()

    async def find(self, ids: Sequence[str]) -> Mapping[str, Remembered]:
        """What is known of these ids."""
        now = self._clock.monotonic()
        return {one: known[1] for one in ids if (known := self._known.get(one)) and known[0] > now}

    async def remember(self, accepted: Sequence[Remembered]) -> None:
        """These were confirmed by a home."""
        now = self._clock.monotonic()
        for one in accepted:
            known = self._known.get(one.id)
            if known is None or known[0] <= now:
                self._known[one.id] = (now + REMEMBERED_S, one)
                self._known.move_to_end(one.id)
        while len(self._known) > self._keys_max:
            self._known.popitem(last=False)


class MemoryFlags:
    """`bellbuoy.ports.shared.FlagStore` of one process."""

    def __init__(self) -> None:
        self._flags: dict[str, bool] = {}
        self._listening: list[Callable[[], None]] = []

    async def read(self) -> Mapping[str, bool]:
        """All that were switched."""
        return dict(self._flags)

    async def write(self, name: str, on: bool | None) -> None:
        """Switch one on or off; None forgets it."""
        if on is None:
            self._flags.pop(name, None)
        else:
            self._flags[name] = on
        for changed in self._listening:
            changed()

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called after each switch."""
        self._listening.append(changed)


class MemoryAnnouncements:
    """`bellbuoy.ports.shared.Announcements` of one process."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._modes: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def announce(self, worker: str, modes: Sequence[str], *, life_s: float) -> None:
        """`worker` is in these modes, for `life_s` seconds."""
        self._modes[worker] = (self._clock.monotonic() + life_s, tuple(modes))

    async def withdraw(self, worker: str) -> None:
        """`worker` is no more."""
        self._modes.pop(worker, None)

    async def announced(self) -> Mapping[str, tuple[str, ...]]:
        """Every worker that announced itself and its modes."""
        now = self._clock.monotonic()
        self._modes = {worker: said for worker, said in self._modes.items() if said[0] > now}
        return {worker: modes for worker, (_, modes) in self._modes.items()}


class MemoryRateLimit:
    """`bellbuoy.ports.shared.RateLimit` of one process."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}

    async def reserve(self, name: str, *, rate_per_s: float, burst: int, wait_s_max: float) -> float | None:
        """Seconds until the place that was taken may be used; None when that is too long."""
        now, interval = self._clock.monotonic(), 1.0 / rate_per_s
        due = max(now, self._due.get(name, now))
        wait = max(0.0, due - interval * (burst - 1) - now)
        if wait > wait_s_max:
            return None
        self._due[name] = due + interval
        return wait


class MemoryLocks:
    """`bellbuoy.ports.shared.Locks` of one process."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._fences: dict[str, int] = {}
        self._held: dict[str, tuple[float, Lock]] = {}

    async def acquire(self, name: str, owner: str, *, lease_s: float) -> Lock | None:
        """The lock, None when somebody has it."""
        now = self._clock.monotonic()
        if name in self._held and self._held[name][0] > now:
            return None
        # The time, so that it also grows from one process to the next.
        self._fences[name] = max(int(self._clock.time() * 1e6), self._fences.get(name, 0) + 1)
        lock = Lock(name, owner, self._fences[name])
        self._held[name] = (now + lease_s, lock)
        return lock

    async def renew(self, lock: Lock, *, lease_s: float) -> bool:
        """Keep it for `lease_s` seconds from now; False when it is lost."""
        if not self._has(lock):
            return False
        self._held[lock.name] = (self._clock.monotonic() + lease_s, lock)
        return True

    async def release(self, lock: Lock) -> bool:
        """Give it back; False when it was lost before."""
        if not self._has(lock):
            return False
        del self._held[lock.name]
        return True

    def _has(self, lock: Lock) -> bool:
        until, holder = self._held.get(lock.name, (float("-inf"), lock))
        return holder == lock and until > self._clock.monotonic()


class MemoryCircuits:
    """`bellbuoy.ports.shared.Circuits` of one process."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._circuits: dict[str, tuple[str, float, int]] = {}
        self._leaves: dict[str, tuple[str, float]] = {}

    async def read(self, name: str) -> Circuit:
        """What is known of a breaker."""
        state, until, version = self._circuits.get(name, ("closed", 0.0, 0))
        return Circuit(state, max(0.0, until - self._clock.monotonic()), version)

    async def publish(self, name: str, state: str, open_s: float, version: int) -> bool:
        """Write over `version`; False when somebody else has written since."""
        if self._circuits.get(name, ("", 0.0, 0))[2] != version:
            return False
        self._circuits[name] = (state, self._clock.monotonic() + open_s, version + 1)
        return True

    async def lease_probe(self, name: str, owner: str, lease_s: float) -> bool:
        """Leave to probe, for one owner at a time."""
        now = self._clock.monotonic()
        holder, until = self._leaves.get(name, (owner, now))
        if holder != owner and until > now:
            return False
        self._leaves[name] = (owner, now + lease_s)
        return True

    async def release_probe(self, name: str, owner: str) -> None:
        """Give the leave back."""
        if self._leaves.get(name, ("", 0.0))[0] == owner:
            del self._leaves[name]
