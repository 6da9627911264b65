"""Where notifications are kept, and what processes tell each other beside it, as it is configured."""

from __future__ import annotations

import fcntl
import socket
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from bellbuoy.adapters.auditlog import FileAuditLog
from bellbuoy.adapters.control_locks import ControlLocks, LayeredLocks
from bellbuoy.adapters.evidence import FileSigner, is_signed
from bellbuoy.adapters.journal import FileJournal, claim_folder
from bellbuoy.adapters.memory import CachedLedger, RememberedUsers
from bellbuoy.adapters.memory_shared import (
    MemoryAnnouncements,
    MemoryCircuits,
    MemoryFlags,
    MemoryIdempotency,
    MemoryLocks,
    MemoryRateLimit,
    MemoryRecipients,
)
from bellbuoy.adapters.shared_users import SharedUsers
from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError
from bellbuoy.intake.heal import Healing, HealingSettings
from bellbuoy.intake.homes import Homes, HomesSettings
from bellbuoy.intake.kept import Kept
from bellbuoy.intake.recall import Recall
from bellbuoy.ports.audit import AuditLog, Signer, Verifier
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.ledger import Ledger
from bellbuoy.ports.queue import Queue
from bellbuoy.ports.shared import Locks
from bellbuoy.resilience import CircuitBreaker, Timeout
from bellbuoy.service.breakers import make_breaker
from bellbuoy.service.cache import Cache, Sharing
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry
from bellbuoy.service.watch import GuardedQueue, WatchedCache, WatchedLedger, guarded

if TYPE_CHECKING:
    from bellbuoy.adapters.mongodb import MongoLedger
    from bellbuoy.adapters.redis import Link


class UserCache(Protocol):
    """What remembers recipients in front of the ledger."""

    def drop_cache(self) -> None: ...

    def prefer_cache(self, *, always: bool, fresh_s: float) -> None: ...


@dataclass
class Stores:
    """What a process keeps notifications in.

    `ledger` is what the rest of the service works with, `store` the ledger itself, and `watched` knows how that is.
    `queue` is None where the ledger hands work out itself. `alone`: no other process uses the ledger. `local` remembers
    what this machine has to, whatever is away; `control` what everybody who shares the ledger has to. `leading` gives
    leave for what one process at a time may do. `folders` are the locks of the journals, this process's first. `cache`
    is what processes tell each other, and `sharing` what has to run for that.
    """

    ledger: Ledger
    store: Ledger
    watched: WatchedLedger
    homes: Homes
    healing: Healing
    queue: GuardedQueue | None
    alone: bool
    local: ControlStore
    control: ControlStore
    leading: Locks
    locks: list[IO[str]]
    folders: list[IO[str]]
    cache: Cache
    sharing: list[Sharing]

    @property
    def users(self) -> UserCache:
        """The memory for recipients, which is the outermost part of `ledger`."""
        return cast(UserCache, self.ledger)

    def drop_caches(self) -> None:
        """Forget what can be asked for again."""
        self.users.drop_cache()

    def prefer_cache(self, *, always: bool, fresh_s: float) -> None:
        """Take recipients from the cache where it has them: always, or those asked about within `fresh_s` seconds."""
        self.users.prefer_cache(always=always, fresh_s=fresh_s)

    async def aclose(self) -> None:
        """Close the homes, then let go of the data directory."""
        if self.queue is not None:
            await self.queue.aclose()
        await self.ledger.aclose()
        await self.local.aclose()
        if self.cache.watched is not None:
            await self.cache.watched.aclose()
        for lock in (*self.locks, *self.folders):
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
    capture = embedded and settings.backup.on
    local = control = SqliteControlStore(settings.data.dir / "control.db", clock=clock, capture=capture)
    if embedded:
        store: Any = SqliteLedger(settings.database_path, clock=clock, capture=capture)
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
    cache = open_cache(settings, telemetry, clock, rng)
    shared = cache.watched is not None
    recall = Recall(cache.idempotency, clock=clock) if shared else None
    homes, folders = _homes(watched, queue, recall, settings, clock, telemetry)
    healing = Healing(homes, queue=queue, settings=HealingSettings(), clock=clock, telemetry=telemetry)
    near = ControlLocks(local, clock=clock)
    leading: Locks = LayeredLocks(near, cache.locks) if shared else near
    ledger, sharing = _remembering(homes, settings, cache, clock, rng, alone=alone)
    return Stores(
        ledger=ledger,
        store=store,
        watched=watched,
        homes=homes,
        healing=healing,
        queue=queue,
        alone=alone,
        local=local,
        control=control,
        leading=leading,
        locks=locks,
        folders=folders,
        cache=cache,
        sharing=sharing,
    )


def _homes(
    ledger: WatchedLedger,
    queue: GuardedQueue | None,
    recall: Recall | None,
    settings: Settings,
    clock: Clock,
    telemetry: ServiceTelemetry,
) -> tuple[Homes, list[IO[str]]]:
    """The homes, with the journals that ended processes left; and the locks of the journals, this process's first."""
    folder, lock, left = claim_folder(settings.data.dir / "journal")
    homes = Homes(
        ledger,
        Kept(FileJournal(folder), left=[FileJournal(other) for other, _ in left], clock=clock),
        queue=queue,
        recall=recall,
        settings=HomesSettings(),
        clock=clock,
        telemetry=telemetry,
    )
    return homes, [lock, *(other for _, other in left)]


def _remembering(
    homes: Homes, settings: Settings, cache: Cache, clock: Clock, rng: Random, *, alone: bool
) -> tuple[Ledger, list[Sharing]]:
    """The homes with a memory for recipients, and what has to run for the memory that processes share."""
    ledger, users_max = cast(Ledger, homes), settings.cache.users_max
    if alone or cache.watched is None:
        remembering: object = (
            CachedLedger(ledger, users_max=users_max)
            if alone
            else RememberedUsers(ledger, users_max=users_max, clock=clock)
        )
        return cast(Ledger, remembering), [cache.watched] if cache.watched else []
    users = SharedUsers(
        ledger,
        cache.recipients,
        owner=f"{rng.getrandbits(64):x}",
        users_max=users_max,
        fresh_s=settings.cache.fresh_s,
        clock=clock,
    )
    return cast(Ledger, users), [cache.watched, users]


def open_cache(settings: Settings, telemetry: ServiceTelemetry, clock: Clock, rng: Random) -> Cache:
    """What processes tell each other; nothing is connected yet.

    Raises:
        ConfigurationError: the driver is not installed, or the URL is not valid.
    """
    if settings.cache.server is None:
        return Cache(
            MemoryRecipients(clock=clock, users_max=settings.cache.users_max),
            MemoryIdempotency(clock=clock),
            MemoryFlags(),
            MemoryAnnouncements(clock=clock),
            MemoryRateLimit(clock=clock),
            MemoryLocks(clock=clock),
            MemoryCircuits(clock=clock),
        )
    breaker = make_breaker("redis", settings, telemetry, clock, rng)
    link = cache_link(settings, clock, rng, breaker)
    from bellbuoy.adapters import redis

    return Cache(
        redis.RedisRecipients(link),
        redis.RedisIdempotency(link),
        redis.RedisFlags(link),
        redis.RedisAnnouncements(link),
        redis.RedisRateLimit(link),
        redis.RedisLocks(link),
        redis.RedisCircuits(link),
        WatchedCache(link, breaker=breaker, clock=clock),
    )


def cache_link(settings: Settings, clock: Clock, rng: Random, breaker: CircuitBreaker | None = None) -> Link:
    """The way to the Redis that `[cache] url` names; nothing is connected yet.

    Args:
        breaker: around every question, with the time limit that goes with it; None for neither.

    Raises:
        ConfigurationError: its driver is not installed, or the URL is not valid.
    """
    try:
        from bellbuoy.adapters.redis import Link
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ConfigurationError(
            "[cache] url names Redis, and its driver is not installed", hint="pip install 'bellbuoy[cluster]'"
        ) from None
    around = None
    if breaker is not None:
        around = guarded(breaker, Timeout(breaker.settings.timeout_s, clock=clock, name="cache").call)
    return Link(settings.cache.server or "", around=around, clock=clock, rng=rng)


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


def open_audit(settings: Settings, clock: Clock) -> tuple[AuditLog, IO[str]]:
    """This process's chain of the audit log, and what holds its folder.

    Raises:
        ConfigurationError: the folder is not usable.
    """
    root = settings.data.dir / "audit"
    folder, lock, left = claim_folder(root)
    for _, other in left:
        other.close()  # Whoever comes next may go on with it.
    return FileAuditLog(folder, where=where_of(settings.data.dir), clock=clock), lock


def where_of(data_dir: Path) -> str:
    """Which machine and which data directory an audit log is of."""
    return f"{socket.gethostname()}:{data_dir.resolve()}"


def evidence_key(data_dir: Path) -> Signer:
    """The key that seals evidence, made when there is none. Raises ConfigurationError."""
    return FileSigner(data_dir / "evidence.key")


def verifier() -> Verifier:
    """What checks signatures over evidence."""
    return is_signed


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
