"""The queue brings accepted notifications to workers, and is a home of its own: what it confirmed it does not lose.

A message carries the whole notification, so that a worker can deliver it while the ledger is away. The ledger stays the
system of record: a message is a reason to look at a notification, so one that comes twice or too late does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from bellbuoy.model.delivery import Record
from bellbuoy.model.notification import Priority

Lane = Literal["high", "normal", "low", "outcomes"]
"""The first three are the priorities of notifications. `outcomes` brings records to the ledger that it missed."""

LANES: tuple[Lane, ...] = ("high", "normal", "low", "outcomes")
LANE_OF: Mapping[Priority, Lane] = {"high": "high", "normal": "normal", "low": "low"}


class Message(Struct, frozen=True):
    """A notification on its way.

    `body_hash` identifies the request as in `ports.ledger.Offer`. `fence` is that of the lease under which `record` was
    written last, 0 when nobody has claimed it. `doubted`: somebody had it and may have sent it, and nobody could say.
    """

    record: Record
    body_hash: bytes
    fence: int = 0
    doubted: bool = False


class Handed(Struct, frozen=True):
    """A message that the queue handed out and waits to hear about.

    `tag` is what the queue knows it by. `times` is how often it was handed out before: more than 0 means that a worker
    had it and did not say what became of it.
    """

    message: Message
    lane: Lane
    tag: str
    times: int


class Queue(Protocol):
    """Notifications on their way to workers. Any number of processes put and take."""

    async def put(self, lane: Lane, messages: Sequence[Message], *, delay_s: float = 0.0) -> None:
        """Put messages in; when this returns each is confirmed: durable, on a majority of the broker's nodes.

        Args:
            lane: where to.
            messages: which.
            delay_s: seconds after which they are handed out at the earliest, rounded up to a step the queue has.

        Raises:
            Full: the queue has no room. Some may be in it nevertheless, so put all of them again.
            Unavailable: not all were confirmed in time. Some may be in it nevertheless, so put all of them again.
        """
        ...

    async def take(self, lanes: Sequence[Lane], *, limit: int, wait_s: float) -> list[Handed]:
        """At most `limit` messages, those of the first lane first; waits `wait_s` seconds at most for the first one.

        What was taken stays with this process until it is acknowledged, given back or the process is gone; then it is
        handed out again. At most as many are out at a time as the queue was set up for, and a lane that comes later is
        not starved for ever by those before it.

        Raises:
            Unavailable: the queue cannot be reached. What was out is handed out again by itself, to somebody.
        """
        ...

    async def acknowledge(self, handed: Sequence[Handed]) -> None:
        """Let go of messages for good. One that was handed out over a connection that is gone comes again."""
        ...

    async def give_back(self, handed: Sequence[Handed]) -> None:
        """Have messages handed out again, soon, to somebody; one that was given back too often goes to the dead."""
        ...

    async def dead(self, *, limit: int) -> list[Handed]:
        """At most `limit` messages that were handed out too often without an end; acknowledge them to let them go."""
        ...

    async def depth(self) -> Mapping[str, int]:
        """How many messages wait in each lane, those that are delayed included, and in `dead`. Raises Unavailable."""
        ...

    async def reconnect(self) -> None:
        """Let go of the connection, make another, and have everything declared. What was out is handed out again.

        Raises:
            Unavailable: it cannot be reached.
        """
        ...

    async def probe(self) -> None:
        """Put a message in, confirmed, and take it out again; raise Unavailable or Full when that cannot be done."""
        ...

    async def aclose(self) -> None:
        """Give back what is out, then let go of the connection; safe to call twice."""
        ...
