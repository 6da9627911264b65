"""Whether waits are real. Tests switch them off for what they call, and for nothing else that runs meanwhile."""

from __future__ import annotations

from contextvars import ContextVar

_instant: ContextVar[bool] = ContextVar("bellbuoy_instant", default=False)


def is_instant() -> bool:
    """True inside `testing.instant()`: retries, rate limits and hedges do not wait."""
    return _instant.get()
