"""The connection to the broker: made when it is needed, given up when it fails, made anew not too soon."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aiormq.exceptions import AMQPError, ChannelInvalidStateError, DeliveryError, PublishError
from yarl import URL

from bellbuoy.adapters.rabbitmq.topology import declare
from bellbuoy.clock import Clock
from bellbuoy.errors import BellbuoyError, ConfigurationError, Full, Unavailable

CONNECT_S = 4.0
"""Seconds for connecting and declaring."""

CALL_S = 4.0
"""Seconds for anything that is asked of the broker."""

PAUSE_S = (0.2, 1.0)
"""Seconds before a connection that failed is tried again, at random between these."""

HEARTBEAT_S = 10
"""Seconds between signs of life; a broker that shows none for two of them is given up."""

T = TypeVar("T")

_GONE = (AMQPError, ChannelInvalidStateError, ConnectionError, OSError, asyncio.TimeoutError, RuntimeError)


class Link:
    """One connection with a channel for putting in and one for taking out.

    Args:
        url: `amqp://` or `amqps://`, with the nodes of the broker separated by commas where it has several.
        clock, rng: for the pause after a failure, and for the node that is tried first.
        lost: called when the connection is gone: whatever was handed out over it will come again.

    Raises:
        ConfigurationError: the URL is not valid.
    """

    def __init__(self, url: str, *, clock: Clock, rng: Random, lost: Callable[[], None]) -> None:
        try:
            self._nodes = deque(URL(one).update_query(heartbeat=HEARTBEAT_S) for one in nodes_of(url))
        except ValueError:
            # Not in the parser's words: they may quote the password.
            raise ConfigurationError(
                "[queue] url is not valid",
                hint="amqp://USER:PASSWORD@HOST:PORT,HOST:PORT/VHOST, special characters percent-encoded",
            ) from None
        self._nodes.rotate(rng.randrange(len(self._nodes)))  # Processes spread over the nodes.
        self._clock = clock
        self._rng = rng
        self._lost = lost
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._not_before = float("-inf")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.puts: AbstractChannel
        self.takes: AbstractChannel
        self.probes: AbstractQueue

    async def _open(self) -> None:
        """Be connected, and have everything declared.

        Raises:
            Unavailable: it cannot be reached, or could not a moment ago.
            ConfigurationError: it refuses our credentials, or its queues are not as they must be.
        """
        async with self._connecting:
            if self._connection is not None and not self._connection.is_closed:
                return
            wait_s = self._not_before - self._clock.monotonic()
            if self._closed or wait_s > 0:
                raise Unavailable("the queue's broker is away", retry_after_s=max(0.1, wait_s))
            try:
                async with asyncio.timeout(CONNECT_S):
                    await self._connect()
            except BellbuoyError:
                self.drop()
                raise
            except (Exception, asyncio.CancelledError) as error:  # As below.
                self.drop()
                if _cancelled_from_outside(error):
                    raise
                raise Unavailable("the queue's broker cannot be reached", retry_after_s=PAUSE_S[1]) from error

    async def _connect(self) -> None:
        connection = await self._reach()
        self._connection = connection
        self.puts = await connection.channel(publisher_confirms=True, on_return_raises=True)
        self.takes = await connection.channel(publisher_confirms=False)
        await declare(self.puts)
        self.probes = await self.puts.declare_queue(exclusive=True, auto_delete=True)
        # A process that only takes asks nothing, so it must be told.
        connection.close_callbacks.add(lambda *_: self.drop(connection))
        for channel in (self.puts, self.takes):
            channel.close_callbacks.add(lambda *_: self.drop(connection))

    async def _reach(self) -> AbstractConnection:
        """A connection to the first node that answers, beginning with one that was not the last."""
        last: Exception | None = None
        for _ in range(len(self._nodes)):
            self._nodes.rotate(-1)
            try:
                return await aio_pika.connect(self._nodes[0], timeout=CONNECT_S / len(self._nodes))
            except _GONE as error:
                last = error
        raise last or ConnectionError("the broker has no node")

    async def ask(self, work: Callable[[], Awaitable[T]]) -> T:
        """Every call to the broker: connected before, and within its time.

        A caller who gives up does not interrupt it: half a question on a channel spoils every answer after it.

        Raises:
            Full: a queue refuses more.
            Unavailable: no answer in time, or the connection is gone.
        """
        task = asyncio.create_task(self._ask(work), name="amqp-call")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _ask(self, work: Callable[[], Awaitable[T]]) -> T:
        await self._open()
        mine = self._connection
        try:
            async with asyncio.timeout(CALL_S):
                return await work()
        except PublishError as error:  # A queue is gone; it is declared again with the next connection.
            self.drop(mine)
            raise Unavailable("the broker has lost a queue", retry_after_s=PAUSE_S[1]) from error
        except DeliveryError as error:
            raise Full("the broker's queue has no room", retry_after_s=1.0) from error
        except BellbuoyError:
            raise
        # The driver says it in many ways, StopAsyncIteration among them. Whoever still waits on a connection that is
        # given up it cancels, which must not end the loop that asked.
        except (Exception, asyncio.CancelledError) as error:
            self.drop(mine)
            if _cancelled_from_outside(error):
                raise
            raise Unavailable("the queue's broker does not answer", retry_after_s=PAUSE_S[1]) from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever asked was told, or has given up.

    def drop(self, connection: AbstractConnection | None = None) -> None:
        """Give the connection up, unless it is another one by now; the next call makes a new one."""
        if connection is not None and connection is not self._connection:
            return
        gone, self._connection = self._connection, None
        self._not_before = self._clock.monotonic() + self._rng.uniform(*PAUSE_S)
        self._lost()
        if gone is not None:
            task = asyncio.create_task(_close(gone), name="amqp-close")
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def renew(self) -> None:
        """Give the connection up and make another at once, with everything declared. Raises as `ask`."""
        self.drop()
        self._not_before = float("-inf")
        await self.ask(_nothing)

    async def aclose(self) -> None:
        """Close it; safe to call twice."""
        self._closed = True
        self.drop()
        while self._tasks:
            await asyncio.wait(self._tasks)


def _cancelled_from_outside(error: BaseException) -> bool:
    """Whether the running task itself is to end, and not only what it waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def _nothing() -> None:
    """Being connected is all."""


def nodes_of(url: str) -> list[str]:
    """A URL for each node that `amqp://USER:PASSWORD@HOST:PORT,HOST:PORT/VHOST` names."""
    scheme, _, rest = url.partition("://")
    authority, slash, vhost = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    return [f"{scheme}://{credentials}{at}{host}{slash}{vhost}" for host in hosts.split(",")]


async def _close(connection: AbstractConnection) -> None:
    try:
        async with asyncio.timeout(1.0):
            await connection.close()
    except _GONE:
        return  # It was gone already, or answers nothing; the socket is closed all the same.
