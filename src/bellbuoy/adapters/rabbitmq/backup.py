"""What the broker holds, for a backup: its definitions, and copies of the messages that nobody has taken yet.

A message is looked at by taking it and giving it back, which the broker counts as one of the times that it may be
handed out (`TIMES_MAX`); workers that ask meanwhile get the messages behind it. So few are taken of each queue, and for
moments. Whatever is beyond is in the ledger, or will be, like every notification; the copy says how many those are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import unquote

import msgspec
from aio_pika.abc import AbstractIncomingMessage
from msgspec import Struct
from yarl import URL

from bellbuoy.adapters.rabbitmq.link import CALL_S, Link, nodes_of
from bellbuoy.adapters.rabbitmq.topology import DEAD, LENGTH_MAX, queue_of, queues
from bellbuoy.clock import Clock
from bellbuoy.errors import Damaged
from bellbuoy.ports.archive import Change, Snapshot, Unchanging
from bellbuoy.ports.queue import Message

COPIED_MAX = 1_000
"""Messages that are copied of one queue."""

DEFINITIONS_FILE = "definitions.json"
MESSAGES_FILE = "messages.msgpack"

_decode_message = msgspec.msgpack.Decoder(Message).decode


class Copied(Struct, frozen=True):
    """What was copied of one queue: `waiting` is how many there were, `bodies` those that were copied."""

    queue: str
    waiting: int
    bodies: list[bytes]


_decode = msgspec.msgpack.Decoder(list[Copied]).decode


class RabbitSource(Unchanging):
    """Implements `bellbuoy.ports.archive.Source`, without changes: what moves on is in the ledger's.

    Args:
        url: as for the queue.
        clock, rng: as for the queue.
    """

    name = "queue"
    often = False  # Each look at a message is one of the times that the broker hands it out, of which it allows few.
    guarantee = (
        "the definitions of the broker, and of each queue the first messages that nobody had taken at the full backup; "
        "the others are in the ledger"
    )

    def __init__(self, url: str, *, clock: Clock, rng: Random) -> None:
        self._link = Link(url, clock=clock, rng=rng, lost=_nothing)
        self._vhost = unquote(URL(nodes_of(url)[0]).path.removeprefix("/")) or "/"
        self._clock = clock

    async def full(self, folder: Path) -> Snapshot:
        """See `Source.full`."""
        at = self._clock.time()
        copied = [await self._copied(name) for name in queues()]
        (folder / DEFINITIONS_FILE).write_text(json.dumps(definitions(self._vhost), indent=2))
        await asyncio.to_thread((folder / MESSAGES_FILE).write_bytes, msgspec.msgpack.encode(copied))
        return Snapshot("", 0, at, [DEFINITIONS_FILE, MESSAGES_FILE])

    async def aclose(self) -> None:
        """Close the connection; what is out is handed out again."""
        await self._link.aclose()

    async def _copied(self, name: str) -> Copied:
        async def look() -> Copied:
            queue = await self._link.takes.declare_queue(name, passive=True)
            taken: list[AbstractIncomingMessage] = []
            deadline = self._clock.monotonic() + CALL_S / 4
            try:
                while len(taken) < COPIED_MAX and self._clock.monotonic() < deadline:
                    message = await queue.get(no_ack=False, fail=False)
                    if message is None:
                        break
                    taken.append(message)
            finally:
                for message in taken:
                    await message.nack(requeue=True)
            waiting = max(queue.declaration_result.message_count or 0, len(taken))
            return Copied(name, waiting, [message.body for message in taken])

        return await self._link.ask(look)


class RabbitPlace:
    """Where what was copied is read from, to be given to the ledger. Implements `bellbuoy.ports.archive.Place`.

    `messages` are those that were on their way to workers, `outcomes` those on their way to the ledger. The broker
    itself is not written to: its queues are declared when a process connects, and the ledger makes due what is open.
    """

    name = "queue"

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.outcomes: list[Message] = []

    async def begin(self, folder: Path) -> None:
        """See `Place.begin`."""
        try:
            copied = _decode(await asyncio.to_thread((folder / MESSAGES_FILE).read_bytes))
            for one in copied:
                found = [_decode_message(body) for body in one.bodies]
                (self.outcomes if one.queue == queue_of("outcomes") else self.messages).extend(found)
        except (OSError, msgspec.DecodeError):
            raise Damaged("the copy of the queue cannot be read") from None

    async def apply(self, changes: Sequence[Change]) -> None:
        """There are none."""

    async def finish(self, timeline: str) -> None:
        """There is nothing to hand over."""


def definitions(vhost: str) -> dict[str, Any]:
    """The queues as `rabbitmqctl import_definitions` takes them."""
    there = {"vhost": vhost, "durable": True, "auto_delete": False}
    return {
        "vhosts": [{"name": vhost}],
        "exchanges": [{**there, "name": DEAD, "type": "fanout", "internal": False, "arguments": {}}],
        "queues": [{**there, "name": name, "arguments": arguments} for name, arguments in queues().items()],
        "bindings": [
            {
                "vhost": vhost,
                "source": DEAD,
                "destination": DEAD,
                "destination_type": "queue",
                "routing_key": "",
                "arguments": {},
            }
        ],
        "policies": [],
        "metadata": {"length_max": LENGTH_MAX},
    }


def _nothing() -> None:
    """What was out is handed out again by the broker."""
