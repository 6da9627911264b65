"""Times as people and clients read them."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(epoch_s: float | None) -> str | None:
    """An epoch second as RFC 3339 in UTC with milliseconds."""
    if epoch_s is None:
        return None
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
