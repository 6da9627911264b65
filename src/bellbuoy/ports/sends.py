"""What was sent, kept outside the ledger: restoring the ledger to an earlier second must not make it be sent again."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from bellbuoy.model.delivery import Delivery, Record
from bellbuoy.model.recipient import Channel


class Sent(Struct, frozen=True, omit_defaults=True):
    """A delivery as it was when an attempt of it was about to be made, or had ended.

    `at` is that epoch second. `chain`, `step` and `step_at` are those of its notification then.
    """

    at: float
    notification_id: str
    chain: tuple[Channel, ...] | None
    step: int
    step_at: float | None
    delivery: Delivery


class Sends(Protocol):
    """The send journal."""

    async def note(self, record: Record, delivery: Delivery, *, now: float) -> None:
        """Write down that an attempt of this delivery is about to be made, or has ended; durable on return.

        Never raises: sending goes on when it cannot be written, and whoever operates this is told.

        Cancellation: it may be written all the same.
        """
        ...
