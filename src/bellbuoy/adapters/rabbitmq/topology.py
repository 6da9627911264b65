"""The queues on the broker: a lane each, the delays before them, and the dead after them.

All are quorum queues: what is confirmed is on a majority of the nodes. A quorum queue has no priorities, so each
priority is a queue of its own. A delay is a queue that nobody reads, whose messages expire into their lane; it keeps
the order, so each length of delay is one too. Every queue has a bound, at which it refuses more and drops nothing.
"""

from __future__ import annotations

from typing import Any

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel
from aiormq.exceptions import ChannelPreconditionFailed

from bellbuoy.errors import ConfigurationError
from bellbuoy.ports.queue import LANES, Lane

PREFIX = "bellbuoy."
DEAD = f"{PREFIX}dead"
STEPS_S = (1, 5, 15, 60, 300, 900)
"""The delays there are, in seconds."""

TIMES_MAX = 20
"""How often a message is handed out before it goes to the dead."""

LENGTH_MAX = 1_000_000
"""Messages in one queue; the next is refused."""

_QUORUM: dict[str, Any] = {"x-queue-type": "quorum", "x-overflow": "reject-publish", "x-max-length": LENGTH_MAX}


def queue_of(lane: Lane, delay_s: float = 0.0) -> str:
    """The queue for a lane, or the one before it in which a message waits for `delay_s` seconds at least.

    A delay beyond the longest step waits for that step.
    """
    if delay_s <= 0:
        return PREFIX + lane
    return later(lane, next((step for step in STEPS_S if step >= delay_s), STEPS_S[-1]))


def later(lane: Lane, step_s: int) -> str:
    """The queue in which messages for a lane wait `step_s` seconds."""
    return f"{PREFIX}{lane}.later.{step_s}"


def queues() -> dict[str, dict[str, Any]]:
    """Every queue with its arguments."""
    found: dict[str, dict[str, Any]] = {DEAD: _QUORUM}
    for lane in LANES:
        found[queue_of(lane)] = {
            **_QUORUM,
            "x-delivery-limit": TIMES_MAX,
            "x-dead-letter-exchange": DEAD,
            "x-dead-letter-strategy": "at-least-once",
        }
        for step in STEPS_S if lane != "outcomes" else ():
            found[later(lane, step)] = {
                **_QUORUM,
                "x-message-ttl": step * 1000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": queue_of(lane),
                "x-dead-letter-strategy": "at-least-once",
            }
    return found


async def declare(channel: AbstractChannel) -> None:
    """Make what is not there; a queue that is there is compared.

    Raises:
        ConfigurationError: a queue of that name is another kind of queue.
    """
    try:
        exchange = await channel.declare_exchange(DEAD, ExchangeType.FANOUT, durable=True)
        for name, arguments in queues().items():
            queue = await channel.declare_queue(name, durable=True, arguments=arguments)
            if name == DEAD:
                await queue.bind(exchange)
    except ChannelPreconditionFailed as error:
        raise ConfigurationError(
            f"the broker has a queue that is not as it must be: {error}",
            hint="give Bellbuoy a virtual host of its own, or drain that queue and delete it; it is made anew at once",
        ) from error
