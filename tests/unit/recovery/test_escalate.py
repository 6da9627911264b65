"""Escalation on a manual clock: once each, in order, through outages, crashes and several processes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import CredentialRejected, Full, OutcomeUnknown, Permanent, Transient
from bellbuoy.model.operation import Alert, EscalationReport, Incident, Issue
from bellbuoy.ports.control import Kept, Kind
from bellbuoy.recovery.escalate import EVERY_S, GRACE_S, KEEP_S, Escalation, EscalationSettings, Target
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.resilience import BreakerSettings, Bulkhead, CircuitBreaker, Guard, RetrySettings, Timeout
from tests.support.flow import RecordingTelemetry

TIMEOUT_S = 10.0


class ScriptedPager:
    """Fails as it is told to, and remembers what it was told."""

    def __init__(self, name: str, *, repeat_after_s: float = 0.0, repeats_max: int | None = None) -> None:
        self.name = name
        self.repeat_after_s = repeat_after_s
        self.repeats_max = repeats_max
        self.failure: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.begun = asyncio.Event()
        self.asked: list[Alert] = []
        self.told: list[Alert] = []
        self.closed = 0

    async def send(self, alert: Alert) -> str | None:
        self.asked.append(alert)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.told.append(alert)
        return f"{self.name}-{alert.incident}"

    async def probe(self) -> None:
        """Always well."""

    async def aclose(self) -> None:
        self.closed += 1

    def actions(self) -> list[str]:
        return [alert.action for alert in self.told]


class World:
    """One machine, its processes and its targets."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.store = SqliteControlStore(path / "control.db", clock=self.clock, inline=True)
        self.telemetry = RecordingTelemetry()
        self.incidents = Incidents(self.store, self.store, clock=self.clock, rng=Random(1), telemetry=self.telemetry)
        self.pagerduty = ScriptedPager("pagerduty")
        self.slack = ScriptedPager("slack", repeat_after_s=5.0, repeats_max=3)
        self.jira = ScriptedPager("jira", repeat_after_s=60.0)
        self.pagers = [self.pagerduty, self.slack, self.jira]

    def process(self, *, attempts_max: int = 100, breaker: BreakerSettings | None = None) -> Escalation:
        """One more process, or the same after a restart."""

        def target(pager: ScriptedPager) -> Target:
            guard = Guard(
                pager.name,
                Bulkhead(pager.name, concurrency_max=1, clock=self.clock),
                CircuitBreaker(pager.name, breaker or BreakerSettings(failure_threshold=10_000), clock=self.clock),
                Timeout(TIMEOUT_S, clock=self.clock),
            )
            return Target(pager, guard, TIMEOUT_S)

        retry = RetrySettings(max_attempts=attempts_max, initial_delay_s=2.0, max_delay_s=300.0, jitter_factor=0.0)
        return Escalation(
            [target(pager) for pager in self.pagers],
            store=self.store,
            incidents=self.incidents,
            runbooks="https://docs.test/runbooks",
            settings=EscalationSettings(retry),
            clock=self.clock,
            rng=Random(1),
            telemetry=self.telemetry,
        )

    async def incident(self, name: str = "database_down", component: str = "ledger") -> Incident:
        issue = Issue(name, component, "it is gone", self.clock.time())
        opened = await self.incidents.open(issue, first_after_s=None)
        return await self.incidents.change(
            opened.id, lambda one: replace(one, status="exhausted", attempts=3, escalated=True)
        )

    async def pass_time(self, process: Escalation, seconds: float = 3 * EVERY_S) -> None:
        """Let one process look every second, and every attempt come to its end."""
        for _ in range(int(seconds / EVERY_S)):
            await look(process)
            await self.clock.advance(EVERY_S, turns=5)

    async def reports(self, incident: Incident) -> dict[tuple[str, str], str]:
        found = await self.incidents.get(incident.id)
        return {(one.target, one.action): one.status for one in found.escalations}

    def events(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.telemetry.events if event == name]


async def look(process: Escalation) -> None:
    tasks = await process.step()
    if tasks:
        await asyncio.wait(tasks, timeout=5.0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.store.aclose()


async def test_each_is_told_once_however_often_it_is_queued(world: World) -> None:
    process, incident = world.process(), await world.incident()
    for _ in range(3):
        await process(incident, "trigger")
    await world.pass_time(process, 30)
    await process(incident, "trigger")
    await world.pass_time(world.process(), 30)
    assert [[alert.incident for alert in pager.told] for pager in world.pagers] == [[incident.id]] * 3
    assert not any(alert.repeated for pager in world.pagers for alert in pager.told)
    assert len(world.events("escalation_sent")) == 3


async def test_the_incident_says_whom_it_was_told(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.jira.failure = Transient("no")
    await process(incident, "trigger")
    await look(process)
    assert set((await world.reports(incident)).values()) == {"waiting"}
    await look(process)
    found = (await world.incidents.get(incident.id)).escalations
    at = world.clock.time()
    assert found == [
        EscalationReport("jira", "trigger", "waiting", at),
        EscalationReport("pagerduty", "trigger", "sent", at, f"pagerduty-{incident.id}"),
        EscalationReport("slack", "trigger", "sent", at, f"slack-{incident.id}"),
    ]


async def test_the_end_is_told_after_the_beginning(world: World) -> None:
    process, incident = world.process(), await world.incident()
    await process(incident, "trigger")
    await world.pass_time(process)
    taken = await world.incidents.acknowledge(incident.id, by="key-1")
    await process(taken, "acknowledge")
    await world.pass_time(process)
    over = await world.incidents.resolve(incident.id, by="recovery")
    await process(over, "resolve")
    await world.pass_time(process)
    assert [pager.actions() for pager in world.pagers] == [["trigger", "acknowledge", "resolve"]] * 3
    assert set((await world.reports(incident)).values()) == {"sent"}
    for pager in world.pagers:
        assert [one.reference for one in pager.told] == [None, *[f"{pager.name}-{incident.id}"] * 2]


async def test_what_became_of_it_is_told_without_being_asked(world: World) -> None:
    """Whoever resolved it may have died before it could ask."""
    process, incident = world.process(), await world.incident()
    await process(incident, "trigger")
    await world.pass_time(process)
    await world.incidents.acknowledge(incident.id, by="key-1")
    await world.pass_time(process, 5)
    await world.incidents.resolve(incident.id, by="key-1")
    await world.pass_time(process, 5)
    assert [pager.actions() for pager in world.pagers] == [["trigger", "acknowledge", "resolve"]] * 3


async def test_what_was_over_before_it_could_be_told_is_not_told(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.slack.failure = Transient("no")
    await process(incident, "trigger")
    await world.pass_time(process)
    await process(await world.incidents.resolve(incident.id, by="itself"), "resolve")
    world.slack.failure = None
    await world.pass_time(process, 60)
    assert world.slack.told == []
    assert world.pagerduty.actions() == ["trigger", "resolve"]
    reports = await world.reports(incident)
    assert (reports["slack", "trigger"], reports["slack", "resolve"]) == ("withdrawn", "withdrawn")


async def test_who_may_have_been_told_is_told_that_it_is_over(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.jira.failure = OutcomeUnknown("lost")
    await process(incident, "trigger")
    await world.pass_time(process)
    world.jira.failure = None
    await process(await world.incidents.resolve(incident.id, by="itself"), "resolve")
    await world.pass_time(process, 60)
    assert world.jira.told == []  # It could not be found yet.
    await world.pass_time(process, 5)
    assert world.jira.actions() == ["resolve"]


async def test_an_outage_is_waited_out_with_growing_waits(world: World) -> None:
    process, incident = world.process(), await world.incident()
    began = world.clock.time()
    world.pagerduty.failure = Transient("no")
    times: list[float] = []
    await process(incident, "trigger")
    for _ in range(1_500):
        before = len(world.pagerduty.asked)
        await look(process)
        if len(world.pagerduty.asked) > before:
            times.append(world.clock.time() - began)
        await world.clock.advance(EVERY_S, turns=1)
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    world.pagerduty.failure = None
    await world.pass_time(process, 301)
    assert len(world.pagerduty.told) == len(world.slack.told) == len(world.jira.told) == 1


async def test_a_wait_that_is_asked_for_is_kept(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.slack.failure = Transient("less", throttled=True, retry_after_s=30.0)
    await process(incident, "trigger")
    await world.pass_time(process, 29)
    assert len(world.slack.asked) == 1
    world.slack.failure = None
    await world.pass_time(process, 3)
    assert len(world.slack.told) == 1


async def test_short_waits_that_are_asked_for_do_not_use_up_the_attempts(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.slack.failure = Transient("less", throttled=True, retry_after_s=1.0)
    await process(incident, "trigger")
    await world.pass_time(process, 600)
    assert len(world.slack.asked) < 12


@pytest.mark.parametrize("failure", [Permanent("no", hint="mend it"), CredentialRejected("no", hint="mend it")])
async def test_what_is_final_is_given_up_at_once_and_loudly(world: World, failure: Exception) -> None:
    process, incident = world.process(), await world.incident()
    world.slack.failure = failure
    await process(incident, "trigger")
    await world.pass_time(process, 60)
    assert len(world.slack.asked) == 1
    assert len(world.pagerduty.told) == len(world.jira.told) == 1
    (said,) = world.events("escalation_failed")
    assert (said["target"], said["incident"], said["hint"]) == ("slack", incident.id, "mend it")
    assert ("escalation_failed", "slack") in world.telemetry.issues
    assert (await world.reports(incident))["slack", "trigger"] == "failed"
    # A restart does not hide it; the next alert that is taken does.
    world.telemetry.issues.clear()
    process = world.process()
    await look(process)
    assert ("escalation_failed", "slack") in world.telemetry.issues
    world.slack.failure = None
    await process(await world.incident("message_queue_down", "queue"), "trigger")
    await world.pass_time(process)
    assert world.telemetry.issues == {}


async def test_there_is_a_last_attempt(world: World) -> None:
    process, incident = world.process(attempts_max=4), await world.incident()
    world.slack.failure = Transient("no")
    world.jira.failure = OutcomeUnknown("lost")
    await process(incident, "trigger")
    await world.pass_time(process, 400)
    assert len(world.slack.asked) == len(world.jira.asked) == 4
    assert [said["target"] for said in world.events("escalation_failed")] == ["slack"]
    reports = await world.reports(incident)
    assert (reports["slack", "trigger"], reports["jira", "trigger"]) == ("failed", "uncertain")


async def test_an_open_breaker_costs_no_attempt(world: World) -> None:
    breaker = BreakerSettings(failure_threshold=1, recovery_timeout_s=20.0, success_threshold=1)
    process, incident = world.process(attempts_max=3, breaker=breaker), await world.incident()
    world.slack.failure = Transient("no")
    await process(incident, "trigger")
    await world.pass_time(process, 15)
    assert len(world.slack.asked) == 1
    world.slack.failure = None
    await world.pass_time(process, 15)
    assert len(world.slack.told) == 1


async def test_a_target_that_hangs_holds_up_no_other(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.jira.gate = asyncio.Event()
    await process(incident, "trigger")
    for _ in range(5):
        await process.step()
        await world.clock.advance(EVERY_S, turns=50)
    assert len(world.pagerduty.told) == len(world.slack.told) == 1
    assert len(world.jira.asked) == 1
    await world.clock.advance(TIMEOUT_S, turns=50)
    await look(process)
    assert (await world.reports(incident))["jira", "trigger"] == "waiting"
    world.jira.gate.set()
    await world.pass_time(process, 70)
    assert len(world.jira.told) == 1


async def die_in_the_middle(world: World, pager: ScriptedPager, incident: Incident) -> None:
    """A process records its attempt, begins it, and is no more."""
    pager.gate = asyncio.Event()
    process = world.process()
    await process(incident, "trigger")
    tasks = await process.step()
    await asyncio.wait_for(pager.begun.wait(), 5.0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    pager.gate = None


@pytest.mark.parametrize(("name", "wait_s"), [("pagerduty", 2.0), ("slack", 5.0), ("jira", 60.0)])
async def test_after_a_crash_the_attempt_is_made_again_when_it_does_no_harm(
    world: World, name: str, wait_s: float
) -> None:
    pager, incident = getattr(world, name), await world.incident()
    await die_in_the_middle(world, pager, incident)
    await world.pass_time(world.process(), TIMEOUT_S + GRACE_S + wait_s - 1)
    assert pager.told == []
    await world.pass_time(world.process(), 4)
    (told,) = pager.told
    assert (told.incident, told.repeated) == (incident.id, True)
    assert all(len(other.told) == 1 for other in world.pagers if other is not pager)


async def test_who_cannot_recognise_a_repetition_gets_few(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.slack.failure = OutcomeUnknown("lost")
    await process(incident, "trigger")
    await world.pass_time(process, 300)
    assert [alert.repeated for alert in world.slack.asked] == [False, True, True, True]
    assert (await world.reports(incident))["slack", "trigger"] == "uncertain"
    assert len(world.events("escalation_uncertain")) == 1


async def test_of_several_processes_one_sends(world: World) -> None:
    processes = [world.process() for _ in range(3)]
    incidents = [await world.incident(component=f"c{n}") for n in range(4)]
    for process in processes:
        for incident in incidents:
            await process(incident, "trigger")
    for _ in range(12):
        looks = await asyncio.gather(*(process.step() for process in processes))
        await asyncio.gather(*(task for tasks in looks for task in tasks))
        await world.clock.advance(EVERY_S, turns=1)
    for pager in world.pagers:
        assert sorted(a.incident for a in pager.asked) == sorted(one.id for one in incidents)


async def test_a_process_that_was_believed_dead_changes_nothing(world: World) -> None:
    incident = await world.incident()
    frozen, other = world.process(), world.process()
    world.pagerduty.gate = gate = asyncio.Event()
    await frozen(incident, "trigger")
    tasks = await frozen.step()
    await asyncio.wait_for(world.pagerduty.begun.wait(), 5.0)
    world.pagerduty.gate = None
    world.clock.jump(TIMEOUT_S + GRACE_S)  # Its own timers stood still.
    await world.pass_time(other, 5)
    assert len(world.pagerduty.told) == 1
    gate.set()
    await asyncio.gather(*tasks)
    await look(other)
    assert (await world.reports(incident))["pagerduty", "trigger"] == "sent"


async def test_a_clock_that_is_set_back_does_not_hold_it_up(world: World) -> None:
    process, incident = world.process(), await world.incident()
    world.pagerduty.failure = Transient("no")
    await process(incident, "trigger")
    await look(process)
    world.pagerduty.failure = None
    world.clock.jump(-3_600.0)
    await world.pass_time(process, 3)
    assert len(world.pagerduty.told) == 1


async def test_one_alert_a_second(world: World) -> None:
    process = world.process()
    for n in range(5):
        await process(await world.incident(component=f"c{n}"), "trigger")
    for n in range(5):
        await look(process)
        assert len(world.slack.told) == n + 1
        await world.clock.advance(EVERY_S, turns=1)


async def test_records_are_forgotten_a_day_after_the_end(world: World) -> None:
    process = world.process()
    over, lasting = await world.incident(), await world.incident("message_queue_down", "queue")
    for incident in (over, lasting):
        await process(incident, "trigger")
    await world.pass_time(process)
    await process(await world.incidents.resolve(over.id, by="itself"), "resolve")
    await world.pass_time(process)
    assert len(await world.store.page("alert", limit=99)) == 9
    await world.clock.advance(KEEP_S + 1)
    await look(process)
    assert {one.id for one in await world.store.page("alert", limit=99)} == {
        f"{lasting.id}:{pager.name}:trigger" for pager in world.pagers
    }


async def test_an_incident_that_cannot_be_written_keeps_nobody_from_being_told(world: World) -> None:
    process, incident = world.process(), await world.incident()
    await process(incident, "trigger")

    async def change(*_: object) -> Incident:
        raise Full("no room")

    world.incidents.change = change  # type: ignore[assignment, method-assign]
    await world.pass_time(process)
    assert [pager.actions() for pager in world.pagers] == [["trigger"]] * 3
    assert {said["code"] for said in world.events("escalation_stalled")} == {"store_full"}


class FullStore:
    """A store that takes nothing for a while."""

    def __init__(self, store: SqliteControlStore) -> None:
        self._store = store
        self.full = False
        self.read, self.page, self.delete, self.aclose = store.read, store.page, store.delete, store.aclose

    async def write(self, kind: Kind, id: str, data: bytes, *, version: int) -> Kept:
        if self.full:
            raise Full("no room")
        return await self._store.write(kind, id, data, version=version)


async def test_without_room_for_the_record_nothing_is_sent_and_it_goes_on_afterwards(world: World) -> None:
    incident = await world.incident()
    world.store = store = FullStore(world.store)  # type: ignore[assignment]
    process = world.process()
    store.full = True
    with pytest.raises(Full):
        await process(incident, "trigger")
    store.full = False
    await process(incident, "trigger")
    store.full = True
    running = asyncio.create_task(process.run())
    await world.clock.advance(5 * EVERY_S)
    assert world.pagerduty.asked == []
    assert {said["code"] for said in world.events("escalation_stalled")} == {"store_full"}
    store.full = False
    await world.clock.advance(5 * EVERY_S)
    assert [pager.actions() for pager in world.pagers] == [["trigger"]] * 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_with_nobody_to_tell_nothing_is_kept(world: World) -> None:
    world.pagers.clear()
    process = world.process()
    await process(await world.incident(), "trigger")
    await look(process)
    assert await world.store.page("alert", limit=9) == []


async def test_closing_closes_every_target(world: World) -> None:
    await world.process().aclose()
    assert [pager.closed for pager in world.pagers] == [1, 1, 1]
