"""The decorator form, which is the same for every policy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def around(fn: F, call: Callable[..., Awaitable[Any]], call_sync: Callable[..., Any] | None = None) -> F:
    """`fn` with its name and signature, each call of which goes through a policy.

    Args:
        fn: the function to decorate.
        call: the policy's asynchronous form, given `fn` and its arguments.
        call_sync: the policy's form for functions that are not asynchronous, None when it has none.
    """
    if call_sync is not None and not inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        def guarded_sync(*args: Any, **kwargs: Any) -> Any:
            return call_sync(fn, *args, **kwargs)

        return cast(F, guarded_sync)

    @functools.wraps(fn)
    async def guarded(*args: Any, **kwargs: Any) -> Any:
        return await call(fn, *args, **kwargs)

    return cast(F, guarded)
