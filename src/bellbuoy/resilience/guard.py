"""Policies around one call, the first outermost: `Guard("fcm", bulkhead, breaker, timeout)`.

The order that makes sense, stated once, read from the outside:

    fallback( retry( bulkhead( breaker( timeout( call )))))

A fallback sees what is left when all else failed. A retry stands outside the bulkhead, so that a call does not keep its
place while it waits, and outside the breaker, so that the breaker sees each attempt. The timeout is innermost, so that
the breaker learns of it. Orders that defeat a policy are warned of when the guard is built.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from bellbuoy.resilience.bulkhead import Bulkhead
from bellbuoy.resilience.circuit_breaker import CircuitBreaker
from bellbuoy.resilience.forms import around
from bellbuoy.resilience.retry import Retry
from bellbuoy.resilience.timeout import Timeout

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Kind = TypeVar("Kind")


class Policy(Protocol):
    """Anything that can stand around a call."""

    async def call(self, fn: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any: ...


class CompositionWarning(UserWarning):
    """The order of the policies in a guard defeats one of them."""


# (outer, inner): why that is a mistake.
_MISTAKES: dict[tuple[str, str], str] = {
    ("retry", "fallback"): "the fallback answers at the first failure, so the retry never sees one",
    ("breaker", "fallback"): "the fallback hides failures, so the breaker never opens",
    ("throttle", "fallback"): "the fallback hides failures, so the throttle never sheds a call",
    ("retry", "cache"): "the last good answer hides failures, so the retry never sees one",
    ("breaker", "cache"): "the last good answer hides failures, so the breaker never opens",
    ("throttle", "cache"): "the last good answer hides failures, so the throttle never sheds a call",
    ("breaker", "retry"): "the breaker sees one outcome for all attempts, and attempts go on while it should open",
    ("bulkhead", "retry"): "a call keeps its place in the bulkhead while it waits for its next attempt",
    ("retry", "retry"): "attempts multiply",
    ("hedge", "retry"): "each try makes attempts of its own, so they multiply",
    ("cache", "fallback"): "the fallback's answer would be kept as if it were real",
}


class Guard:
    """Some policies as one.

    Args:
        name: of what is guarded.
        policies: from the outermost to the innermost. Each may be used alone and in several guards, and is
            reconfigured in place, without losing what it knows.
    """

    __slots__ = ("_call", "name", "policies")

    def __init__(self, name: str, *policies: Policy) -> None:
        self.name = name
        self.policies = policies
        # Each policy calls what it is given with what is left: the chain needs no function of its own per call.
        steps: list[Any] = [policy.call for policy in policies]
        self._call: Callable[..., Coroutine[Any, Any, Any]] = (
            functools.partial(steps[0], *steps[1:]) if steps else _alone
        )
        for mistake in mistakes(policies):
            warnings.warn(f"guard {name}: {mistake}", CompositionWarning, stacklevel=2)

    def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """Call `fn` inside all policies; to be awaited. Raises what they or `fn` raise."""
        return self._call(fn, *args, **kwargs)

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self._call)

    @property
    def breaker(self) -> CircuitBreaker | None:
        """Its outermost breaker, None when it has none."""
        return self._first(CircuitBreaker)

    @property
    def bulkhead(self) -> Bulkhead | None:
        """Its outermost bulkhead, None when it has none."""
        return self._first(Bulkhead)

    @property
    def retry(self) -> Retry | None:
        """Its outermost retry, None when it has none."""
        return self._first(Retry)

    @property
    def timeout(self) -> Timeout | None:
        """Its outermost timeout, None when it has none."""
        return self._first(Timeout)

    def _first(self, kind: type[Kind]) -> Kind | None:
        return next((policy for policy in self.policies if isinstance(policy, kind)), None)


def mistakes(policies: tuple[Policy, ...]) -> list[str]:
    """What is wrong with this order, in words; empty when nothing is."""
    kinds = [str(getattr(policy, "kind", "")) for policy in policies]
    found = []
    for place, outer in enumerate(kinds):
        inside = kinds[place + 1 :]
        found += [
            f"{outer} around {inner}: {_MISTAKES[outer, inner]}" for inner in inside if (outer, inner) in _MISTAKES
        ]
        if outer == "timeout" and "breaker" in inside and "timeout" not in inside[inside.index("breaker") :]:
            found.append("timeout around breaker: it cancels calls that hang, and the breaker counts no cancelled call")
    if "chaos" in kinds[:-1]:
        found.append("chaos outside other policies: those inside never see it")
    if len({id(policy) for policy in policies}) < len(policies):
        found.append("the same policy stands in it twice")
    return found


async def _alone(fn: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
    return await fn(*args, **kwargs)
