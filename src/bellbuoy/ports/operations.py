"""What the flows tell whoever operates them: measurements, events worth a log line, issues worth a person."""

from __future__ import annotations

from typing import Protocol

from bellbuoy.model.operation import Issue


class Telemetry(Protocol):
    """Where measurements and events go. Every method returns at once and never raises."""

    def event(self, name: str, **fields: object) -> None:
        """One thing that happened, under its stable name; fields never hold tokens, addresses or content."""
        ...

    def accepted(self, home: str, count: int) -> None:
        """`count` notifications became durable in `home`."""
        ...

    def attempt(self, provider: str, outcome: str, seconds: float | None) -> None:
        """An attempt ended; `seconds` is None when nobody knows how long it took."""
        ...

    def delivered(self, seconds: float) -> None:
        """A notification was delivered, `seconds` after its acceptance."""
        ...

    def measured(self, dependency: str, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        """`calls` real calls of a dependency ended after `seconds` each, None when nobody knows."""
        ...

    def recovery(self, plan: str, result: str) -> None:
        """An attempt of a plan ended: successful or failed; or its last one had, and it is exhausted."""
        ...

    def raise_issue(self, issue: Issue) -> None:
        """Something is wrong that a person should know of; raising one again changes nothing."""
        ...

    def clear_issue(self, name: str, component: str) -> None:
        """It is right again; clearing one that is not raised changes nothing."""
        ...


class Host(Protocol):
    """The machine that this process runs on. What cannot be read is None, which is no evidence of anything."""

    def memory_ratio(self) -> float | None:
        """The memory in use as a share of what this process may use, whichever limit is nearest."""
        ...

    def give_back_memory(self) -> None:
        """Collect garbage, and give back to the system what nobody uses; takes some milliseconds."""
        ...

    def disk_free_bytes(self) -> int | None:
        """Bytes that can still be written to the data directory's disk."""
        ...
