"""The queue on RabbitMQ; see `bellbuoy.ports.queue.Queue`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

import aio_pika
import msgspec
from aio_pika.abc import AbstractIncomingMessage, DeliveryMode

from bellbuoy.adapters.rabbitmq.link import CALL_S, Link
from bellbuoy.adapters.rabbitmq.topology import DEAD, STEPS_S, later, queue_of
from bellbuoy.clock import Clock, heard
from bellbuoy.ports.queue import LANES, Handed, Lane, Message

IN_FLIGHT_MAX = 500
"""Messages that wait for their confirmation at once."""

PULLED: frozenset[Lane] = frozenset({"outcomes"})
"""Lanes that are asked one message at a time, so that nothing of them waits in a process that cannot use it."""

PULL_S = 0.5
"""Seconds between two looks into a lane that is asked."""

PREFETCH_MAX = 2_000
"""Messages of one lane that the broker may hand to one process in advance."""

STARVED_AFTER = 10
"""Every so many takes the last lane comes first."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class RabbitQueue:
    """Notifications on their way, on a RabbitMQ 3.10 or newer.

    Args:
        url: `amqp://USER:PASSWORD@HOST/VHOST`, or `amqps://`; of a broker with several nodes `HOST,HOST`.
        prefetch: messages of each lane that may be out to this process; 0 for one that takes none.
        clock, rng: for pauses.
    """

    def __init__(self, url: str, *, prefetch: int, clock: Clock, rng: Random) -> None:
        self._link = Link(url, clock=clock, rng=rng, lost=self._forget)
        self._prefetch = min(prefetch, PREFETCH_MAX)
        self._clock = clock
        self._places = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._consuming = asyncio.Lock()
        self._consumed: set[Lane] = set()
        self._ready: dict[Lane, deque[AbstractIncomingMessage]] = {lane: deque() for lane in LANES}
        self._out: dict[str, AbstractIncomingMessage] = {}
        self._connections = 0
        self._turn = 0
        self._came = asyncio.Event()

    async def put(self, lane: Lane, messages: Sequence[Message], *, delay_s: float = 0.0) -> None:
        """Put messages in, each confirmed. Raises Full, Unavailable."""
        key = queue_of(lane, delay_s)

        async def publish() -> None:
            results = await asyncio.gather(
                *(self._publish(key, _encode(message)) for message in messages), return_exceptions=True
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result

        await self._link.ask(publish)

    async def _publish(self, key: str, body: bytes) -> None:
        async with self._places:
            message = aio_pika.Message(body, delivery_mode=DeliveryMode.PERSISTENT)
            await self._link.puts.default_exchange.publish(message, key, mandatory=True)

    async def take(self, lanes: Sequence[Lane], *, limit: int, wait_s: float) -> list[Handed]:
        """At most `limit` messages, those of the first lane first. Raises Unavailable."""
        end = self._clock.monotonic() + wait_s
        if PULLED.issuperset(lanes):
            while True:
                found = [one for lane in lanes for one in await self._pull(queue_of(lane), lane, limit)]
                left_s = end - self._clock.monotonic()
                if found or left_s <= 0:
                    return found[:limit]
                await self._clock.sleep(min(PULL_S, left_s))
        await self._consume(lanes)
        if not any(self._ready[lane] for lane in lanes):
            await self._wait(wait_s)
        self._turn += 1
        found = []
        for lane in reversed(lanes) if self._turn % STARVED_AFTER == 0 else lanes:
            while self._ready[lane] and len(found) < limit:
                one = self._hand(self._ready[lane].popleft(), lane)
                if one is not None:
                    found.append(one)
        return found

    async def acknowledge(self, handed: Sequence[Handed]) -> None:
        """Let go of messages for good; those of a connection that is gone come again."""
        await self._answer(handed, lambda message: message.ack())

    async def give_back(self, handed: Sequence[Handed]) -> None:
        """Have messages handed out again."""
        await self._answer(handed, lambda message: message.nack(requeue=True))

    async def _answer(
        self, handed: Sequence[Handed], how: Callable[[AbstractIncomingMessage], Awaitable[None]]
    ) -> None:
        mine = [there for one in handed if (there := self._out.pop(one.tag, None)) is not None]

        async def answer() -> None:
            for message in mine:
                await how(message)

        if mine:
            await self._link.ask(answer)

    async def dead(self, *, limit: int) -> list[Handed]:
        """At most `limit` messages that were handed out too often. Raises Unavailable."""
        return await self._pull(DEAD, "normal", limit)

    async def depth(self) -> Mapping[str, int]:
        """How many messages wait in each lane, those that are delayed included, and in `dead`. Raises Unavailable."""

        async def count() -> Mapping[str, int]:
            found: dict[str, int] = {}
            for lane in LANES:
                steps = STEPS_S if lane != "outcomes" else ()
                names = [queue_of(lane), *(later(lane, step) for step in steps)]
                found[lane] = sum([await self._count(name) for name in names])
            return {**found, "dead": await self._count(DEAD)}

        return await self._link.ask(count)

    async def reconnect(self) -> None:
        """Let go of the connection and make another. Raises Unavailable."""
        await self._link.renew()

    async def probe(self) -> None:
        """Put a message in, confirmed, and take it out again. Raises Unavailable."""

        async def probe() -> None:
            await self._publish(self._link.probes.name, b"probe")
            await self._link.probes.get(no_ack=True, fail=False)

        await self._link.ask(probe)

    async def aclose(self) -> None:
        """Let go of the connection, and so of what is out; safe to call twice."""
        await self._link.aclose()

    async def _count(self, name: str) -> int:
        queue = await self._link.puts.declare_queue(name, passive=True)
        return queue.declaration_result.message_count or 0

    # Taking out.

    async def _consume(self, lanes: Sequence[Lane]) -> None:
        """Have the broker hand out these lanes, if it does not yet over this connection."""

        async def consume() -> None:
            async with self._consuming:
                for lane in lanes:
                    if lane not in self._consumed:
                        # It holds for the consumers that come after it, so for each lane by itself.
                        await self._link.takes.set_qos(prefetch_count=max(1, self._prefetch))
                        queue = await self._link.takes.declare_queue(queue_of(lane), passive=True)
                        await queue.consume(self._receiver(lane, self._connections))
                        self._consumed.add(lane)

        if not self._consumed.issuperset(lanes):
            await self._link.ask(consume)

    def _receiver(self, lane: Lane, connection: int) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def receive(message: AbstractIncomingMessage) -> None:
            if connection == self._connections:
                self._ready[lane].append(message)
                self._came.set()

        return receive

    async def _wait(self, wait_s: float) -> None:
        self._came.clear()
        await heard(self._came, wait_s, clock=self._clock)

    async def _pull(self, name: str, lane: Lane, limit: int) -> list[Handed]:
        given_up = False

        async def pull() -> list[Handed]:
            found: list[Handed] = []
            queue = await self._link.takes.declare_queue(name, passive=True)
            deadline = self._clock.monotonic() + CALL_S / 2
            while len(found) < limit and not given_up and self._clock.monotonic() < deadline:
                message = await queue.get(no_ack=False, fail=False)
                if message is None:
                    break
                one = self._hand(message, lane)
                if one is not None:
                    found.append(one)
            if given_up:  # Nobody hears of these any more.
                for one in found:
                    await self._out.pop(one.tag).nack(requeue=True)
            return found

        try:
            return await self._link.ask(pull)
        except asyncio.CancelledError:
            given_up = True
            raise

    def _hand(self, message: AbstractIncomingMessage, lane: Lane) -> Handed | None:
        try:
            decoded = _decode(message.body)
        except msgspec.DecodeError:
            # Not ours. It stays with us until the connection ends, then it comes again, and in the end to the dead,
            # where a person finds it.
            return None
        tag = f"{self._connections}/{message.consumer_tag}/{message.delivery_tag}"
        self._out[tag] = message
        count = (message.headers or {}).get("x-delivery-count", 0)
        times = count if isinstance(count, int) else 0
        return Handed(decoded, lane, tag, max(times, int(bool(message.redelivered))))

    def _forget(self) -> None:
        """The connection is gone: what was out is handed out again by the broker, to somebody."""
        self._connections += 1
        self._consumed.clear()
        self._out.clear()
        for ready in self._ready.values():
            ready.clear()
        self._came.set()
