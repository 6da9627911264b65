"""The connection: every call with a deadline, every write on the disks of a majority, every error translated."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, TypeVar

import pymongo
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from bellbuoy.adapters.mongodb import schema
from bellbuoy.adapters.mongodb.faults import RETRY_AFTER_S, WRITE_CONFLICT, Contended, misconfigured, translated
from bellbuoy.clock import Clock
from bellbuoy.errors import Busy, StoreError, Unavailable

T = TypeVar("T")
Session = AsyncClientSession
Document = dict[str, Any]
Collection = AsyncCollection[Document]

CALL_S = 5.0
"""How long one call may take, the driver's own retries and the wait for a server included."""

SCAN_S = 30.0
"""The same for what counts everything."""

CONFLICTS_MAX = 8
"""How often a transaction begins anew because another one was in its way; the driver waits longer each time."""

_SUPERSEDE_TRIES = 12
"""How often ending a transaction is tried, until the server would have ended it by itself."""

_OVERRUNS_MAX = 3
"""Calls in a row that the driver does not end in time before it is replaced."""

_GRACE_S = 0.5
"""What the driver may take beyond its own deadline before the call is cut off from outside."""

# A majority alone may hold a write in memory only, and a power cut takes it; the journal makes it durable.
_SAFE = WriteConcern("majority", j=True)
# What a majority has cannot be rolled back by an election, so what we answered from it stays true.
_READ = ReadConcern("majority")


class Database:
    """A MongoDB database.

    Nothing is connected before the first call, which also brings the schema up to date.

    Args:
        url: `mongodb://` or `mongodb+srv://`, with credentials and the database's name, `bellbuoy` where it has none.
        clock: for the order of what is written.

    Raises:
        ConfigurationError: the URL is not valid.

    Concurrency: belongs to one event loop.
    """

    def __init__(self, url: str, *, clock: Clock) -> None:
        self.where = place(url)
        self._url = url
        self._overruns = 0
        self._overran_at = 0.0
        self._cut_off: set[asyncio.Task[Any]] = set()
        self._connect()
        self._clock = clock
        self._process = secrets.token_hex(4)
        self._last_us = 0
        self._opening = asyncio.Lock()
        self._left: set[asyncio.Task[None]] = set()
        self._opened = False
        self._closed = False

    def _connect(self) -> None:
        try:
            self._client: AsyncMongoClient[Document] = AsyncMongoClient(
                self._url,
                appname="bellbuoy",
                timeoutMS=int(CALL_S * 1000),
                serverSelectionTimeoutMS=int(CALL_S * 1000),
                connectTimeoutMS=int(CALL_S * 1000),
                retryWrites=True,
                retryReads=True,
            )
            self.database = self._client.get_default_database("bellbuoy").with_options(
                write_concern=_SAFE, read_concern=_READ, read_preference=ReadPreference.PRIMARY
            )
        except (PyMongoError, ValueError, TypeError):
            raise misconfigured(self.where) from None
        self.notifications: Collection = self.database["notifications"]
        self.accepted: Collection = self.database["accepted"]
        self.users: Collection = self.database["users"]
        self.tombstones: Collection = self.database["tombstones"]
        self.keys: Collection = self.database["keys"]
        self.control: Collection = self.database["control"]
        self.meta: Collection = self.database["meta"]

    def stamp(self) -> str:
        """A name that no other write has; names sort in the order of time, those of this process strictly.

        The microseconds of the clock and four random bytes for the process, in 24 hexadecimal digits.
        """
        self._last_us = max(self._last_us + 1, int(self._clock.time() * 1_000_000))
        return f"{self._last_us:016x}{self._process}"

    async def run(self, work: Callable[[], Awaitable[T]], *, within_s: float = CALL_S) -> T:
        """Make a call, or a few that share one deadline; inside another `run` its deadline holds as well.

        Raises:
            Unavailable: no answer in time; a write may have happened all the same.
            Full: the server has no room.
            ConfigurationError: the server refuses our credentials, or a newer Bellbuoy wrote the database.
        """
        end = time.monotonic() + within_s
        await self._open(within_s)
        return await self._bounded(work, max(0.001, end - time.monotonic()))

    async def transaction(
        self,
        work: Callable[[Session], Awaitable[T]],
        *,
        conflicts_max: int = CONFLICTS_MAX,
    ) -> T:
        """Make several writes as one; `work` may run again when another transaction was in its way. Raises as `run`.

        Args:
            conflicts_max: give up with `Contended` after so many conflicts.
        """
        conflicts = 0

        async def once(session: Session) -> T:
            nonlocal conflicts
            try:
                return await work(session)
            except OperationFailure as error:
                conflicts += error.code == WRITE_CONFLICT
                if conflicts >= conflicts_max:
                    raise Contended from None
                raise

        session = self._client.start_session()

        async def whole() -> T:
            return await session.with_transaction(
                once,
                read_concern=ReadConcern("snapshot"),
                write_concern=_SAFE,
                read_preference=ReadPreference.PRIMARY,
            )

        try:
            done = await self.run(whole)
        except Contended:
            await session.end_session()
            raise
        except BaseException:
            # Whether it was ended nobody knows, and one that is open locks what it wrote for a minute.
            # In a context of its own: the deadline that has passed is in ours.
            task = asyncio.create_task(self._supersede(session), name="mongodb-supersede", context=Context())
            self._left.add(task)
            task.add_done_callback(self._left.discard)
            raise
        await session.end_session()
        return done

    async def _supersede(self, session: Session) -> None:
        """Begin another transaction on a session, at which the server ends the one before, as soon as it answers."""

        async def look() -> None:
            if session.in_transaction:
                await session.abort_transaction()
            async with await session.start_transaction(read_concern=ReadConcern("snapshot")):
                await self.accepted.find_one({"_id": ""}, session=session)

        try:
            for _ in range(_SUPERSEDE_TRIES):
                try:
                    await self._bounded(look, CALL_S)
                    return
                except StoreError:
                    await asyncio.sleep(RETRY_AFTER_S)
        finally:
            await session.end_session()

    async def change(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """A transaction by itself, which nobody shares. Raises as `run`."""
        try:
            return await self.transaction(work)
        except Contended:
            raise busy() from None

    async def snapshot(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """Read several collections as they were at one moment. Raises as `run`."""

        async def whole() -> T:
            async with self._client.start_session(snapshot=True) as session:
                return await work(session)

        return await self.run(whole, within_s=SCAN_S)

    def session(self) -> Session:
        """A session of one's own, to be closed."""
        return self._client.start_session()

    @property
    def oplog(self) -> Collection:
        """What the server replicates, which needs a right of its own to read."""
        return self._client["local"]["oplog.rs"]

    async def raw(self, work: Callable[[], Awaitable[T]], *, within_s: float) -> T:
        """Make a call to a database that need not have our schema. Raises as `run`."""
        return await self._bounded(work, within_s)

    async def examine(self, *, fix: bool) -> list[str] | None:
        """See `schema.examine`; raises as `run`."""
        return await self._bounded(lambda: schema.examine(self.database, fix=fix), schema.BUILD_S if fix else CALL_S)

    async def aclose(self) -> None:
        """Close the connections, as far as the driver lets itself be ended. Safe to call twice."""
        self._closed = True
        for task in (*self._left, *self._cut_off):
            task.cancel()
        await asyncio.wait({*self._left, *self._cut_off, asyncio.create_task(_close(self._client))}, timeout=CALL_S)

    async def _open(self, within_s: float) -> None:
        if self._closed:
            raise Unavailable("the ledger is closed")
        if self._opened:
            return
        try:
            async with asyncio.timeout(within_s), self._opening:
                if not self._opened:
                    await self._bounded(lambda: schema.prepare(self.database), within_s)
                    self._opened = True
        except TimeoutError:
            raise self._silent() from None

    async def _bounded(self, work: Callable[[], Awaitable[T]], within_s: float) -> T:
        began = time.monotonic()
        # A task of its own, since the driver may not let itself be cut off: it waits for a lock of its pool, endlessly.
        call = asyncio.create_task(_within(within_s, work), name="mongodb")
        try:
            await asyncio.wait({call}, timeout=within_s + _GRACE_S)
        finally:
            if not call.done():
                self._cut_off.add(call)
                call.add_done_callback(self._ended)
                call.cancel()
        if not call.done():
            self._overran(began)
            raise self._silent()
        try:
            done = call.result()
            self._overruns = 0
            return done
        except TimeoutError:
            self._overran(began)
            raise self._silent() from None
        except PyMongoError as error:
            self._overruns = 0
            raise translated(error, self.where) from None
        except RuntimeError as error:
            # A call that was cut off while it waited for one of the driver's locks leaves that as if it had it, and
            # the next one that waits finds it un-acquired.
            if "acquired" not in str(error):
                raise
            raise self._silent() from None

    def _ended(self, call: asyncio.Task[Any]) -> None:
        self._cut_off.discard(call)
        if not call.cancelled():
            call.exception()  # Whoever asked was told, or has given up.

    def _overran(self, began: float) -> None:
        """The driver missed its own deadline. When it does so again and again it is stuck; a new one is not."""
        if began < self._overran_at:
            return  # Of calls at the same time one counts.
        self._overran_at = time.monotonic()
        self._overruns += 1
        if self._overruns < _OVERRUNS_MAX or self._closed:
            return
        self.reconnect()

    def reconnect(self) -> None:
        """Leave all connections to themselves and begin with new ones."""
        self._overruns = 0
        task = asyncio.create_task(_close(self._client), name="mongodb-close", context=Context())
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        self._connect()

    def _silent(self) -> Unavailable:
        return Unavailable(f"MongoDB at {self.where} does not answer", retry_after_s=RETRY_AFTER_S)


async def _within(within_s: float, work: Callable[[], Awaitable[T]]) -> T:
    with pymongo.timeout(within_s):
        return await work()


async def _close(client: AsyncMongoClient[Document]) -> None:
    with contextlib.suppress(TimeoutError, PyMongoError):
        async with asyncio.timeout(CALL_S):
            await client.close()


def busy() -> Busy:
    """Others write to the same documents all the time; nothing was written."""
    return Busy("other processes are writing the same documents", retry_after_s=RETRY_AFTER_S)


def place(url: str) -> str:
    """The hosts in a URL, without the credentials before them and the options behind."""
    rest = url.partition("://")[2]
    authority = rest.partition("/")[0].partition("?")[0]
    if "@" in rest and "@" not in authority:
        return "an unnamed host"  # What comes before the slash may be half a password.
    return authority.rpartition("@")[2] or "an unnamed host"
