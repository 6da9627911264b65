"""Operators' switches: a snapshot in this process, so that asking one costs nothing and never waits for anybody.

The control store is the truth. Where processes share a Redis, it pushes a change, and is asked when the store is away
at the start; the snapshot is read anew every 30 s in any case. Where there is none it is read every second. What cannot
be read stays as it was known last, and what was never known is off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set

from bellbuoy.clock import Clock, heard
from bellbuoy.errors import StoreError, code_of
from bellbuoy.model.change import Valued
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.shared import FlagStore
from bellbuoy.ports.values import Values

KNOWN: Mapping[str, str] = {
    "email_fallback": "while FCM is down, what waits for it goes out by email where the recipient has one",
    "sms_fallback": "while FCM is down, what waits for it goes out by SMS where the recipient has a number",
    "analytics_tracking": "notifications are counted by category; off in the mode analytics_off, whatever it is set to",
}
"""The flags that the service itself goes by; all are off by default. Others are for programs that read them."""

HELD_OFF_BY: Mapping[str, str] = {"analytics_tracking": "analytics_off"}
"""Flags that a mode turns off for as long as it is active, without changing what the operator has set."""

REFRESH_S = 30.0
FOLLOW_S = 1.0


class Flags:
    """What this process knows of the flags.

    Args:
        values: the truth.
        shared: tells other processes of a change, and is told by them.
        pushed: whether `shared` reaches every process; if not they look every second.
        clock: for the looks.
        telemetry: is told when a mode turns a flag off, and of what could not be read.

    Whoever is in `on_change` is called after a flag has changed.
    """

    def __init__(self, values: Values, shared: FlagStore, *, pushed: bool, clock: Clock, telemetry: Telemetry) -> None:
        self._values = values
        self._shared = shared
        self._every_s = REFRESH_S if pushed else FOLLOW_S
        self._clock = clock
        self._telemetry = telemetry
        self._valued: dict[str, Valued] = {}
        self._set: dict[str, bool] = {}
        self._known = False
        self._held_off: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self.on_change: list[Callable[[], None]] = []
        shared.listen(self._wake.set)

    def on(self) -> Set[str]:
        """The flags that are in effect."""
        return {name for name, on in self._set.items() if on and name not in self._held_off}

    def is_on(self, name: str) -> bool:
        """Whether a flag is in effect; one that nobody has set is off."""
        return self._set.get(name, False) and name not in self._held_off

    def is_set(self, name: str) -> bool:
        """Whether an operator has switched it on."""
        return self._set.get(name, False)

    def listing(self) -> Sequence[Valued]:
        """The flags of the service and those that somebody has set, by name."""
        return [self.find(name) for name in sorted({*KNOWN, *self._set})]

    def find(self, name: str) -> Valued:
        """A flag as this process knows it."""
        return self._valued.get(name) or Valued(name)

    def heed(self, modes: Set[str]) -> None:
        """Turn off what these modes turn off, and let go of what they do not."""
        held_off = frozenset(name for name, mode in HELD_OFF_BY.items() if mode in modes)
        if held_off == self._held_off:
            return
        moved = [name for name in self._held_off ^ held_off if self.is_set(name)]
        self._held_off = held_off
        for name in sorted(moved):
            because = HELD_OFF_BY[name] if name in held_off else "mode_ended"
            self._telemetry.event("feature_flag_updated", flag=name, effective=self.is_on(name), because=because)
        if moved:
            self._tell()

    async def load(self) -> None:
        """Go by what is kept. Raises Unavailable when neither the store nor, at the start, `shared` can be read."""
        try:
            found = await self._values.all("flag")
        except StoreError:
            if self._known:
                raise
            self._go_by({}, dict(await self._shared.read()))
            return
        valued = {one.name: one for one in found}
        self._known = True
        self._go_by(valued, {name: one.value is True for name, one in valued.items()})

    async def changed(self, name: str, on: bool | None) -> None:
        """A flag was just changed in the store: go by it, and tell the other processes as well as that goes."""
        await self.load()
        try:
            await self._shared.write(name, on)
        except StoreError as error:  # They look for themselves.
            self._telemetry.event("flags_not_read", code=code_of(error))

    async def run(self) -> None:
        """Follow what is changed elsewhere, until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.load()
            except StoreError as error:  # What was known last stays.
                self._telemetry.event("flags_not_read", code=code_of(error))
            await heard(self._wake, self._every_s, clock=self._clock)

    def _go_by(self, valued: dict[str, Valued], values: dict[str, bool]) -> None:
        before, self._set, self._valued = self._set, values, valued
        if values != before:
            self._tell()

    def _tell(self) -> None:
        for tell in self.on_change:
            tell()
