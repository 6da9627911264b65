"""The one timer behind all timeouts of a loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import get_ident
from typing import Any, cast

import pytest

from bellbuoy.errors import TimeoutExceeded
from bellbuoy.resilience import Timeout, timer
from bellbuoy.resilience.timer import Watch, Wheel, wheel_of
from tests.unit.resilience.support import hang


class Handle:
    def __init__(self, delay_s: float, ring: Callable[[], None]) -> None:
        self.delay_s, self.ring = delay_s, ring
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop whose timers ring when the test says so."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def call_later(self, delay_s: float, ring: Callable[[], None]) -> Handle:
        self.handles.append(Handle(delay_s, ring))
        return self.handles[-1]

    @property
    def armed(self) -> list[float]:
        return [round(one.delay_s, 6) for one in self.handles if not one.cancelled]

    def ring(self) -> None:
        (one,) = (one for one in self.handles if not one.cancelled)
        self.handles.clear()
        one.ring()


class Task:
    def __init__(self) -> None:
        self.cancels = 0

    def cancel(self) -> None:
        self.cancels += 1


class Scene:
    """A wheel at second 1 of its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.0
        monkeypatch.setattr(timer, "_monotonic", lambda: self.now)
        self.loop = Loop()
        self.wheel = Wheel(cast(Any, self.loop), 0)

    def watch(self, tick: int) -> Task:
        task = Task()
        self.wheel.add(tick)[Watch(cast(Any, task))] = None
        return task


def test_there_is_one_timer_for_the_first_that_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    late = scene.watch(500)
    assert scene.loop.armed == [4.0]
    early = scene.watch(300)
    assert scene.loop.armed == [2.0]
    between = scene.watch(400)
    same = scene.watch(300)
    assert (scene.loop.armed, scene.wheel.watching) == ([2.0], 4)
    scene.now = 3.0
    scene.loop.ring()
    assert [task.cancels for task in (early, same, between, late)] == [1, 1, 0, 0]
    assert (scene.loop.armed, scene.wheel.watching) == ([1.0], 2)
    scene.now = 9.0
    scene.loop.ring()
    assert [task.cancels for task in (early, same, between, late)] == [1, 1, 1, 1]
    assert (scene.loop.armed, scene.wheel.buckets) == ([], {})
    scene.watch(1_000)
    assert scene.loop.armed == [1.0]


def test_what_is_due_already_rings_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.watch(50)
    assert scene.loop.armed == [0.0]


def test_a_tick_that_comes_early_rings_nobody_and_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    task = scene.watch(300)
    scene.now = 2.5
    scene.loop.ring()
    assert (task.cancels, scene.loop.armed) == (0, [0.5])


def test_whom_everybody_has_left_gets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.watch(200)
    scene.watch(300)
    task = scene.watch(400)
    for tick in (200, 300):
        scene.wheel.buckets[tick].clear()
    scene.now = 2.0
    scene.loop.ring()
    assert (task.cancels, scene.loop.armed, [*scene.wheel.buckets]) == (0, [2.0], [400])


async def test_a_shorter_timeout_after_a_longer_one_is_in_time() -> None:
    longer = [asyncio.create_task(Timeout(seconds).call(hang)) for seconds in (0.3, 60.0)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutExceeded):
            await Timeout(0.12).call(hang)
        await asyncio.wait(longer, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(longer[0].exception(), TimeoutExceeded)
    longer[1].cancel()
    await asyncio.wait(longer)


def test_a_loop_that_moved_to_another_thread_takes_its_wheel_along() -> None:
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as pool:
        wheel = pool.submit(wheel_of, loop).result()
    assert wheel.thread != get_ident()
    assert wheel_of(loop) is wheel
    assert wheel.thread == get_ident()
    loop.close()


async def test_after_a_fork_nobody_uses_the_wheels_of_before() -> None:
    loop = asyncio.get_running_loop()
    wheel = wheel_of(loop)
    assert wheel_of(loop) is wheel
    timer._forget()
    assert wheel.thread == 0  # No thread has this number, so no policy takes it for its own.
    assert wheel_of(loop) is not wheel
