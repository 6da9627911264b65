"""Something instead of an error: a fallback, and the last good answer as one."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, cast

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.resilience.classify import Verdict, classify
from bellbuoy.resilience.events import Events, FellBack
from bellbuoy.resilience.forms import around

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


def failed(error: BaseException) -> bool:
    """Whether the dependency is to blame, or one of our own policies refused: a caller's mistake stays one."""
    return classify(error) in (Verdict.FAIL, Verdict.SLOW, Verdict.THROTTLED, Verdict.LOCAL)


class Fallback(Generic[R]):
    """Answers with `answer(error)` when a call fails.

    Args:
        answer: makes the answer from the error; it may be asynchronous. What it raises passes, with the call's own
            error as its context.
        on: which errors it answers; the default is `failed`. Cancellations are never answered.
        name: in events.
        on_event: told of each use, so that a fallback in daily use does not go unnoticed.
    """

    kind: ClassVar[str] = "fallback"

    __slots__ = ("_answer", "_clock", "_on", "events", "name")

    def __init__(
        self,
        answer: Callable[[Exception], R | Awaitable[R]],
        *,
        on: Callable[[BaseException], bool] = failed,
        name: str = "fallback",
        clock: Clock | None = None,
        on_event: Callable[[FellBack], None] | None = None,
    ) -> None:
        self.name = name
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._answer = answer
        self._on = on
        self._clock: Clock = clock or SystemClock()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T | R:
        """Call `fn`, and answer in its place when it fails."""
        try:
            return await fn(*args, **kwargs)
        except Exception as error:
            if not self._on(error):
                raise
            self.events.emit(FellBack(self.name, self._clock.time(), repr(error)))
            answer = self._answer(error)
            return cast(R, await answer if inspect.isawaitable(answer) else answer)

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""

        return around(fn, self.call)


class LastGood:
    """Keeps the last good answer for each key, and gives it when a call fails.

    Args:
        key: names what a call asks for, from its arguments.
        stale_s_max: seconds after which an answer is too old even as a fallback.
        fresh_s: seconds within which an answer is given without a call; 0 to always call.
        size_max: answers kept; the one used longest ago goes first.
        on: which errors it answers, as in Fallback.
        clock: for ages.
        on_event: told of each use.
    """

    kind: ClassVar[str] = "cache"

    __slots__ = ("_answers", "_clock", "_key", "_on", "events", "fresh_s", "name", "size_max", "stale_s_max")

    def __init__(
        self,
        key: Callable[..., Hashable],
        *,
        stale_s_max: float,
        fresh_s: float = 0.0,
        size_max: int = 10_000,
        on: Callable[[BaseException], bool] = failed,
        name: str = "last good",
        clock: Clock | None = None,
        on_event: Callable[[FellBack], None] | None = None,
    ) -> None:
        if not stale_s_max > 0 or fresh_s < 0 or size_max < 1:
            raise ValueError("stale_s_max must be greater than 0, fresh_s not less than 0, size_max at least 1")
        self.name = name
        self.stale_s_max = stale_s_max
        self.fresh_s = fresh_s
        self.size_max = size_max
        self.events = Events(*(() if on_event is None else (on_event,)))
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._key = key
        self._on = on
        self._clock: Clock = clock or SystemClock()

    async def call(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `fn` and keep its answer; when it fails, give the last one if that is not too old."""
        key, now = self._key(*args, **kwargs), self._clock.monotonic()
        kept = self._answers.get(key)
        if kept is not None and now - kept[0] < self.fresh_s:
            self._answers.move_to_end(key)
            return cast(T, kept[1])
        try:
            answer = await fn(*args, **kwargs)
        except Exception as error:
            kept = self._answers.get(key)
            if kept is None or not self._on(error) or self._clock.monotonic() - kept[0] > self.stale_s_max:
                raise
            self.events.emit(FellBack(self.name, self._clock.time(), repr(error)))
            self._answers.move_to_end(key)
            return cast(T, kept[1])
        self._answers[key] = (self._clock.monotonic(), answer)
        self._answers.move_to_end(key)
        if len(self._answers) > self.size_max:
            self._answers.popitem(last=False)
        return answer

    def __call__(self, fn: F) -> F:
        """Decorate an asynchronous function."""
        return around(fn, self.call)

    def forget(self, key: Hashable | None = None) -> None:
        """Drop the answer under `key`, or all of them."""
        if key is None:
            self._answers.clear()
        else:
            self._answers.pop(key, None)
