"""What a client asked to be told to one recipient."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct, field

from bellbuoy.model.recipient import Channel, Identifier, Recipient

Priority = Literal["high", "normal", "low"]
URGENCY: dict[Priority, int] = {"high": 0, "normal": 1, "low": 2}
"""The order in which priorities are worked off."""
OnUncertain = Literal["retry", "stop"]

TTL_S_MAX = 2_419_200
"""Four weeks: the longest any push provider keeps a message."""

PUSH_PAYLOAD_BYTES_MAX = 4096
"""FCM's and APNs's limit for one message, in bytes of JSON."""

BODY_BYTES_MAX = 65_536
"""The largest single request body."""

Text = Annotated[str, Meta(pattern=r"^[^\x00]*(?![\s\S])")]


class Content(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is shown and what the app gets. With neither title nor body it is a background push."""

    title: Text = ""
    body: Text = ""
    data: dict[Annotated[str, Meta(min_length=1, pattern=r"^[^\x00]*(?![\s\S])")], Text] = field(default_factory=dict)


class Request(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A notification as a client writes it.

    `channels` is an order of preference; None leaves it to the recipient's preferences. `ttl_s` None takes the
    service's default; 0 asks for one try, now or never. `send_at` None means now. `fallback_after_s` None: the next
    channel is tried only when this one has failed or is held back. `on_uncertain` says whether an attempt whose
    outcome is unknown is tried again (a possible duplicate) or left (a possible loss).
    """

    recipient: Recipient
    content: Content
    channels: Annotated[tuple[Channel, ...], Meta(min_length=1, max_length=3)] | None = None
    priority: Priority = "normal"
    category: Identifier | None = None
    # APNs takes 64 bytes of it; a character is at least one, and intake checks the bytes.
    collapse_key: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+(?![\s\S])")] | None = (
        None
    )
    ttl_s: Annotated[int, Meta(ge=0, le=TTL_S_MAX)] | None = None
    send_at: Annotated[datetime, Meta(tz=True)] | None = None
    fallback_after_s: Annotated[float, Meta(ge=0, le=TTL_S_MAX)] | None = None
    on_uncertain: OnUncertain = "retry"


def push_payload_bytes(content: Content) -> int:
    """The size of the larger of the two push payloads that this content makes, in bytes of JSON.

    The envelope (keys, sound, collapse tag) is counted as 96 bytes, a little more than either provider's needs.
    """
    return 96 + len(msgspec.json.encode(content))
