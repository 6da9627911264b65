"""What this process writes into the audit log, and when: what operators do at once, the rest in groups.

A group is all that a key asked for of one kind, with one answer, within a second. So a flood of notifications costs the
log an entry a second and the names of whom they were for.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, StoreError, code_of
from bellbuoy.model.audit import USERS_MAX, Entry, Head
from bellbuoy.model.operation import Issue
from bellbuoy.ports.audit import AuditLog
from bellbuoy.ports.control import ControlStore
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import Stores, open_audit
from bellbuoy.service.telemetry import ServiceTelemetry

FLUSH_S = 1.0
"""Seconds after which a group is written."""

HEAD_S = 60.0
"""Seconds between two records of how far the chain is."""

PRUNE_S = 3_600.0
NAMES_MAX = 50_000
"""Users named in groups that are not written yet; more are only counted."""

WAITING_MAX = 10_000
"""Entries that wait for the disk to have room; the oldest give way, and are counted."""

HEADS_MAX = 1_000

Subject = tuple[str, int, str | None, str | None, str | None, tuple[str, ...]]
"""The action, the answer's status, the key's id, the tenant, the target, the fields."""

_decode = msgspec.json.Decoder(Head).decode


@dataclass(slots=True)
class _Group:
    first: float
    last: float
    count: int = 0
    unnamed: int = 0
    users: dict[str, int] = field(default_factory=dict)


class Audit:
    """The audit log as the service uses it.

    Args:
        log: this process's chain.
        store: where it is recorded how far the chain is.
        keep_s: seconds for which entries are kept; None for ever.
        clock: for the times.
        telemetry: is told what cannot be written.
    """

    def __init__(
        self, log: AuditLog, store: ControlStore, *, keep_s: float | None, clock: Clock, telemetry: ServiceTelemetry
    ) -> None:
        self._log = log
        self._store = store
        self._keep_s = keep_s
        self._clock = clock
        self._telemetry = telemetry
        self._groups: dict[Subject, _Group] = {}
        self._names = 0
        self._waiting: deque[Entry] = deque()
        self._writing = asyncio.Lock()
        self._flushing: set[asyncio.Task[None]] = set()
        self._recorded: Head | None = None
        self._forgotten: int | None = 0  # What the ledger says of it; never what the log says of itself.
        self._recalled = log.head.n == 0  # A chain that begins here has forgotten nothing.
        self._run = secrets.token_hex(4)

    def note(self, subject: Subject, users: Iterable[str], *, unnamed: int = 0) -> None:
        """Something was asked for; it is written within about a second, with what else is of its kind."""
        now = self._clock.time()
        group = self._groups.get(subject)
        if group is None:
            group = self._groups[subject] = _Group(now, now)
        group.last = now
        group.count += 1
        group.unnamed += unnamed
        named = group.users
        for user in users:
            if user in named:
                named[user] += 1
            elif self._names < NAMES_MAX:
                named[user] = 1
                self._names += 1
            else:
                group.unnamed += 1

    async def record(self, subject: Subject, users: Iterable[str]) -> None:
        """An operator did something; when this returns it is on the disk, unless that takes nothing.

        Then it waits in memory, the issue `audit_stalled` says so, and what was done stays done.
        """
        action, status, key, tenant, target, fields = subject
        counts = dict.fromkeys(users, 1)
        now = self._clock.time()
        self._waiting.append(
            Entry(0, now, action, status, key=key, tenant=tenant, target=target, users=counts, fields=fields)
        )
        await self.flush()

    async def flush(self) -> None:
        """Write what is there, in order, as far as the disk takes it.

        Cancellation: the writing goes on to its end, since what was half done would be written twice.
        """
        task = asyncio.create_task(self._flush(), name="audit-flush")
        self._flushing.add(task)
        task.add_done_callback(self._flushing.discard)
        await asyncio.shield(task)

    async def _flush(self) -> None:
        async with self._writing:
            self._waiting.extend(entry for subject, group in self._take() for entry in _entries(subject, group))
            while len(self._waiting) > WAITING_MAX:
                self._waiting.popleft()
                self._telemetry.audit_lost.inc()
            if self._waiting:
                await self._write()

    async def _write(self) -> None:
        entries = list(self._waiting)
        try:
            await self._log.append(entries)
        except StoreError as error:
            self._telemetry.audit_waiting.set(len(entries))
            self._telemetry.raise_issue(Issue("audit_stalled", "audit", str(error), self._clock.time()))
            return
        for _ in entries:  # More may have come meanwhile.
            self._waiting.popleft()
        self._telemetry.audit_entries.inc(len(entries))
        self._telemetry.audit_waiting.set(0)
        self._telemetry.clear_issue("audit_stalled", "audit")

    def _take(self) -> list[tuple[Subject, _Group]]:
        found, self._groups, self._names = list(self._groups.items()), {}, 0
        return found

    async def run(self) -> None:
        """Write groups, record how far the chain is, and forget what is too old, until cancelled."""
        recorded_at = pruned_at = float("-inf")
        while True:
            await self._clock.sleep(FLUSH_S)
            try:
                await self.flush()
                now = self._clock.monotonic()
                if now - recorded_at >= HEAD_S and await self._record_head():
                    recorded_at = now
                if self._keep_s is not None and now - pruned_at >= PRUNE_S:
                    pruned_at = now
                    await self._prune(self._keep_s)
            except Exception as error:  # A defect too: without this loop nothing would be written any more.
                self._telemetry.event("audit_failed", code=code_of(error))

    async def _prune(self, keep_s: float) -> None:
        before = self._clock.time() - keep_s
        await self._recall()
        up_to = await self._log.older(before)
        if up_to:
            await self._forget(up_to, before)
        for kept in await self._store.page("audit", limit=HEADS_MAX):
            if kept.at < before and kept.id != self._name:
                await self._store.delete("audit", kept.id, version=kept.version)

    async def _forget(self, up_to: int, before: float) -> None:
        """Let the log forget its beginning, when the ledger agrees that it is so old, and has written that down.

        The times on the disk are only what somebody wrote there. In the other order a process that ends in between
        would leave a log that has forgotten what nobody knows of.
        """
        heads, chain = await self._heads(), self._log.head.chain
        if any(head.chain == chain and head.n <= up_to and head.at >= before for head in heads):
            self._telemetry.event("audit_not_pruned", entry=up_to)
            return
        self._forgotten = max(up_to, self._forgotten or 0)
        if not await self._record_head():
            return
        async with self._writing:
            count = await self._log.forget(up_to)
        self._telemetry.event("audit_pruned", count=count)
        await self._record_head()

    async def _recall(self) -> None:
        """Take over what the runs before have recorded as forgotten of the chain that this one goes on with."""
        if self._recalled:
            return
        told = [head.forgotten for head in await self._heads() if head.chain == self._log.head.chain]
        if not self._recalled:  # Somebody else may have asked meanwhile.
            self._forgotten = max((one for one in told if one is not None), default=None)
            self._recalled = True

    @property
    def _name(self) -> str:
        """Each run has its own record, so that one over a log that was cut or written anew hides no earlier one."""
        return f"{self._log.head.chain}/{self._run}"

    async def _record_head(self) -> bool:
        """Write down outside the log how far it is; False when that has to be tried again soon."""
        if self._log.head.n == 0:
            return True
        await self._recall()
        head = replace(self._log.head, forgotten=self._forgotten)
        if head == self._recorded:
            return True
        kept = await self._store.read("audit", self._name)
        try:
            await self._store.write("audit", self._name, msgspec.json.encode(head), version=kept.version if kept else 0)
        except Conflict:
            return False
        self._recorded = head
        return True

    async def heads(self) -> list[Head]:
        """How far each chain was when it was recorded last, this process's as of now. Raises Unavailable."""
        await self.flush()
        with contextlib.suppress(StoreError):
            await self._record_head()
        return await self._heads()

    async def _heads(self) -> list[Head]:
        return [_decode(kept.data) for kept in await self._store.page("audit", limit=HEADS_MAX)]

    async def aclose(self) -> None:
        """Write what is left, then let go of the files."""
        await self.flush()
        with contextlib.suppress(StoreError):
            await self._record_head()
        await self._log.aclose()


def build_audit(settings: Settings, stores: Stores, *, clock: Clock, telemetry: ServiceTelemetry) -> Audit:
    """Open this process's chain. Raises ConfigurationError."""
    log, lock = open_audit(settings, clock)
    stores.locks.append(lock)
    keep_s = settings.audit.keep_days * 86_400.0 or None
    return Audit(log, stores.control, keep_s=keep_s, clock=clock, telemetry=telemetry)


def _entries(subject: Subject, group: _Group) -> list[Entry]:
    """A group as entries, more than one where it has many users; only the first has its counts."""
    action, status, key, tenant, target, fields = subject
    names = list(group.users.items())
    pieces = [names[at : at + USERS_MAX] for at in range(0, len(names), USERS_MAX)] or [[]]
    return [
        Entry(
            0,
            group.first,
            action,
            status,
            key=key,
            tenant=tenant,
            target=target,
            users=dict(piece),
            fields=fields,
            count=0 if at else group.count,
            until=group.last if group.last > group.first else None,
            unnamed=0 if at else group.unnamed,
        )
        for at, piece in enumerate(pieces)
    ]
