"""A provider carries deliveries over one channel: fcm, apns, smtp, sms."""

from __future__ import annotations

from typing import Protocol

from bellbuoy.model.delivery import Message, ProviderName, Receipt


class Provider(Protocol):
    """One outside system that accepts messages for endpoints.

    A provider does one attempt and says what its answer means; it never retries on its own, except to refresh a
    credential once. Time limits, concurrency, retries and breakers belong to the guard around it.
    """

    @property
    def name(self) -> ProviderName:
        """`fcm`, `apns`, `smtp` or `sms`: the name of its guard, breaker and metrics."""
        ...

    async def send(self, message: Message) -> Receipt:
        """Hand one message over; return when the provider has taken responsibility for it.

        Raises:
            Transient: not delivered, may succeed later (`throttled` when the provider only asks for less).
            Permanent: not delivered, never will be as it stands.
            RecipientGone: the endpoint does not exist any more.
            CredentialRejected: our credential or configuration is wrong.
            OutcomeUnknown: the request was written and the connection ended without an answer.

        Cancellation: safe at any await; when the request had been written its outcome is unknown to the caller.
        """
        ...

    async def probe(self) -> None:
        """Do the cheapest real operation that shows the provider and our credential work; raise as `send` does."""
        ...

    async def renew(self) -> None:
        """Let go of connections and of what was learnt about the provider; the next attempt begins anew.

        Sends in flight fail as by `aclose`. A credential that may not be made anew so soon stays.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; in-flight sends fail with `OutcomeUnknown` or `Transient`. Safe to call twice."""
        ...
