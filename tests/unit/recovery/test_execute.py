"""Recovery on a manual clock: attempts, waits, resets, one runner, and a runner that dies in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from bellbuoy.adapters.control_locks import ControlLocks
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict, NotFound, Unavailable
from bellbuoy.model.operation import Incident, Issue
from bellbuoy.recovery.execute import EVERY_S, LOCK_S, Recovery, RecoverySettings
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.resilience.saga import Step
from tests.support.flow import RecordingTelemetry


class World:
    """Processes of one machine, what is wrong, and what their steps do."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.store = SqliteControlStore(path / "control.db", clock=self.clock, inline=True)
        self.telemetry = RecordingTelemetry()
        self.incidents = Incidents(self.store, self.store, clock=self.clock, rng=Random(1), telemetry=self.telemetry)
        self.issues: list[Issue] = []
        self.failing: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.done: list[tuple[str, str]] = []
        self.told: list[tuple[str, str]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def break_(self, name: str = "database_down", component: str = "ledger") -> None:
        self.issues.append(Issue(name, component, "it is gone", self.clock.time()))

    def mend(self) -> None:
        self.issues.clear()

    def recovery(self, owner: str, **settings: object) -> Recovery:
        return Recovery(
            owner,
            found=lambda: self.issues,
            incidents=self.incidents,
            store=self.store,
            locks=ControlLocks(self.store, clock=self.clock),
            steps=lambda incident: self._steps(owner, incident),
            escalate=self._escalate,
            settings=RecoverySettings(**settings),  # type: ignore[arg-type]
            clock=self.clock,
            telemetry=self.telemetry,
        )

    def start(self, owner: str, **settings: object) -> asyncio.Task[None]:
        task = asyncio.create_task(self.recovery(owner, **settings).run())
        self.tasks.append(task)
        return task

    def _steps(self, owner: str, incident: Incident) -> Sequence[Step]:
        def step(name: str) -> Step:
            async def do() -> None:
                self.done.append((owner, name))
                if self.gate is not None and name == "second":
                    await self.gate.wait()
                if name in self.failing:
                    raise Unavailable("still gone")

            return Step(name, do)

        return [step("first"), step("second")]

    async def _escalate(self, incident: Incident, action: Literal["trigger", "acknowledge", "resolve"]) -> None:
        self.told.append((incident.id, action))

    async def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds / EVERY_S)):
            await self.clock.advance(EVERY_S)
            for _ in range(20):
                await asyncio.sleep(0)

    def events(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.telemetry.events if event == name]

    async def only(self) -> Incident:
        (one,) = await self.incidents.all(limit=10)
        return one


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    for task in world.tasks:
        task.cancel()
    await asyncio.gather(*world.tasks, return_exceptions=True)
    await world.store.aclose()


async def test_a_failure_is_left_to_itself_for_its_time_and_then_mended(world: World) -> None:
    world.start("a")
    world.break_()
    await world.pass_time(29)
    assert world.done == []
    one = await world.only()
    assert (one.status, one.plan, one.issue, one.component) == (
        "open",
        "database_connection",
        "database_down",
        "ledger",
    )
    await world.pass_time(2)
    assert world.done == [("a", "first"), ("a", "second")]
    assert (await world.only()).status == "settling"
    world.mend()
    await world.pass_time(1)
    one = await world.only()
    assert (one.status, one.resolved_by) == ("resolved", "recovery")
    assert [step.status for step in one.steps] == ["done", "done"]
    assert world.told == []
    assert len(world.events("recovery_successful")) == 1


async def test_what_ends_by_itself_is_not_tried_and_nobody_is_told(world: World) -> None:
    world.start("a")
    world.break_()
    await world.pass_time(20)
    world.mend()
    await world.pass_time(60)
    one = await world.only()
    assert (one.status, one.resolved_by, world.done, world.told) == ("resolved", "itself", [], [])


async def test_after_three_failed_attempts_a_human_is_told_once_and_told_when_it_is_over(world: World) -> None:
    world.start("a")
    world.failing = {"second"}
    world.break_()
    await world.pass_time(30.5)
    assert len(world.done) == 2
    await world.pass_time(1)
    assert len(world.done) == 4, "a second after the first failure"
    await world.pass_time(1)
    assert len(world.done) == 4
    await world.pass_time(1.5)
    assert len(world.done) == 6, "two seconds after the second"
    await world.pass_time(300)
    assert len(world.done) == 6
    one = await world.only()
    assert (one.status, one.attempts, one.next_at) == ("exhausted", 3, None)
    assert [(step.name, step.status, step.error) for step in one.steps] == [
        ("first", "undone", None),
        ("second", "failed", "store_unavailable"),
    ]
    assert world.told == [(one.id, "trigger")]
    assert len(world.events("recovery_failed")) == 3
    assert len(world.events("recovery_exhausted")) == len(world.events("escalated")) == 1
    world.mend()
    await world.pass_time(1)
    assert (await world.only()).status == "resolved"
    assert world.told == [(one.id, "trigger"), (one.id, "resolve")]


async def test_the_counter_begins_anew_after_a_success(world: World) -> None:
    world.start("a")
    world.failing = {"second"}
    world.break_()
    await world.pass_time(32)
    assert (await world.only()).attempts == 2
    world.failing = set()
    await world.pass_time(3)
    world.mend()
    await world.pass_time(1)
    world.failing = {"second"}
    world.break_()
    await world.pass_time(31)
    newest = (await world.incidents.all(limit=1))[0]
    assert (newest.status, newest.attempts) == ("open", 1)


async def test_a_plan_that_succeeds_and_changes_nothing_has_failed(world: World) -> None:
    world.start("a", settle_s=10.0, first_after_s={"database_connection": 0.0})
    world.break_()
    await world.pass_time(5)
    assert (await world.only()).status == "settling"
    await world.pass_time(6)
    one = await world.only()
    assert one.attempts == 1
    await world.pass_time(30)
    assert (await world.only()).status == "exhausted"


async def test_one_of_several_workers_runs_a_plan(world: World) -> None:
    for owner in ("a", "b", "c"):
        world.start(owner)
    world.break_()
    world.failing = {"second"}
    await world.pass_time(60)
    assert len({owner for owner, _ in world.done}) == 1
    assert len(world.done) == 6
    assert len(world.told) == 1


async def test_a_runner_that_dies_in_the_middle_is_gone_on_for_by_another(world: World) -> None:
    first = world.start("a")
    world.gate = asyncio.Event()
    world.break_()
    await world.pass_time(31)
    assert world.done == [("a", "first"), ("a", "second")]
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    world.gate.set()
    world.start("b")
    await world.pass_time(LOCK_S + 2)
    assert world.done == [("a", "first"), ("a", "second"), ("b", "second")], "what was done is not done again"
    one = await world.only()
    assert (one.status, one.attempts) == ("settling", 0)


async def test_a_restart_between_attempts_keeps_the_count_and_tells_nobody_twice(world: World) -> None:
    world.failing = {"second"}
    first = world.start("a")
    world.break_()
    await world.pass_time(31)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = world.start("b")
    await world.pass_time(LOCK_S + 10)
    one = await world.only()
    assert (one.status, one.attempts, len(world.told)) == ("exhausted", 3, 1)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    world.start("c")
    await world.pass_time(LOCK_S + 10)
    assert len(world.told) == 1


async def test_what_no_plan_can_mend_is_told_at_once(world: World) -> None:
    world.start("a")
    world.break_("credential_rejected", "fcm")
    await world.pass_time(1)
    one = await world.only()
    assert (one.plan, world.told) == (None, [(one.id, "trigger")])
    world.break_("sender_id_mismatch", "fcm")
    await world.pass_time(1)
    assert len(await world.incidents.all(limit=10)) == 1


async def test_nothing_is_tried_by_itself_where_that_is_off_but_by_hand(world: World) -> None:
    world.start("a", enabled=False)
    world.break_()
    await world.pass_time(120)
    assert world.done == []
    await world.incidents.retry((await world.only()).id)
    await world.pass_time(1)
    assert len(world.done) == 2


async def test_whoever_acknowledges_has_it_in_hand_and_may_have_it_tried_again(world: World) -> None:
    world.start("a")
    world.failing = {"second"}
    world.break_()
    await world.pass_time(10)
    one = await world.incidents.acknowledge((await world.only()).id, by="ann")
    assert one.acknowledged_by == "ann"
    await world.pass_time(120)
    assert world.done == []
    await world.incidents.retry(one.id)
    await world.pass_time(10)
    assert len(world.done) == 6
    assert (await world.only()).status == "exhausted"


async def test_what_was_called_over_by_hand_is_not_begun_again_while_it_lasts(world: World) -> None:
    world.start("a")
    world.break_()
    await world.pass_time(5)
    one = await world.incidents.resolve((await world.only()).id, by="ann")
    with pytest.raises(Conflict):
        await world.incidents.resolve(one.id, by="ben")
    with pytest.raises(Conflict):
        await world.incidents.retry(one.id)
    await world.pass_time(120)
    assert (await world.only()).resolved_by == "ann"
    world.mend()
    await world.pass_time(5)
    world.break_()
    await world.pass_time(1)
    assert len(await world.incidents.all(limit=10)) == 2


@pytest.mark.parametrize("failing", [set(), {"second"}], ids=["succeeds", "fails"])
async def test_what_is_called_over_while_its_plan_is_tried_stays_over(world: World, failing: set[str]) -> None:
    world.start("a")
    world.failing, world.gate = failing, asyncio.Event()
    world.break_()
    await world.pass_time(31)
    one = await world.only()
    assert one.status == "recovering"
    await world.incidents.resolve(one.id, by="ann")
    world.gate.set()
    await world.pass_time(120)
    one = await world.only()
    assert (one.status, one.resolved_by) == ("resolved", "ann")
    assert world.told == []
    assert len(world.done) == 2


async def test_an_incident_that_is_not_there_is_said_to_be(world: World) -> None:
    with pytest.raises(NotFound):
        await world.incidents.acknowledge("inc-none", by="ann")
    with pytest.raises(NotFound):
        await world.incidents.get("inc-none")
