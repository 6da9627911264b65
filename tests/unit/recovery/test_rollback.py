"""The watch over changes on a manual clock: verdicts, several processes, a crash at every write of the rollback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from bellbuoy.adapters.control_locks import ControlLocks
from bellbuoy.adapters.control_values import ControlValues
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict, Unavailable
from bellbuoy.model.change import Figures
from bellbuoy.model.operation import Incident
from bellbuoy.ports.control import Kept, Kind
from bellbuoy.recovery.changes import Changes
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.recovery.rollback import GRACE_S, LOCK_S, SWEEP_S, Rollback, RollbackSettings
from tests.support.flow import RecordingTelemetry

WATCH_S = 120.0
CALM = Figures(1_000, 5, 0.1)
NAME = "retry.max_attempts"
ID = f"setting:{NAME}:1"


class FailingStore:
    """A control store that is away for some writes, and that the process dies before or after one of."""

    def __init__(self, inner: SqliteControlStore) -> None:
        self._inner = inner
        self.writes = 0
        self.crash_at: int | None = None
        self.crash_after = False
        self.away = 0

    async def read(self, kind: Kind, id: str) -> Kept | None:
        return await self._inner.read(kind, id)

    async def page(self, kind: Kind, *, limit: int) -> Sequence[Kept]:
        return await self._inner.page(kind, limit=limit)

    async def write(self, kind: Kind, id: str, data: bytes, *, version: int) -> Kept:
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        self.writes += 1
        dying = self.crash_at is not None and self.writes >= self.crash_at
        if dying and not self.crash_after:
            raise asyncio.CancelledError
        kept = await self._inner.write(kind, id, data, version=version)
        if dying:
            raise asyncio.CancelledError
        return kept

    async def delete(self, kind: Kind, id: str, *, version: int) -> None:
        await self._inner.delete(kind, id, version=version)

    async def aclose(self) -> None:
        await self._inner.aclose()


class ScriptedMeasures:
    """What a process measures, as the test says."""

    def __init__(self) -> None:
        self.earlier: dict[str, Figures] = {"fcm": CALM}
        self.there = True
        self.after: dict[str, Figures] = {}
        self.of: set[str] = set()

    def now(self) -> Mapping[str, Figures]:
        return dict(self.earlier)

    def remember(self) -> None:
        """The test says what is remembered."""

    def before(self, at: float) -> Mapping[str, Figures] | None:
        return dict(self.earlier) if self.there else None

    def begin(self, id: str, at: float, window_s: float) -> None:
        self.of.add(id)

    def since(self, id: str) -> Mapping[str, Figures]:
        return dict(self.after) if id in self.of else {}

    def end(self, id: str) -> None:
        self.of.discard(id)


class Process:
    """A process that makes and watches changes."""

    def __init__(self, world: World, owner: str, store: FailingStore | SqliteControlStore) -> None:
        self.measures = ScriptedMeasures()
        self.applied: list[Any] = []
        values = ControlValues(store)

        async def apply(name: str, value: Any) -> None:
            if world.refusing:
                raise RuntimeError("a part refuses")
            self.applied.append(value)

        self.changes = Changes(
            values,
            self.measures,
            watched=True,
            applied={"flag": apply, "setting": apply, "template": apply},
            clock=world.clock,
            telemetry=world.telemetry,
        )
        self.incidents = Incidents(store, store, clock=world.clock, rng=Random(owner), telemetry=world.telemetry)
        self.rollback = Rollback(
            owner,
            values=values,
            changes=self.changes,
            measures=self.measures,
            providers={"fcm", "sms"},
            incidents=self.incidents,
            store=store,
            locks=ControlLocks(world.store, clock=world.clock),
            escalate=world.escalate,
            settings=RollbackSettings(watch_s=WATCH_S),
            clock=world.clock,
            telemetry=world.telemetry,
        )


class World:
    """Processes that share a store."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.telemetry = RecordingTelemetry()
        self.store = SqliteControlStore(path / "control.db", clock=self.clock, inline=True)
        self.refusing = False
        self.told: list[tuple[str, str]] = []

    def process(self, owner: str = "a", store: FailingStore | None = None) -> Process:
        return Process(self, owner, store or self.store)

    async def escalate(self, incident: Incident, action: Literal["trigger", "acknowledge", "resolve"]) -> None:
        self.told.append((incident.issue, action))

    async def pass_time(self, seconds: float, *processes: Process) -> None:
        for _ in range(int(seconds)):
            await self.clock.advance(1.0)
            for one in processes:
                await one.rollback.step()

    async def status(self, id: str = ID) -> str:
        return (await self.process().changes.get(id)).version.status

    async def value(self) -> Any:
        return (await ControlValues(self.store).find("setting", NAME)).value


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.store.aclose()


async def test_no_harm_is_kept_at_the_end_of_the_watch_and_not_before(world: World) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    one.measures.after = {"fcm": CALM}
    await world.pass_time(WATCH_S - 1, one)
    assert await world.status() == "watched"
    await world.pass_time(2, one)
    assert (await world.status(), await world.value()) == ("kept", 5)
    assert not one.measures.of, "measured no longer"
    assert await one.incidents.all(limit=10) == []


async def test_metrics_to_automated_rollback(world: World) -> None:
    """Harm is taken back at once, and an incident says why."""
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    one.measures.after = {"fcm": Figures(10, 10, 0.1)}
    await world.pass_time(3, one)
    change = await one.changes.get(ID)
    assert (change.version.status, change.version.decided_by) == ("reverted", "rollback")
    assert await world.value() is None
    assert one.applied == [5, None]
    (incident,) = await one.incidents.all(limit=10)
    assert (incident.issue, incident.component, incident.status) == ("bad_change", ID, "resolved")
    assert "100.0 % failed" in incident.detail
    assert world.told == [], "what is taken back needs nobody at night"
    await world.pass_time(WATCH_S, one)
    assert world.telemetry.names().count("rollback_done") == 1
    back = (await ControlValues(world.store).find("setting", NAME)).current
    assert back is not None
    assert (back.status, back.by, back.n) == ("restored", "rollback", 2)


@pytest.mark.parametrize("after", [{}, {"fcm": Figures(5, 0, 0.1)}, {"sms": CALM}])
async def test_what_nobody_can_say_is_held_and_asked(world: World, after: dict[str, Figures]) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    one.measures.after = after
    await world.pass_time(WATCH_S + GRACE_S + 1, one)
    assert (await world.status(), await world.value()) == ("inconclusive", 5)
    (incident,) = await one.incidents.all(limit=10)
    assert (incident.issue, incident.status) == ("change_inconclusive", "open")
    await one.rollback.keep(ID, by="k")
    (incident,) = await one.incidents.all(limit=10)
    assert (incident.status, await world.status()) == ("resolved", "kept")


async def test_one_process_that_can_say_answers_for_one_that_cannot(world: World) -> None:
    idle, busy = world.process("idle"), world.process("busy")
    idle.measures.earlier = {"ledger": CALM}
    idle.measures.after = {"ledger": CALM}
    await idle.changes.put("setting", NAME, 5, by="k")
    busy.measures.after = {"fcm": CALM}
    await world.pass_time(WATCH_S + 1, idle, busy)
    assert await world.status() == "kept"


async def test_one_process_that_sees_harm_is_enough(world: World) -> None:
    well, ill = world.process("well"), world.process("ill")
    well.measures.after = {"fcm": CALM}
    ill.measures.after = {"fcm": Figures(1_000, 5, 5.0)}
    await well.changes.put("setting", NAME, 5, by="k")
    await world.pass_time(WATCH_S + 1, well, ill)
    assert await world.status() == "reverted", "although the other has called it good a moment before"
    assert world.telemetry.names().count("rollback_done") == 1


async def test_a_process_that_was_not_there_goes_by_what_the_change_remembers(world: World) -> None:
    await world.process("first").changes.put("setting", NAME, 5, by="k")
    await world.clock.advance(1.0)
    second = world.process("second")
    second.measures.there = False
    second.measures.after = {"fcm": Figures(100, 50, 0.1)}
    await second.rollback.step()
    await second.rollback.step()
    assert await world.status() == "reverted"


async def test_a_change_of_a_change_is_watched_in_its_place(world: World) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    await world.pass_time(10, one)
    await one.changes.put("setting", NAME, 7, by="k")
    one.measures.after = {"fcm": Figures(100, 100, 0.1)}
    await world.pass_time(3, one)
    assert (await world.status(), await world.status(f"setting:{NAME}:2")) == ("superseded", "reverted")
    assert await world.value() == 5
    assert not one.measures.of


async def test_what_is_asked_of_a_human_is_over_once_the_value_is_changed_again(world: World) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    await world.pass_time(WATCH_S + GRACE_S + 1, one)
    assert await world.status() == "inconclusive"
    await one.changes.put("setting", NAME, 6, by="k")
    await world.pass_time(SWEEP_S + 1, one)
    (incident,) = await one.incidents.all(limit=10)
    assert (incident.issue, incident.status, incident.resolved_by) == ("change_inconclusive", "resolved", "k")


async def test_what_is_so_already_is_no_change(world: World) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    await one.changes.put("setting", NAME, 5, by="other")
    assert len(await one.changes.all(limit=10)) == 1


async def test_while_a_change_is_taken_back_its_value_cannot_be_changed(world: World) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    change = await one.changes.get(ID)
    assert await one.changes.decide(change, "reverting", of=("watched",), why="w", by="k")
    with pytest.raises(Conflict):
        await one.changes.put("setting", NAME, 6, by="k")
    with pytest.raises(Conflict):
        await one.rollback.keep(ID, by="k")
    await one.rollback.step()
    await one.changes.put("setting", NAME, 6, by="k")


async def test_a_store_that_is_away_for_a_moment_only_delays_it(world: World) -> None:
    store = FailingStore(world.store)
    one = world.process(store=store)
    await one.changes.put("setting", NAME, 5, by="k")
    one.measures.after = {"fcm": Figures(10, 10, 0.1)}
    store.away = 1
    with pytest.raises(Unavailable):
        await world.pass_time(1, one)
    await world.pass_time(3, one)
    assert await world.status() == "reverted"


async def test_what_cannot_be_taken_back_stays_and_people_are_told_once(world: World) -> None:
    one = world.process()
    await one.changes.put("setting", NAME, 5, by="k")
    world.refusing = True
    one.measures.after = {"fcm": Figures(10, 10, 0.1)}
    await world.pass_time(20, one)
    assert world.told == [("rollback_failed", "trigger")]
    assert await world.status() == "inconclusive"
    assert world.telemetry.names().count("rollback_done") == 1


async def test_what_could_not_be_taken_back_can_be_by_hand_once_that_works(world: World) -> None:
    class Refusing(FailingStore):
        refusing = True

        async def write(self, kind: Kind, id: str, data: bytes, *, version: int) -> Kept:
            if self.refusing and b'"restored"' in data:
                raise Unavailable("refused")
            return await super().write(kind, id, data, version=version)

    store = Refusing(world.store)
    one = world.process(store=store)
    await one.changes.put("setting", NAME, 5, by="k")
    one.measures.after = {"fcm": Figures(10, 10, 0.1)}
    await world.pass_time(20, one)
    assert (await world.status(), await world.value()) == ("inconclusive", 5)
    store.refusing = False
    await one.rollback.roll_back(ID, by="ann")
    assert (await world.status(), await world.value()) == ("reverted", None)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_rollback_outlives_a_crash_at_any_of_its_writes(tmp_path: Path, after: bool) -> None:
    crashes = 0
    for n in range(1, 60):
        folder = tmp_path / f"{n}"
        folder.mkdir()
        world = World(folder)
        store = FailingStore(world.store)
        dying = world.process("dying", store)
        await dying.changes.put("setting", NAME, 5, by="k")
        dying.measures.after = {"fcm": Figures(10, 10, 0.1)}
        store.crash_at, store.crash_after = store.writes + n, after
        try:
            await world.pass_time(3, dying)
        except asyncio.CancelledError:
            crashes += 1
        else:
            await world.store.aclose()
            break
        heir = world.process("heir")
        heir.measures.after = dying.measures.after
        await world.pass_time(LOCK_S + 5, heir)
        assert (await world.status(), await world.value()) == ("reverted", None), n
        found = await heir.incidents.all(limit=10)
        assert [(one.issue, one.status) for one in found] == [("bad_change", "resolved")], n
        await world.store.aclose()
    else:
        raise AssertionError("it never came to its end")
    assert crashes > 10
