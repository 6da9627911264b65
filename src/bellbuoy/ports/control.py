"""What operating the service has to remember: incidents, sagas, alerts, flags, versions of settings and templates, how
far each audit log is, and how the service is isolated.

Small documents, a few thousand at most, each with a version. Whoever writes names the version it saw, so of two that
change the same one only one succeeds; a lease, a fence and a saga's log are all made of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from msgspec import Struct

Kind = Literal[
    "incident", "saga", "alert", "flag", "setting", "template", "change", "lease", "audit", "breach", "backup"
]

DOCUMENT_BYTES_MAX = 256 * 1024
"""The largest document."""


class Kept(Struct, frozen=True):
    """A document as it is kept. `version` grows by one with every write; `at` is the epoch second of the last."""

    id: str
    version: int
    at: float
    data: bytes


class ControlStore(Protocol):
    """Versioned documents by kind and id, with compare-and-set."""

    async def read(self, kind: Kind, id: str) -> Kept | None:
        """The document, None when there is none. Raises Unavailable."""
        ...

    async def page(self, kind: Kind, *, limit: int) -> Sequence[Kept]:
        """At most `limit` documents, those that were written last first. Raises Unavailable."""
        ...

    async def write(self, kind: Kind, id: str, data: bytes, *, version: int) -> Kept:
        """Write a document over the version that was seen, 0 for one that is new; durable when this returns.

        Raises:
            Conflict: it has another version by now, or is there although `version` is 0; nothing was written.
            Full, Unavailable: the store did not take it.
            ValueError: it is larger than `DOCUMENT_BYTES_MAX`.
        """
        ...

    async def delete(self, kind: Kind, id: str, *, version: int) -> None:
        """Delete a document of the version that was seen; one that is not there is no error. Raises Conflict."""
        ...

    async def aclose(self) -> None:
        """Let go of the store; safe to call twice."""
        ...
