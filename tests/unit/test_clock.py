"""Waiting for something, and no longer than a time."""

from __future__ import annotations

import asyncio

from bellbuoy.clock import ManualClock, heard, within


async def test_what_is_done_in_time_is_not_waited_for_any_longer() -> None:
    clock, asked = ManualClock(), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(asked, 5.0, clock=clock))
    await clock.advance(4.9)
    assert not waiting.done()
    asked.set_result(None)
    await waiting
    assert clock.next_wake_s is None, "nobody sleeps on"


async def test_what_is_not_done_in_time_goes_on() -> None:
    clock, asked = ManualClock(), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(asked, 5.0, clock=clock))
    await clock.advance(5.0)
    await waiting
    assert not asked.done()


async def test_whoever_gives_up_takes_along_what_waited_for_them() -> None:
    clock, event = ManualClock(), asyncio.Event()
    before = asyncio.all_tasks()
    waiting = asyncio.create_task(heard(event, 5.0, clock=clock))
    await clock.advance(1.0)
    waiting.cancel()
    await asyncio.wait([waiting])
    await clock.advance(0.0)
    assert asyncio.all_tasks() == before
    event.set()
    await heard(event, 5.0, clock=clock)
