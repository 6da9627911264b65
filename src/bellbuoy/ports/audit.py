"""The audit log: who asked for what, whom it touched and what was answered, so that nobody can change it unseen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bellbuoy.model.audit import Entry, Head


class AuditLog(Protocol):
    """One process's chain. Not safe for two callers at once."""

    async def append(self, entries: Sequence[Entry]) -> None:
        """Write entries, which get their numbers here; when this returns they survive a power cut.

        Raises:
            Full: the disk has no room or failed; none of them is there.
        """
        ...

    @property
    def head(self) -> Head:
        """How far the chain is."""
        ...

    async def older(self, before: float) -> int:
        """The last entry of the segments at the beginning of which everything is older than the epoch second `before`.

        0 when there is none, or nothing but the segment that is written. Raises Full when the disk failed.
        """
        ...

    async def forget(self, up_to: int) -> int:
        """Forget the segments of which no entry is behind `up_to`; returns how many entries.

        What was forgotten is an entry itself. Raises Full when that cannot be written; nothing is forgotten then.
        """
        ...

    async def aclose(self) -> None:
        """Let go of the files; safe to call twice."""
        ...


class Signer(Protocol):
    """A key of our own that says that something was sealed here."""

    @property
    def public(self) -> str:
        """The public half, in hex."""
        ...

    def sign(self, data: bytes) -> str:
        """The signature, in hex."""
        ...


class Verifier(Protocol):
    """Checks signatures."""

    def __call__(self, public: str, signature: str, data: bytes) -> bool:
        """Whether the key with this public half signed the data; False for what is no key or signature as well."""
        ...
