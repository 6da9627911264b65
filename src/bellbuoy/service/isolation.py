"""Isolate the service after a breach: end keys, stop sending, stop accepting; and let go of that again.

Keys are ended in the ledger and the stops are pins, so that every node follows both by itself. While the ledger cannot
be reached both hold on this machine at once, for every process of its data directory, and the ledger is told when it is
back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
from msgspec import field
from msgspec.structs import replace

from bellbuoy.clock import Clock
from bellbuoy.errors import Conflict, Full, NotFound, StoreError, Unavailable, code_of
from bellbuoy.health.mode import BY_HAND
from bellbuoy.health.pins import Pins
from bellbuoy.model.operation import ApiKey
from bellbuoy.ports.control import ControlStore
from bellbuoy.service.ending import Ending
from bellbuoy.service.keys import Keys
from bellbuoy.service.telemetry import ServiceTelemetry

FOLLOW_S = 0.4
"""Seconds between two looks at what another process of this machine was told."""

TELL_S_MAX = 1.0
"""Seconds for which whoever isolates waits for the ledger; it is told later then."""

NAMED_MAX = 2_000
"""Keys that can be owed to the ledger by their names, so that a document has room for them."""

_ID = "isolation"
_TRIES_MAX = 8


class Owed(Ending, frozen=True):
    """What holds on this machine until the ledger is told: keys that end, and pins. It has room for `NAMED_MAX` keys by
    name, and all of them need no more than one.
    """

    pins: dict[str, bool] = field(default_factory=dict)


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
        self._changes = 0

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
            Full: this machine's own store takes nothing, and the ledger does not either.
            Unavailable: the same; or of a key that another process made just now nobody can say anything, and all else
                was done.
        """
        wanted = [one for one in self._keys.hashes() if one != by] if ids is None else list(dict.fromkeys(ids))
        if by in wanted:
            raise Conflict(
                "the key that asks would be ended too, and everybody might be locked out",
                hint="make another with `bellbuoy keys create`, and ask with that",
            )
        named, unsure = await self._named(wanted) if ids is not None else ({}, [])
        asked = zip(BY_HAND, (stop_sending, stop_accepting), strict=True)
        pins = {mode: True for mode, on in asked if on}
        # By itself and first: whatever becomes of the keys, this holds.
        await self._change(lambda owed: replace(owed, pins=owed.pins | pins, by=by))
        now = self._clock.time()
        if ids is None:
            await self._change(lambda owed: replace(owed, all_but=by, since=now, by=by))
        else:
            await self._change(lambda owed: _with_named(owed, named, now, by))
        ended: list[str] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TELL_S_MAX):
                ended = await self._settle()
        told = wanted if ids is not None else "all"
        self._telemetry.event("isolated", keys=told, stop_sending=stop_sending, stop_accepting=stop_accepting, key=by)
        if unsure:
            raise Unavailable(
                f"whether there is a key {unsure[0][:64]} only the ledger can say, which is away; all else holds",
                hint="ask for it again when the ledger is back",
                retry_after_s=10.0,
            )
        return list(dict.fromkeys([*wanted, *ended]))

    async def lift(self, *, by: str) -> None:
        """Send and accept again; keys that were ended stay so.

        Raises:
            Unavailable: the ledger cannot be told. On this machine it holds, and other nodes stay as they are.
        """
        await self._change(lambda owed: replace(owed, pins={}))
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

    async def _named(self, wanted: Sequence[str]) -> tuple[dict[str, str], list[str]]:
        """The hashes, in hex, of those of some keys that have not ended, and the ids of which nobody can say anything.

        Raises:
            NotFound: there is no such key.
        """
        found = {one: key for one in wanted if (key := self._keys.remembered(one)) is not None}
        missing = [one for one in wanted if one not in found]
        if missing:
            try:
                async with asyncio.timeout(TELL_S_MAX):
                    stored = {key.id: key for key in await self._keys.all()}
            except (Unavailable, TimeoutError):
                return _hashes(found), missing
            nobody = [one for one in missing if one not in stored]
            if nobody:
                hint = "`bellbuoy keys list` has them"
                raise NotFound(f"there is no key {nobody[0][:64]}; nothing was done", hint=hint)
            found |= {one: stored[one] for one in missing}
        return _hashes(found), []

    async def _settle(self) -> list[str]:
        """Tell the ledger, and then no more of it here; what it does not take stays. Returns what ended now."""
        told = self._owed
        for mode, pinned in told.pins.items():
            with contextlib.suppress(StoreError):
                await self._pins.set(mode, pinned, by=told.by)
                await self._change(partial(_without_pin, mode=mode, pinned=pinned))
        ended: list[str] = []
        if told:
            with contextlib.suppress(StoreError):
                ended = await self._keys.end(told)
                await self._change(partial(_without_keys, told=told))
        return ended

    async def _change(self, how: Callable[[Owed], Owed]) -> None:
        for _ in range(_TRIES_MAX):
            kept = await self._local.read("breach", _ID)
            before = _decode(kept.data) if kept else Owed()
            after = how(before)
            if not after and not after.pins:
                after = Owed()
            if after != before:
                try:
                    await self._local.write("breach", _ID, _encode(after), version=kept.version if kept else 0)
                except Conflict:
                    continue  # Another process of this machine changes it at this moment.
            self._changes += 1
            self._go_by(after)
            return
        raise Unavailable("others change the isolation at this moment", hint="try again", retry_after_s=1.0)

    async def _load(self) -> None:
        begun = self._changes
        kept = await self._local.read("breach", _ID)
        owed = _decode(kept.data) if kept else Owed()
        if owed.pins != self._owed.pins:
            # What is not held here any more is held by the store, which has to be heard first.
            with contextlib.suppress(StoreError):
                await self._pins.load()
        if begun == self._changes:  # Otherwise it was read before what this process was told meanwhile.
            self._go_by(owed)

    def _go_by(self, owed: Owed) -> None:
        self._owed = owed
        self._keys.deny(Ending(owed.keys, owed.begun, owed.all_but, owed.since, owed.by))
        self._pins.hold_here(owed.pins)


def _hashes(keys: Mapping[str, ApiKey]) -> dict[str, str]:
    return {one: key.hash.hex() for one, key in keys.items() if not key.has_ended}


def _with_named(owed: Owed, named: dict[str, str], now: float, by: str) -> Owed:
    keys = owed.keys | named
    if len(keys) > NAMED_MAX:
        raise Full(f"more than {NAMED_MAX} keys wait for the ledger", hint="bellbuoy breach isolate --all-keys")
    return replace(owed, keys=keys, begun=owed.begun | dict.fromkeys(named, now), by=by)


def _without_pin(owed: Owed, *, mode: str, pinned: bool) -> Owed:
    return replace(owed, pins={one: on for one, on in owed.pins.items() if (one, on) != (mode, pinned)})


def _without_keys(owed: Owed, *, told: Owed) -> Owed:
    """What was told is told, unless it was asked for anew meanwhile."""
    begun = {one: at for one, at in owed.begun.items() if told.begun.get(one) != at}
    left = replace(owed, keys={one: owed.keys[one] for one in begun}, begun=begun)
    return replace(left, all_but=None, since=0.0) if (owed.all_but, owed.since) == (told.all_but, told.since) else left
