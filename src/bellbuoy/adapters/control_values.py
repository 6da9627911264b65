"""Operators' values over a control store: one document each, so a version and its fate are written together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from bellbuoy.errors import Conflict
from bellbuoy.model.change import Valued, ValueKind
from bellbuoy.ports.control import DOCUMENT_BYTES_MAX, ControlStore
from bellbuoy.ports.values import VALUES_MAX

_PREFIX = "value/"  # The store keeps other documents of the same kinds.
_TRIES_MAX = 8
_PAGE = VALUES_MAX + 100
_decode = msgspec.json.Decoder(Valued).decode
_encode = msgspec.json.Encoder().encode


class ControlValues:
    """Implements `bellbuoy.ports.values.Values`."""

    def __init__(self, store: ControlStore) -> None:
        self._store = store

    async def all(self, kind: ValueKind) -> Sequence[Valued]:
        found = await self._store.page(kind, limit=_PAGE)
        return sorted(
            (_decode(one.data) for one in found if one.id.startswith(_PREFIX)), key=lambda valued: valued.name
        )

    async def find(self, kind: ValueKind, name: str) -> Valued:
        kept = await self._store.read(kind, _PREFIX + name)
        return _decode(kept.data) if kept else Valued(name)

    async def change(self, kind: ValueKind, name: str, how: Callable[[Valued], Valued]) -> Valued:
        for _ in range(_TRIES_MAX):
            kept = await self._store.read(kind, _PREFIX + name)
            before = _decode(kept.data) if kept else Valued(name)
            after = how(before)
            if after == before:
                return before
            if kept is None and len(await self.all(kind)) >= VALUES_MAX:
                raise Conflict(f"there are {VALUES_MAX} {kind}s already, and no more are kept")
            try:
                await self._store.write(kind, _PREFIX + name, _fitting(after), version=kept.version if kept else 0)
            except Conflict:
                continue  # Somebody else changes it at this moment.
            return after
        raise Conflict(f"others change the {kind} {name} at this moment", hint="try again")


def _fitting(valued: Valued) -> bytes:
    """The document, without its oldest versions where it would be too large with them."""
    while True:
        data = _encode(valued)
        if len(data) <= DOCUMENT_BYTES_MAX or len(valued.versions) <= 2:
            return data
        valued = replace(valued, versions=valued.versions[1:])
