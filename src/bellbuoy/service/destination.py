"""Where a restore goes: a data directory of the embedded ledger, or a database of the shared one."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger, SqlitePlace, ended_in
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError
from bellbuoy.model import transitions
from bellbuoy.model.operation import ApiKey
from bellbuoy.ports.archive import Place
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.ledger import Account, Ledger, Offer
from bellbuoy.service.archive import ConfigurationPlace
from bellbuoy.service.settings import Settings

if TYPE_CHECKING:
    from bellbuoy.adapters.mongodb import MongoPlace
    from bellbuoy.adapters.rabbitmq import RabbitPlace


class Destination(Protocol):
    """Somewhere to restore to. `places` are what is restored into, `where` is how to call it."""

    places: Sequence[Place]
    where: str

    def opened(self) -> AbstractAsyncContextManager[tuple[Ledger, ControlStore]]:
        """What has been restored, before it is handed over; nobody else uses it."""
        ...

    async def ended(self) -> list[ApiKey]:
        """The keys that have ended in a ledger that makes way, which may know of more than the archive.

        Raises:
            Damaged: it cannot be read.
        """
        ...

    async def take_in(self, ledger: Ledger) -> None:
        """Give the ledger what other sources had that it had not. Raises as the ledger does."""
        ...

    async def discard(self) -> None:
        """Take everything away again, after a rehearsal."""
        ...

    def tidy(self) -> None:
        """Leave no file of this machine that was not handed over."""
        ...

    async def aclose(self) -> None:
        """Close what is open."""
        ...


class Directory:
    """A data directory of the embedded ledger.

    Args:
        folder: the directory.
        clock: the ledger's.
        replace: whether a ledger that is there makes way.
    """

    def __init__(self, folder: Path, *, clock: Clock, replace: bool = False) -> None:
        self._ledger = SqlitePlace("ledger", folder / "bellbuoy.db", replace=replace)
        self._control = SqlitePlace("control", folder / "control.db", replace=replace)
        self.places: Sequence[Place] = [self._ledger, self._control, ConfigurationPlace(folder)]
        self.where = str(folder)
        self._folder = folder
        self._clock = clock

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Ledger, ControlStore]]:
        """See `Destination.opened`."""
        control = SqliteControlStore(self._control.path, clock=self._clock)
        ledger = SqliteLedger(self._ledger.path, clock=self._clock)
        try:
            yield ledger, control
        finally:
            await ledger.aclose()
            await control.aclose()

    async def ended(self) -> list[ApiKey]:
        """See `Destination.ended`."""
        there = self._folder / "bellbuoy.db"
        return await asyncio.to_thread(ended_in, there) if there.is_file() else []

    async def take_in(self, ledger: Ledger) -> None:
        """The ledger is the queue too."""

    async def discard(self) -> None:
        """Its directory goes with whoever made it."""

    def tidy(self) -> None:
        """See `Destination.tidy`."""
        for place in (self._ledger, self._control):
            place.discard()

    async def aclose(self) -> None:
        """It holds nothing open."""


class SharedDatabase:
    """A database on the server of `[ledger] url`.

    Args:
        settings: name the server, and a database that is replaced by `database`.
        database: its name; None for the one that is configured.
        folder: where the settings are put.
        clock: the ledger's.
        replace: whether what is in the database makes way.

    Raises:
        ConfigurationError: the drivers are not installed.
    """

    def __init__(
        self, settings: Settings, database: str | None, folder: Path, *, clock: Clock, replace: bool = False
    ) -> None:
        self._url = _url(settings, database)
        self._clock = clock
        self._ledger, self._queue = _shared_places(self._url, clock, replace=replace)
        self.places: Sequence[Place] = [self._ledger, self._queue, ConfigurationPlace(folder)]
        self.where = f"the database {database or name_of(settings)}"

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Ledger, ControlStore]]:
        """See `Destination.opened`."""
        from bellbuoy.adapters.mongodb import MongoLedger

        ledger = MongoLedger(self._url, clock=self._clock)
        try:
            yield ledger, ledger.control
        finally:
            await ledger.aclose()

    async def ended(self) -> list[ApiKey]:
        """None: a database that makes way is emptied by its own server, and is not read."""
        return []

    async def take_in(self, ledger: Ledger) -> None:
        """Give the ledger the notifications, and the outcomes, that only the queue had.

        What it has already under the same id stays as it is, or as far as it is.
        """
        now = self._clock.time()
        for start in range(0, len(self._queue.messages), 200):
            some = self._queue.messages[start : start + 200]
            await ledger.accept([Offer(one.record, one.body_hash, one.record.not_before or now) for one in some])
        for one in self._queue.outcomes:
            await ledger.absorb([Account(one.record, one.body_hash, transitions.due_at(one.record))], now=now)

    async def discard(self) -> None:
        """See `Destination.discard`."""
        await self._ledger.discard()

    def tidy(self) -> None:
        """There is none; what is in the database is told from a whole one by whoever restores into it again."""

    async def aclose(self) -> None:
        """See `Destination.aclose`."""
        await self._ledger.aclose()


def rehearsal(settings: Settings, folder: Path, *, clock: Clock) -> Destination:
    """A place of its own for a proof: a folder, or a database beside the live one that is dropped afterwards."""
    if settings.ledger.embedded:
        return Directory(folder, clock=clock)
    stamp = f"{int(time.time()):x}{uuid.uuid4().hex[:6]}"
    return SharedDatabase(settings, f"{name_of(settings)}_rehearsal_{stamp}", folder, clock=clock)


def name_of(settings: Settings) -> str:
    """The database's name in `[ledger] url`, as the driver takes it."""
    return _parts(settings)[1] or "bellbuoy"


def _url(settings: Settings, database: str | None) -> str:
    before, name, after = _parts(settings)
    return f"{before}/{database or name or 'bellbuoy'}{after}"


def _parts(settings: Settings) -> tuple[str, str, str]:
    """What is before the slash, the name, and the options with their question mark."""
    scheme, _, rest = settings.ledger.url.get_secret_value().partition("://")
    rest, question, options = rest.partition("?")
    authority, _, name = rest.partition("/")
    return f"{scheme}://{authority}", name, question + options


def _shared_places(url: str, clock: Clock, *, replace: bool) -> tuple[MongoPlace, RabbitPlace]:
    try:
        from bellbuoy.adapters.mongodb import MongoPlace
        from bellbuoy.adapters.rabbitmq import RabbitPlace
    except ModuleNotFoundError as error:
        if error.name not in ("bson", "pymongo", "aio_pika", "aiormq", "pamqp"):
            raise
        raise ConfigurationError(
            "[ledger] url names MongoDB, and the drivers are not installed", hint="pip install 'bellbuoy[cluster]'"
        ) from None
    return MongoPlace(url, clock=clock, replace=replace), RabbitPlace()
