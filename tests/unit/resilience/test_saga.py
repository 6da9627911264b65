"""Sagas: done in order, taken back in reverse, and whole after a crash at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.errors import Unavailable
from bellbuoy.resilience.saga import MemorySagaLog, Saga, SagaFailed, SagaState, Step


class World:
    """Things that are done and undone, each counted; what is in `failing` raises, and any call may be the last."""

    def __init__(self, names: str = "abc", *, undoable: str = "abc") -> None:
        self.names, self.undoable = names, undoable
        self.standing: set[str] = set()
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.unverified: set[str] = set()
        self.crash_at: int | None = None

    def saga(self) -> Saga:
        return Saga("build", [self._step(name) for name in self.names])

    def _step(self, name: str) -> Step:
        async def do() -> None:
            self._call(f"+{name}")
            self.standing.add(name)

        async def undo() -> None:
            self._call(f"-{name}")
            self.standing.discard(name)

        async def verify() -> bool:
            return name not in self.unverified

        return Step(name, do, undo=undo if name in self.undoable else None, verify=verify)

    def _call(self, what: str) -> None:
        if self.crash_at is not None and len(self.calls) >= self.crash_at:
            raise asyncio.CancelledError
        self.calls.append(what)
        if what in self.failing:
            raise Unavailable("no")


async def test_steps_are_done_in_order_and_once() -> None:
    world, log = World(), MemorySagaLog()
    state = await world.saga().run("s", log)
    assert (state.status, world.calls) == ("done", ["+a", "+b", "+c"])
    assert await world.saga().run("s", log) == state
    assert world.calls == ["+a", "+b", "+c"]
    assert state.over


async def test_when_a_step_fails_the_others_are_taken_back_the_last_first() -> None:
    world, log = World(), MemorySagaLog()
    world.failing = {"+c"}
    with pytest.raises(SagaFailed) as caught:
        await world.saga().run("s", log)
    assert world.calls == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert (caught.value.step, caught.value.state.status) == ("c", "compensated")
    assert isinstance(caught.value.__cause__, Unavailable)
    assert [(one.name, one.status, one.error) for one in caught.value.state.steps] == [
        ("a", "undone", None),
        ("b", "undone", None),
        ("c", "undone", "store_unavailable"),
    ]
    with pytest.raises(SagaFailed):
        await world.saga().run("s", log)
    assert len(world.calls) == 6, "one that was taken back is not tried again under its name"


async def test_a_step_that_is_done_and_not_verified_has_failed() -> None:
    world = World()
    world.unverified = {"b"}
    with pytest.raises(SagaFailed) as caught:
        await world.saga().run("s", MemorySagaLog())
    assert caught.value.state.steps[1].error == "not_verified"
    assert world.standing == set()


async def test_a_step_that_takes_too_long_has_failed() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    with pytest.raises(SagaFailed) as caught:
        await Saga("s", [Step("a", hang, timeout_s=0.001)]).run("s", MemorySagaLog())
    assert caught.value.state.steps[0].error == "TimeoutError"


async def test_what_cannot_be_taken_back_stays_and_the_rest_is_taken_back() -> None:
    world = World(undoable="ac")
    world.failing = {"+c"}
    with pytest.raises(SagaFailed) as caught:
        await world.saga().run("s", MemorySagaLog())
    assert caught.value.state.status == "compensated"
    assert world.standing == {"b"}


async def test_a_compensation_that_fails_is_tried_again_by_the_next_run() -> None:
    world, log = World(), MemorySagaLog()
    world.failing = {"+c", "-a"}
    with pytest.raises(SagaFailed, match="and so did taking it back") as caught:
        await world.saga().run("s", log)
    assert caught.value.state.status == "stuck"
    world.failing = set()
    with pytest.raises(SagaFailed) as again:
        await world.saga().run("s", log)
    assert again.value.state.status == "compensated"
    assert world.standing == set()


async def test_the_step_that_failed_is_named_whatever_happens_while_the_rest_is_taken_back() -> None:
    world, log = World(), MemorySagaLog()
    world.failing = {"+c", "-c", "-a"}
    for stuck_at in ("c", "a", None):
        with pytest.raises(SagaFailed) as caught:
            await world.saga().run("s", log)
        assert caught.value.step == "c"
        world.failing.discard(f"-{stuck_at}")
    assert caught.value.state.status == "compensated"
    assert [one.error for one in caught.value.state.steps] == [None, None, "store_unavailable"]


async def test_taking_back_has_its_time_too() -> None:
    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise Unavailable("no")

    with pytest.raises(SagaFailed) as caught:
        await Saga("s", [Step("a", fail, undo=hang, timeout_s=0.001)]).run("s", MemorySagaLog())
    assert caught.value.state.status == "stuck"


async def test_only_its_own_steps_are_taken_back() -> None:
    log = MemorySagaLog()
    await World("ab").saga().run("s", log)
    with pytest.raises(ValueError, match="other steps"):
        await World("abc").saga().undo("s", log)


async def test_what_is_done_can_be_taken_back() -> None:
    world, log = World(), MemorySagaLog()
    await world.saga().run("s", log)
    assert (await world.saga().undo("s", log)).status == "compensated"
    assert world.standing == set()
    assert (await world.saga().undo("s", log)).status == "compensated"
    assert world.calls == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert (await world.saga().undo("never", log)).status == "compensated"


async def test_taking_back_that_fails_says_so() -> None:
    world, log = World(), MemorySagaLog()
    await world.saga().run("s", log)
    world.failing = {"-b"}
    with pytest.raises(SagaFailed) as caught:
        await world.saga().undo("s", log)
    assert (caught.value.step, caught.value.state.status, world.standing) == ("b", "stuck", {"a", "b"})


@given(st.integers(0, 7), st.sampled_from(["", "+a", "+b", "+c"]), st.integers(0, 7))
async def test_after_a_crash_at_any_moment_it_is_all_or_nothing(first: int, failing: str, second: int) -> None:
    world, log = World(), MemorySagaLog()
    world.failing = {failing}
    for crash_at in (first, first + second, None):
        world.crash_at = crash_at
        try:
            state: SagaState | None = await world.saga().run("s", log)
        except asyncio.CancelledError:
            continue
        except SagaFailed as error:
            state = error.state
    assert state is not None
    assert state.status == ("compensated" if failing else "done")
    assert world.standing == (set() if failing else {"a", "b", "c"})


class LostAfter(MemorySagaLog):
    """A log that is away after so many writes."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self._left = writes

    async def save(self, state: SagaState) -> None:
        if self._left == 0:
            raise Unavailable("the log is away")
        self._left -= 1
        await super().save(state)


@given(st.integers(0, 8))
async def test_nothing_is_done_that_the_log_does_not_know_of(writes: int) -> None:
    world, log = World(), LostAfter(writes)
    try:
        await world.saga().run("s", log)
    except Unavailable:
        state = log.states.get("s")
        known = {one.name for one in state.steps if one.status != "pending"} if state else set()
        assert world.standing <= known


async def test_a_log_of_other_steps_is_refused() -> None:
    world, log = World(), MemorySagaLog()
    await world.saga().run("s", log)
    with pytest.raises(ValueError, match="other steps"):
        await World("ab").saga().run("s", log)


@pytest.mark.parametrize("names", ["", "aa"])
def test_steps_have_names_of_their_own(names: str) -> None:
    with pytest.raises(ValueError, match="a name of its own"):
        World(names).saga()


async def test_a_cancellation_is_no_failure() -> None:
    gate: Callable[[], object] = asyncio.Event().wait
    log = MemorySagaLog()
    saga = Saga("s", [Step("a", gate)])  # type: ignore[arg-type]
    running = asyncio.create_task(saga.run("s", log))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert log.states["s"].status == "running"
    assert log.states["s"].steps[0].status == "begun"
