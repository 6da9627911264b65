"""Recipients that are remembered in this process, in front of the registry that keeps them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from bellbuoy.clock import Clock
from bellbuoy.errors import Unavailable
from bellbuoy.model.operation import Tombstone
from bellbuoy.model.recipient import Device, User
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.shared import UserKey


class ChangesSeen(ABC):
    """A ledger that sees which users are changed through it; everything else passes through."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        # Looked up for every notification, so found at once.
        self.accept, self.save, self.claim = ledger.accept, ledger.save, ledger.claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def put_users(self, tenant: str, users: Sequence[User], *, now: float, keep_devices: Sequence[bool]) -> None:
        """Write users and forget what was remembered of them."""
        try:
            await self._ledger.put_users(tenant, users, now=now, keep_devices=keep_devices)
        finally:
            await self._forget([(tenant, user.user_id) for user in users])

    async def delete_user(self, tenant: str, user_id: str) -> None:
        """Forget a user, here and in the ledger."""
        try:
            await self._ledger.delete_user(tenant, user_id)
        finally:
            await self._forget([(tenant, user_id)])

    async def put_device(self, tenant: str, user_id: str, device: Device, *, now: float) -> User:
        """Add or replace a device."""
        try:
            return await self._ledger.put_device(tenant, user_id, device, now=now)
        finally:
            await self._forget([(tenant, user_id)])

    async def delete_device(self, tenant: str, user_id: str, device_id: str) -> None:
        """Forget a device."""
        try:
            await self._ledger.delete_device(tenant, user_id, device_id)
        finally:
            await self._forget([(tenant, user_id)])

    async def invalidate(self, tombstones: Sequence[Tombstone]) -> int:
        """Stop using tokens."""
        try:
            return await self._ledger.invalidate(tombstones)
        finally:
            await self._forget([(one.tenant, one.user_id) for one in tombstones])

    async def restore(self, tenant: str, **which: Any) -> int:
        """Take tokens back."""
        try:
            return await self._ledger.restore(tenant, **which)
        finally:
            await self._forget(None)

    @abstractmethod
    def drop_cache(self) -> None:
        """Forget everything that is remembered; it is asked for again."""

    @abstractmethod
    async def _forget(self, keys: Sequence[UserKey] | None) -> None:
        """These users, or with None any number, may not be as they were; called after a write that failed, too."""


class CachedLedger(ChangesSeen):
    """A ledger whose recipients are remembered; everything else passes through.

    Right only where this process makes every change to recipients, which is so when it owns the ledger's file.

    Args:
        ledger: where the recipients are kept.
        users_max: how many to remember; the one not asked for longest makes room.
    """

    def __init__(self, ledger: Ledger, *, users_max: int) -> None:
        super().__init__(ledger)
        self._users_max = users_max
        self._users: OrderedDict[UserKey, User | None] = OrderedDict()
        self._changes = 0

    async def user(self, tenant: str, user_id: str) -> User | None:
        """The user, None when unknown; unknown ones are remembered as such."""
        key = (tenant, user_id)
        if key in self._users:
            self._users.move_to_end(key)
            return self._users[key]
        changes = self._changes
        user = await self._ledger.user(tenant, user_id)
        # What was read before a change must not be remembered after it.
        if changes == self._changes:
            self._users[key] = user
            if len(self._users) > self._users_max:
                self._users.popitem(last=False)
        return user

    def drop_cache(self) -> None:
        self._changes += 1
        self._users.clear()

    def prefer_cache(self, *, always: bool, fresh_s: float) -> None:
        """It always does: nobody else changes what it remembers."""

    async def _forget(self, keys: Sequence[UserKey] | None) -> None:
        self._changes += 1
        if keys is None:
            self._users.clear()
        for key in keys or ():
            self._users.pop(key, None)


class RememberedUsers:
    """A ledger whose recipients are remembered for the time in which it is away; everything else passes through.

    It is asked every time, so what is remembered is never used while the ledger answers; unless the cache is to be
    preferred, since the ledger is slow: then what others change meanwhile is not seen for as long.

    Args:
        ledger: where the recipients are kept.
        users_max: how many to remember; the one not asked for longest makes room.
        clock: for how old they are.
    """

    def __init__(self, ledger: Ledger, *, users_max: int, clock: Clock) -> None:
        self._ledger = ledger
        self._users_max = users_max
        self._clock = clock
        self._users: OrderedDict[UserKey, tuple[User | None, float]] = OrderedDict()
        self._fresh_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def user(self, tenant: str, user_id: str) -> User | None:
        """The user as the ledger has it, or as it last had it when it does not answer. Raises Unavailable."""
        key, now = (tenant, user_id), self._clock.monotonic()
        known = self._users.get(key)
        if known is not None and now - known[1] < self._fresh_s:
            return known[0]
        try:
            user = await self._ledger.user(tenant, user_id)
        except Unavailable:
            if known is None:
                raise
            return known[0]
        self._users[key] = user, now
        self._users.move_to_end(key)
        if len(self._users) > self._users_max:
            self._users.popitem(last=False)
        return user

    def prefer_cache(self, *, always: bool, fresh_s: float) -> None:
        """Ask the ledger only about whom is not remembered, or was asked about over `fresh_s` seconds ago."""
        self._fresh_s = float("inf") if always else fresh_s

    def drop_cache(self) -> None:
        """Forget everything that is remembered."""
        self._users.clear()
