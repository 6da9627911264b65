"""The homes of a notification: the ledger and the queue, either of which is enough, and the journal behind both.

Ledger and queue are asked at the same time and the first that confirms answers the client. What the queue missed the
ledger makes due; what the ledger missed comes to it with the queue's message, or from the journal. Putting a
notification anywhere twice is harmless: the id is the same.

On one machine the ledger and the queue are one file, so there is no queue here and the journal is the only other home.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from bellbuoy.clock import Clock
from bellbuoy.errors import Busy, Full, NotFound, StoreError, Unavailable, code_of
from bellbuoy.intake.kept import Accepted, Entry, Kept
from bellbuoy.intake.recall import Recall
from bellbuoy.model.delivery import Record
from bellbuoy.model.identity import is_derived, made_at
from bellbuoy.model.operation import Issue
from bellbuoy.ports.ledger import QUEUED, Account, Claim, Ledger, Offer, Taken
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.queue import LANE_OF, Message, Queue
from bellbuoy.ports.shared import Remembered

LOOKS_AFTER_S = (0.05, 0.15, 0.3, 0.5)
"""Pauses between looks for what another process accepted a moment ago with the queue alone."""


class HomesSettings(Struct, frozen=True):
    """How the homes work together.

    Args:
        grace_s: seconds that the queue has to bring a notification to a worker before the ledger makes it due.
        patience_s_max: longest wait, in seconds, for what the ledger says of an Idempotency-Key once the queue has
            confirmed; it is twice what the ledger usually takes. Who waited in vain is the last to wait until the
            ledger answers again.
        remembered_max: notifications that this process answered for last and remembers, to be found.
        batch: entries of the journal that are given to another home at a time.
        pause_s: seconds between two batches, so that a home that is back is not pressed.
        wait_s: seconds until the next try when nothing takes what the journal has.
        settle_s_max: seconds after which a ledger that is back is worked from although nobody can say whether all that
            was done meanwhile has come to it.
    """

    grace_s: float = 30.0
    patience_s_max: float = 0.25
    remembered_max: int = 20_000
    batch: int = 200
    pause_s: float = 0.05
    wait_s: float = 1.0
    settle_s_max: float = 15.0


class Homes:
    """A ledger with a queue beside it and a journal behind it; what it does not do itself passes through to the ledger.

    Args:
        ledger: refuses with Unavailable what it does not take in time.
        kept: the journal.
        queue: None where the ledger is the queue too.
        recall: which keys were used, for when the ledger cannot say; None where processes share no memory.
        settings: the bounds.
        clock: for waiting.
        telemetry: is told of what happens.
    """

    def __init__(
        self,
        ledger: Ledger,
        kept: Kept,
        *,
        queue: Queue | None = None,
        recall: Recall | None = None,
        settings: HomesSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._recall = recall
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self.kept = kept
        self.nudge: Callable[[], None] = _nobody  # Called when the ledger has got something to work on.
        self._usual_s = 0.0  # What the ledger takes to confirm, smoothed.
        self._silent = False  # Somebody waited for the ledger in vain, and it has answered nobody since.
        self._remembered: OrderedDict[str, Offer] = OrderedDict()  # What was answered for here of late.
        self._astray: dict[str, bytes] = {}  # Worked on without the ledger, by id, with the body's hash.
        self._away = False  # The ledger failed, and what was done meanwhile may not have come to it yet.
        self._ailing = False  # The ledger refused something, and has not been found well since.
        self._left: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    # Accepting and finding.

    async def accept(self, offers: Sequence[Offer]) -> list[Taken]:
        """Put notifications into their homes; when this returns each is durable in one of them at least.

        Raises:
            Full, Unavailable: no home could take them; nothing was confirmed.
        """
        if not self.kept and not self._remembered:
            return await self._take(offers)
        known = [offer.record.id in self.kept or offer.record.id in self._remembered for offer in offers]
        fresh = [offer for offer, there in zip(offers, known, strict=True) if not there]
        taken = iter(await self._take(fresh) if fresh else [])
        return [await self._again(offer) if there else next(taken) for offer, there in zip(offers, known, strict=True)]

    async def get(self, notification_id: str, tenant: str | None = None) -> Record:
        """The record, wherever it is.

        Raises:
            NotFound: there is none.
            Unavailable: the ledger is away or may not have heard of it yet, and this process does not know either.
        """
        record = self.kept.find(notification_id)
        if record is None:
            offer = self._remembered.get(notification_id)
            ask = functools.partial(self._ledger.get, notification_id, tenant)
            try:
                return await (self._sought(notification_id, ask) if offer is None else ask())
            except (NotFound, Unavailable):
                if offer is None:
                    raise
                record = offer.record
        if tenant is not None and record.tenant != tenant:
            raise NotFound(f"there is no notification {notification_id}")
        return record

    async def cancel(self, notification_id: str, tenant: str, *, now: float) -> Record:
        """Cancel in the ledger, once it has it. Raises what `get` and the ledger's `cancel` do."""
        ask = functools.partial(self._ledger.cancel, notification_id, tenant, now=now)
        return await self._sought(notification_id, ask)

    async def _sought(self, notification_id: str, ask: Callable[[], Awaitable[Record]]) -> Record:
        """Ask the ledger, again and again for as long as the notification may be on its way there.

        Whoever accepted it may have answered when the queue had it, which is a moment before the ledger does.
        """
        made = made_at(notification_id)
        young = made is not None and abs(self._clock.time() - made) < self._settings.grace_s
        coming = self._queue is not None and (young or is_derived(notification_id))
        for pause_s in LOOKS_AFTER_S if coming else ():
            try:
                return await ask()
            except NotFound:
                await self._clock.sleep(pause_s)
        try:
            return await ask()
        except NotFound:
            if not ((young and coming) or await self._may_come(notification_id)):
                raise
        except Unavailable:
            self._away = self._queue is not None
            raise
        raise Unavailable("the ledger may not have heard of it yet", retry_after_s=1.0)

    async def _may_come(self, notification_id: str) -> bool:
        """Whether somebody accepted what the ledger says is not there."""
        if self._away or notification_id in self.kept or notification_id in self._remembered:
            return True
        if self._recall is None or not await self._recall.may_know(notification_id):
            return False
        try:
            await self._ledger.get(notification_id)
        except NotFound:
            return True
        return False  # It is there, and another tenant's.

    async def _take(self, offers: Sequence[Offer]) -> list[Taken]:
        try:
            return await (self._ledger.accept(offers) if self._queue is None else self._first(offers, self._queue))
        except (Full, Unavailable) as error:
            self._lost(error)
            return await self.kept.put(offers, error)

    async def _again(self, offer: Offer) -> Taken:
        """What an offer gets whose id this process knows although the ledger may not."""
        first = self._remembered.get(offer.record.id)
        if first is not None:
            return Taken("same" if first.body_hash == offer.body_hash else "other", first.record)
        if offer.record.id in self.kept:
            return await self.kept.again(offer, Unavailable("no home took it", retry_after_s=1.0))
        (taken,) = await self._take([offer])  # It went to the ledger meanwhile.
        return taken

    async def _first(self, offers: Sequence[Offer], queue: Queue) -> list[Taken]:
        """Ask both; the first that confirms answers. Raises what the ledger said when neither does."""
        now = self._clock.time()
        written = asyncio.ensure_future(self._written(offers, now))
        queued = asyncio.ensure_future(self._queued(queue, offers, now))
        written.add_done_callback(_seen)
        queued.add_done_callback(_seen)
        await asyncio.wait((written, queued), return_when=asyncio.FIRST_COMPLETED)
        if _failed(written) or _failed(queued):
            await asyncio.wait((written, queued))
        elif not written.done() and not self._silent and any(offer.body_hash for offer in offers):
            # Only the ledger can say whether the key was used before.
            patience = asyncio.ensure_future(
                self._clock.sleep(min(2 * self._usual_s + 0.01, self._settings.patience_s_max))
            )
            await asyncio.wait((written, patience), return_when=asyncio.FIRST_COMPLETED)
            patience.cancel()
            self._silent = not written.done()
        if written.done() and not _failed(written):
            self._leave(self._unless_queued(queued, offers))
            taken = written.result()
            # The ledger may be away a moment later, and whoever was told of it here looks for it here.
            self._remember(
                msgspec.structs.replace(offer, record=one.record)
                for offer, one in zip(offers, taken, strict=True)
                if one.kind != "other"
            )
            if self._recall is not None:
                self._recall.tell_soon(offers, taken)
            if queued.done() and not _failed(queued):
                for one in taken:
                    one.record.homes = ("ledger", "queue") if one.kind == "new" else one.record.homes
            return taken
        if _failed(queued):
            self._telemetry.event("publish_failed", code=code_of(_why(queued)))
            raise _why(written)
        return await self._from_queue(offers, queued.result(), written)

    async def _queued(self, queue: Queue, offers: Sequence[Offer], now: float) -> Mapping[str, Remembered]:
        """Have the queue bring what is not known to be in a home already; returns what is."""
        known = await self._recall.find(offers) if self._recall is not None else {}
        fresh = [offer for offer in offers if offer.record.id not in known]
        await _put(queue, fresh, now)
        return known

    async def _written(self, offers: Sequence[Offer], now: float) -> list[Taken]:
        """Put into the ledger what the queue is to bring to a worker: leased until it must have."""
        until = now + self._settings.grace_s
        began = self._clock.monotonic()
        taken = await self._ledger.accept(
            [msgspec.structs.replace(one, owner=QUEUED, due_at=until) if one.due_at <= now else one for one in offers]
        )
        self._silent = False
        self._usual_s += 0.1 * (self._clock.monotonic() - began - self._usual_s)
        return taken

    async def _from_queue(
        self, offers: Sequence[Offer], known: Mapping[str, Remembered], written: asyncio.Future[list[Taken]]
    ) -> list[Taken]:
        """Only the queue has confirmed; remember them until the ledger has them too."""
        taken = [_taken(offer, known.get(offer.record.id)) for offer in offers]
        self._remember(offer for offer, one in zip(offers, taken, strict=True) if one.kind != "other")
        if self._recall is not None:
            await self._recall.tell([offer for offer in offers if offer.record.id not in known])
        written.add_done_callback(lambda done: self._settled_late(offers, done))
        return taken

    def _remember(self, offers: Iterable[Offer]) -> None:
        """Be able to find what was answered for here although the ledger cannot be asked."""
        self._remembered.update((offer.record.id, offer) for offer in offers)
        while len(self._remembered) > self._settings.remembered_max:
            self._remembered.popitem(last=False)

    def _settled_late(self, offers: Sequence[Offer], written: asyncio.Future[list[Taken]]) -> None:
        if written.cancelled():
            return
        error = written.exception()
        if isinstance(error, (Full, Unavailable)):
            self._lost(error)
            return
        for offer, one in zip(offers, written.result() if error is None else (), strict=error is None):
            self._compare(offer, one)

    async def _unless_queued(self, queued: asyncio.Future[Any], offers: Sequence[Offer]) -> None:
        """Make due at once what the queue does not bring."""
        await asyncio.wait((queued,))
        if not _failed(queued):
            return
        error = _why(queued)
        self._telemetry.event("publish_failed", code=code_of(error))
        for offer in offers:
            due_at = max(self._clock.time(), offer.due_at)
            await self._ledger.abandon(offer.record.id, 1, due_at=due_at)
        self.nudge()

    async def _compare_all(self, offers: Iterable[Offer]) -> None:
        """Find out whether the ledger has these, which it knows by now, with other requests."""
        keyed = [offer for offer in offers if offer.body_hash]
        if not keyed:
            return
        try:
            taken = await self._ledger.accept(keyed)
        except (Full, Unavailable) as error:
            self._telemetry.event("heal_failed", code=error.code)  # What was asked for before is done all the same.
            return
        for offer, one in zip(keyed, taken, strict=True):
            self._compare(offer, one)

    def _compare(self, offer: Offer, taken: Taken) -> None:
        if taken.kind == "other":
            # Two nodes that could not see each other took different requests under one key. One id is one
            # notification, and the ledger had the other one first.
            self._remembered.pop(offer.record.id, None)
            self._telemetry.event("idempotency_conflict", notification_id=offer.record.id)

    # Working.

    async def claim(self, owner: str, *, now: float, lease_s: float, limit: int) -> list[Claim]:
        """Lease what is due; nothing while what was done without the ledger may not have come to it yet."""
        if self._away:
            return []
        try:
            return await self._ledger.claim(owner, now=now, lease_s=lease_s, limit=limit)
        except Unavailable as error:
            self._lost(error)
            raise

    async def take_over(self, owner: str, offers: Sequence[Offer], *, now: float, lease_s: float) -> list[Claim | None]:
        """Lease what the queue brought."""
        try:
            claims = await self._ledger.take_over(owner, offers, now=now, lease_s=lease_s)
        except (Full, Unavailable) as error:
            self._lost(error)
            raise
        await self._compare_all(
            offer
            for offer, claim in zip(offers, claims, strict=True)
            if claim is None or claim.record.request != offer.record.request
        )
        return claims

    async def absorb(self, accounts: Sequence[Account], *, now: float) -> list[Account]:
        """Take in what was done while the ledger was away; returns what somebody holds, to be tried again."""
        left = await self._ledger.absorb(accounts, now=now)
        await self._compare_all(Offer(one.record, one.body_hash, one.due_at or now) for one in accounts)
        return left

    def adopt(self, message: Message) -> Claim:
        """Work on what the queue brought although the ledger cannot be asked; accounts go where there is room."""
        self._astray[message.record.id] = message.body_hash
        return Claim(message.record, message.fence)

    async def save(
        self,
        record: Record,
        fence: int,
        *,
        now: float,
        due_at: float | None,
        held: Sequence[Any],
        release: bool,
    ) -> bool:
        """Write a claimed notification into the ledger, or an account of it into the queue or the journal.

        Raises:
            LeaseLost: another claim came since; nothing was written.
            Full, Unavailable: no home took it.
        """
        if record.id not in self._astray:
            try:
                return await self._ledger.save(record, fence, now=now, due_at=due_at, held=held, release=release)
            except (Full, Unavailable) as error:
                self._lost(error)
                if self._queue is None:
                    raise
                self._astray[record.id] = b""
        # From its first account on all that is done about it goes the same way, so that none overtakes another.
        await self._account(Account(record, self._astray[record.id], due_at))
        if release:
            body_hash = self._astray.pop(record.id)
            if due_at is not None and self._queue is not None:
                await self.bring_later(Message(record, body_hash, fence), due_at - now)
        return False

    async def bring_later(self, message: Message, delay_s: float) -> None:
        """Have the queue bring a notification again in `delay_s` seconds; the ledger has it due if that fails."""
        assert self._queue is not None
        try:
            await self._queue.put(LANE_OF[message.record.request.priority], [message], delay_s=max(0.0, delay_s))
        except (Full, Unavailable) as error:
            self._telemetry.event("publish_failed", code=error.code)

    async def _account(self, account: Account) -> None:
        if self._queue is not None:
            try:
                await self._queue.put("outcomes", [Message(account.record, account.body_hash)])
                return
            except (Full, Unavailable) as error:
                self._telemetry.event("publish_failed", code=error.code)
        await self.kept.note(account)

    # Healing.

    async def load(self) -> None:
        """Find again what an earlier process left; before anything else. Raises Full."""
        damaged, files = self.kept.damage()
        if damaged or files:
            detail = f"{damaged} entries could not be read: {', '.join(files)}"
            self._telemetry.raise_issue(Issue("journal_damaged", "journal", detail, self._clock.time()))
            self._telemetry.event("journal_damaged", count=damaged, files=files)
        await self.kept.load()
        # Whoever starts cannot know whether the ledger was away a moment ago, with outcomes still on their way to it.
        self._away = self._queue is not None

    async def run(self) -> None:
        """Give the other homes what only the journal has, whenever there is something, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._healing(), name="heal-journal")
            group.create_task(self._settling(), name="heal-settle")

    async def heal(self) -> int:
        """Give one batch of the journal to a home that takes it; returns how many entries that were.

        Raises:
            Full, Unavailable: none takes anything; all stays in the journal.
        """
        entries, last = await self.kept.oldest(self._settings.batch)
        if not entries:
            return 0
        offers = [offer for entry in entries if isinstance(entry, Accepted) for offer in entry.offers]
        accounts = [entry.account for entry in entries if not isinstance(entry, Accepted)]
        if offers:
            # As on every day: to both at once, so that what the queue brings is not claimed from the ledger as well.
            taken = await (self._ledger.accept(offers) if self._queue is None else self._first(offers, self._queue))
            for offer, one in zip(offers, taken, strict=True):
                self._compare(offer, one)
        if accounts:
            await self._hand_in(accounts)
        await self._healed(entries, last)
        return len(entries)

    async def _hand_in(self, accounts: Sequence[Account]) -> None:
        """Give accounts to the ledger, or to the queue on their way there. Raises Full, Unavailable."""
        try:
            if await self.absorb(accounts, now=self._clock.time()):
                raise Busy("somebody else holds what was to be written", retry_after_s=1.0)
        except Unavailable:
            if self._queue is None:
                raise
            await self._queue.put("outcomes", [Message(one.record, one.body_hash) for one in accounts])

    async def _healed(self, entries: Sequence[Entry], last: int) -> None:
        await self.kept.let_go(entries, last)
        if not self._away:
            self._found()
        self._telemetry.event("journal_healed", count=len(entries), pending=self.kept.pending())
        self.nudge()

    async def _healing(self) -> None:
        while True:
            await self.kept.wake.wait()
            try:
                await self.heal()
            except Exception as error:  # A defect too: what is in the journal must not stay there for ever.
                self._telemetry.event("heal_failed", code=code_of(error))
                await self._clock.sleep(self._settings.wait_s)
            else:
                await self._clock.sleep(self._settings.pause_s)

    async def _settling(self) -> None:
        """Find out, after the ledger failed, when it takes things again and has all that was done meanwhile.

        Nobody need send anything for that: where the disk was full, the journal may have nothing to heal.
        """
        quiet, back_s = 0, 0.0
        while True:
            await self._clock.sleep(1.0)
            if not (self._away or self._ailing):
                continue
            try:
                await self._ledger.probe()
            except Exception as error:
                self._telemetry.event("ledger_away", code=code_of(error))
                quiet, back_s = 0, 0.0
                continue
            back_s += 1.0
            waiting = self.kept.pending()
            if self._queue is not None:
                try:
                    waiting += (await self._queue.depth())["outcomes"]
                except Exception:
                    waiting = 1
            quiet = quiet + 1 if not waiting else 0
            # Twice: an account may be between the queue and the ledger in somebody's hands.
            if quiet >= 2 or (self._queue is not None and back_s >= self._settings.settle_s_max):
                self._away, quiet, back_s = False, 0, 0.0
                self._found()
                self.nudge()

    @property
    def away(self) -> bool:
        """Whether the ledger failed, and what was done meanwhile may not have come to it yet."""
        return self._away

    async def aclose(self) -> None:
        """Let what is under way end, then close the journal and the ledger."""
        if self._left:
            await asyncio.wait(self._left)
        if self._recall is not None:
            await self._recall.aclose()
        await self.kept.aclose()
        await self._ledger.aclose()

    def _lost(self, error: StoreError) -> None:
        name = "disk_full" if isinstance(error, Full) else "database_down"
        self._telemetry.raise_issue(Issue(name, "homes", f"the ledger takes nothing: {error.code}", self._clock.time()))
        self._away, self._ailing = self._queue is not None, True

    def _found(self) -> None:
        self._ailing = False
        for name in ("database_down", "disk_full"):
            self._telemetry.clear_issue(name, "homes")

    def _leave(self, rest: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(rest, name="home")
        self._left.add(task)
        task.add_done_callback(self._gone)

    def _gone(self, task: asyncio.Task[None]) -> None:
        self._left.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The lease of what the queue did not take ends by itself.
            self._telemetry.event("heal_failed", code=code_of(error))


async def _put(queue: Queue, offers: Sequence[Offer], now: float) -> None:
    """Have the queue bring notifications to workers, each when it is due."""
    groups: dict[tuple[Any, float], list[Message]] = {}
    for offer in offers:
        delay_s = max(0.0, (offer.record.not_before or 0.0) - now)
        message = Message(offer.record, offer.body_hash)
        groups.setdefault((LANE_OF[offer.record.request.priority], delay_s), []).append(message)
    await asyncio.gather(*(queue.put(lane, messages, delay_s=delay_s) for (lane, delay_s), messages in groups.items()))


def _taken(offer: Offer, known: Remembered | None) -> Taken:
    """What an offer gets that the queue has, or that is `known` to be in a home."""
    record = offer.record
    if known is None:
        record.homes = ("queue",)
        return Taken("new", record)
    if known.body_hash != offer.body_hash:
        return Taken("other", record)
    record.accepted_at, record.homes, record.answered = known.accepted_at, known.homes, known.answered
    return Taken("same", record)


def _failed(future: asyncio.Future[Any]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _why(future: asyncio.Future[Any]) -> BaseException:
    """Why it failed; whatever cancelled it did not cancel who asked."""
    error = None if future.cancelled() else future.exception()
    return error or Unavailable("no home took it", retry_after_s=1.0)


def _seen(future: asyncio.Future[Any]) -> None:
    """Look at how it ended, so that a failure for which nobody waits is no surprise to the loop."""
    if not future.cancelled():
        future.exception()


def _nobody() -> None:
    """Nobody works here."""
