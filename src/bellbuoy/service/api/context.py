"""What the handlers may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bellbuoy.clock import Clock
from bellbuoy.delivery.send import Lane
from bellbuoy.intake.accept import Intake
from bellbuoy.intake.cancel import Cancellation
from bellbuoy.model.operation import ApiKey
from bellbuoy.ports.ledger import Ledger
from bellbuoy.service.api.exchange import Call, HttpError
from bellbuoy.service.audit import Audit
from bellbuoy.service.isolation import Isolation
from bellbuoy.service.keys import Keys
from bellbuoy.service.mending import Mending
from bellbuoy.service.steering import Steering
from bellbuoy.service.stores import Stores
from bellbuoy.service.telemetry import ServiceTelemetry
from bellbuoy.service.vitals import Vitals
from bellbuoy.service.watchers import Watchers


class Nudge(Protocol):
    """A worker in this process that should look for due work now."""

    def __call__(self) -> None: ...


@dataclass(frozen=True)
class Context:
    """The service behind the HTTP interface."""

    intake: Intake
    cancellation: Cancellation
    ledger: Ledger
    stores: Stores
    keys: Keys
    lanes: Mapping[str, Lane]
    telemetry: ServiceTelemetry
    clock: Clock
    nudge: Nudge
    vitals: Vitals
    mending: Mending
    steering: Steering
    watchers: Watchers
    audit: Audit
    isolation: Isolation

    def authenticate(self, call: Call) -> ApiKey:
        """The key of a request. Raises HttpError 401."""
        scheme, _, secret = call.headers.get(b"authorization", b"").partition(b" ")
        key = self.keys.find(secret.strip()) if scheme.lower() == b"bearer" else None
        if key is None:
            raise HttpError(
                401,
                "unauthorized",
                "no API key, or one that is not known",
                hint="Authorization: Bearer KEY; the first key is in bootstrap.key in the data directory",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return key
