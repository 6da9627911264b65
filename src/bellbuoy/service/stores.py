"""Where notifications are kept: the ledger, the queue, the journal, as they are configured."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, Any

from bellbuoy.adapters.journal import FileJournal, claim_folder
from bellbuoy.adapters.memory import CachedLedger, RememberedUsers
from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.queue import Queue
from bellbuoy.service.breakers import make_breaker
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry
from bellbuoy.service.watch import GuardedQueue, WatchedLedger

if TYPE_CHECKING:
    from bellbuoy.adapters.mongodb import MongoLedger


@dataclass
class Stores:
    """What a process keeps notifications in.

    `ledger` is what the rest of the service works with; `watched` knows how the ledger itself is. `queue` is None where
    the ledger hands work out itself. `alone`: no other process uses the ledger. `local` remembers what this machine has
    to, whatever is away; `control` what everybody who shares the ledger has to.
    """

    ledger: Ledger
    watched: WatchedLedger
    homes: Homes
    queue: GuardedQueue | None
    alone: bool
    local: ControlStore
    control: ControlStore
    locks: list[IO[str]]

    def drop_caches(self) -> None:
        """Forget what can be asked for again."""
        self.ledger.drop_cache()  # type: ignore[attr-defined]  # The outermost is always one of `adapters.memory`.

    async def aclose(self) -> None:
        """Close the homes, then let go of the data directory."""
        if self.queue is not None:
            await self.queue.aclose()
        await self.ledger.aclose()
        await self.local.aclose()
        for lock in self.locks:
            lock.close()


def open_stores(
    settings: Settings,
    telemetry: ServiceTelemetry,
    clock: Clock,
    rng: Random,
    *,
    accepting: bool,
    working: bool,
) -> Stores:
    """Open what is configured; a server is not connected to yet.

    Raises:
        ConfigurationError: the data directory is not usable, or a driver is not installed.
        Full, Unavailable: the embedded ledger cannot be opened.
    """
    embedded = settings.ledger.embedded
    alone = accepting and working and embedded and settings.server.workers == 1
    settings.data.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    locks = [_lock(settings.data.dir, exclusive=alone)]
    breaker = make_breaker("sqlite" if embedded else "mongodb", settings, telemetry, clock, rng)
    local = control = SqliteControlStore(settings.data.dir / "control.db", clock=clock)
    if embedded:
        store: Any = SqliteLedger(settings.database_path, clock=clock)
    else:
        store = shared_ledger(settings, clock)
        control = store.control
    watched = WatchedLedger(
        store, clock=clock, breaker=breaker, timeout_s=breaker.settings.timeout_s, remote=not embedded
    )
    queue = None
    if settings.queue.broker is not None:
        guard = make_breaker("rabbitmq", settings, telemetry, clock, rng)
        queue = GuardedQueue(broker(settings, clock, rng, working=working), breaker=guard, clock=clock)
    folder, lock, left = claim_folder(settings.data.dir / "journal")
    locks += [lock, *(other for _, other in left)]
    homes = Homes(
        watched,
        Kept(FileJournal(folder), left=[FileJournal(other) for other, _ in left], clock=clock),
        queue=queue,
        settings=HomesSettings(),
        clock=clock,
        telemetry=telemetry,
    )
    remembering = CachedLedger if alone else RememberedUsers
    ledger = remembering(homes, users_max=settings.cache.users_max)
    return Stores(ledger, watched, homes, queue, alone, local, control, locks)


def broker(settings: Settings, clock: Clock, rng: Random, *, working: bool) -> Queue:
    """The queue on a broker that `[queue] url` names; nothing is connected yet.

    Args:
        working: whether this process takes messages, and so has some out.

    Raises:
        ConfigurationError: its driver is not installed, or the URL is not valid.
    """
    try:
        from bellbuoy.adapters.rabbitmq import RabbitQueue
    except ModuleNotFoundError as error:
        if error.name not in ("aio_pika", "aiormq", "pamqp"):
            raise
        raise ConfigurationError(
            "[queue] url names RabbitMQ, and its driver is not installed", hint="pip install 'bellbuoy[cluster]'"
        ) from None
    prefetch = settings.delivery.in_hand_max if working else 0
    queue: Queue = RabbitQueue(settings.queue.broker or "", prefetch=prefetch, clock=clock, rng=rng)
    return queue


def shared_ledger(settings: Settings, clock: Clock) -> MongoLedger:
    """The ledger on a server that `[ledger] url` names; nothing is connected yet.

    Raises:
        ConfigurationError: its driver is not installed, or the URL is not valid.
    """
    try:
        from bellbuoy.adapters.mongodb import MongoLedger
    except ModuleNotFoundError as error:
        if error.name not in ("bson", "pymongo"):
            raise
        raise ConfigurationError(
            "[ledger] url names MongoDB, and its driver is not installed", hint="pip install 'bellbuoy[cluster]'"
        ) from None
    return MongoLedger(settings.ledger.url.get_secret_value(), clock=clock)


def _lock(data_dir: Path, *, exclusive: bool) -> IO[str]:
    """Hold the data directory, alone or with other processes that share it."""
    file = (data_dir / "bellbuoy.lock").open("a")
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ConfigurationError(
            f"another bellbuoy uses the data directory {data_dir}",
            hint="stop it, or give this one its own with --data-dir; `serve` wants a directory to itself",
        ) from None
    return file
