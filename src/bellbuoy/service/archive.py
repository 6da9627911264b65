"""What is backed up, where to, and what it is restored into, as it is configured."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, Any

from bellbuoy.adapters.cipher import KeyRing, ask_keys, new_key, read_keys
from bellbuoy.adapters.control_locks import ControlLocks
from bellbuoy.adapters.cron import Cron
from bellbuoy.adapters.journal import SendJournal, claim_folder
from bellbuoy.adapters.memory_shared import MemoryLocks
from bellbuoy.adapters.objectstore import Objects, folder_of
from bellbuoy.adapters.sqlite import SqliteControlStore, SqliteLedger, SqliteSource
from bellbuoy.clock import Clock
from bellbuoy.continuity.manifest import Kind
from bellbuoy.continuity.schedule import Times
from bellbuoy.continuity.vault import Vault
from bellbuoy.errors import ConfigurationError, Conflict, Damaged
from bellbuoy.ports.archive import Change, ObjectStore, Snapshot, Source, Unchanging
from bellbuoy.ports.control import ControlStore
from bellbuoy.ports.operations import Telemetry
from bellbuoy.ports.shared import Locks
from bellbuoy.service.keys import write_secret
from bellbuoy.service.settings import Settings
from bellbuoy.service.stores import cache_link, shared_ledger

if TYPE_CHECKING:
    from bellbuoy.adapters.mongodb import MongoLedger

CONFIGURATION = "configuration"
_SETTINGS_FILE = "settings.json"

__all__ = ["new_key"]


def open_vault(settings: Settings, *, clock: Clock, telemetry: Telemetry) -> Vault:
    """The archive that `[backup]` names; nothing is connected yet.

    Raises:
        ConfigurationError: there is none, its key file cannot be used, or it is neither encrypted nor told not to be.
    """
    of = settings.backup
    if not of.on:
        raise ConfigurationError("backups are off", hint="set [backup] url, for example file:///var/backups/bellbuoy")
    targets: dict[str, ObjectStore] = {}
    local = True
    for name, (url, endpoint) in of.targets.items():
        objects = Objects(url, endpoint=endpoint)
        targets[name], local = objects, local and objects.local
    return Vault(targets, _keys(settings, local=local), clock=clock, telemetry=telemetry)


def folders(settings: Settings) -> list[Path]:
    """The folders among the targets of `[backup]`, without one that is a link to itself and so leads nowhere."""
    return [folder for folder in _folders(settings).values() if not _loops(folder)]


def folders_not_there(settings: Settings) -> dict[str, Path]:
    """Those of which nothing is there, by what the target is called."""
    return {name: folder for name, folder in _folders(settings).items() if not os.path.lexists(folder)}


def make_folders(settings: Settings) -> None:
    """Make the folders among the targets: a start does, and who takes the first backup; who only looks must not.

    One of two that cannot be made is away, and stops nothing.

    Raises:
        ConfigurationError: no target is left.
    """
    failed: list[ConfigurationError] = []
    for folder in _folders(settings).values():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            found = f"the folder {folder} cannot be written: {error.strerror}"
            failed.append(ConfigurationError(found, hint="check [backup] url and its rights"))
    if failed and len(failed) == len(settings.backup.targets):
        raise failed[0]


def _folders(settings: Settings) -> dict[str, Path]:
    found = {name: folder_of(url) for name, (url, _) in settings.backup.targets.items()}
    return {name: folder for name, folder in found.items() if folder is not None}


def _loops(folder: Path) -> bool:
    try:
        folder.resolve()
    except (OSError, RuntimeError):
        return True
    return False


def _keys(settings: Settings, *, local: bool) -> KeyRing:
    of = settings.backup
    if of.encrypt is False:
        return KeyRing({})
    if of.key_file is not None:
        return read_keys(of.key_file)
    if of.key_command:
        return ask_keys(shlex.split(of.key_command))
    if local and of.encrypt is None:
        return KeyRing({})
    raise ConfigurationError(
        "backups that leave this machine are encrypted, and there is no key",
        hint="bellbuoy backup key >> FILE, chmod 600 FILE, [backup] key_file = FILE; or [backup] encrypt = false",
    )


@asynccontextmanager
async def opened(settings: Settings, *, clock: Clock) -> AsyncIterator[tuple[SqliteLedger | MongoLedger, ControlStore]]:
    """The ledger that is configured, beside whoever else has it open.

    Raises:
        ConfigurationError: there is no ledger of ours there.
    """
    if not settings.ledger.embedded:
        shared = shared_ledger(settings, clock)
        try:
            yield shared, shared.control
        finally:
            await shared.aclose()
        return
    if not has_ledger(settings):
        raise ConfigurationError(
            f"there is no embedded ledger in {settings.data.dir}", hint="give --data-dir, or --config"
        )
    # SQLite lets several processes write.
    ledger = SqliteLedger(settings.database_path, clock=clock, capture=settings.backup.on)
    control = SqliteControlStore(settings.data.dir / "control.db", clock=clock, capture=settings.backup.on)
    try:
        yield ledger, control
    finally:
        await control.aclose()
        await ledger.aclose()


def has_ledger(settings: Settings) -> bool:
    """Whether there is a ledger to be opened, as far as that can be known without asking a server."""
    return not settings.ledger.embedded or settings.database_path.exists()


def locks_of(control: ControlStore | None, *, clock: Clock) -> Locks:
    """Leave for one at a time among all who share that store; where there is none, among the tasks of this process."""
    return ControlLocks(control, clock=clock) if control is not None else MemoryLocks(clock=clock)


def schedules(settings: Settings) -> dict[Kind, Times]:
    """When backups are due. Raises ConfigurationError for an expression that is none."""
    return {"full": Cron(settings.backup.full_schedule), "incremental": Cron(settings.backup.incremental_schedule)}


def scratch_of(settings: Settings) -> Path:
    """Where copies are made before they are uploaded."""
    return settings.backup.scratch_dir or settings.data.dir / "scratch"


def sends_of(settings: Settings) -> Path:
    """Where the send journal is."""
    return settings.backup.sends_dir or settings.data.dir / "sends"


def sources(settings: Settings, ledger: Any, control: Any, *, clock: Clock, rng: Random) -> list[Source]:
    """What is backed up, the ledger first; a backup goes on without the others where they are away.

    Args:
        ledger, control: the stores themselves, which record their changes.
    """
    configuration = Configuration(settings, clock=clock)
    if isinstance(ledger, SqliteLedger):
        files = {"ledger": ledger.database, "control": control.database}
        return [*(SqliteSource(name, database, clock=clock) for name, database in files.items()), configuration]
    return [ledger.source, *_of_servers(settings, clock, rng), configuration]


def _of_servers(settings: Settings, clock: Clock, rng: Random) -> list[Source]:
    """The broker and Redis, where they are configured, each over a connection of its own."""
    found: list[Source] = []
    if settings.queue.broker is not None:
        from bellbuoy.adapters.rabbitmq import RabbitSource

        found.append(RabbitSource(settings.queue.broker, clock=clock, rng=rng))
    if settings.cache.server is not None:
        from bellbuoy.adapters.redis import RedisSource

        found.append(RedisSource(cache_link(settings, clock, rng), clock=clock))
    return found


@dataclass
class OpenSends:
    """The send journals of a directory that nobody else has, and what holds them."""

    journal: SendJournal
    locks: list[IO[str]]

    def close(self) -> None:
        """Close them, then let others have them."""
        self.journal.close()
        for lock in self.locks:
            lock.close()


def open_sends(folder: Path, *, telemetry: Telemetry) -> OpenSends:
    """A send journal for this process, with those that ended processes left. Raises ConfigurationError."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the send journal {folder} cannot be written: {error.strerror}", hint="check [backup] sends_dir"
        ) from None
    own, lock, left = claim_folder(folder)
    journal = SendJournal(own, [other for other, _ in left], telemetry=telemetry)
    return OpenSends(journal, [lock, *(other for _, other in left)])


def hold_directory(folder: Path, *, force: bool) -> IO[str]:
    """Make sure that nobody uses a data directory, for as long as what is returned is open.

    Raises:
        Conflict: a process has it open, whatever `force` says; or there is a ledger in it, without `force`.
        ConfigurationError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "bellbuoy.lock").open("a")
    except OSError as error:
        raise ConfigurationError(
            f"the directory {folder} cannot be written: {error.strerror}", hint="restore --to another directory"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise Conflict(
            f"a process has the data directory {folder} open", hint="stop it, or restore --to another directory"
        ) from None
    if (folder / "bellbuoy.db").exists() and not force:
        lock.close()
        raise Conflict(
            f"there is a ledger in {folder}", hint="restore --to an empty directory, or replace this one with --force"
        )
    return lock


class Configuration(Unchanging):
    """The settings as a source, without what is secret. Implements `bellbuoy.ports.archive.Source`."""

    name = CONFIGURATION
    guarantee = "the settings in effect at the backup, with the secrets blotted out"

    def __init__(self, settings: Settings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    async def full(self, folder: Path) -> Snapshot:
        """See `Source.full`."""
        document = self._settings.model_dump(mode="json", by_alias=True)
        text = json.dumps(document, indent=2, sort_keys=True)
        await asyncio.to_thread((folder / _SETTINGS_FILE).write_text, text)
        return Snapshot("", 0, self._clock.time(), [_SETTINGS_FILE])


class ConfigurationPlace:
    """Where the settings are put for a person to look at. Implements `bellbuoy.ports.archive.Place`."""

    name = CONFIGURATION

    def __init__(self, folder: Path) -> None:
        self._path = folder / "restored-settings.json"
        self._text = ""

    async def begin(self, folder: Path) -> None:
        """See `Place.begin`."""
        try:
            self._text = (folder / _SETTINGS_FILE).read_text()
        except OSError:
            raise Damaged("the copy of the configuration has no settings") from None

    async def apply(self, changes: Sequence[Change]) -> None:
        """There are none."""

    async def finish(self, timeline: str) -> None:
        """See `Place.finish`. A link in its place gives way, and what it leads to stays."""
        write_secret(self._path, self._text)
