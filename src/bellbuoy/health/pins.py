"""Modes that operators hold on or off, remembered so that every process goes by them, after a restart too."""

from __future__ import annotations

import asyncio

import msgspec

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, StoreError, code_of
from bellbuoy.health.monitor import Monitor
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Telemetry

_ID = "pins"
_decode = msgspec.json.Decoder(dict[str, bool]).decode
_encode = msgspec.json.Encoder(order="deterministic").encode
FOLLOW_S = 0.5
"""Seconds after which a pin that another process set is known here."""

_TRIES_MAX = 8


class Pins:
    """The pins in a control store, and the monitor that goes by them."""

    def __init__(self, store: ControlStore, monitor: Monitor, *, clock: Clock, telemetry: Telemetry) -> None:
        self._store = store
        self._monitor = monitor
        self._clock = clock
        self._telemetry = telemetry
        self._kept: dict[str, bool] = {}
        self._here: dict[str, bool] = {}
        self._lock = asyncio.Lock()  # What was read before a change must not be gone by after it.

    async def set(self, mode: str, pinned: bool | None, *, by: str) -> None:
        """Hold a mode on or off, or with None let it follow the issues.

        Args:
            by: who does it, for the log.

        Raises:
            Unavailable, Full: the store did not take it; nothing has changed.
        """
        async with self._lock:
            await self._set(mode, pinned, by=by)

    async def _set(self, mode: str, pinned: bool | None, *, by: str) -> None:
        for _ in range(_TRIES_MAX):
            kept = await self._store.read("setting", _ID)
            pins = _decode(kept.data) if kept else {}
            pins.pop(mode, None)
            if pinned is not None:
                pins[mode] = pinned
            try:
                await self._store.write("setting", _ID, _encode(pins), version=kept.version if kept else 0)
            except Conflict:
                continue  # Somebody else pins at this moment.
            self._telemetry.event("mode_pinned", mode=mode, pinned=pinned, key=by)
            self._go_by(pins)
            return
        raise Conflict("others change the pins at this moment", hint="try again")

    async def load(self) -> None:
        """Go by what is kept. Raises Unavailable."""
        async with self._lock:
            kept = await self._store.read("setting", _ID)
            self._go_by(_decode(kept.data) if kept else {})

    async def run(self) -> None:
        """Follow what other processes pin, until cancelled."""
        while True:
            try:
                await self.load()
            except StoreError as error:  # What was known last stays.
                self._telemetry.event("pins_not_read", code=code_of(error))
            await self._clock.sleep(FOLLOW_S)

    def hold_here(self, pins: dict[str, bool]) -> None:
        """Hold these in this process, over what is kept: somebody wants it, and the store cannot be told yet."""
        self._here = pins
        self._go_by(self._kept)

    def _go_by(self, kept: dict[str, bool]) -> None:
        self._kept = kept
        pins = {**kept, **self._here}
        if pins != self._monitor.pins:
            self._monitor.pins = pins
            self._monitor.refresh()
