"""Escalation as it is assembled, against the stand-ins: once each, whatever is away and whoever dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bellbuoy.adapters.control_locks import ControlLocks
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Unavailable
from bellbuoy.model.operation import Incident, Issue
from bellbuoy.recovery.escalate import EVERY_S, Escalation
from bellbuoy.recovery.execute import Recovery, RecoverySettings
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.resilience.saga import Step
from bellbuoy.sandbox import Sandbox, SandboxSettings
from bellbuoy.sandbox.alerts import PagerDuty
from bellbuoy.sandbox.jira import Jira
from bellbuoy.service.alerts import build_escalation
from bellbuoy.service.settings import Settings, with_overrides
from bellbuoy.service.telemetry import ServiceTelemetry

TARGETS = ("pagerduty", "slack", "jira")


class Machine:
    """A machine whose processes come and go: its store, its clock, and the systems that it tells."""

    def __init__(self, path: Path, sandbox: Sandbox, clock: ManualClock) -> None:
        self.clock = clock
        self.sandbox = sandbox
        self.settings = with_overrides(Settings(), {"alerts": sandbox.wiring()["alerts"]})
        self.telemetry = ServiceTelemetry(clock)
        self.store = SqliteControlStore(path / "control.db", clock=clock, inline=True)
        self.incidents = Incidents(self.store, self.store, clock=clock, rng=Random(1), telemetry=self.telemetry)
        self.issues: list[Issue] = []
        self._started: list[Escalation] = []

    def process(self) -> Escalation:
        """One more process, or the same after a restart."""
        made = build_escalation(self.settings, self.store, self.incidents, self.clock, Random(1), self.telemetry)
        self._started.append(made)
        return made

    def recovery(self, escalation: Escalation) -> Recovery:
        """Tries what never helps."""

        def steps(incident: Incident) -> Sequence[Step]:
            async def fail() -> None:
                raise Unavailable("still away")

            return [Step("fail", fail)]

        return Recovery(
            "process",
            found=lambda: self.issues,
            incidents=self.incidents,
            store=self.store,
            locks=ControlLocks(self.store, clock=self.clock),
            steps=steps,
            escalate=escalation,
            settings=RecoverySettings(),
            clock=self.clock,
            telemetry=self.telemetry,
        )

    async def incident(self) -> Incident:
        issue = Issue("database_down", "ledger", "3 probes in a row failed", self.clock.time())
        return await self.incidents.open(issue, first_after_s=None)

    async def pass_time(self, escalation: Escalation, seconds: float, recovery: Recovery | None = None) -> None:
        for _ in range(int(seconds / EVERY_S)):
            if recovery is not None:
                await recovery.step()
            tasks = await escalation.step()
            if tasks:
                await asyncio.wait(tasks, timeout=30.0)
            await self.clock.advance(EVERY_S)

    def arrived(self, target: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.sandbox.stations[target].received.describe()["items"]
        return [item for item in items if item["delivered"]]

    def assert_told_once(self, incident: Incident) -> None:
        """One page, one message, one ticket, all of them with the incident's id."""
        for target in TARGETS:
            (item,) = self.arrived(target)
            assert incident.id in item["collapse_id"].split(",")
        assert self.pages == {incident.id: "triggered"}
        (ticket,) = self.tickets.values()
        assert ticket["fields"]["status"]["name"] == "To Do"

    @property
    def pages(self) -> dict[str, str]:
        station = self.sandbox.stations["pagerduty"]
        assert isinstance(station, PagerDuty)
        return station.incidents

    @property
    def tickets(self) -> dict[str, dict[str, Any]]:
        station = self.sandbox.stations["jira"]
        assert isinstance(station, Jira)
        return station.issues

    async def aclose(self) -> None:
        for one in self._started:
            await one.aclose()
        await self.store.aclose()


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    clock = ManualClock()
    sandbox = Sandbox(SandboxSettings(), clock=clock, rng=Random(1))
    await sandbox.start()
    made = Machine(tmp_path, sandbox, clock)
    yield made
    await made.aclose()
    await sandbox.aclose()


async def fault(machine: Machine, name: str, kind: str, **wish: object) -> None:
    station = machine.sandbox.stations[name]
    station.faults.put({"kind": kind, **wish})
    await station.settle()


async def mend(machine: Machine, name: str) -> None:
    station = machine.sandbox.stations[name]
    station.faults.clear()
    await station.settle()


async def test_recovery_fails_three_times_and_everybody_is_told_once_and_that_it_is_over(machine: Machine) -> None:
    escalation = machine.process()
    recovery = machine.recovery(escalation)
    machine.issues.append(Issue("database_down", "ledger", "3 probes in a row failed", machine.clock.time()))
    await machine.pass_time(escalation, 29, recovery)
    assert not any(machine.arrived(target) for target in TARGETS)
    await machine.pass_time(escalation, 31, recovery)
    (incident,) = await machine.incidents.all(limit=9)
    assert (incident.status, incident.attempts) == ("exhausted", 3)
    machine.assert_told_once(incident)

    # A restart in the middle of it tells nobody again.
    escalation = machine.process()
    recovery = machine.recovery(escalation)
    await machine.pass_time(escalation, 60, recovery)
    machine.assert_told_once(incident)

    machine.issues.clear()
    await machine.pass_time(escalation, 40, recovery)
    assert machine.pages == {incident.id: "resolved"}
    (ticket,) = machine.tickets.values()
    assert ticket["fields"]["status"]["name"] == "Done"
    assert [item["title"] for item in machine.arrived("slack")][1:] == [
        f"🟢 database_down (ledger) is over ({incident.id})"
    ]
    told = (await machine.incidents.get(incident.id)).escalations
    assert {(one.target, one.action, one.status) for one in told} == {
        (target, action, "sent") for target in TARGETS for action in ("trigger", "resolve")
    }


async def die_between_record_and_send(machine: Machine, incident: Incident) -> None:
    """A process writes down its attempts at all targets and is no more, before a byte has left it."""
    process = machine.process()
    await process(incident, "trigger")
    tasks = await process.step()
    for _ in range(50):
        await asyncio.sleep(0)
        if all(b'"status":"sending"' in one.data for one in await machine.store.page("alert", limit=9)):
            break
    assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_who_dies_between_record_and_send_has_told_nobody_and_the_next_tells_once(machine: Machine) -> None:
    incident = await machine.incident()
    await fault(machine, "pagerduty", "outage", refuse=True)  # One port for all three: nothing can have arrived.
    await die_between_record_and_send(machine, incident)
    await mend(machine, "pagerduty")
    await machine.pass_time(machine.process(), 120)
    machine.assert_told_once(incident)


async def test_who_dies_between_send_and_record_has_told_and_the_next_pages_and_writes_no_second_time(
    machine: Machine,
) -> None:
    incident = await machine.incident()
    await fault(machine, "pagerduty", "hang", deliver=True, count=1)
    await fault(machine, "jira", "hang", deliver=True, count=1, match="OPS")  # Of making a ticket, not of searching it.
    process = machine.process()
    await process(incident, "trigger")
    tasks = await process.step()
    async with asyncio.timeout(30.0):
        while not (machine.pages and machine.tickets):  # noqa: ASYNC110  # The stand-ins have no event to wait for.
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await machine.pass_time(machine.process(), 120)
    assert machine.pages == {incident.id: "triggered"}
    assert len(machine.tickets) == 1
    assert len(machine.arrived("slack")) == 1
    told = (await machine.incidents.get(incident.id)).escalations
    assert {one.status for one in told} == {"sent"}


async def test_a_message_that_may_have_been_said_is_said_again_and_says_so(machine: Machine) -> None:
    incident = await machine.incident()
    await fault(machine, "slack", "reset", deliver=True, count=1)
    process = machine.process()
    await process(incident, "trigger")
    await machine.pass_time(process, 30)
    first, second = (item["data"]["blocks"][-1]["elements"][0]["text"] for item in machine.arrived("slack"))
    assert incident.id in first
    assert second == f"{first} · this may have been said before"


@pytest.mark.parametrize("kind", ["outage", "quota"])
@pytest.mark.parametrize("target", TARGETS)
async def test_a_target_that_is_away_for_a_while_is_told_once_when_it_is_back(
    machine: Machine, target: str, kind: str
) -> None:
    incident = await machine.incident()
    await fault(machine, target, kind)
    process = machine.process()
    await process(incident, "trigger")
    await machine.pass_time(process, 300)
    assert machine.arrived(target) == []
    assert all(len(machine.arrived(other)) == 1 for other in TARGETS if other != target)
    await mend(machine, target)
    await machine.pass_time(process, 600)
    machine.assert_told_once(incident)


async def test_all_are_away_and_a_restart_in_between(machine: Machine) -> None:
    incident = await machine.incident()
    await fault(machine, "pagerduty", "outage", refuse=True)
    process = machine.process()
    await process(incident, "trigger")
    await machine.pass_time(process, 60)
    await mend(machine, "pagerduty")
    await machine.pass_time(machine.process(), 600)
    machine.assert_told_once(incident)


@pytest.mark.parametrize("target", TARGETS)
async def test_a_credential_that_is_refused_is_said_loudly_and_keeps_nobody_else_from_being_told(
    machine: Machine, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    incident = await machine.incident()
    await fault(machine, target, "bad_credentials")
    process = machine.process()
    await process(incident, "trigger")
    await machine.pass_time(process, 5)
    assert set(machine.telemetry.issues) == {("escalation_failed", target)}
    assert all(len(machine.arrived(other)) == 1 for other in TARGETS if other != target)
    logged = capsys.readouterr().out + capsys.readouterr().err
    alerts = machine.settings.alerts
    for secret in (alerts.pagerduty.routing_key, alerts.slack.webhook_url, alerts.jira.api_token):
        assert secret is not None
        assert secret.get_secret_value() not in logged


async def test_every_target_can_be_off(tmp_path: Path, machine: Machine) -> None:
    machine.settings = Settings()
    process = machine.process()
    assert process.targets == {}
    await process(await machine.incident(), "trigger")
    await machine.pass_time(process, 3)
    assert not any(machine.arrived(target) for target in TARGETS)
