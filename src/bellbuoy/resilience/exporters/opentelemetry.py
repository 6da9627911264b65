"""Events and states as OpenTelemetry metrics; needs the `telemetry` extra."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bellbuoy.resilience.circuit_breaker import CircuitBreaker
from bellbuoy.resilience.events import Event
from bellbuoy.resilience.exporters.prometheus import STATE_NUMBERS, Observable


class OpenTelemetryExporter:
    """Counts events in `bellbuoy.resilience.events` and observes `bellbuoy.resilience.breaker.state`.

    Args:
        meter: where the instruments are made, None for the global provider's.
    """

    def __init__(self, meter: Any = None) -> None:
        from opentelemetry import metrics

        meter = meter or metrics.get_meter("bellbuoy.resilience")
        self._observation = metrics.Observation
        self._breakers: list[CircuitBreaker] = []
        self._events = meter.create_counter("bellbuoy.resilience.events", description="What policies did.")
        meter.create_observable_gauge(
            "bellbuoy.resilience.breaker.state",
            callbacks=[self._states],
            description="0 closed, 1 half open, 2 open, 3 isolated, 4 disabled.",
        )

    def observe(self, *policies: Observable) -> None:
        """Count the events of `policies` from now on; the state of a breaker is asked when somebody looks."""
        for policy in policies:
            policy.events.listen(self._count)
            if isinstance(policy, CircuitBreaker):
                self._breakers.append(policy)

    def _count(self, event: Event) -> None:
        self._events.add(1, {"name": event.name, "event": type(event).__name__})

    def _states(self, options: Any) -> Iterable[Any]:
        del options
        return [self._observation(STATE_NUMBERS[one.state], {"name": one.name}) for one in self._breakers]
