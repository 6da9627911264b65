"""The breakers of everything that the service calls, with the numbers that are configured."""

from __future__ import annotations

from random import Random

from bellbuoy import resilience
from bellbuoy.clock import Clock
from bellbuoy.errors import Busy, StoreError, Unavailable, code_of
from bellbuoy.ports.shared import Circuits
from bellbuoy.resilience.shared import SharedBreaker, SharedCircuit
from bellbuoy.service.sections import Breaker
from bellbuoy.service.settings import Settings
from bellbuoy.service.telemetry import ServiceTelemetry

_PRESETS = {
    "fcm": resilience.FCM,
    "apns": resilience.APNS,
    "smtp": resilience.SMTP,
    "sms": resilience.SMS,
    "mongodb": resilience.MONGODB,
    "redis": resilience.REDIS,
    "rabbitmq": resilience.RABBITMQ,
    "pagerduty": resilience.PAGERDUTY,
    "slack": resilience.SLACK,
    "jira": resilience.JIRA,
}
_EVENTS = {
    "CircuitOpened": "circuit_breaker_opened",
    "CircuitHalfOpened": "circuit_breaker_half_open",
    "CircuitClosed": "circuit_breaker_closed",
    "CircuitIsolated": "circuit_breaker_isolated",
}


def breaker_settings(name: str, given: Breaker) -> resilience.BreakerSettings:
    """The numbers of a breaker: its own by default, with what is configured in their place."""
    preset = _PRESETS[name]
    changed = {key: value for key, value in given.model_dump().items() if value is not None}
    return preset.replace(**changed) if changed else preset


def make_breaker(
    name: str, settings: Settings, telemetry: ServiceTelemetry, clock: Clock, rng: Random
) -> resilience.CircuitBreaker:
    """A breaker that tells the log of what it does.

    Args:
        name: a dependency's; `sqlite`, which no configuration names, has the numbers of `mongodb`.
    """
    numbered = "mongodb" if name == "sqlite" else name
    numbers = breaker_settings(numbered, getattr(settings.breakers, numbered))

    last = ""

    def judge(outcome: object) -> resilience.Verdict:
        nonlocal last
        verdict = _judge(outcome)
        if verdict is not resilience.Verdict.OK and isinstance(outcome, Exception):
            # A store's errors are our own words; a provider's may quote an address.
            last = str(outcome) if isinstance(outcome, StoreError) else code_of(outcome)
        return verdict

    def tell(event: object) -> None:
        kind = _EVENTS.get(type(event).__name__)
        if kind is not None:
            telemetry.event(kind, breaker=name, **({"why": last} if kind == "circuit_breaker_opened" else {}))

    return resilience.CircuitBreaker(name, numbers, clock=clock, rng=rng, on_event=tell, classifier=judge)


def share_breaker(
    breaker: resilience.CircuitBreaker,
    circuits: Circuits,
    *,
    owner: str,
    probing: bool,
    telemetry: ServiceTelemetry,
    clock: Clock,
) -> SharedBreaker:
    """Have a breaker agree with those of other processes; its `run` does that.

    Args:
        circuits: where they meet. When it is away the breaker goes by what it sees itself, and the log says so.
        owner: names this process among them.
        probing: whether this process calls the provider, and so may find out that it is back.
    """

    def tell(event: resilience.Event) -> None:
        if isinstance(event, resilience.SharedStateLost):
            telemetry.event("shared_state_lost", breaker=breaker.name)
        elif isinstance(event, resilience.SharedStateRegained):
            telemetry.event("shared_state_regained", breaker=breaker.name)

    return SharedBreaker(breaker, _Meeting(circuits), owner=owner, probing=probing, clock=clock, on_event=tell)


class _Meeting:
    """`bellbuoy.resilience.shared.SharedStore` over the port, which knows states by their names."""

    def __init__(self, circuits: Circuits) -> None:
        self._circuits = circuits
        self.lease_probe, self.release_probe = circuits.lease_probe, circuits.release_probe

    async def read(self, name: str) -> SharedCircuit:
        found = await self._circuits.read(name)
        return SharedCircuit(resilience.State(found.state), found.open_s, found.version)

    async def publish(self, name: str, state: resilience.State, open_s: float, version: int) -> bool:
        return await self._circuits.publish(name, str(state), open_s, version)


def _judge(outcome: object) -> resilience.Verdict:
    """A store that says no, that it has no such thing or no room, is there; all else is judged as anywhere."""
    answered = isinstance(outcome, StoreError) and (isinstance(outcome, Busy) or not isinstance(outcome, Unavailable))
    return resilience.Verdict.OK if answered else resilience.classify(outcome)
