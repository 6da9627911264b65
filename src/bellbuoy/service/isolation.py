"""Isolate the service after a breach: end keys, stop sending, stop accepting; and let go of that again.

Keys are ended in the ledger and the stops are pins, so that every node follows both by itself. While the ledger cannot
be reached both hold on this machine at once, for every process of its data directory, and the ledger is told when it is
back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct, field

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, NotFound, StoreError, Unavailable, code_of
from bellbuoy.health.mode import BY_HAND
from bellbuoy.health.pins import Pins
from bellbuoy.ports.control import ControlStore
from bellbuoy.service.keys import Keys
from bellbuoy.service.telemetry import ServiceTelemetry

FOLLOW_S = 0.4
"""Seconds between two looks at what another process of this machine was told."""

TELL_S_MAX = 1.0
"""Seconds for which whoever isolates waits for the ledger; it is told later then."""

_ID = "isolation"
_TRIES_MAX = 8


class Owed(Struct, frozen=True):
    """What holds on this machine until the ledger is told: keys by their ids, with their hashes in hex, and pins."""

    keys: dict[str, str] = field(default_factory=dict)
    pins: dict[str, bool] = field(default_factory=dict)
    by: str = ""


_decode = msgspec.json.Decoder(Owed).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


class Isolation:
    """Isolates every node that can be told, and this machine in any case.

    Args:
        keys: are ended.
        pins: hold the modes `sending_stopped` and `accepting_stopped`.
        local: this machine's own store, for what cannot be told yet.
        clock: for the looks.
        telemetry: is told.
    """

    def __init__(
        self, keys: Keys, pins: Pins, local: ControlStore, *, clock: Clock, telemetry: ServiceTelemetry
    ) -> None:
        self._keys = keys
        self._pins = pins
        self._local = local
        self._clock = clock
        self._telemetry = telemetry
        self._owed = Owed()

    @property
    def everywhere(self) -> bool:
        """Whether the ledger has been told of everything, so that every node that reaches it knows."""
        return self._owed == Owed()

    async def isolate(
        self, ids: Sequence[str] | None, *, stop_sending: bool, stop_accepting: bool, by: str
    ) -> list[str]:
        """End keys, and stop what is to stop; when this returns it holds on this machine.

        Args:
            ids: the keys; None for all but `by`.
            stop_sending, stop_accepting: what stops until `lift`.
            by: the key that asks. It stays, so that nobody is locked out.

        Returns:
            The keys that are ended.

        Raises:
            NotFound: there is no such key; nothing was done.
            Conflict: `by` is among the keys; nothing was done.
            Full, Unavailable: this machine's own store takes nothing, and the ledger does not either.
        """
        known = self._keys.hashes()
        wanted = [one for one in known if one != by] if ids is None else list(dict.fromkeys(ids))
        if by in wanted:
            raise Conflict(
                "the key that asks would be ended too, and everybody might be locked out",
                hint="make another with `bellbuoy keys create`, and ask with that",
            )
        unknown = [one for one in wanted if one not in known]
        if unknown:
            revoked = {key.id for key in await self._keys.all()}
            missing = [one for one in unknown if one not in revoked]
            if missing:
                raise NotFound(f"there is no key {missing[0][:64]}", hint="`bellbuoy keys list` has them")
        asked = zip(BY_HAND, (stop_sending, stop_accepting), strict=True)
        more = Owed({one: known[one] for one in wanted if one in known}, {mode: True for mode, on in asked if on}, by)
        await self._owe(more)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S_MAX):
                await self._settle()
        self._telemetry.event("isolated", keys=wanted, stop_sending=stop_sending, stop_accepting=stop_accepting, key=by)
        return wanted

    async def lift(self, *, by: str) -> None:
        """Send and accept again; keys that were ended stay so.

        Raises:
            Unavailable: the ledger cannot be told. On this machine it holds, and other nodes stay as they are.
        """
        await self._change(lambda owed: Owed(owed.keys, {}, owed.by))
        for mode in BY_HAND:
            await self._pins.set(mode, None, by=by)
        self._telemetry.event("isolation_lifted", key=by)

    async def run(self) -> None:
        """Follow what this machine was told, and tell the ledger when it is back, until cancelled."""
        while True:
            try:
                await self._load()
                if not self.everywhere:
                    await self._settle()
            except Exception as error:  # A defect too; what was known last stays.
                self._telemetry.event("isolation_not_read", code=code_of(error))
            await self._clock.sleep(FOLLOW_S)

    async def _owe(self, more: Owed) -> None:
        await self._change(lambda owed: Owed({**owed.keys, **more.keys}, {**owed.pins, **more.pins}, more.by))

    async def _settle(self) -> None:
        """Tell the ledger, and then no more of it here; left as it is while the ledger cannot be reached."""
        told = self._owed
        try:
            for one in told.keys:
                await self._keys.revoke(one)
            for mode, pinned in told.pins.items():
                await self._pins.set(mode, pinned, by=told.by)
        except NotFound:
            pass  # It was deleted meanwhile.
        except StoreError:
            return
        await self._change(
            lambda owed: Owed(
                {one: known for one, known in owed.keys.items() if one not in told.keys},
                {mode: pinned for mode, pinned in owed.pins.items() if told.pins.get(mode) != pinned},
            )
        )

    async def _change(self, how: Callable[[Owed], Owed]) -> None:
        for _ in range(_TRIES_MAX):
            kept = await self._local.read("breach", _ID)
            before = _decode(kept.data) if kept else Owed()
            after = how(before)
            if (after.keys, after.pins) == ({}, {}):
                after = Owed()
            if after != before:
                try:
                    await self._local.write("breach", _ID, _encode(after), version=kept.version if kept else 0)
                except Conflict:
                    continue  # Another process of this machine changes it at this moment.
            self._go_by(after)
            return
        raise Unavailable("others change the isolation at this moment", hint="try again", retry_after_s=1.0)

    async def _load(self) -> None:
        kept = await self._local.read("breach", _ID)
        owed = _decode(kept.data) if kept else Owed()
        if owed.pins != self._owed.pins:
            # What is not held here any more is held by the store, which has to be heard first.
            with contextlib.suppress(StoreError):
                await self._pins.load()
        self._go_by(owed)

    def _go_by(self, owed: Owed) -> None:
        self._owed = owed
        self._keys.deny(bytes.fromhex(one) for one in owed.keys.values())
        self._pins.hold_here(owed.pins)
