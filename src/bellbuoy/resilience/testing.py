"""For tests of code that uses the kit: no waiting, a clock moved by hand, and breakers in the state a test is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bellbuoy.clock import ManualClock
from bellbuoy.resilience.circuit_breaker import CircuitBreaker, State
from bellbuoy.resilience.modes import _instant

__all__ = ["ManualClock", "instant", "put"]


@contextmanager
def instant() -> Iterator[None]:
    """Inside, retries, rate limits and hedges do not wait.

    It holds for what is called inside and for tasks that are started inside, and for nothing else: tests that run at
    the same time do not disturb each other.
    """
    token = _instant.set(True)
    try:
        yield
    finally:
        _instant.reset(token)


def put(breaker: CircuitBreaker, state: State) -> None:
    """Put `breaker` in `state`, with its events; open means for as long as its settings say."""
    if state is State.CLOSED:
        breaker.close()
    elif state is State.ISOLATED:
        breaker.isolate()
    elif state is State.DISABLED:
        breaker.disable()
    else:
        breaker.open("test", for_s=None if state is State.OPEN else 0.0)
        if state is State.HALF_OPEN:
            breaker.admit().drop()  # What moves it from open to half open is the first probe.
