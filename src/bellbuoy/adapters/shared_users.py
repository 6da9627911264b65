"""Recipients that this process and the others remember together, in front of the ledger that keeps them.

The ledger is asked unless it said the same a moment ago and every change since would have been heard of. When it is
away the last known state is taken: this process's own, if it has heard of every change; else what all share; else its
own.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from bellbuoy.adapters.memory import ChangesSeen
from bellbuoy.clock import Clock
from bellbuoy.errors import StoreError, Unavailable
from bellbuoy.model.recipient import User
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.shared import Recipients, UserKey

ASK_S = 0.25
"""Seconds for asking the others' memory, and for telling it of a change before the change is confirmed."""

KEEP_WITHIN_S = 5.0
"""Seconds after which what was read is too old to be shared."""

AGAIN_S = 3600.0
"""Seconds after which a user who has not changed is shared anew."""

PAUSE_S = 1.0
"""Seconds before what could not be shared is tried again."""

READ_BACK_MAX = 100
"""Users that may be changed at once and are still read back to be shared; an import is not."""

OWED_MAX = 10_000
"""Users that are to be shared, and changes that are to be told; with more of these, everybody is told to forget all."""


class _Known(Struct):
    """`stale`: a change may have been missed since. `shared_at`: when the others took it, minus infinity for never."""

    user: User | None
    read_at: float
    stale: bool = False
    shared_at: float = float("-inf")


class SharedUsers(ChangesSeen):
    """A ledger whose recipients are remembered, here and by all; everything else passes through.

    Args:
        ledger: where the recipients are kept.
        recipients: what all share.
        users_max: how many to remember here; the one not asked for longest makes room.
        owner: names this process among those that share.
        fresh_s: seconds for which the ledger is not asked again; 0 asks it every time.
        clock: for these.
    """

    def __init__(
        self, ledger: Ledger, recipients: Recipients, *, owner: str, users_max: int, fresh_s: float, clock: Clock
    ) -> None:
        super().__init__(ledger)
        self._recipients = recipients
        self._changes_named = (f"{owner}:{n}" for n in itertools.count())
        self._users_max = users_max
        self._fresh_s = self._fresh_usually_s = fresh_s
        self._clock = clock
        self._known: OrderedDict[UserKey, _Known] = OrderedDict()
        self._changes = 0
        self._to_share: OrderedDict[UserKey, _Known] = OrderedDict()
        self._to_read: OrderedDict[UserKey, str] = OrderedDict()
        self._to_tell: set[UserKey] = set()
        self._all_to_tell = False
        self._wake = asyncio.Event()
        recipients.listen(self._changed)

    async def user(self, tenant: str, user_id: str) -> User | None:
        """The user as the ledger has it or, when it does not answer, as it is known to have been last.

        Raises:
            Unavailable: it does not answer, and nobody knows the user.
        """
        key, now = (tenant, user_id), self._clock.monotonic()
        known = self._known.get(key)
        if known is not None and not known.stale and self._recipients.live and now - known.read_at < self._fresh_s:
            return known.user
        changes = self._changes
        try:
            user = await self._ledger.user(tenant, user_id)
        except Unavailable:
            return await self._last_known(key)
        # What was read before a change must not be remembered after it.
        if changes == self._changes:
            self._remember(key, _Known(user, now), known)
        return user

    def prefer_cache(self, *, always: bool, fresh_s: float) -> None:
        """Ask the ledger only about whom is not known, or was asked about over `fresh_s` seconds ago."""
        self._fresh_s = float("inf") if always else max(fresh_s, self._fresh_usually_s)

    def _remember(self, key: UserKey, fresh: _Known, before: _Known | None) -> None:
        if before is not None and before.user == fresh.user:
            fresh.shared_at = before.shared_at
        self._known[key] = fresh
        self._known.move_to_end(key)
        if len(self._known) > self._users_max:
            self._known.popitem(last=False)
        if fresh.user is not None and fresh.read_at - fresh.shared_at > AGAIN_S:
            self._to_share[key] = fresh
            if len(self._to_share) > OWED_MAX:
                self._to_share.popitem(last=False)
            self._wake.set()

    async def _last_known(self, key: UserKey) -> User | None:
        known = self._known.get(key)
        if known is not None and not known.stale and self._recipients.live:
            return known.user
        try:
            async with asyncio.timeout(ASK_S):
                shared = await self._recipients.find(*key)
        except (StoreError, TimeoutError):
            shared = None
        if shared is not None:
            return shared
        if known is None:
            raise Unavailable("the ledger is away, and nobody knows the recipient", retry_after_s=1.0)
        return known.user

    def drop_cache(self) -> None:
        """Forget everything that is remembered here; what all share stays."""
        self._changes += 1
        self._known.clear()
        self._to_share.clear()

    # Changes.

    async def _forget(self, keys: Sequence[UserKey] | None) -> None:
        for key in keys if keys is not None else (None,):
            self._changed(key)
        change = next(self._changes_named)
        try:
            async with asyncio.timeout(ASK_S):
                await self._recipients.forget(keys, change=change)
            self._read_later(keys, change)
        except (StoreError, TimeoutError):
            # It is told as soon as that can be done; meanwhile the others ask the ledger again after `fresh_s`.
            self._to_tell.update(keys or ())
            self._all_to_tell = self._all_to_tell or keys is None or len(self._to_tell) > OWED_MAX
            self._wake.set()

    def _changed(self, key: UserKey | None) -> None:
        self._changes += 1
        if key is not None:
            self._known.pop(key, None)
            self._to_share.pop(key, None)
            return
        self._to_share.clear()
        for known in self._known.values():
            known.stale = True

    # Sharing.

    async def run(self) -> None:
        """Tell the others what they are owed, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._share()
            except Exception:  # A defect too: if this loop ended, nobody would be told of anything any more.
                self._wake.set()
                await self._clock.sleep(PAUSE_S)

    async def _share(self) -> None:
        """Changes first; then users, unless they were read so long ago that a change may have been forgotten since."""
        if self._all_to_tell:
            await self._recipients.forget(None, change=next(self._changes_named))
            self._all_to_tell = False
            self._to_tell.clear()
        while self._to_tell:
            some = list(self._to_tell)[:READ_BACK_MAX]
            change = next(self._changes_named)
            await self._recipients.forget(some, change=change)
            self._to_tell.difference_update(some)
            self._read_later(some, change)
        while self._to_read:
            await self._read_back(*self._to_read.popitem(last=False))
        while self._to_share:
            key, known = next(iter(self._to_share.items()))
            now = self._clock.monotonic()
            timely = now - known.read_at < KEEP_WITHIN_S
            if timely and known.user is not None and await self._recipients.keep(key[0], known.user):
                known.shared_at = now
            if self._to_share.get(key) is known:
                del self._to_share[key]

    def _read_later(self, keys: Sequence[UserKey] | None, change: str) -> None:
        if keys is not None and len(keys) <= READ_BACK_MAX and len(self._to_read) < OWED_MAX:
            self._to_read.update((key, change) for key in keys)
            self._wake.set()

    async def _read_back(self, key: UserKey, change: str) -> None:
        """Share what this process has just changed: the next who needs it may have no ledger to ask."""
        try:
            user = await self._ledger.user(*key)
        except StoreError:
            return
        if user is not None:
            await self._recipients.keep(key[0], user, after=change)
