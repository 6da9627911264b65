"""Ids: UUIDs made as text, since one is made several times for each notification."""

from __future__ import annotations

import uuid
from hashlib import sha1
from random import Random


def derived(namespace: uuid.UUID, name: str) -> str:
    """UUIDv5 (RFC 9562, 5.5) of a name: the same for the same name everywhere."""
    digest = sha1(namespace.bytes + name.encode(), usedforsecurity=False).digest()
    number = int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0b11 << 62)
    return _text(number | 0x5 << 76 | 0b10 << 62)


def timed(epoch_s: float, rng: Random) -> str:
    """UUIDv7 (RFC 9562, 5.7): sorts by the time it was made, in milliseconds, and is otherwise random."""
    random = rng.getrandbits(74)
    milliseconds = int(epoch_s * 1000) & (2**48 - 1)
    return _text(milliseconds << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (2**62 - 1))


def is_derived(identity: str) -> bool:
    """Whether it is a UUIDv5, as `derived` makes them."""
    try:
        return uuid.UUID(identity).version == 5
    except ValueError:
        return False


def made_at(identity: str) -> float | None:
    """When a UUIDv7 was made, in seconds since the epoch; None for any other text."""
    try:
        parsed = uuid.UUID(identity)
    except ValueError:
        return None
    return (parsed.int >> 80) / 1000 if parsed.version == 7 else None


def _text(number: int) -> str:
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
