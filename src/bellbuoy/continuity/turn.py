"""One at a time writes to an archive: a lock that is renewed for as long as the work takes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bellbuoy.clock import Clock
from bellbuoy.errors import LeaseLost
from bellbuoy.ports.shared import Lock, Locks

T = TypeVar("T")

LOCK = "backup"
LEASE_S = 60.0


async def take_turn(locks: Locks, owner: str, work: Callable[[], Awaitable[T]], *, clock: Clock) -> tuple[T] | None:
    """Do `work` while nobody else does.

    Returns:
        What it returned, in a tuple; None when somebody else has the lock, and nothing was done.

    Raises:
        LeaseLost: the lock was lost in the middle; the work was cancelled.
        Full, Unavailable: the lock could not be asked for.
        Whatever `work` raises.
    """
    lock = await locks.acquire(LOCK, owner, lease_s=LEASE_S)
    if lock is None:
        return None
    working = asyncio.ensure_future(work())
    keeping = asyncio.ensure_future(_keep(locks, lock, clock))
    try:
        await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise LeaseLost("another process took over the backups")
        return (working.result(),)
    finally:
        for task in (working, keeping):
            task.cancel()
            with contextlib.suppress(BaseException):
                await task
        await locks.release(lock)


async def _keep(locks: Locks, lock: Lock, clock: Clock) -> None:
    """Renew the lock; returns when it is lost."""
    while True:
        await clock.sleep(LEASE_S / 3)
        if not await locks.renew(lock, lease_s=LEASE_S):
            return
