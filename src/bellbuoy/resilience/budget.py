"""The retry budget: extra attempts are a bounded share of the calls, so that retries cannot multiply an outage."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, ClassVar, TypeAlias

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.resilience.window import TimeWindow

# The budget that has counted the call which is going on, and the task that makes it. With the task it does not hold for
# what somebody starts during a call and what outlives it.
_Counted: TypeAlias = "tuple[RetryBudget, asyncio.Task[Any] | None]"
_counted: ContextVar[_Counted | None] = ContextVar("bellbuoy_counted", default=None)


class Inside:
    """Inside, a hedge with the same budget knows that its call is counted already."""

    __slots__ = ("_budget", "_token")

    def __init__(self, budget: RetryBudget) -> None:
        self._budget = budget

    def __enter__(self) -> None:
        self._token: Token[_Counted | None] = _counted.set((self._budget, _this_task()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _counted.reset(self._token)


class Reservation:
    """An extra attempt that was granted. It is made (`release` when it ended) or given up (`refund`); each once."""

    __slots__ = ("_at", "_budget")

    def __init__(self, budget: RetryBudget, at: float) -> None:
        self._budget: RetryBudget | None = budget
        self._at = at

    def release(self) -> None:
        """The attempt was made and ended."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget._running -= 1

    def refund(self) -> None:
        """The attempt was never made, for example because its wait was cancelled."""
        budget, self._budget = self._budget, None
        if budget is not None:
            budget._running -= 1
            budget._refund(self._at)


class RetryBudget:
    """Grants extra attempts, to retries and hedges together, while

        extra attempts in the window < ratio * calls in the window + per_second_min * window_s

    and no more than `concurrency_max` of them wait or run. The form is Finagle's (20 % and 10 a second over 10 s); the
    bound on those that run is Envoy's. An attempt is charged before its wait: if it were charged after, a whole outage
    could queue up behind the back-off and be let through together.

    Args:
        ratio: extra attempts as a share of the calls.
        per_second_min: extra attempts a second that are granted whatever the ratio, so that few calls can retry too.
        window_s: seconds over which both are counted.
        concurrency_max: extra attempts that may wait or run at once, None for any number.
        clock: for the window.
    """

    kind: ClassVar[str] = "budget"

    __slots__ = ("_clock", "_monotonic", "_running", "_window", "concurrency_max", "per_second_min", "ratio")

    def __init__(
        self,
        *,
        ratio: float = 0.2,
        per_second_min: float = 10.0,
        window_s: float = 10.0,
        concurrency_max: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._window = TimeWindow(window_s)
        self._clock: Clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._running = 0
        self.configure(ratio=ratio, per_second_min=per_second_min, concurrency_max=concurrency_max)

    def configure(self, *, ratio: float, per_second_min: float, concurrency_max: int | None) -> None:
        """Go by other numbers from now on; what was counted stays."""
        if ratio < 0 or per_second_min < 0 or (concurrency_max is not None and concurrency_max < 0):
            raise ValueError("ratio, per_second_min and concurrency_max must not be less than 0")
        self.ratio = ratio
        self.per_second_min = per_second_min
        self.concurrency_max = concurrency_max

    @property
    def running(self) -> int:
        """Extra attempts that wait or run."""
        return self._running

    @property
    def available(self) -> float:
        """Extra attempts that the window still has room for."""
        totals = self._window.totals(self._monotonic())
        return self.ratio * totals.calls + self.per_second_min * self._window.window_s - totals.slow

    def called(self) -> None:
        """A call was made; its extra attempts are not calls."""
        self._window.add(self._monotonic(), 1, 0, 0)

    def counted(self) -> Inside:
        """`called`, and to be entered for as long as the call goes on."""
        self.called()
        return Inside(self)

    @property
    def has_counted(self) -> bool:
        """Whether the call that this task is making is counted already."""
        counted = _counted.get()
        return counted is not None and counted[0] is self and counted[1] is _this_task()

    def reserve(self) -> Reservation | None:
        """Leave for one extra attempt, taken now; None when there is none."""
        now = self._monotonic()
        if self.concurrency_max is not None and self._running >= self.concurrency_max:
            return None
        if self.available < 1:
            return None
        self._window.add(now, 0, 0, 1)
        self._running += 1
        return Reservation(self, now)

    def _refund(self, at: float) -> None:
        # What has left the window since is not given back twice.
        if self._monotonic() - at < self._window.window_s / 2:
            self._window.add(self._monotonic(), 0, 0, -1)


def _this_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # No event loop runs here.
        return None
