"""Run Bellbuoy's command line with one of its protections taken out: `python unprotected.py NAME serve ...`.

A drill that passes all the same shows nothing. The product itself has no switch for this.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from typing import Any

from bellbuoy.adapters.journal import segments
from bellbuoy.adapters.sqlite import notifications
from bellbuoy.adapters.sqlite.notifications import Notifications
from bellbuoy.adapters.transport.http2.connection import Untouched
from bellbuoy.continuity.vault import Vault
from bellbuoy.delivery import settle as settling
from bellbuoy.delivery.worker import Worker
from bellbuoy.errors import CredentialRejected, Permanent, RateLimited, RecipientGone, StoreError
from bellbuoy.intake.accept import Intake
from bellbuoy.intake.homes import Homes
from bellbuoy.intake.kept import Kept
from bellbuoy.model import transitions
from bellbuoy.model.identity import timed
from bellbuoy.ports.ledger import Offer, Taken
from bellbuoy.resilience import Bulkhead, Guard
from bellbuoy.service import restoring
from bellbuoy.service.cli.app import main
from bellbuoy.service.continuity import Continuity
from bellbuoy.service.drills.shifted import ShiftedClock
from bellbuoy.service.sections import Backup

FOR_EVER_S = 1e7


def no_retry() -> None:
    """The first failure is the last."""

    def give_up(record: Any, delivery: Any, now: float, wait_s: float, why: str, *, held: str | None = None) -> None:
        transitions.fail(record, delivery, now, exhausted=True, why=why)

    def once(self: Untouched, code: str, why: str, *, sendings_max: int = 3) -> None:
        self.code, self.why, self.sendings_max = code, why, 1

    put(transitions, "retry", give_up)
    put(Untouched, "__init__", once)


def no_hold() -> None:
    """What a provider in trouble cannot take now fails."""

    def give_up(self: Worker, record: Any, delivery: Any, why: str, wait_s: float) -> None:
        transitions.fail(record, delivery, self._clock.time(), exhausted=True, why=why)

    put(Worker, "_hold", give_up)


def no_guard() -> None:
    """An attempt lasts for as long as the provider likes."""

    async def call(self: Guard, fn: Callable[..., Any], *args: Any) -> Any:
        return await fn(*args)

    put(Guard, "call", call)


def one_bulkhead() -> None:
    """All providers share one place for an attempt."""
    places: list[asyncio.Semaphore] = []
    real = Bulkhead.call_at

    async def call_at(self: Bulkhead, priority: int, fn: Callable[..., Any], *args: Any) -> Any:
        if not places:
            places.append(asyncio.Semaphore(1))
        async with places[0]:
            return await real(self, priority, fn, *args)

    put(Bulkhead, "call_at", call_at)


def credentials_are_final() -> None:
    """A credential that is rejected fails the delivery."""
    judge = settling._judge

    def final(error: Exception, delivery: Any, rules: Any) -> Any:
        return ("permanent", 0.0, None) if isinstance(error, CredentialRejected) else judge(error, delivery, rules)

    put(settling, "_judge", final)


def permanent_is_retried() -> None:
    """What a provider rejects for good is tried again and again."""
    judge = settling._judge

    def again(error: Exception, delivery: Any, rules: Any) -> Any:
        return (
            ("retryable", 1.0, None) if isinstance(error, Permanent | RecipientGone) else judge(error, delivery, rules)
        )

    put(settling, "_judge", again)


def damage_stops_all() -> None:
    """A record that cannot be read is an error of whatever reads it."""
    put(notifications, "_readable", notifications.decode)


def early_answer() -> None:
    """The answer comes a second before the notification is safe."""
    real = Notifications.accept

    async def accept(self: Notifications, offers: Sequence[Offer]) -> list[Taken]:
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, lambda: late.add(loop.create_task(real(self, offers))))
        return [Taken("new", offer.record) for offer in offers]

    late: set[asyncio.Task[Any]] = set()
    put(Notifications, "accept", accept)


def accept_without_room() -> None:
    """Whatever the homes say, the answer is 202."""
    real = Homes.accept

    async def accept(self: Homes, offers: Sequence[Offer]) -> list[Taken]:
        try:
            return await real(self, offers)
        except StoreError:
            return [Taken("new", offer.record) for offer in offers]

    put(Homes, "accept", accept)


def leases_never_end() -> None:
    """What a worker took is its own for ever."""
    claim = Notifications.claim

    async def claim_for_ever(self: Notifications, owner: str, *, now: float, lease_s: float, limit: int) -> Any:
        return await claim(self, owner, now=now, lease_s=FOR_EVER_S, limit=limit)

    async def renew(self: Notifications, owner: str, *, until: float) -> int:
        return 0

    async def hand_back(self: Notifications, owner: str | None, *, now: float) -> int:
        return 0

    put(Notifications, "claim", claim_for_ever)
    put(Notifications, "renew", renew)
    put(Notifications, "hand_back", hand_back)
    worker_saves_for_ever()


def worker_saves_for_ever() -> None:
    """An attempt that is written down moves the lease on, so that has to be for ever too."""
    save = Notifications.save

    async def save_for_ever(self: Notifications, record: Any, fence: int, *, release: bool, **rest: Any) -> bool:
        due_at = rest.pop("due_at") if release else rest.pop("due_at") + FOR_EVER_S
        return await save(self, record, fence, release=release, due_at=due_at, **rest)

    put(Notifications, "save", save_for_ever)


def no_fence() -> None:
    """A worker whose lease ended may write as if it had not."""
    real = notifications._save

    def save(connection: Any, rows: Any) -> Any:
        newest = "SELECT fence FROM notifications WHERE id = ?"
        fences = [connection.execute(newest, (row[0].id,)).fetchall()[0][0] for row in rows]
        return real(connection, [(row[0], fence, *row[2:]) for row, fence in zip(rows, fences, strict=True)])

    put(notifications, "_save", save)


def no_deduplication() -> None:
    """Every request is a notification, whatever its key."""

    def identify(self: Intake, tenant: str, key: str | None, now: float) -> str:
        return timed(now, self._rng)

    put(Intake, "_identify", identify)


def one_clock() -> None:
    """Durations go by the clock on the wall."""
    put(ShiftedClock, "monotonic", ShiftedClock.time)


def no_checksum() -> None:
    """Whatever stands in the journal is an entry."""

    def sound(data: bytes, at: int, number: int) -> bytes | None:
        if at + segments._HEAD.size > len(data):
            return None
        size, _ = segments._HEAD.unpack_from(data, at)
        start = at + segments._HEAD.size
        return data[start : start + size] if start + size <= len(data) else None

    put(segments, "_sound", sound)


def damage_ends_the_journal() -> None:
    """Nothing is looked for behind an entry that does not check."""
    put(segments, "_beyond", lambda data, at, number: None)


def modes_refuse() -> None:
    """In whatever mode it works, it accepts nothing."""
    real = Intake.accept

    async def accept(self: Intake, *args: Any) -> Any:
        if self._circumstances().modes:
            raise RateLimited("not in this mode", retry_after_s=1.0)
        return await real(self, *args)

    put(Intake, "accept", accept)


def every_home_is_needed() -> None:
    """A notification has to be in both homes before the answer, and there is no journal."""

    async def first(self: Homes, offers: Sequence[Offer], queue: Any) -> list[Taken]:
        now = self._clock.time()
        taken = await self._written(offers, now)
        await self._queued(queue, offers, now)
        return taken

    async def refuse(self: Kept, offers: Sequence[Offer], why: StoreError) -> list[Taken]:
        raise why

    put(Homes, "_first", first)
    put(Kept, "put", refuse)


def redis_is_needed() -> None:
    """What may be done without has to answer first."""
    real = Homes.accept

    async def accept(self: Homes, offers: Sequence[Offer]) -> list[Taken]:
        if self._recall is not None:
            await self._recall._memory.find([offer.record.id for offer in offers])
        return await real(self, offers)

    put(Homes, "accept", accept)


def nothing_is_shipped() -> None:
    """What was changed since the last full backup stays on this disk."""

    async def step(self: Continuity) -> None:
        return None

    put(Continuity, "step", step)


def one_target() -> None:
    """The second region gets nothing."""
    put(Backup, "targets", property(lambda self: {"first": (self.url, self.endpoint)}))


def every_target_is_needed() -> None:
    """What one target does not take is not shipped."""
    real = Vault._missed

    def missed(self: Vault, target: str, error: StoreError) -> None:
        real(self, target, error)
        raise error

    put(Vault, "_missed", missed)


def no_heal() -> None:
    """What a target missed while it was away it never gets."""

    async def heal(self: Vault) -> int:
        self.behind.clear()
        return 0

    put(Vault, "heal", heal)


def sends_are_forgotten() -> None:
    """A restore does not ask what was sent since."""

    async def nothing(sent: Any) -> dict[str, Any]:
        return {}

    put(restoring, "gather", nothing)


def put(where: Any, name: str, what: Any) -> None:
    """Replace a part, which has to be there."""
    assert hasattr(where, name), f"{where} has no {name}"
    setattr(where, name, what)


SABOTAGES: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        no_retry,
        no_hold,
        no_guard,
        one_bulkhead,
        credentials_are_final,
        permanent_is_retried,
        damage_stops_all,
        early_answer,
        accept_without_room,
        leases_never_end,
        no_fence,
        no_deduplication,
        one_clock,
        no_checksum,
        damage_ends_the_journal,
        modes_refuse,
        every_home_is_needed,
        redis_is_needed,
        nothing_is_shipped,
        one_target,
        every_target_is_needed,
        no_heal,
        sends_are_forgotten,
    )
}

if __name__ == "__main__":
    SABOTAGES[sys.argv.pop(1)]()
    main()
