"""A thin adapter for each kit: the few things that the probes ask for, in one form.

A kit that does not offer a thing raises NotOffered, and the matrix says so. Nothing here is imported unless its kit is
asked for, so that the probes run where only some kits are installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
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
    label = ""  # What the matrix calls it, when not by its name.

    def __init__(self) -> None:
        self.kit: Any = importlib.import_module(self.module)

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        raise NotOffered

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        """A breaker around functions that are not asynchronous."""
        raise NotOffered

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        raise NotOffered

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        raise NotOffered

    def backoff_s(self, attempt: int) -> float:
        raise NotOffered

    def result_breaker(self, failures: int, bad: object) -> Breaker:
        """A breaker that counts the result `bad` as a failure."""
        raise NotOffered

    def mistake(self) -> Exception:
        """A caller's own mistake, which breakers are told of, or know as one."""
        return Ignored()

    def budgeted(self, ratio: float, per_second_min: float) -> Callable[[Call], Awaitable[Any]]:
        """A retry that waits about a second, within a budget."""
        raise NotOffered

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        """A retry that waits about 0.15 s each time, and is to end `deadline_s` seconds after the first attempt."""
        raise NotOffered

    def now(self) -> float:
        return time.monotonic()

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    # The modules of the kit that take the time from `datetime`; `time.time` is shifted for all.
    asks_datetime: tuple[str, ...] = ()

    @contextlib.contextmanager
    def wall_clock_at(self, offset_s: float) -> Iterator[None]:
        """The wall clock shows another time; the monotonic one goes on."""
        real = time.time

        def shifted() -> float:
            return real() + offset_s

        class Shifted(datetime):
            @classmethod
            def utcnow(cls) -> Any:
                return datetime.now(UTC).replace(tzinfo=None) + timedelta(seconds=offset_s)

            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return datetime.now(tz) + timedelta(seconds=offset_s)

        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch("time.time", shifted))
            for module in self.asks_datetime:
                stack.enter_context(mock.patch(f"{module}.datetime", Shifted))
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

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        return self.kit.CircuitBreaker("them").call_sync  # type: ignore[no-any-return]

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return self.kit.Timeout(timeout_s).call  # type: ignore[no-any-return]

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        return self.kit.Bulkhead("b", concurrency_max=places, queue_max=waiting).call  # type: ignore[no-any-return]

    def backoff_s(self, attempt: int) -> float:
        return self.kit.RetrySettings().delay_s(attempt, random.Random(1))  # type: ignore[no-any-return]

    def result_breaker(self, failures: int, bad: object) -> Breaker:
        def judge(outcome: object) -> Any:
            return self.kit.Verdict.FAIL if outcome == bad else self.kit.classify(outcome)

        settings = self.kit.BreakerSettings(failure_threshold=failures)
        breaker = self.kit.CircuitBreaker("them", settings, clock=self.clock, classifier=judge, judge_results=True)
        return Breaker(breaker.call, self.kit.CircuitOpen)

    def mistake(self) -> Exception:
        from bellbuoy.errors import Permanent

        return Permanent("400")

    def budgeted(self, ratio: float, per_second_min: float) -> Callable[[Call], Awaitable[Any]]:
        budget = self.kit.RetryBudget(ratio=ratio, per_second_min=per_second_min, window_s=10.0, clock=self.clock)
        return self.kit.Retry(budget=budget, clock=self.clock).call  # type: ignore[no-any-return]

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        retry = self.kit.Retry(
            self.kit.RetrySettings(max_attempts=20, initial_delay_s=0.15, backoff_multiplier=1.0, jitter_factor=0.0),
            clock=self.clock,
        )

        async def call(fn: Call) -> Any:
            with self.kit.deadline(deadline_s, clock=self.clock):
                return await retry.call(fn)

        return call

    def now(self) -> float:
        return self.clock.monotonic()

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

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        policy = self.kit.circuit_breaker()
        return lambda fn: policy(fn)()

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(self.kit.timeout(timeout_s))

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(self.kit.bulkhead(places, max_wait=60.0))

    def backoff_s(self, attempt: int) -> float:
        return next(itertools.islice(self.kit.backoff.full_jitter(), attempt - 1, None))  # type: ignore[no-any-return]

    def budgeted(self, ratio: float, per_second_min: float) -> Callable[[Call], Awaitable[Any]]:
        budget = self.kit.RetryBudget(ratio, min_retries_per_sec=per_second_min, window=10.0)
        return _decorated(self.kit.retry(3, backoff=1.0, budget=budget))

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(self.kit.retry(20, backoff=0.15, max_time=deadline_s))


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

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        return self.kit.CircuitBreaker(name="them").call  # type: ignore[no-any-return]

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        async def call(fn: Call) -> Any:
            async with self.kit.timeout(timeout_s):
                return await fn()

        return call

    def result_breaker(self, failures: int, bad: object) -> Breaker:
        class Judge:
            def is_failure(self, *, result: object, exception: Exception | None) -> bool:
                return exception is not None or result == bad

        config = self.kit.Config(failure_rate_threshold=0.01, minimum_number_of_calls=failures)
        breaker = self.kit.CircuitBreaker(name="them", config=config, classifier=Judge())
        return Breaker(_through(breaker.call_async), self.kit.CircuitOpenError)


class Pyresilience(Kit):
    name, module = "pyresilience", "pyresilience"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        config = self.kit.CircuitBreakerConfig(
            failure_threshold=failures, recovery_timeout=open_s, success_threshold=probes, ignore_on=(Ignored,)
        )
        return Breaker(_shared(self.kit.resilient(circuit_breaker=config)), self.kit.CircuitOpenError)

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        return _shared_sync(self.kit.resilient(circuit_breaker=self.kit.CircuitBreakerConfig()))

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _shared(self.kit.resilient(timeout=self.kit.TimeoutConfig(seconds=timeout_s)))

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        config = self.kit.BulkheadConfig(max_concurrent=places, max_wait=60.0)
        return _shared(self.kit.resilient(bulkhead=config))

    def result_breaker(self, failures: int, bad: object) -> Breaker:
        breaker = self.kit.CircuitBreakerConfig(failure_threshold=failures)
        retry = self.kit.RetryConfig(max_attempts=1, retry_on_result=lambda result: result == bad)
        return Breaker(_shared(self.kit.resilient(circuit_breaker=breaker, retry=retry)), self.kit.CircuitOpenError)

    def backoff_s(self, attempt: int) -> float:
        # What its executor asks; nothing public answers.
        compute = importlib.import_module("pyresilience._executor")._compute_delay
        return float(compute(self.kit.RetryConfig(), attempt))

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _shared(
            self.kit.resilient(
                retry=self.kit.RetryConfig(max_attempts=20, delay=0.15, backoff_factor=1.0, jitter=False),
                timeout=self.kit.TimeoutConfig(seconds=deadline_s, per_attempt=False),
            )
        )


class Hyx(Kit):
    name, module = "hyx", "hyx"
    asks_datetime = ("hyx.circuitbreaker.states",)

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

    def backoff_s(self, attempt: int) -> float:
        waits = iter(importlib.import_module("hyx.retry.backoffs").expo(max_delay_secs=30.0))
        return next(itertools.islice(waits, attempt - 1, None))  # type: ignore[no-any-return]


class HyxWith(Hyx):
    """The same kit by its other documented form, `async with`, which is another code path with other mistakes."""

    label = "hyx (async with)"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        kit = importlib.import_module("hyx.circuitbreaker")
        errors = importlib.import_module("hyx.circuitbreaker.exceptions")
        policy = kit.consecutive_breaker(
            exceptions=ConnectionError, failure_threshold=failures, recovery_time_secs=open_s, recovery_threshold=probes
        )
        return Breaker(_entered(policy), errors.BreakerFailing)

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        kit = importlib.import_module("hyx.timeout")

        async def call(fn: Call) -> Any:
            async with kit.timeout(timeout_s):
                return await fn()

        return call

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        return _entered(importlib.import_module("hyx.bulkhead").bulkhead(places, places + waiting))


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
    asks_datetime = ("aiobreaker.circuitbreaker", "aiobreaker.state")

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

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        return _shared_sync(self.kit.CircuitBreaker())


class Pybreaker(Kit):
    """By its context manager: its decorator takes no coroutine function, and its `call_async` is for Tornado."""

    name, module = "pybreaker", "pybreaker"
    asks_datetime = ("pybreaker",)

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        breaker = self.kit.CircuitBreaker(
            fail_max=failures, reset_timeout=open_s, success_threshold=probes, exclude=[Ignored]
        )

        async def call(fn: Call) -> Any:
            with breaker.calling():
                return await fn()

        return Breaker(call, self.kit.CircuitBreakerError)

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        return self.kit.CircuitBreaker().call  # type: ignore[no-any-return]


class Aioresilience(Kit):
    name, module = "aioresilience", "aioresilience"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        config = self.kit.CircuitConfig(
            failure_threshold=failures,
            recovery_timeout=open_s,
            success_threshold=probes,
            half_open_max_calls=probes,
            failure_predicate=lambda error: not isinstance(error, Ignored),
        )
        breaker = self.kit.CircuitBreaker(name="them", config=config)
        return Breaker(_through(breaker.call), self.kit.CircuitBreakerOpenError)

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _through(self.kit.TimeoutManager(self.kit.TimeoutConfig(timeout=timeout_s)).execute)

    def bulkhead(self, places: int, waiting: int) -> Callable[[Call], Awaitable[Any]]:
        config = self.kit.BulkheadConfig(max_concurrent=places, max_waiting=waiting)
        return _through(self.kit.Bulkhead("b", config).execute)

    def backoff_s(self, attempt: int) -> float:
        # What its `execute` asks, which counts from 0; nothing public answers.
        return float(self.kit.RetryPolicy(self.kit.RetryConfig())._calculate_delay(attempt - 1))


class Redress(Kit):
    name, module = "redress", "redress"

    def breaker(self, *, failures: int, open_s: float, probes: int) -> Breaker:
        breaker = self.kit.CircuitBreaker(failure_threshold=failures, window_s=60.0, recovery_timeout_s=open_s)
        policy = self.kit.AsyncPolicy(circuit_breaker=breaker)
        return Breaker(policy.call, self.kit.CircuitOpenError)

    def blocking_breaker(self) -> Callable[[Callable[[], Any]], Any]:
        return self.kit.Policy(circuit_breaker=self.kit.CircuitBreaker()).call  # type: ignore[no-any-return]

    def timeout(self, timeout_s: float) -> Callable[[Call], Awaitable[Any]]:
        return self._retry(max_attempts=1, attempt_timeout_s=timeout_s).call  # type: ignore[no-any-return]

    def backoff_s(self, attempt: int) -> float:
        # One of its exponential strategies; `decorrelated_jitter` has no exponent.
        strategies = importlib.import_module("redress.strategies")
        return float(strategies.equal_jitter()(attempt, self.kit.ErrorClass.TRANSIENT, None))

    def result_breaker(self, failures: int, bad: object) -> Breaker:
        retry = self._retry(
            max_attempts=1,
            result_classifier=lambda result: self.kit.ErrorClass.TRANSIENT if result == bad else None,
        )
        breaker = self.kit.CircuitBreaker(failure_threshold=failures)
        policy = self.kit.AsyncPolicy(retry=retry, circuit_breaker=breaker)
        return Breaker(policy.call, self.kit.CircuitOpenError)

    def mistake(self) -> Exception:
        return self.kit.PermanentError("400")  # type: ignore[no-any-return]

    def budgeted(self, ratio: float, per_second_min: float) -> Callable[[Call], Awaitable[Any]]:
        # Its budget is a number and no share: that which the share would be of the probe's hundred calls.
        budget = self.kit.Budget(max_retries=round(ratio * 100 + per_second_min * 10.0), window_s=10.0)
        retry = self._retry(strategy=lambda context: 1.0, budget=budget)
        return retry.call  # type: ignore[no-any-return]

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        retry = self._retry(max_attempts=20, deadline_s=deadline_s, strategy=lambda context: 0.15)
        return retry.call  # type: ignore[no-any-return]

    def _retry(self, **numbers: Any) -> Any:
        numbers = {"strategy": lambda context: 0.0} | numbers
        return self.kit.AsyncRetry(classifier=self.kit.default_classifier, **numbers)


class Tenacity(Kit):
    name, module = "tenacity", "tenacity"

    def backoff_s(self, attempt: int) -> float:
        state = mock.Mock(attempt_number=attempt)
        return float(self.kit.wait_exponential_jitter(max=30)(state))

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(
            self.kit.retry(stop=self.kit.stop_before_delay(deadline_s), wait=self.kit.wait_fixed(0.15), reraise=True)
        )


class Stamina(Kit):
    name, module = "stamina", "stamina"

    def backoff_s(self, attempt: int) -> float:
        # What its retry context asks; nothing public answers for more than a few attempts.
        found: Any = next(iter(self.kit.retry_context(on=Exception, attempts=None, timeout=None)))
        return float(found._next_wait_fn(attempt))

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(
            self.kit.retry(
                on=Exception, attempts=None, timeout=deadline_s, wait_initial=0.15, wait_jitter=0.0, wait_exp_base=1
            )
        )


class Backoff(Kit):
    name, module = "backoff", "backoff"

    def backoff_s(self, attempt: int) -> float:
        return float(next(itertools.islice(self.kit.expo(max_value=30), attempt, None)))

    def within(self, deadline_s: float) -> Callable[[Call], Awaitable[Any]]:
        return _decorated(
            self.kit.on_exception(self.kit.constant, Exception, max_time=deadline_s, interval=0.15, jitter=None)
        )


ALL: tuple[type[Kit], ...] = (
    Bellbuoy, Nopanic, Interlock, Pyresilience, Hyx, HyxWith, Purgatory, Aiobreaker, Circuitbreaker, Pybreaker,
    Aioresilience, Redress, Tenacity, Stamina, Backoff,
)  # fmt: skip


def _decorated(policy: Callable[[Call], Call]) -> Callable[[Call], Awaitable[Any]]:
    """Call through a policy whose state is its own, whatever it decorates."""

    async def call(fn: Call) -> Any:
        async def run() -> Any:  # Kits look whether they are given a coroutine function; an object is none.
            return await fn()

        return await policy(run)()

    return call


def _entered(policy: Any) -> Callable[[Call], Awaitable[Any]]:
    """Call inside `async with` of one policy object."""

    async def call(fn: Call) -> Any:
        async with policy:
            return await fn()

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


def _shared_sync(decorate: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Callable[[], Any]], Any]:
    """`_shared` for functions that are not asynchronous."""

    def run(fn: Callable[[], Any]) -> Any:
        return fn()

    return decorate(run)
