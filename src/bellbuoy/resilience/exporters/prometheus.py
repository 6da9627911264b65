"""Events and states as Prometheus metrics; needs the `telemetry` extra."""

from __future__ import annotations

from typing import Any, Protocol

from bellbuoy.resilience.circuit_breaker import CircuitBreaker, State
from bellbuoy.resilience.events import Event, Events

# The numbers that dashboards compare with.
STATE_NUMBERS = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2, State.ISOLATED: 3, State.DISABLED: 4}


class Observable(Protocol):
    """Any policy that tells what it does."""

    @property
    def name(self) -> str: ...

    @property
    def events(self) -> Events: ...


class PrometheusExporter:
    """Counts events in `bellbuoy_resilience_events_total{name,event}`, shows `bellbuoy_resilience_breaker_state{name}`.

    Args:
        registry: where the metrics are registered, None for the library's default.
    """

    def __init__(self, registry: Any = None) -> None:
        import prometheus_client

        options: dict[str, Any] = {} if registry is None else {"registry": registry}
        self._events = prometheus_client.Counter(
            "bellbuoy_resilience_events", "What policies did.", ["name", "event"], **options
        )
        self._states = prometheus_client.Gauge(
            "bellbuoy_resilience_breaker_state",
            "0 closed, 1 half open, 2 open, 3 isolated, 4 disabled.",
            ["name"],
            **options,
        )

    def observe(self, *policies: Observable) -> None:
        """Count the events of `policies` from now on; the state of a breaker is asked when somebody looks."""
        for policy in policies:
            policy.events.listen(self._count)
            if isinstance(policy, CircuitBreaker):
                self._states.labels(policy.name).set_function(_number(policy))

    def _count(self, event: Event) -> None:
        self._events.labels(event.name, type(event).__name__).inc()


def _number(breaker: CircuitBreaker) -> Any:
    return lambda: STATE_NUMBERS[breaker.state]
