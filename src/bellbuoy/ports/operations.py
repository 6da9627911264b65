"""What the flows tell whoever operates them: measurements, events worth a log line, issues worth a person."""

from __future__ import annotations

from typing import Protocol

from bellbuoy.model.operation import Alert, Issue


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

    def over(self, category: str | None, status: str) -> None:
        """A notification of a category, None for none, has come to its end with this status."""
        ...

    def measured(self, dependency: str, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        """`calls` real calls of a dependency ended after `seconds` each, None when nobody knows."""
        ...

    def recovery(self, plan: str, result: str) -> None:
        """An attempt of a plan ended: successful or failed; or its last one had, and it is exhausted."""
        ...

    def escalation(self, target: str, result: str) -> None:
        """An attempt to tell a human ended: sent, retried, uncertain, failed or withdrawn."""
        ...

    def escalations_waiting(self, count: int) -> None:
        """So many alerts are still to be sent by this machine."""
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


class Pager(Protocol):
    """One outside system that tells humans.

    It does one attempt and says what the answer means; time limits, repetition and breakers are put around it.
    """

    @property
    def name(self) -> str:
        """`pagerduty`, `slack` or `jira`: the name of its guard, breaker and metrics."""
        ...

    @property
    def repeat_after_s(self) -> float:
        """Seconds after an attempt whose outcome is unknown until another can find out, or cannot do harm."""
        ...

    @property
    def repeats_max(self) -> int | None:
        """How often an attempt may follow one whose outcome is unknown; None where telling twice tells once."""
        ...

    async def send(self, alert: Alert) -> str | None:
        """Tell of it; returns what the system calls it, None when it gave no name.

        Raises:
            Transient: nobody was told, a later attempt may succeed (`throttled` when only less is asked for).
            Permanent: nobody was told, and never will be as it stands.
            CredentialRejected: our credential or configuration is wrong.
            OutcomeUnknown: the request was written and no answer came.

        Cancellation: safe at any await; when a request had been written its outcome is unknown.
        """
        ...

    async def probe(self) -> None:
        """Do the cheapest real operation that shows the system and our credential work; raise as `send` does."""
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...
