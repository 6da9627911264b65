"""One writer that commits everything pending as one transaction, and readers beside it.

An fsync costs the same for one row as for a thousand, so writes that arrive while a commit is under way wait for the
next one and share it. Writes of the same kind in one commit are also one statement: SQLite runs it without Python's
global lock, where a statement a row would have to win that lock back from the event loop each time.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw

from bellbuoy.errors import ConfigurationError, Full, StoreError, Unavailable

T = TypeVar("T")


class Cursor(Protocol):
    """The rows of a statement."""

    def fetchall(self) -> list[Any]: ...

    def fetchone(self) -> Any: ...

    def close(self, force: bool, /) -> None: ...

    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """What the parts of the ledger use of a SQLite connection; SQL's values have no static type."""

    def execute(self, statements: str, bindings: Any = None, /) -> Cursor:
        """Run statements and return a cursor over the rows."""
        ...

    def changes(self) -> int:
        """Rows that the last statement changed."""
        ...


Bulk = Callable[[Connection, Sequence[Any]], Sequence[Any]]
"""Writes rows of one kind; returns for each its result, or the StoreError that refused it before it wrote."""


class Recording(Protocol):
    """A record of what one transaction changes."""

    def write(self) -> None:
        """Put the record into the transaction, if anything was changed."""
        ...

    def close(self) -> None:
        """Watch no longer."""
        ...


PENDING_MAX = 50_000
"""Writes that may wait for the writer; the next is refused with `Full` rather than grow the queue."""

BATCH_MAX = 2_000
"""Writes in one transaction, so that one commit stays short."""

CACHE_KIB = 16_384
"""Of pages for each connection; the system caches the file as well, and gives that back when memory is short."""

BUSY_TIMEOUT_MS = 5_000
WAL_AUTOCHECKPOINT_PAGES = 20_000


class Database:
    """A SQLite file with group commit.

    Args:
        path: the file; its folder exists.
        schema: statements that bring an empty or older file up to date, run once at opening in one transaction.
        capture: begins a record of what a transaction changes; what it returns writes that record into the same
            transaction, before the commit. None for no record.
        inline: run writes on the event loop instead of a thread, one turn after they were handed over. For
            deterministic simulation, where nothing may depend on a thread's timing.

    Concurrency: `write`, `bulk` and `read` belong to one event loop; a cancelled caller's write still happens.
    """

    def __init__(
        self,
        path: Path,
        schema: Callable[[Connection], None],
        *,
        capture: Callable[[Connection], Recording] | None = None,
        inline: bool = False,
    ) -> None:
        self.path = path
        self._inline = inline
        self._capture = capture
        self._pending: deque[tuple[Bulk, Any, asyncio.Future[Any]]] = deque()
        self._wake = threading.Lock()  # Held; whoever has work for the writer releases it.
        self._wake.acquire()
        self._sleeping = False
        self._rousing = False
        self._closing = False
        self._renewing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        try:
            self._writer = _open(path)
            self._reader = _open(path)
            self._scanner = _open(path)
            # Other processes may be opening the same file: a transaction that reads first could not write after them.
            self._writer.transaction_mode = "IMMEDIATE"
            with self._writer:
                schema(self._writer)
        except apsw.Error as error:
            raise _translated(error, path) from error
        self._readers = ThreadPoolExecutor(1, "ledger-read")
        self._scanners = ThreadPoolExecutor(1, "ledger-scan")

    async def bulk(self, kind: Bulk, row: Any) -> Any:
        """Write one row of a kind; when this returns it is durable.

        Raises:
            Full: too many writes are pending, or the disk is full; nothing of this row was written.
            Unavailable: the file cannot be written.
            StoreError: what `kind` returned for this row.
        """
        loop = asyncio.get_running_loop()
        if self._closing:
            raise Unavailable("the ledger is closed")
        if len(self._pending) >= PENDING_MAX:
            raise Full("too many writes are waiting for the disk", retry_after_s=1.0)
        future: asyncio.Future[Any] = loop.create_future()
        self._pending.append((kind, row, future))
        self._nudge(loop)
        return await future

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in the next transaction; durable when this returns. Raises as `bulk`.

        `work` must raise a StoreError before its first statement that writes, or not at all.
        """
        result: T = await self.bulk(_call_each, work)
        return result

    async def read(self, work: Callable[[Connection], T], *, scan: bool = False) -> T:
        """Run a query against the last commit; `scan` keeps long ones out of the way of short ones.

        Raises:
            Unavailable: the file cannot be read.
        """
        if self._closing:
            raise Unavailable("the ledger is closed")
        pool = self._scanners if scan else self._readers

        def run() -> T:
            try:
                return work(self._scanner if scan else self._reader)
            except apsw.Error as error:
                raise _translated(error, self.path) from error

        if self._inline:
            return run()
        return await asyncio.get_running_loop().run_in_executor(pool, run)

    async def shrink(self) -> None:
        """Empty the page caches of all connections. Raises Unavailable."""
        for scan in (False, True):
            await self.read(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall(), scan=scan)
        await self.write(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())

    async def reopen(self) -> None:
        """Let go of the file and open it anew, each connection when its own thread does nothing else.

        Raises:
            Unavailable, Full, ConfigurationError: it cannot be opened; the old connections stay.
        """
        if self._closing:
            raise Unavailable("the ledger is closed")

        def anew(name: str) -> None:
            try:
                fresh = _open(self.path)
            except apsw.Error as error:
                raise _translated(error, self.path) from error
            old = getattr(self, name)
            setattr(self, name, fresh)
            old.close()

        if self._inline:
            for name in ("_reader", "_scanner"):
                anew(name)
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._readers, anew, "_reader")
        await loop.run_in_executor(self._scanners, anew, "_scanner")
        self._renewing = True
        await self.write(lambda _: None)  # The writer opens its own before the next commit.

    async def aclose(self) -> None:
        """Commit what was handed over, then close the file. Safe to call twice."""
        if self._closing:
            return
        self._closing = True
        if self._thread:
            self._rouse()
            await asyncio.to_thread(self._thread.join)
        else:
            self._drain_inline()
        for pool in (self._readers, self._scanners):
            pool.shutdown(wait=True)
        for connection in (self._scanner, self._reader, self._writer):
            connection.close()

    def _nudge(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._inline:
            if len(self._pending) == 1:
                loop.call_soon(self._drain_inline)
            return
        if self._thread is None:
            self._loop = loop
            self._thread = threading.Thread(target=self._write_forever, name="ledger-write", daemon=True)
            self._thread.start()
        if self._sleeping and not self._rousing:
            # At the end of this turn of the loop: what else it hands over then shares the commit.
            self._rousing = True
            loop.call_soon(self._rouse_once)

    def _rouse_once(self) -> None:
        self._rousing = False
        if self._sleeping:
            self._sleeping = False
            self._rouse()

    def _rouse(self) -> None:
        # Only this side ever releases the lock, so what it sees locked stays so until it does.
        if self._wake.locked():
            self._wake.release()

    def _drain_inline(self) -> None:
        while self._pending:
            _resolve(self._commit(self._next_batch()))

    def _write_forever(self) -> None:
        assert self._loop is not None
        while True:
            if not self._pending:
                if self._closing:
                    return
                self._sleeping = True
                # Work that slipped in before the flag was seen must not wait for the next nudge.
                if not self._pending and not self._closing:
                    self._wake.acquire()
                self._sleeping = False
                continue
            results = self._commit(self._next_batch())
            try:
                self._loop.call_soon_threadsafe(_resolve, results)
            except RuntimeError:
                return  # The loop has closed, so nobody waits for results any more.

    def _next_batch(self) -> list[tuple[Bulk, Any, asyncio.Future[Any]]]:
        batch: list[tuple[Bulk, Any, asyncio.Future[Any]]] = []
        while self._pending and len(batch) < BATCH_MAX:
            batch.append(self._pending.popleft())
        return batch

    def _commit(self, batch: list[tuple[Bulk, Any, asyncio.Future[Any]]]) -> list[tuple[asyncio.Future[Any], Any]]:
        try:
            return self._transaction(batch)
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, (apsw.FullError, apsw.IOError)):
                # One of them is at fault. Alone, each meets only its own fate.
                return [result for one in batch for result in self._commit([one])]
            return [(future, _translated(error, self.path)) for _, _, future in batch]

    def _transaction(self, batch: list[tuple[Bulk, Any, asyncio.Future[Any]]]) -> list[tuple[asyncio.Future[Any], Any]]:
        kinds: dict[Bulk, tuple[list[Any], list[asyncio.Future[Any]]]] = {}
        for kind, row, future in batch:
            rows, futures = kinds.setdefault(kind, ([], []))
            rows.append(row)
            futures.append(future)
        results: list[tuple[asyncio.Future[Any], Any]] = []
        if self._renewing:
            old, self._writer = self._writer, _open(self.path)
            self._renewing = False
            old.close()
        writer = self._writer
        recording = self._capture(writer) if self._capture is not None else None
        try:
            writer.execute("BEGIN IMMEDIATE")
            for kind, (rows, futures) in kinds.items():
                results += zip(futures, kind(writer, rows), strict=True)
            if recording is not None:
                recording.write()
            writer.execute("COMMIT")
        except BaseException:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
            raise
        finally:
            if recording is not None:
                recording.close()
        return results


def _call_each(connection: Connection, works: Sequence[Callable[[Connection], Any]]) -> list[Any]:
    results: list[Any] = []
    for work in works:
        try:
            results.append(work(connection))
        except StoreError as error:
            results.append(error)
    return results


def _resolve(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, result in results:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def _open(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}").fetchall()
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return connection


def _translated(error: Exception, path: Path) -> Exception:
    """SQLite's error in the words of the error tree; anything else is a defect and passes as it is."""
    if isinstance(error, (apsw.FullError, apsw.IOError)):
        return Full(
            f"the disk of {path.parent} is full or failing",
            hint="make room in the data directory; nothing accepted is lost",
            retry_after_s=5.0,
        )
    if isinstance(error, (apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError)):
        return ConfigurationError(
            f"the ledger {path} cannot be opened for writing",
            hint="check [data] dir and the rights of the user that runs bellbuoy",
        )
    if isinstance(error, (apsw.NotADBError, apsw.CorruptError)):
        return Unavailable(f"the ledger {path} is damaged: {error}", hint="restore it from a backup")
    if isinstance(error, apsw.Error):
        return Unavailable(f"the ledger {path} did not take the write: {error}", retry_after_s=1.0)
    return error
