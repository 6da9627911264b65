"""What policies fall back on: whether waits are real, and chance for those that were given none."""

from __future__ import annotations

from contextvars import ContextVar
from random import Random
from typing import Final

_instant: ContextVar[bool] = ContextVar("bellbuoy_instant", default=False)

# A source of chance takes more memory than a breaker; those that are given none of their own share this one.
CHANCE: Final = Random()


def is_instant() -> bool:
    """True inside `testing.instant()`: retries, rate limits and hedges do not wait."""
    return _instant.get()
