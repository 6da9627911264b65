"""Watch every change for a while, and take back one that made things worse.

Each process compares what it measures itself with what it measured before the change, since only it sees its calls.
Whoever finds things worse writes the decision down, and whoever has the lock carries it out as a saga whose steps may
be repeated; when it dies in the middle the next one goes on. What cannot be said is never a success: the change stays,
and an incident asks a human.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from msgspec import Struct, field
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, NotFound, code_of
from bellbuoy.model.change import KINDS, Change, Figures, restored, settled, value_before
from bellbuoy.model.operation import Incident, Issue
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.shared import Locks
from bellbuoy.ports.values import Values
from bellbuoy.recovery.changes import Changes, Measures
from bellbuoy.recovery.execute import Escalate, StoredSagaLog
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.recovery.judge import Bounds, judge
from bellbuoy.recovery.plan import ATTEMPTS_MAX, key_of
from bellbuoy.resilience.saga import Saga, SagaFailed, Step

EVERY_S = 1.0
LOCK_S = 30.0
GRACE_S = 5.0
"""How long after the end of a watch a process that cannot say waits for one that can."""

SWEEP_S = 10.0
"""How often it is looked for incidents about changes that were decided in another way, or on another machine."""

BY = "rollback"


class RollbackSettings(Struct, frozen=True):
    """When a change is taken back.

    Args:
        watch_s: seconds for which a change is watched.
        bounds: how much worse is too much.
    """

    watch_s: float = 120.0
    bounds: Bounds = field(default_factory=Bounds)


class Rollback:
    """Watches changes and takes them back.

    Args:
        owner: this process's name in the locks.
        values, changes: what is watched.
        measures: what this process measures.
        providers: the dependencies whose calls say how deliveries are; a value may name one of them.
        incidents: where a human finds out.
        store: for the logs of the sagas; of all who share the values.
        locks: leave for one who takes a change back.
        escalate: tells humans of a change that could not be taken back.
        settings: the numbers.
        clock: for the looks and the windows.
        telemetry: is told what happens.
    """

    def __init__(
        self,
        owner: str,
        *,
        values: Values,
        changes: Changes,
        measures: Measures,
        providers: Set[str],
        incidents: Incidents,
        store: ControlStore,
        locks: Locks,
        escalate: Escalate,
        settings: RollbackSettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._values = values
        self._changes = changes
        self._measures = measures
        self._providers = frozenset(providers)
        self._incidents = incidents
        self._store = store
        self._locks = locks
        self._escalate = escalate
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._begun: dict[str, Mapping[str, Figures]] = {}
        self._failures: dict[str, int] = {}
        self._next_sweep = clock.monotonic() + SWEEP_S

    async def run(self) -> None:
        """Look every `EVERY_S`, until cancelled."""
        while True:
            try:
                await self.step()
            except Exception as error:  # A defect too: nobody else watches.
                self._telemetry.event("rollback_stalled", code=code_of(error), why=repr(error))
            await self._clock.sleep(EVERY_S)

    async def step(self) -> None:
        """Look once at the last change of every value."""
        self._measures.remember()
        seen: set[str] = set()
        for kind in KINDS:
            for valued in await self._values.all(kind):
                current = valued.current
                if current is None:
                    continue
                change = Change(kind, valued.name, current, value_before(valued, current.n))
                seen.add(change.id)
                for version in valued.versions:
                    if version.status == "reverting":
                        await self._carry_out(Change(kind, valued.name, version, value_before(valued, version.n)))
                if current.status == "watched" or change.id in self._begun:
                    await self._watch(change)
        for id in self._begun.keys() - seen:
            self._end(id)  # It has been changed again.
        now = self._clock.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            await self._sweep()

    async def roll_back(self, id: str, *, by: str) -> Change:
        """Take a change back as an operator asks; done when this returns, unless another process is at it.

        Raises:
            NotFound: there is none.
            Conflict: it is not the last change of its value, or is taken back already.
        """
        change = await self._changes.get(id)
        why = f"asked for by {by}"
        if not await self._changes.decide(change, "reverting", of=("watched", "kept", "inconclusive"), why=why, by=by):
            now = (await self._changes.get(id)).version.status
            raise Conflict(
                f"the change {id} is {now}, or the value was changed since",
                hint="only the last change of a value can be taken back",
            )
        await self._carry_out(await self._changes.get(id))
        return await self._changes.get(id)

    async def keep(self, id: str, *, by: str) -> Change:
        """Leave a change, as an operator says. Raises as `Changes.keep` does."""
        change = await self._changes.keep(id, by=by)
        self._end(id)
        await self._close("change_inconclusive", change, by=by)
        return change

    # The watch.

    async def _watch(self, change: Change) -> None:
        version, id = change.version, change.id
        now = self._clock.time()
        if id not in self._begun:
            # Who was not there before the change knows what was measured then from its document only.
            before = self._measures.before(version.at)
            self._begun[id] = version.before if before is None else before
            self._measures.begin(id, version.at, self._settings.watch_s + GRACE_S)
        ended = now >= version.at + self._settings.watch_s
        verdict = judge(
            self._begun[id],
            self._measures.since(id),
            self._settings.bounds,
            concerned=self._concerned(change),
            ended=ended,
        )
        if verdict.is_ == "worse":
            self._end(id)
            await self._changes.decide(
                change, "reverting", of=("watched", "kept", "inconclusive"), why=verdict.why, by=BY
            )
        elif ended and verdict.is_ == "as_good":
            self._end(id)
            await self._changes.decide(change, "kept", of=("watched",), why=verdict.why, by=BY)
        elif now >= version.at + self._settings.watch_s + GRACE_S:
            self._end(id)
            if await self._changes.decide(change, "inconclusive", of=("watched",), why=verdict.why, by=BY):
                await self._ask(change, verdict.why)

    def _concerned(self, change: Change) -> Set[str]:
        """The provider that a value names, else all."""
        return self._providers & set(change.name.split(".")) or self._providers

    def _end(self, id: str) -> None:
        self._begun.pop(id, None)
        self._measures.end(id)

    async def _ask(self, change: Change, why: str) -> None:
        self._telemetry.event("change_inconclusive", change=change.id, why=why)
        await self._open("change_inconclusive", change, f"nobody can say whether it did harm: {why}")

    # Taking it back.

    async def _carry_out(self, change: Change) -> None:
        """Take it back, or go on where somebody has left off."""
        lock = await self._locks.acquire(f"rollback:{change.id}", self._owner, lease_s=LOCK_S)
        if lock is None:
            return  # Somebody is at it.
        self._end(change.id)
        try:
            self._telemetry.event("rollback_started", change=change.id, why=change.version.why)
            saga = Saga("rollback", self._steps(change))
            tried = self._failures.get(change.id, 0)
            # What was decided anew, after it had failed for good, is not answered from the log of that failure.
            await saga.run(f"rollback/{change.id}/{change.version.decided_at}/{tried}", StoredSagaLog(self._store))
        except SagaFailed as error:
            await self._failed(change, error)
        else:
            self._failures.pop(change.id, None)
            self._telemetry.event("rollback_done", change=change.id, result="reverted")
        finally:
            await self._locks.release(lock)

    def _steps(self, change: Change) -> list[Step]:
        kind, name, n = change.kind, change.name, change.version.n

        async def open_incident() -> None:
            if change.version.decided_by == BY:
                await self._open("bad_change", change, change.version.why)

        async def restore() -> None:
            now = self._clock.time()
            await self._values.change(kind, name, lambda valued: restored(valued, n, at=now, by=BY))

        async def is_back() -> bool:
            current = (await self._values.find(kind, name)).current
            return current is not None and current.n > n

        async def go_by_it() -> None:
            await self._changes.apply(kind, name, (await self._values.find(kind, name)).value, by=BY)

        async def close_incidents() -> None:
            for issue in ("bad_change", "change_inconclusive"):
                await self._close(issue, change, by=BY)

        async def settle() -> None:
            await self._values.change(kind, name, lambda valued: settled(valued, n, "reverted"))

        return [
            Step("open_incident", open_incident),
            Step("restore_value", restore, verify=is_back),
            Step("go_by_it", go_by_it),
            Step("close_incidents", close_incidents),
            Step("settle", settle),
        ]

    async def _failed(self, change: Change, error: SagaFailed) -> None:
        """Try again at the next look; after the last time tell a human."""
        self._failures[change.id] = self._failures.get(change.id, 0) + 1
        if self._failures[change.id] < ATTEMPTS_MAX:
            return
        del self._failures[change.id]
        why = f"it could not be taken back: {error}"
        self._telemetry.event("rollback_done", change=change.id, result="failed", why=why)
        await self._values.change(
            change.kind, change.name, lambda valued: settled(valued, change.version.n, "inconclusive", why=why)
        )
        incident = await self._open("rollback_failed", change, why)
        if not incident.escalated:
            await self._escalate(incident, "trigger")
            await self._incidents.change(incident.id, lambda one: replace(one, escalated=True))

    # Incidents.

    async def _open(self, issue: str, change: Change, why: str) -> Incident:
        known = (await self._incidents.latest()).get(key_of(issue, change.id))
        if known is not None:
            return known  # A step that is repeated opens none again.
        detail = f"{why} (set by {change.version.by})"
        incident = await self._incidents.open(Issue(issue, change.id, detail, self._clock.time()), first_after_s=None)
        self._telemetry.event("incident_opened", incident=incident.id, issue=issue, component=change.id, why=why)
        return incident

    async def _sweep(self) -> None:
        """End incidents that ask of changes which nobody need be asked of any more."""
        for incident in (await self._incidents.latest()).values():
            if incident.issue != "change_inconclusive" or incident.status == "resolved":
                continue
            try:
                change = await self._changes.get(incident.component)
            except NotFound:
                await self._incidents.resolve(incident.id, by=BY)  # Twenty versions have come since.
                continue
            if change.version.status != "inconclusive":
                await self._close(incident.issue, change, by=change.version.decided_by or BY)

    async def _close(self, issue: str, change: Change, *, by: str) -> None:
        known = (await self._incidents.latest()).get(key_of(issue, change.id))
        if known is None or known.status == "resolved":
            return
        try:
            await self._incidents.resolve(known.id, by=by)
        except (Conflict, NotFound):
            return  # Somebody else has just said so.
        self._telemetry.event("incident_resolved", incident=known.id, by=by)
