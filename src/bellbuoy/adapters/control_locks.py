"""Locks over a control store: for the processes of one machine, or of all who share its store.

A lock is a document that names its owner, its fence and when its lease ends, by the wall clock of whoever wrote it.
Machines whose clocks differ by more than a lease may both believe to have it, which the fence then settles.
"""

from __future__ import annotations

import contextlib

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, StoreError
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.shared import Lock, Locks


class _Lease(Struct):
    owner: str
    until: float
    fence: int


_decode = msgspec.json.Decoder(_Lease).decode
_encode = msgspec.json.Encoder().encode


class LayeredLocks:
    """Locks that hold on this machine in any case, and between machines while `far` is there.

    Args:
        near: always asked, and whose fence counts.
        far: asked as well; while it is away those of `near` have to do.
    """

    def __init__(self, near: Locks, far: Locks) -> None:
        self._near = near
        self._far = far
        self._both: dict[Lock, Lock] = {}

    async def acquire(self, name: str, owner: str, *, lease_s: float) -> Lock | None:
        near = await self._near.acquire(name, owner, lease_s=lease_s)
        if near is None:
            return None
        try:
            far = await self._far.acquire(name, owner, lease_s=lease_s)
        except StoreError:
            return near
        if far is None:
            await self._near.release(near)
            return None
        self._both[near] = far
        return near

    async def renew(self, lock: Lock, *, lease_s: float) -> bool:
        kept = await self._near.renew(lock, lease_s=lease_s)
        far = self._both.get(lock)
        if far is None or not kept:
            return kept
        try:
            return await self._far.renew(far, lease_s=lease_s)
        except StoreError:
            return True

    async def release(self, lock: Lock) -> bool:
        far = self._both.pop(lock, None)
        released = await self._near.release(lock)
        if far is not None:
            with contextlib.suppress(StoreError):  # Its lease ends by itself.
                await self._far.release(far)
        return released


class ControlLocks:
    """Implements `bellbuoy.ports.shared.Locks`.

    Args:
        store: where they are kept.
        clock: for the ends of leases.
    """

    def __init__(self, store: ControlStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def acquire(self, name: str, owner: str, *, lease_s: float) -> Lock | None:
        lease, version = await self._find(name)
        now = self._clock.time()
        # What ends later than two leases from now was written by a clock that was wrong, and may be nobody's.
        if now < lease.until <= now + 2 * lease_s:
            return None
        taken = _Lease(owner, now + lease_s, lease.fence + 1)
        return Lock(name, owner, taken.fence) if await self._write(name, taken, version) else None

    async def renew(self, lock: Lock, *, lease_s: float) -> bool:
        lease, version = await self._find(lock.name)
        now = self._clock.time()
        # One whose lease has ended has lost it, although nobody else has taken it yet.
        if lease.fence != lock.fence or lease.until <= now:
            return False
        return await self._write(lock.name, replace(lease, until=now + lease_s), version)

    async def release(self, lock: Lock) -> bool:
        lease, version = await self._find(lock.name)
        if lease.fence != lock.fence:
            return False
        # Also when its time is over, since a clock that is set back would bring that time back.
        return await self._write(lock.name, replace(lease, until=0.0), version) and lease.until > self._clock.time()

    async def _find(self, name: str) -> tuple[_Lease, int]:
        kept = await self._store.read("lease", name)
        return (_decode(kept.data), kept.version) if kept else (_Lease("", 0.0, 0), 0)

    async def _write(self, name: str, lease: _Lease, version: int) -> bool:
        try:
            await self._store.write("lease", name, _encode(lease), version=version)
        except Conflict:
            return False
        return True
