"""A thin adapter for each kit: the few things that the probes ask for, in one form.

A kit that does not offer a thing raises NotOffered, and the matrix says so. Nothing here is imported unless its kit is
asked for, so that the probes run where only some kits are installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest import mock

Call = Callable[..., Awaitable[Any]]


class NotOffered(Exception):
    """The kit has no such thing."""


class Ignored(Exception):
    """An outcome that breakers are told to ignore."""


class Breaker:
    """A breaker: a way to call through it, and the exceptions by which it refuses."""

    def __init__(self, call: Callable[[Call], Awaitable[Any]], refusals: type[BaseException]) -> None:
        self._call = call
        self._refusals = refusals

    async def call(self, fn: Call) -> Any:
        return await self._call(fn)

    async def refuses(self) -> bool:
        """Whether it refuses a call that says nothing either way: one that is cancelled at once."""
        began = False

        async def look() -> None:
            nonlocal began
            began = True
            await asyncio.get_running_loop().create_future()

        task = asyncio.ensure_future(self.call(look))
        for _ in range(10):
            await asyncio.sleep(0)
        if not task.done():
            task.cancel()
        with contextlib.suppress(BaseException):
            await task
        return not began

    def refused(self, error: BaseException) -> bool:
        return isinstance(error, self._refusals)


class Kit:
    """What a probe can ask of a kit. Times are real unless a kit takes a clock."""

    name = "?"
    module = "?"

    def __init__(self) -> None:
        self.kit: Any = importlib.import_module(self.module)

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        raise NotOffered

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        raise NotOffered

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        raise NotOffered

    def backoff_s(self, attempt: int) -> float:
        raise NotOffered

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # Whether the kit takes the wall time, where it does, from `time.time`, which can be shifted; `datetime` cannot.
    wall_clock_reached = True

    @contextlib.contextmanager
    def wall_clock_at(self, offset_s: float) -> Iterator[None]:
        """The wall clock shows another time; the monotonic one goes on."""
        if not self.wall_clock_reached:
            raise NotOffered
        real = time.time

        def shifted() -> float:
            return real() + offset_s

        with mock.patch("time.time", shifted):
            yield


class Bellbuoy(Kit):
    name, module = "bellbuoy", "bellbuoy.resilience"

    def __init__(self) -> None:
        super().__init__()
        from bellbuoy.clock import ManualClock

        self.clock = ManualClock()

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        def judge(outcome: object) -> Any:
            return self.kit.Verdict.IGNORE if isinstance(outcome, Ignored) else self.kit.classify(outcome)

        settings = self.kit.BreakerSettings(failures, open_s, 60.0, probes, timeout_s=0.05)
        breaker = self.kit.CircuitBreaker("them", settings, clock=self.clock, classifier=judge)
        return Breaker(breaker.call, self.kit.CircuitOpen)

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return self.kit.Timeout(timeout_s).call  # type: ignore[no-any-return]

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        return self.kit.Bulkhead("b", concurrency_max=places, queue_max=waiting).call  # type: ignore[no-any-return]

    def backoff_s(self, attempt: int) -> float:
        return self.kit.RetrySettings().delay_s(attempt, random.Random(1))  # type: ignore[no-any-return]

    async def wait(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    @contextlib.contextmanager
    def wall_clock_at(self, offset_s: float) -> Iterator[None]:
        self.clock.jump(offset_s)
        yield
        self.clock.jump(-offset_s)


class Nopanic(Kit):
    name, module = "nopanic", "nopanic"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        policy = self.kit.circuit_breaker(
            failure_threshold=0.01,
            min_calls=failures,
            reset_timeout=open_s,
            half_open_max_calls=probes,
            on=lambda error: not isinstance(error, Ignored),
        )
        return Breaker(_decorated(policy), self.kit.CircuitOpen)

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(self.kit.timeout(timeout_s))

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(self.kit.bulkhead(places, max_wait=60.0))


class _InterlockClassifier:
    def is_failure(self, *, result: object, exception: Exception | None) -> bool:
        return exception is not None and not isinstance(exception, Ignored)


class Interlock(Kit):
    name, module = "interlock-cb", "interlock"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        config = self.kit.Config(
            failure_rate_threshold=0.01,
            minimum_number_of_calls=failures,
            wait_duration_in_open=open_s,
            permitted_calls_in_half_open=probes,
            max_concurrent_probes=probes,
        )
        breaker = self.kit.CircuitBreaker(name="them", config=config, classifier=_InterlockClassifier())
        return Breaker(_through(breaker.call_async), self.kit.CircuitOpenError)


class Pyresilience(Kit):
    name, module = "pyresilience", "pyresilience"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        config = self.kit.CircuitBreakerConfig(
            failure_threshold=failures, recovery_timeout=open_s, success_threshold=probes, ignore_on=(Ignored,)
        )
        return Breaker(_shared(self.kit.resilient(circuit_breaker=config)), self.kit.CircuitOpenError)

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _shared(self.kit.resilient(timeout=self.kit.TimeoutConfig(seconds=timeout_s)))

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        config = self.kit.BulkheadConfig(max_concurrent=places, max_wait=60.0)
        return _shared(self.kit.resilient(bulkhead=config))


class Hyx(Kit):
    name, module = "hyx", "hyx"
    wall_clock_reached = False

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        kit = importlib.import_module("hyx.circuitbreaker")
        errors = importlib.import_module("hyx.circuitbreaker.exceptions")
        policy = kit.consecutive_breaker(
            exceptions=ConnectionError, failure_threshold=failures, recovery_time_secs=open_s, recovery_threshold=probes
        )
        return Breaker(_decorated(policy), errors.BreakerFailing)

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(importlib.import_module("hyx.timeout").timeout(timeout_s))

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(importlib.import_module("hyx.bulkhead").bulkhead(places, places + waiting))


class Purgatory(Kit):
    name, module = "purgatory", "purgatory"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        factory = self.kit.AsyncCircuitBreakerFactory(default_threshold=failures, default_ttl=open_s, exclude=[Ignored])

        async def call(fn: Call) -> Any:
            async with await factory.get_breaker("them"):
                return await fn()

        return Breaker(call, importlib.import_module("purgatory.domain.model").OpenedState)


class Aiobreaker(Kit):
    name, module = "aiobreaker", "aiobreaker"
    wall_clock_reached = False

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        breaker = self.kit.CircuitBreaker(
            fail_max=failures, timeout_duration=timedelta(seconds=open_s), exclude=[Ignored]
        )
        return Breaker(_through(breaker.call_async), self.kit.CircuitBreakerError)


class Circuitbreaker(Kit):
    name, module = "circuitbreaker", "circuitbreaker"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        breaker = self.kit.CircuitBreaker(
            failure_threshold=failures,
            recovery_timeout=open_s,
            expected_exception=lambda kind, error: issubclass(kind, Exception) and not issubclass(kind, Ignored),
        )
        return Breaker(_shared(breaker), self.kit.CircuitBreakerError)


class Tenacity(Kit):
    name, module = "tenacity", "tenacity"

    def backoff_s(self, attempt: int) -> float:
        state = mock.Mock(attempt_number=attempt)
        return float(self.kit.wait_exponential_jitter(max=30)(state))


ALL: tuple[type[Kit], ...] = (
    Bellbuoy, Nopanic, Interlock, Pyresilience, Hyx, Purgatory, Aiobreaker, Circuitbreaker, Tenacity,
)  # fmt: skip


def _decorated(policy: Callable[[Call], Call]) -> Callable[[Call], Awaitable[Any]]:
    """Call through a policy whose state is its own, whatever it decorates."""

    async def call(fn: Call) -> Any:
        async def run() -> Any:  # Kits look whether they are given a coroutine function; an object is none.
            return await fn()

        return await policy(run)()

    return call


def _through(call_async: Callable[[Call], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
    async def call(fn: Call) -> Any:
        async def run() -> Any:
            return await fn()

        return await call_async(run)

    return call


def _shared(decorate: Callable[[Call], Call]) -> Callable[[Call], Awaitable[Any]]:
    """Call through a policy whose state belongs to the function that it decorated."""

    async def run(fn: Call) -> Any:
        return await fn()

    run_guarded = decorate(run)

    async def call(fn: Call) -> Any:
        return await run_guarded(fn)

    return call
