"""Try to mend what is wrong, one plan at a time for each component, and tell a human when that does not help.

Whoever sees the issue and holds the component's lock runs the plan, so of several workers one does. What it does is
written down before and after each step: when it dies the next holder goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, LeaseLost, NotFound, StoreError, code_of
from bellbuoy.model.operation import Incident, Issue, StepReport
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.shared import Lock, Locks
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.recovery.plan import ATTEMPTS_MAX, ESCALATED_AT_ONCE, OTHERS, PLAN_OF, PLANS, SETTLE_S, key_of, wait_s
from bellbuoy.resilience.saga import Saga, SagaFailed, SagaState, Step

EVERY_S = 0.5
LOCK_S = 30.0
"""For how long a runner that dies keeps others from its plan."""


class Escalate(Protocol):
    """Tells humans of an incident, durably; doing it twice tells them once."""

    async def __call__(self, incident: Incident, action: Literal["trigger", "acknowledge", "resolve"]) -> None: ...


class RecoverySettings(Struct, frozen=True):
    """When plans are tried.

    Args:
        enabled: False watches and escalates, and tries nothing by itself.
        first_after_s: seconds from a failure to the first attempt, by plan; those of the plans where it says nothing.
        attempts_max: attempts before a human is told.
        settle_s: seconds after a plan succeeded in which its issue has to end.
    """

    enabled: bool = True
    first_after_s: dict[str, float] = msgspec.field(default_factory=dict)
    attempts_max: int = ATTEMPTS_MAX
    settle_s: float = SETTLE_S


class Recovery:
    """Runs plans for what the monitor finds.

    Args:
        owner: this process's name in the locks.
        found: what is wrong at the moment, and since when.
        incidents: the records.
        store: the machine's own, for the logs of the sagas.
        locks: leave for one runner.
        steps: the steps of an incident's plan as this process can do them.
        escalate: tells humans.
        settings: the numbers.
        clock: for waits.
        telemetry: is told what happens.
    """

    def __init__(
        self,
        owner: str,
        *,
        found: Callable[[], Sequence[Issue]],
        incidents: Incidents,
        store: ControlStore,
        locks: Locks,
        steps: Callable[[Incident], Sequence[Step]],
        escalate: Escalate,
        settings: RecoverySettings,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._owner = owner
        self._found = found
        self._incidents = incidents
        self._store = store
        self._locks = locks
        self._steps = steps
        self._escalate = escalate
        self._settings = settings
        self._clock = clock
        self._telemetry = telemetry
        self._held: dict[str, tuple[Lock, float]] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Look every `EVERY_S`, until cancelled; what is being tried then is gone on with by the next runner."""
        try:
            while True:
                try:
                    await self.step()
                except Exception as error:  # A defect too: nothing else mends what is wrong.
                    self._telemetry.event("recovery_stalled", code=code_of(error), why=repr(error))
                await self._clock.sleep(EVERY_S)
        finally:
            for task in self._running.values():
                task.cancel()

    async def step(self) -> None:
        """Look once at what is wrong and at what was."""
        found = {
            key_of(issue.name, issue.component): issue
            for issue in self._found()
            if issue.name in PLAN_OF or issue.name in ESCALATED_AT_ONCE
        }
        latest = await self._incidents.latest()
        # A change that did harm is no failure that anybody here could find, mend or call over.
        latest = {key: one for key, one in latest.items() if one.issue not in OTHERS}
        unresolved = {key: one for key, one in latest.items() if one.status != "resolved"}
        for key in {*found, *unresolved}:
            if key in self._running or not await self._hold(key):
                continue
            incident = unresolved.get(key)
            if key not in found:
                if incident is not None:
                    await self._over(incident)
                await self._let_go(key)
            elif incident is None:
                # What somebody has called over is not begun again while the same failure lasts.
                if key not in latest or (latest[key].resolved_at or 0.0) < found[key].since:
                    await self._begin(found[key])
            else:
                await self._go_on(incident)

    # One incident.

    async def _begin(self, issue: Issue) -> None:
        plan = PLANS.get(PLAN_OF.get(issue.name, ""))
        first_s = None
        if plan is not None and self._settings.enabled:
            first_s = self._settings.first_after_s.get(plan.name, plan.first_after_s)
        incident = await self._incidents.open(issue, first_after_s=first_s)
        self._telemetry.event(
            "incident_opened", incident=incident.id, issue=issue.name, component=issue.component, why=issue.detail
        )
        if plan is None:
            await self._tell_humans(incident)

    async def _go_on(self, incident: Incident) -> None:
        now = self._clock.time()
        if incident.plan is None:
            await self._tell_humans(incident)  # Whoever began it may have died before it told anybody.
        elif incident.status == "recovering":
            self._start(incident)  # Its runner has died in the middle.
        elif incident.status == "settling":
            if now >= (incident.settled_at or now) + self._settings.settle_s:
                await self._failed(incident, "not_settled")
        elif incident.status == "exhausted":
            await self._tell_humans(incident)
        elif incident.next_at is not None and now >= incident.next_at:
            begun = await self._incidents.change(incident.id, _begin)
            if begun.status == "recovering":
                self._start(begun)

    def _start(self, incident: Incident) -> None:
        task = asyncio.create_task(self._attempt(incident), name=f"recovery-{incident.key}")
        self._running[incident.key] = task
        task.add_done_callback(lambda _: self._running.pop(incident.key, None))

    async def _attempt(self, incident: Incident) -> None:
        """Run the plan once; never raises but CancelledError."""
        self._telemetry.event(
            "recovery_started", incident=incident.id, plan=incident.plan, attempt=incident.attempts + 1
        )
        keeping = asyncio.create_task(self._keep(incident.key), name="recovery-lock")
        try:
            saga = Saga(incident.plan or "", list(self._steps(incident)))
            state = await saga.run(f"{incident.id}/{incident.run}", StoredSagaLog(self._store))
            await self._succeeded(incident, state)
        except SagaFailed as error:
            failed = replace(incident, steps=_reports(error.state))
            await self._failed(failed, next((one.error or "" for one in failed.steps if one.error), error.code))
        except (LeaseLost, Conflict, NotFound) as error:
            self._telemetry.event("recovery_stalled", code=error.code, incident=incident.id)  # Another runs it.
        except Exception as error:
            await self._failed(incident, code_of(error))
        finally:
            keeping.cancel()

    async def _succeeded(self, incident: Incident, state: SagaState) -> None:
        reports, now = _reports(state), self._clock.time()
        self._telemetry.event(
            "recovery_successful", incident=incident.id, plan=incident.plan, attempts=incident.attempts + 1
        )
        self._telemetry.recovery(incident.plan or "", "successful")
        await self._incidents.change(
            incident.id, _unless_over(lambda one: replace(one, status="settling", settled_at=now, steps=reports))
        )

    async def _failed(self, incident: Incident, why: str) -> None:
        attempts = incident.attempts + 1
        spent = attempts >= self._settings.attempts_max
        self._telemetry.event("recovery_failed", incident=incident.id, plan=incident.plan, attempts=attempts, why=why)
        self._telemetry.recovery(incident.plan or "", "failed")
        next_at = None if spent else self._clock.time() + wait_s(attempts)
        changed = await self._incidents.change(
            incident.id,
            _unless_over(
                lambda one: replace(
                    one,
                    status="exhausted" if spent else "open",
                    attempts=attempts,
                    next_at=None if one.acknowledged_at else next_at,
                    steps=incident.steps,
                    settled_at=None,
                )
            ),
        )
        if changed.status == "exhausted":
            self._telemetry.event("recovery_exhausted", incident=incident.id, plan=incident.plan, attempts=attempts)
            self._telemetry.recovery(incident.plan or "", "exhausted")
            await self._tell_humans(changed)

    async def _over(self, incident: Incident) -> None:
        by = "recovery" if incident.status == "settling" else "itself"
        try:
            resolved = await self._incidents.resolve(incident.id, by=by)
        except Conflict:
            return  # Somebody else has just said so.
        self._telemetry.event("incident_resolved", incident=incident.id, by=by)
        if resolved.escalated:
            await self._escalate(resolved, "resolve")

    async def _tell_humans(self, incident: Incident) -> None:
        if incident.escalated:
            return
        await self._escalate(incident, "trigger")
        await self._incidents.change(incident.id, lambda one: replace(one, escalated=True))
        self._telemetry.event("escalated", incident=incident.id, issue=incident.issue, component=incident.component)

    # The lock.

    async def _hold(self, key: str) -> bool:
        """Whether this process has the lock of a component, and will for a while."""
        held, now = self._held.get(key), self._clock.monotonic()
        try:
            if held is None:
                lock = await self._locks.acquire(f"recovery:{key}", self._owner, lease_s=LOCK_S)
                if lock is None:
                    return False
            elif now < held[1]:
                return True
            else:
                lock = held[0]
                if not await self._locks.renew(lock, lease_s=LOCK_S):
                    del self._held[key]
                    return False
        except StoreError as error:
            # Who cannot reach the locks never leads.
            self._telemetry.event("recovery_stalled", code=error.code)
            self._held.pop(key, None)
            return False
        self._held[key] = lock, now + LOCK_S / 3
        return True

    async def _keep(self, key: str) -> None:
        """Keep the lock for as long as an attempt takes."""
        while True:
            await self._clock.sleep(LOCK_S / 3)
            await self._hold(key)

    async def _let_go(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            try:
                await self._locks.release(held[0])
            except StoreError as error:  # Its lease ends by itself.
                self._telemetry.event("recovery_stalled", code=error.code)


def _begin(one: Incident) -> Incident:
    """The incident as its plan is tried, unless somebody has said meanwhile that it is not to be."""
    if one.status != "open" or one.next_at is None:
        return one
    return replace(one, status="recovering", run=one.run + 1, next_at=None, steps=[])


class StoredSagaLog:
    """The log of sagas in a control store: a runner that has been overtaken finds another version, and stops."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store
        self._versions: dict[str, int] = {}

    async def load(self, saga_id: str) -> SagaState | None:
        kept = await self._store.read("saga", saga_id)
        self._versions[saga_id] = kept.version if kept else 0
        return msgspec.json.decode(kept.data, type=SagaState) if kept else None

    async def save(self, state: SagaState) -> None:
        try:
            kept = await self._store.write(
                "saga", state.id, msgspec.json.encode(state), version=self._versions.get(state.id, 0)
            )
        except Conflict as error:
            raise LeaseLost(f"another runner has gone on with {state.id}") from error
        self._versions[state.id] = kept.version

    async def unfinished(self, name: str, *, limit: int) -> list[str]:
        """The ids of at most `limit` sagas of this name that are not over, of those that were written last."""
        states = [msgspec.json.decode(one.data, type=SagaState) for one in await self._store.page("saga", limit=500)]
        return [one.id for one in states if one.name == name and not one.over][:limit]

    async def forget(self, saga_id: str) -> None:
        """Keep no log of a saga that this process has run. Raises as the store does."""
        with contextlib.suppress(Conflict):  # Else another runner has gone on with it, and forgets it.
            await self._store.delete("saga", saga_id, version=self._versions.pop(saga_id, 0))


def _unless_over(how: Callable[[Incident], Incident]) -> Callable[[Incident], Incident]:
    """The same change, but none to what somebody has called over while its plan was tried."""
    return lambda one: one if one.status == "resolved" else how(one)


def _reports(state: SagaState) -> list[StepReport]:
    # That the step which failed was taken back too is of no interest beside its failure.
    return [StepReport(one.name, "failed" if one.error else one.status, one.error) for one in state.steps]
