"""What a fault has to do with while a drill runs: the stack, the load, time to let pass, and what it found itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bellbuoy.continuity.drill import Check, Drill
from bellbuoy.service.drills.load import SteadyLoad
from bellbuoy.service.drills.node import MAKERS, wait_for
from bellbuoy.service.drills.stack import Stack


class CalledOff(Exception):
    """A drill went beyond one of its limits; says which."""


@dataclass
class Scene:
    """A drill that is under way.

    Args:
        stack: that it is run on.
        drill: which it is.
        load: that runs.
        seconds: how long the fault is to last.
        guard: raises CalledOff when a limit is passed.

    `gone` are notifications of which a drill has found that they cannot come to an end any more.
    """

    stack: Stack
    drill: Drill
    load: SteadyLoad
    seconds: float
    guard: Callable[[], None]
    signs: list[str] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    checks: list[Check] = field(default_factory=list)
    later: list[Callable[[list[dict[str, Any]]], Check]] = field(default_factory=list)

    def last(self, seconds: float | None = None) -> None:
        """Let the fault last, for as long as the drill's or so many seconds. Raises CalledOff."""
        end = time.monotonic() + (self.seconds if seconds is None else seconds)
        while (left := end - time.monotonic()) > 0:
            self.guard()
            time.sleep(min(0.1, left))

    def wait_for(self, what: Callable[[], Any], why: str, within_s: float = 20.0) -> Any:
        """As `node.wait_for`, while the limits are watched. Raises CalledOff and NotAsExpected."""

        def look() -> Any:
            self.guard()
            return what()

        return wait_for(look, within_s=within_s, why=why)

    def felt(self, sign: str) -> None:
        """Remember that the fault was felt."""
        self.signs.append(sign)

    def check(self, name: str, says: str, passed: bool, detail: str = "") -> None:
        """Remember something that the drill looked at itself."""
        self.checks.append(Check(name, says, passed, detail))

    def afterwards(self, look: Callable[[list[dict[str, Any]]], Check]) -> None:
        """Have the drill's notifications looked at when everything has come to an end."""
        self.later.append(look)


@contextlib.contextmanager
def slow_providers(scene: Scene, ms: int = 600) -> Iterator[None]:
    """Attempts that take long enough for something to happen in their midst."""
    for name in MAKERS:
        scene.stack.outside.fault(name, kind="latency", ms=ms)
    try:
        yield
    finally:
        for name in MAKERS:
            scene.stack.outside.fault(name)
