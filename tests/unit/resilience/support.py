"""What the tests of the kit share: calls that end as told, and a breaker on a clock moved by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from bellbuoy.clock import ManualClock
from bellbuoy.resilience import BreakerSettings, CircuitBreaker, CircuitEvent, State


async def ok(value: str = "fine") -> str:
    return value


async def fail(error: BaseException | None = None) -> str:
    raise error or ConnectionError("lost")


async def hang() -> str:
    await asyncio.get_running_loop().create_future()
    return "never"


async def settle(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


class Scene:
    """A breaker with numbers that are easy to count with: 3 failures in 60 s, open for 10 s, 2 probes."""

    def __init__(self, *, shadow: bool = False, judge_results: bool = False, **changes: Any) -> None:
        self.clock = ManualClock()
        self.events: list[CircuitEvent] = []
        settings = BreakerSettings(3, 10.0, 60.0, 2, 5.0).replace(**changes)
        self.breaker = CircuitBreaker(
            "them",
            settings,
            clock=self.clock,
            on_event=self.events.append,
            shadow=shadow,
            judge_results=judge_results,
        )

    def fail(self, times: int = 3) -> None:
        for _ in range(times):
            self.breaker.admit().failure(ConnectionError("lost"))

    def succeed(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.admit().success()

    def state(self) -> State:
        return self.breaker.state

    async def half_open(self) -> None:
        self.fail()
        await self.clock.advance(10.0, turns=0)

    @property
    def story(self) -> list[str]:
        return [type(event).__name__ for event in self.events]
