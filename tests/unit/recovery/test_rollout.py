"""The watch over a rollout, on a manual clock: what is undone, what stays, and what a human is asked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bellbuoy.adapters.control_locks import ControlLocks
from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock
from bellbuoy.errors import Conflict, NotFound, StoreError, Unavailable
from bellbuoy.recovery.rollout import (
    EVERY_S,
    LOCK_S,
    Measured,
    RolloutSettings,
    RolloutState,
    RolloutWatch,
    judge,
    measured,
)
from tests.support.flow import RecordingTelemetry

WATCH_S = 60.0
NOTHING = None
GOOD, BAD = Measured(0.01, 0.1), Measured(0.3, 0.1)


class ScriptedRollout:
    """A Deployment whose controller acts at once."""

    name = "push/bellbuoy"

    def __init__(self) -> None:
        self.at = RolloutState(1, "complete", "image-1")
        self.undone: list[str] = []
        self.fails: Exception | None = None

    async def state(self) -> RolloutState:
        return self.at

    async def undo(self, change: str, *, revision: int) -> None:
        if self.fails is not None:
            raise self.fails
        if change in self.undone:
            return
        self.undone.append(change)
        self.at = RolloutState(revision + 1, "complete", "image before")


class World:
    """One rollout, and processes that watch it."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.store = SqliteControlStore(path / "control.db", clock=self.clock, inline=True)
        self.telemetry = RecordingTelemetry()
        self.rollout = ScriptedRollout()
        self.measured: Measured | None = GOOD

    def watch(self, owner: str = "one") -> RolloutWatch:
        return RolloutWatch(
            owner,
            rollout=self.rollout,
            measure=lambda: self.measured,
            store=self.store,
            locks=ControlLocks(self.store, clock=self.clock),
            settings=RolloutSettings(watch_s=WATCH_S),
            clock=self.clock,
            telemetry=self.telemetry,
        )

    async def look(self, watch: RolloutWatch, seconds: float = 0.0) -> None:
        for _ in range(1 + int(seconds / EVERY_S)):
            await watch.step()
            await self.clock.advance(EVERY_S, turns=1)

    async def deploy(self, watch: RolloutWatch, then: Measured | None) -> None:
        """Roll the next revision out, after which this is measured."""
        await self.look(watch)
        number = self.rollout.at.revision + 1
        self.rollout.at = RolloutState(number, "complete", f"image-{number}")
        self.measured = then
        await self.look(watch)

    @property
    def issues(self) -> list[str]:
        return sorted(name for name, _ in self.telemetry.issues)

    def of(self, name: str) -> list[dict[str, object]]:
        return [fields for event, fields in self.telemetry.events if event == name]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_revision_that_is_worse_is_undone(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, BAD)
    await world.look(watch, WATCH_S)
    assert world.rollout.at.revision == 3
    assert len(world.rollout.undone) == 1
    (started,), (done,) = world.of("rollback_started"), world.of("rollback_done")
    assert "30.0%" in str(started["why"])
    assert done["result"] == "reverted"
    assert world.issues == ["rollout_undone"]


async def test_what_an_undo_has_made_is_not_undone_itself(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, BAD)
    await world.look(watch, 10 * WATCH_S)
    assert len(world.rollout.undone) == 1


async def test_a_later_revision_is_watched_again(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, BAD)
    await world.look(watch, WATCH_S)
    world.measured = GOOD
    await world.look(watch, WATCH_S)
    await world.deploy(watch, BAD)
    assert world.issues == []
    await world.look(watch, WATCH_S)
    assert len(world.rollout.undone) == 2


async def test_a_revision_that_is_as_good_stays(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, Measured(0.04, 0.1))
    await world.look(watch, 2 * WATCH_S)
    assert world.rollout.undone == []
    assert world.issues == []


async def test_a_restart_is_no_new_revision_to_judge(world: World) -> None:
    watch = world.watch()
    await world.look(watch)
    world.rollout.at = RolloutState(2, "complete", "image-1")
    world.measured = NOTHING
    await world.look(watch, 2 * WATCH_S)
    assert not world.of("rollout_watched")
    assert world.issues == []


async def test_a_restart_ends_no_watch(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, NOTHING)
    world.rollout.at = RolloutState(3, "complete", "image-2")
    world.measured = BAD
    await world.look(watch, WATCH_S)
    assert world.rollout.undone == ["rollout:push/bellbuoy:3"]


async def test_one_bad_look_is_no_evidence(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, BAD)
    world.measured = GOOD
    await world.look(watch, 2 * WATCH_S)
    assert world.rollout.undone == []
    assert world.issues == []


async def test_a_rollout_that_does_not_progress_is_undone_whatever_is_measured(world: World) -> None:
    watch = world.watch()
    await world.look(watch)
    world.rollout.at = RolloutState(2, "failed", "image-2")
    await world.look(watch, EVERY_S)
    assert world.rollout.undone == ["rollout:push/bellbuoy:2"]


async def test_nothing_measured_is_no_success(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, NOTHING)
    await world.look(watch, WATCH_S / 2)
    assert world.issues == []
    await world.look(watch, WATCH_S)
    assert world.rollout.undone == []
    assert world.issues == ["rollout_unclear"]
    world.measured = GOOD
    await world.look(watch)
    assert world.issues == [], "by now it can be said"


async def test_nothing_measured_before_is_no_success(world: World) -> None:
    world.measured = NOTHING
    watch = world.watch()
    await world.deploy(watch, GOOD)
    await world.look(watch, 10 * WATCH_S)
    assert world.issues == ["rollout_unclear"], "its own figures say nothing of what was before it"
    await world.deploy(watch, GOOD)
    await world.look(watch, 2 * WATCH_S)
    assert world.issues == [], "there is something to compare with by now"


async def test_the_window_begins_when_the_rollout_is_complete(world: World) -> None:
    watch = world.watch()
    await world.look(watch)
    world.rollout.at = RolloutState(2, "under_way", "image-2")
    world.measured = NOTHING
    await world.look(watch, 3 * WATCH_S)
    assert world.issues == []
    world.rollout.at = RolloutState(2, "complete", "image-2")
    world.measured = GOOD
    await world.look(watch, 2 * WATCH_S)
    assert world.issues == []


async def test_what_was_measured_before_outlives_who_measured_it(world: World) -> None:
    await world.look(world.watch("of the first revision"))
    world.rollout.at = RolloutState(2, "complete", "image-2")
    await world.clock.advance(LOCK_S + 1)
    world.measured = BAD
    await world.look(world.watch("of the second revision"), WATCH_S)
    assert world.rollout.undone == ["rollout:push/bellbuoy:2"]


async def test_one_watches_at_a_time(world: World) -> None:
    one, other = world.watch("one"), world.watch("other")
    await world.look(one)
    world.rollout.at = RolloutState(2, "complete", "image-2")
    await other.step()
    assert not world.of("rollout_watched")
    await one.step()
    assert len(world.of("rollout_watched")) == 1


async def test_an_undo_that_was_decided_is_gone_on_with(world: World) -> None:
    watch = world.watch()
    world.rollout.fails = Unavailable("the API is away")
    await world.deploy(watch, BAD)
    with pytest.raises(Unavailable):
        await world.look(watch, WATCH_S)
    await world.clock.advance(LOCK_S + 1)
    world.rollout.fails, world.measured = None, NOTHING
    await world.look(world.watch("next"))
    assert world.rollout.at.revision == 3
    assert world.of("rollback_done")[0]["result"] == "reverted"


async def test_an_undo_that_was_done_and_not_written_down_is_not_done_again(world: World) -> None:
    watch = world.watch()
    await world.deploy(watch, BAD)
    written = world.store.write

    async def dies(*args: object, **kwargs: object) -> object:
        if world.rollout.undone:
            raise StoreError("it dies")
        return await written(*args, **kwargs)  # type: ignore[arg-type]

    world.store.write = dies  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreError, match="it dies"):
        await world.look(watch, WATCH_S)
    world.store.write = written  # type: ignore[method-assign]
    await world.clock.advance(LOCK_S + 1)
    await world.look(world.watch("next"), WATCH_S)
    assert world.rollout.undone == ["rollout:push/bellbuoy:2"]
    assert world.rollout.at.revision == 3
    assert world.issues == ["rollout_undone"]


@pytest.mark.parametrize(
    ("error", "result", "issues"),
    [
        (NotFound("no revision before 2"), "impossible", ["rollout_unclear"]),
        (Conflict("at revision 3"), "overtaken", []),
    ],
)
async def test_what_cannot_be_undone(world: World, error: Exception, result: str, issues: list[str]) -> None:
    world.rollout.fails = error
    watch = world.watch()
    await world.deploy(watch, BAD)
    await world.look(watch, 2 * EVERY_S)
    assert [one["result"] for one in world.of("rollback_done")] == [result]
    assert world.issues == issues


async def test_a_watcher_that_was_overtaken_writes_nothing(world: World) -> None:
    frozen = world.watch("frozen")
    await world.deploy(frozen, GOOD)
    document = await world.store.read("change", "rollout:push/bellbuoy")
    assert document is not None
    await world.clock.advance(LOCK_S + 1)
    await world.look(world.watch("next"))
    with pytest.raises(Conflict):
        await world.store.write("change", document.id, b"{}", version=document.version)


SETTINGS = RolloutSettings()
BEFORE = Measured(0.01, 0.2)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (BEFORE, Measured(0.06, 0.2), "as_good"),
        (BEFORE, Measured(0.07, 0.2), "worse"),
        (BEFORE, Measured(0.01, 0.4), "as_good"),
        (BEFORE, Measured(0.01, 0.41), "worse"),
        (Measured(0.01, 0.01), Measured(0.01, 0.1), "as_good"),
        (BEFORE, Measured(0.01, None), "unclear"),
        (BEFORE, Measured(0.5, None), "worse"),
        (BEFORE, None, "unclear"),
        (None, BEFORE, "unclear"),
    ],
)
def test_judge(before: Measured | None, now: Measured | None, verdict: str) -> None:
    assert judge(before, now, SETTINGS).is_ == verdict


def test_what_is_no_number_was_not_measured() -> None:
    assert measured(None, None) is None
    assert measured(math.nan, 0.1) is None
    assert measured(0.1, math.nan) == Measured(0.1, None)
    assert measured(0.01, 0.1) == GOOD
