"""Tell humans, by a way that is not under repair: a queue in this machine's own store, and connections of its own.

An attempt is recorded before it is made, over the version of the record that was seen, so of the processes of one
machine one makes it. When its end is not recorded, by a crash or a lost answer, the target may have been told; what
follows then is the target's own to say (`Pager.repeat_after_s`, `Pager.repeats_max`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import (
    BellbuoyError,
    Conflict,
    CredentialRejected,
    ExecutionRejected,
    NotFound,
    Permanent,
    StoreError,
    Transient,
    code_of,
)
from bellbuoy.model.operation import AlertAction, EscalationReport, Incident, Issue
from bellbuoy.ports.control import ControlStore, Kept
from bellbuoy.ports.operations import Pager, Telemetry
from bellbuoy.recovery.alerts import ACTIONS, Queued, alert_of, next_step
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.resilience.backoff import RetrySettings
from bellbuoy.resilience.guard import Guard

EVERY_S = 1.0
"""Seconds between two looks, each of which sends at most one alert to a target; a webhook of Slack's takes no more."""

GRACE_S = 5.0
"""For so many seconds longer than an attempt may take it is believed to be under way."""

CLOCK_BACK_S = 60.0
"""A record that was written so many seconds in the future says that the clock was set back; no wait outlasts that."""

KEPT_MAX = 2_000
KEEP_S = 86_400.0
"""How many records are looked at, and for how long those of an incident that is over are kept."""

_decode = msgspec.json.Decoder(Queued).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Target:
    """A pager in its guard; `timeout_s` is how long one attempt may take there."""

    pager: Pager
    guard: Guard
    timeout_s: float


@dataclass(frozen=True, slots=True)
class EscalationSettings:
    """How long a target that does not take an alert is tried.

    The waits grow from `retry.initial_delay_s` to `retry.max_delay_s`; with five minutes at most, a hundred attempts
    are about eight hours, in which somebody looks after a pager that is down.
    """

    retry: RetrySettings = field(
        default_factory=lambda: RetrySettings(
            max_attempts=100, initial_delay_s=2.0, max_delay_s=300.0, retry_after_s_max=3_600.0
        )
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    kept: Kept
    queued: Queued


class Escalation:
    """Implements `bellbuoy.recovery.execute.Escalate`; its `run` sends what is queued.

    Args:
        targets: whom to tell; none is possible, and then nobody is.
        store: the machine's own.
        incidents: their `escalations` are kept up to date, and what becomes of them is told without being asked to.
        runbooks: the URL under which the pages of `docs/runbooks` are found.
        settings: the numbers.
        clock, rng: for waits.
        telemetry: is told what happens.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        store: ControlStore,
        incidents: Incidents,
        runbooks: str,
        settings: EscalationSettings | None = None,
        clock: Clock,
        rng: Random,
        telemetry: Telemetry,
    ) -> None:
        self.targets = {target.pager.name: target for target in targets}
        self._store = store
        self._incidents = incidents
        self._runbooks = runbooks
        self._settings = settings or EscalationSettings()
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._finished: set[str] = set()

    async def __call__(self, incident: Incident, action: AlertAction) -> None:
        """Queue it for every target; durable when this returns. Queueing the same again changes nothing.

        Raises:
            Full, Unavailable: the machine's own store did not take it.
        """
        now = self._clock.time()
        alert = alert_of(incident, action, runbooks=self._runbooks, now=now)
        for name in self.targets:
            entry = _encode(Queued(alert, name, next_at=now))
            try:
                await self._store.write("alert", f"{incident.id}:{name}:{action}", entry, version=0)
            except Conflict:
                continue  # It is queued, or told.

    async def run(self) -> None:
        """Send what is due, until cancelled; an attempt that is under way then counts as one that may have told."""
        try:
            while True:
                try:
                    await self.step()
                except Exception as error:  # A defect too: nobody else would tell.
                    self._telemetry.event("escalation_stalled", code=code_of(error), why=repr(error))
                await self._clock.sleep(EVERY_S)
        finally:
            for task in self._sending.values():
                task.cancel()

    async def step(self) -> Sequence[asyncio.Task[None]]:
        """Look once at what is queued; returns the attempts that are under way."""
        kept = await self._store.page("alert", limit=KEPT_MAX)
        entries = [_Entry(one, _decode(one.data)) for one in kept]
        groups: dict[str, list[_Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.queued.alert.incident, []).append(entry)
        self._finished &= groups.keys()
        for incident_id, group in groups.items():
            if incident_id not in self._finished:
                try:
                    await self._follow(incident_id, group)
                except StoreError as error:  # What is queued is sent all the same.
                    self._telemetry.event("escalation_stalled", code=error.code, incident=incident_id)
        for target in self.targets.values():
            with contextlib.suppress(Conflict):  # Another process has just done it.
                await self._advance(target, [e for e in entries if e.queued.target == target.pager.name])
        await self._forget(groups, full=len(kept) >= KEPT_MAX)
        return list(self._sending.values())

    async def aclose(self) -> None:
        """Close the connections to all targets."""
        for target in self.targets.values():
            await target.pager.aclose()

    # What became of an incident.

    async def _follow(self, incident_id: str, group: Sequence[_Entry]) -> None:
        """Queue what has become of it since, and write into it how far telling is."""
        try:
            incident = await self._incidents.get(incident_id)
        except NotFound:
            self._finished.add(incident_id)
            return
        reports = [
            EscalationReport(q.target, q.alert.action, q.status, e.kept.at, q.reference)
            for e in sorted(group, key=lambda e: (e.queued.target, ACTIONS.index(e.queued.alert.action)))
            for q in (e.queued,)
        ]
        if incident.escalations != reports:
            await self._incidents.change(incident_id, lambda one: replace(one, escalations=reports))
        action: AlertAction | None = "acknowledge" if incident.acknowledged_at is not None else None
        if incident.status == "resolved":
            action = "resolve"
        by_target = {name: _of(group, name) for name in self.targets}
        if action and any("trigger" in has and action not in has for has in by_target.values()):
            await self(incident, action)
        elif action == "resolve" and all(e.queued.over for has in by_target.values() for e in has.values()):
            self._finished.add(incident_id)

    async def _forget(self, groups: Mapping[str, Sequence[_Entry]], *, full: bool) -> None:
        """Delete the records of incidents that have been over for a while; at once when there are too many."""
        before = self._clock.time() - KEEP_S
        for incident_id in self._finished & groups.keys():
            group = groups[incident_id]
            if full or max(entry.kept.at for entry in group) < before:
                for entry in group:
                    await self._store.delete("alert", entry.kept.id, version=entry.kept.version)

    # One target.

    async def _advance(self, target: Target, entries: Sequence[_Entry]) -> None:
        """Withdraw what need not be told, and begin with what has waited longest."""
        name, due = target.pager.name, []
        self._judge(name, entries)
        for incident_id in dict.fromkeys(entry.queued.alert.incident for entry in entries):
            has = _of([e for e in entries if e.queued.alert.incident == incident_id], name)
            step = next_step({action: entry.queued for action, entry in has.items()})
            if step is None:
                continue
            entry = has[step[1]]
            if step[0] == "withdraw":
                await self._end(entry, replace(entry.queued, status="withdrawn"), "withdrawn")
            elif entry.queued.status == "sending":
                if not self._passed(entry.queued.until, entry.kept):
                    return  # Somebody is at it, and one at a time is enough.
                lost = self._unknown(target, replace(entry.queued, error="interrupted"))
                await self._end(entry, lost, "uncertain" if lost.over else "retried")
            else:
                entry = _informed(entry, has["trigger"], target)
                if self._passed(entry.queued.next_at, entry.kept):
                    due.append(entry)
        if due and name not in self._sending:
            first = min(due, key=lambda entry: (entry.queued.next_at, entry.kept.id))
            task = asyncio.create_task(self._send(target, first), name=f"escalation-{name}")
            self._sending[name] = task
            task.add_done_callback(lambda _: self._sending.pop(name, None))

    async def _send(self, target: Target, entry: _Entry) -> None:
        """Make one attempt; never raises but CancelledError."""
        try:
            claimed = await self._claim(target, entry)
            await self._end(claimed, *await self._attempt(target, claimed.queued))
        except Conflict:
            return  # Another process is at it, or has believed this one dead.
        except Exception as error:  # The record says `sending`, and what follows from that comes in its time.
            self._telemetry.event("escalation_stalled", code=code_of(error), why=repr(error))

    async def _claim(self, target: Target, entry: _Entry) -> _Entry:
        queued = replace(
            entry.queued,
            status="sending",
            attempts=entry.queued.attempts + 1,
            until=self._clock.time() + target.timeout_s + GRACE_S,
        )
        return await self._write(entry.kept, queued)

    async def _attempt(self, target: Target, queued: Queued) -> tuple[Queued, str]:
        """What the record becomes by one attempt, and the word for that."""
        alert = replace(queued.alert, repeated=queued.unknowns > 0)
        try:
            reference = await target.guard.call(target.pager.send, alert)
        except ExecutionRejected as error:
            # No request was made: it is no attempt, and the guard says when to come back.
            again = self._clock.time() + (error.retry_after_s or EVERY_S)
            return replace(queued, status="waiting", attempts=queued.attempts - 1, next_at=again), "refused"
        except (Permanent, CredentialRejected) as error:
            return self._failed(queued, error), "failed"
        except Transient as error:
            queued = replace(queued, error=error.error_code or error.code)
            if queued.attempts >= self._settings.retry.max_attempts:
                return self._failed(queued, error), "failed"
            return replace(queued, status="waiting", next_at=self._again_at(queued, error)), "retried"
        except Exception as error:  # A timeout, no answer, or a defect: all of them may have told.
            queued = self._unknown(target, replace(queued, error=code_of(error)), error)
            return queued, "uncertain" if queued.over else "retried"
        return replace(queued, status="sent", reference=reference, error=None), "sent"

    def _unknown(self, target: Target, queued: Queued, error: Exception | None = None) -> Queued:
        """After an attempt that may have told: wait until the next does no harm, or leave it at that."""
        queued = replace(queued, unknowns=queued.unknowns + 1)
        repeats_max = target.pager.repeats_max
        spent = queued.attempts >= self._settings.retry.max_attempts
        if spent or (repeats_max is not None and queued.unknowns > repeats_max):
            return replace(queued, status="uncertain")
        at = max(self._again_at(queued, error), self._clock.time() + target.pager.repeat_after_s)
        return replace(queued, status="waiting", next_at=at)

    def _again_at(self, queued: Queued, error: Exception | None) -> float:
        """Our own wait, or what was asked for where that is longer: short ones would use up all attempts in minutes."""
        wait_s = self._settings.retry.delay_s(queued.attempts, self._rng)
        asked_s = error.retry_after_s if isinstance(error, BellbuoyError) else None
        if asked_s is not None:
            wait_s = max(wait_s, self._settings.retry.delay_s(queued.attempts, self._rng, asked_s))
        return self._clock.time() + wait_s

    def _failed(self, queued: Queued, error: BellbuoyError) -> Queued:
        self._telemetry.event(
            "escalation_failed",
            incident=queued.alert.incident,
            target=queued.target,
            action=queued.alert.action,
            attempts=queued.attempts,
            code=error.code,
            why=str(error),
            hint=error.hint,
        )
        return replace(queued, status="failed", error=error.code)

    async def _end(self, entry: _Entry, queued: Queued, result: str) -> None:
        """Record what became of it, then say so."""
        await self._write(entry.kept, queued)
        if result == "refused":
            return
        self._telemetry.escalation(queued.target, result)
        if result != "failed":
            self._telemetry.event(
                f"escalation_{result}",
                incident=queued.alert.incident,
                target=queued.target,
                action=queued.alert.action,
                attempts=queued.attempts,
                code=queued.error,
            )

    async def _write(self, kept: Kept, queued: Queued) -> _Entry:
        return _Entry(await self._store.write("alert", kept.id, _encode(queued), version=kept.version), queued)

    def _passed(self, at: float, kept: Kept) -> bool:
        now = self._clock.time()
        return now >= at or now < kept.at - CLOCK_BACK_S

    def _judge(self, name: str, entries: Sequence[_Entry]) -> None:
        """An issue while the last alert that came to an end was given up, until one is sent again."""
        ended = [entry for entry in entries if entry.queued.status in ("sent", "failed")]
        last = max(ended, key=lambda entry: entry.kept.at, default=None)
        if last is not None and last.queued.status == "failed":
            detail = f"{last.queued.alert.incident} was not told: {last.queued.error}"
            self._telemetry.raise_issue(Issue("escalation_failed", name, detail, last.kept.at))
        else:
            self._telemetry.clear_issue("escalation_failed", name)


def _informed(entry: _Entry, trigger: _Entry, target: Target) -> _Entry:
    """What follows a trigger knows what the target called that; it waits until it can be found where nobody knows."""
    if entry.queued.alert.action == "trigger":
        return entry
    queued = replace(entry.queued, alert=replace(entry.queued.alert, reference=trigger.queued.reference))
    if trigger.queued.status != "sent":
        queued = replace(queued, next_at=max(queued.next_at, trigger.kept.at + target.pager.repeat_after_s))
    return _Entry(entry.kept, queued)


def _of(group: Iterable[_Entry], target: str) -> dict[AlertAction, _Entry]:
    """One incident's alerts for a target."""
    return {entry.queued.alert.action: entry for entry in group if entry.queued.target == target}
