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

    def raise_issue(self, issue: Issue) -> None:
        """Something is wrong that a person should know of; raising one again changes nothing."""
        ...

    def clear_issue(self, name: str, component: str) -> None:
        """It is right again; clearing one that is not raised changes nothing."""
        ...
