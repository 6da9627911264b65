"""The send journal: attempts in segment files beside the ledger, until they are in a backup's target."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bellbuoy.adapters.journal.journal import FileJournal
from bellbuoy.errors import Full
from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.sends import Sent

READ_MAX = 5_000
"""Entries that are taken off at a time."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Sent).decode


class SendJournal:
    """Implements `bellbuoy.ports.sends.Sends`.

    Args:
        journal: of this process alone.
        left: what processes that ended left.
        telemetry: is told when sends are not written down, and there is no more than that to be done.
    """

    def __init__(self, journal: FileJournal, left: Sequence[FileJournal] = (), *, telemetry: Telemetry) -> None:
        self._journal = journal
        self._all = (*left, journal)
        self._telemetry = telemetry
        self._failing = False

    async def note(self, record: Record, delivery: Delivery, *, now: float) -> None:
        """See `Sends.note`."""
        sent = Sent(now, record.id, record.chain, record.step, record.step_at, delivery)
        try:
            await self._journal.append(_encode(sent))
        except Full as error:
            if not self._failing:
                self._telemetry.event("sends_not_noted", code=error.code)
            self._failing = True
        else:
            self._failing = False

    async def unshipped(self) -> list[tuple[FileJournal, int, list[Sent]]]:
        """Of each journal what is not taken off yet, `READ_MAX` entries at most, with the number of the last."""
        found: list[tuple[FileJournal, int, list[Sent]]] = []
        for journal in self._all:
            entries = await journal.read(limit=READ_MAX)
            if entries:
                found.append((journal, entries[-1].number, [_decode(entry.data) for entry in entries]))
        return found

    async def everything(self) -> list[list[Sent]]:
        """All that is in the journals and was not taken off, for whoever restores."""
        return [
            [_decode(entry.data) for entry in await journal.read(limit=journal.state().pending)]
            for journal in self._all
            if journal.state().pending
        ]

    async def aclose(self) -> None:
        """Write what was handed over, then close. Safe to call twice."""
        for journal in self._all:
            await journal.aclose()
