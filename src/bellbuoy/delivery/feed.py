"""The feed brings what the queue hands out to the worker, and what was done without the ledger to the ledger.

A message is acknowledged when the worker is through with its notification. With the ledger away the worker goes on from
the message alone, which is why it carries the whole notification.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.delivery.worker import Worker
from bellbuoy.errors import Full, Unavailable, code_of
from bellbuoy.ports.ledger import Account, Claim, Ledger, Offer
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.queue import Handed, Lane, Message, Queue

_WORK: tuple[Lane, ...] = ("high", "normal", "low")


class Homes(Protocol):
    """What the feed needs besides a ledger: to go on without one."""

    @property
    def away(self) -> bool:
        """Whether the ledger failed a moment ago."""
        ...

    def adopt(self, message: Message) -> Claim:
        """Work on a notification although the ledger cannot be asked."""
        ...

    async def bring_later(self, message: Message, delay_s: float) -> None:
        """Have the queue bring a notification again in `delay_s` seconds."""
        ...


class FeedSettings(Struct, frozen=True):
    """How much the feed takes, and how often.

    Args:
        batch: messages taken at a time.
        wait_s: longest wait for the first message, and between two looks while nothing can be taken.
        again_s: seconds after which a message comes again with which nothing can be done without the ledger.
        busy_s: seconds for which an attempt that an account tells of may still be under way.
    """

    batch: int = 200
    wait_s: float = 1.0
    again_s: float = 15.0
    busy_s: float = 60.0


class Feed:
    """Moves messages between the queue, the worker and the ledger.

    Args:
        queue: where messages come from.
        ledger: where notifications are leased.
        homes: goes on without the ledger.
        worker: works on them.
        settings, clock, telemetry: the numbers, time, and who is told.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        ledger: Ledger,
        homes: Homes,
        worker: Worker,
        settings: FeedSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._queue = queue
        self._ledger = ledger
        self._homes = homes
        self._worker = worker
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        # The first is the one that is worked on; the others came meanwhile.
        self._in_hand: dict[str, list[Handed]] = {}
        self._done: list[Handed] = []
        self._owed: list[Handed] = []
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Move messages until cancelled; what is out then is handed out again, to somebody."""
        async with asyncio.TaskGroup() as group:
            for step in (self._bring, self._take_in, self._raise_the_dead, self._let_go):
                group.create_task(self._repeat(step), name=f"feed{step.__name__}")

    async def _repeat(self, step: _Step) -> None:
        while True:
            try:
                await step()
            except Exception as error:  # A defect too: if this loop ended, its messages would wait for ever.
                self._telemetry.event("feed_failed", step=step.__name__.strip("_"), code=code_of(error), why=str(error))
                await self._clock.sleep(self._settings.wait_s)

    # Notifications.

    async def _bring(self) -> None:
        room = min(self._worker.room(), self._settings.batch)
        if not room:
            await self._clock.sleep(0.05)
            return
        handed = await self._queue.take(_WORK, limit=room, wait_s=self._settings.wait_s)
        fresh: list[Handed] = []
        again: list[Handed] = []
        for one in handed:
            notification_id = one.message.record.id
            if notification_id in self._in_hand:
                self._in_hand[notification_id].append(one)
            elif any(notification_id == other.message.record.id for other in fresh):
                again.append(one)
            else:
                fresh.append(one)
        if again:
            await self._queue.give_back(again)
        if not fresh:
            return
        try:
            claims = await self._ledger.take_over(
                self._worker.owner,
                [_offer(one.message, self._clock.time()) for one in fresh],
                now=self._clock.time(),
                lease_s=self._worker.lease_s,
            )
        except (Full, Unavailable):
            for one in fresh:
                await self._go_on_alone(one)
            return
        for one, claim in zip(fresh, claims, strict=True):
            if claim is None:
                self._finish(one)  # The ledger knows more of it than the message does.
            else:
                self._start(one, claim, alone=False)

    async def _go_on_alone(self, handed: Handed) -> None:
        """Work from the message; the ledger takes in later what came of it."""
        now, record = self._clock.time(), handed.message.record
        if record.not_before is not None and record.not_before > now:
            await self._homes.bring_later(handed.message, record.not_before - now)
            self._finish(handed)
            return
        if handed.times or handed.message.doubted:
            # Somebody had it and may have sent it, and only the ledger could say.
            if record.request.on_uncertain == "stop":
                doubted = msgspec.structs.replace(handed.message, doubted=True)
                await self._homes.bring_later(doubted, self._settings.again_s)
                self._finish(handed)
                return
            record.note(now, "redelivered", "a worker that had it may have sent it; the ledger cannot be asked")
        self._start(handed, self._homes.adopt(handed.message), alone=True)

    def _start(self, handed: Handed, claim: Claim, *, alone: bool) -> None:
        task = self._worker.hand_over(claim)
        if task is None:
            return  # We are stopping; it is handed out again when the connection is closed.
        notification_id = claim.record.id
        self._in_hand[notification_id] = [handed]

        def ended(task: asyncio.Task[bool]) -> None:
            came = self._in_hand.pop(notification_id)
            if task.cancelled():
                return
            # The connection was lost meanwhile and it came again: that one is done as well. Another message, of what
            # is to be done next, is not.
            self._done += [one for one in came[1:] if one.message == handed.message]
            others = [one for one in came[1:] if one.message != handed.message]
            if others:
                self._worker.look_after(self._queue.give_back(others))
            if alone and not task.result():
                self._later(handed)
            else:
                self._finish(handed)

        task.add_done_callback(ended)

    def _later(self, handed: Handed) -> None:
        """Nothing could be done with it, for lack of the recipient for instance: try again in a while."""

        async def put() -> None:
            await self._homes.bring_later(handed.message, self._settings.again_s)
            self._finish(handed)

        self._worker.look_after(put())

    # Acknowledging, many at a time.

    def _finish(self, handed: Handed) -> None:
        self._done.append(handed)
        self._wake.set()

    async def _let_go(self) -> None:
        await self._wake.wait()
        self._wake.clear()
        done, self._done = self._done, []
        await self._queue.acknowledge(done)

    # What was done without the ledger, and what was handed out too often.

    async def _take_in(self) -> None:
        try:
            await self._ledger.probe()
        except (Full, Unavailable):
            await self._clock.sleep(self._settings.wait_s)
            return
        if len(self._owed) < self._settings.batch:
            wait_s = 0.0 if self._owed else 5 * self._settings.wait_s
            self._owed += await self._queue.take(("outcomes",), limit=self._settings.batch, wait_s=wait_s)
        # Kept until the ledger has them: given back again and again they would end with the dead.
        self._owed = await self._absorb(self._owed)
        if self._owed:
            await self._clock.sleep(self._settings.wait_s)

    async def _absorb(self, handed: Sequence[Handed]) -> list[Handed]:
        """Give the ledger what messages tell of; returns those that it cannot take yet."""
        now = self._clock.time()
        accounts = [Account(one.message.record, one.message.body_hash, now + self._settings.busy_s) for one in handed]
        left = await self._ledger.absorb(accounts, now=now) if accounts else []
        stays = [any(account is one for one in left) for account in accounts]
        await self._queue.acknowledge([one for one, stay in zip(handed, stays, strict=True) if not stay])
        return [one for one, stay in zip(handed, stays, strict=True) if stay]

    async def _raise_the_dead(self) -> None:
        """Have the ledger keep, for its own workers, what the queue gave up."""
        handed: Sequence[Handed] = ()
        if not self._homes.away:
            handed = await self._queue.dead(limit=self._settings.batch)
        if handed:
            # Outcomes may be among them. Taking those in ends a lease, which what nobody began need not cost.
            begun = [one for one in handed if one.message.record.chain is not None]
            fresh = [one for one in handed if one.message.record.chain is None]
            await self._ledger.accept([_offer(one.message, self._clock.time()) for one in fresh])
            await self._queue.acknowledge(fresh)
            await self._queue.give_back(await self._absorb(begun))
            self._telemetry.event("messages_given_up", count=len(handed))
        else:
            await self._clock.sleep(10 * self._settings.wait_s)


class _Step(Protocol):
    __name__: str

    async def __call__(self) -> None: ...


def _offer(message: Message, now: float) -> Offer:
    return Offer(message.record, message.body_hash, max(now, message.record.not_before or 0.0))
