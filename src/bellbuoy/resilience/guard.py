"""Policies around one call, the first outermost: `Guard("fcm", bulkhead, breaker, timeout)`.

The order that makes sense, read from the outside: fallback( retry( bulkhead( breaker( timeout( call ))))).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Policy(Protocol):
    """Anything that can stand around a call."""

    async def call(self, fn: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any: ...


class Guard:
    """Some policies as one.

    Args:
        name: of what is guarded.
        policies: from the outermost to the innermost.
    """

    def __init__(self, name: str, *policies: Policy) -> None:
        self.name = name
        self.policies = policies

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` inside all policies; raises what they or `fn` raise."""
        result: T = await self._within(0, fn, *args, **kwargs)
        return result

    async def _within(self, depth: int, fn: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
        if depth == len(self.policies):
            return await fn(*args, **kwargs)
        return await self.policies[depth].call(self._within, depth + 1, fn, *args, **kwargs)
