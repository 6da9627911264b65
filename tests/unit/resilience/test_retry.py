"""Back-off, what is retried, and the bounds on it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.clock import ManualClock
from bellbuoy.errors import CircuitOpen, OutcomeUnknown, Permanent, TimeoutExceeded, Transient
from bellbuoy.resilience import (
    Reschedule,
    Retry,
    RetryBudget,
    RetryExhausted,
    RetryScheduled,
    RetrySettings,
    deadline,
    retryable,
)
from bellbuoy.resilience.backoff import Jitter
from tests.unit.resilience.support import settle


class Script:
    """A call that ends as scripted, one after the other."""

    def __init__(self, *ends: object) -> None:
        self.ends = list(ends)
        self.calls = 0

    async def __call__(self) -> object:
        return self.sync()

    def sync(self) -> object:
        self.calls += 1
        end = self.ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end


def _retry(clock: ManualClock, **options: object) -> Retry:
    return Retry(RetrySettings(jitter_factor=0.0), clock=clock, rng=Random(1), **options)  # type: ignore[arg-type]


async def _run(clock: ManualClock, retry: Retry, script: Script, seconds: float = 100.0) -> object:
    task = asyncio.create_task(retry.call(script))
    await settle()
    await clock.advance(seconds)
    assert task.done()
    return task.result()


def test_the_defaults() -> None:
    plain = RetrySettings(jitter_factor=0.0)
    assert [plain.delay_s(n, Random(1)) for n in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert RetrySettings().max_attempts == 3
    assert RetrySettings(initial_delay_s=0.001).delay_s(1, Random(1)) == 0.1
    spread = [RetrySettings().delay_s(1, Random(seed)) for seed in range(200)]
    assert 0.9 <= min(spread) < 0.92
    assert 1.08 < max(spread) <= 1.1


@given(
    attempt=st.integers(1, 10**6),
    initial=st.floats(0.001, 100),
    longest=st.floats(0.001, 10_000),
    factor=st.floats(1, 100),
    jitter=st.sampled_from(["around", "full", "equal", "decorrelated"]),
    seed=st.integers(0, 2**32),
)
def test_waits_stay_in_bounds(
    attempt: int, initial: float, longest: float, factor: float, jitter: Jitter, seed: int
) -> None:
    settings = RetrySettings(
        initial_delay_s=initial, max_delay_s=longest, backoff_multiplier=factor, jitter=jitter, delay_min_s=0.01
    )
    wait = settings.delay_s(attempt, Random(seed), before_s=longest)
    assert 0.01 <= wait <= max(0.01, longest * 1.1 * (1 + 1e-9))
    assert settings.base_s(attempt) <= settings.base_s(attempt + 1) <= longest


@given(asked=st.floats(0, 1e9), attempt=st.integers(1, 10**6), seed=st.integers(0, 2**32))
def test_a_wait_asked_for_is_never_cut_short(asked: float, attempt: int, seed: int) -> None:
    settings = RetrySettings(retry_after_s_max=3_600.0)
    wait = settings.delay_s(attempt, Random(seed), asked)
    assert min(asked, 3_600.0) <= wait <= max(0.1, min(asked, 3_600.0) * 1.1)


def test_a_wait_asked_for_that_is_no_number_is_not_followed() -> None:
    assert RetrySettings(jitter_factor=0.0).delay_s(1, Random(1), math.nan) == 1.0


def test_jitters_spread_as_they_promise() -> None:
    def waits(jitter: Jitter) -> Sequence[float]:
        rng = Random(5)
        return [RetrySettings(jitter=jitter).delay_s(10, rng, before_s=20.0) for _ in range(2_000)]

    assert min(waits("full")) < 1
    assert 15 <= min(waits("equal")) < 16
    assert max(waits("equal")) <= 30
    assert 1 <= min(waits("decorrelated")) < 3
    assert max(waits("decorrelated")) == 30


async def test_succeeds_after_failures() -> None:
    clock, events = ManualClock(), list[RetryScheduled | RetryExhausted]()
    script = Script(ConnectionError("one"), Transient("two"), "done")
    retry = _retry(clock, on_event=events.append, name="r")
    task = asyncio.create_task(retry.call(script))
    await settle()
    await clock.advance(0.9)
    assert script.calls == 1
    await clock.advance(0.1)
    assert script.calls == 2
    await clock.advance(2.0)
    assert await task == "done"
    assert [type(one).__name__ for one in events] == ["RetryScheduled", "RetryScheduled"]


async def test_raises_the_last_error_itself_with_notes() -> None:
    clock, events = ManualClock(), list[RetryScheduled | RetryExhausted]()
    last = Transient("three", retry_after_s=9.0)
    with pytest.raises(Transient) as caught:
        await _run(clock, _retry(clock, on_event=events.append), Script(Transient("one"), Transient("two"), last))
    assert caught.value is last
    assert caught.value.__notes__ == [
        "retry: gave up after attempt 3 (attempts); the one before raised Transient('two')"
    ]
    end = events[-1]
    assert isinstance(end, RetryExhausted)
    assert (end.attempt, end.because) == (3, "attempts")


@pytest.mark.parametrize(
    "error", [Permanent("no"), ValueError("bug"), CircuitOpen("open"), FileNotFoundError("x"), PermissionError("x")]
)
async def test_what_will_fail_again_is_not_repeated(error: Exception) -> None:
    clock = ManualClock()
    script = Script(error, "never")
    with pytest.raises(type(error)):
        await _run(clock, _retry(clock), script)
    assert script.calls == 1


class Answer(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (ConnectionRefusedError(), True),
        (__import__("socket").gaierror(), True),
        (TimeoutExceeded("late"), True),
        (Answer(500), True),
        (Answer(503), True),
        (Answer(429), True),
        (Answer(408), True),
        (Answer(400), False),
        (Answer(404), False),
        (KeyError("bug"), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_what_is_retryable(error: BaseException, again: bool) -> None:
    assert retryable(error) is again


async def test_the_other_sides_wait_is_respected() -> None:
    clock = ManualClock()
    script = Script(Transient("busy", throttled=True, retry_after_s=50.0), "done")
    task = asyncio.create_task(_retry(clock).call(script))
    await settle()
    await clock.advance(49.9)
    assert script.calls == 1
    await clock.advance(0.1)
    assert await task == "done"


async def test_what_is_not_idempotent_is_repeated_only_when_nothing_happened() -> None:
    clock = ManualClock()
    for error in (OutcomeUnknown("cut"), TimeoutExceeded("late"), ConnectionResetError()):
        script = Script(error, "twice!")
        with pytest.raises(type(error)):
            await _run(clock, _retry(clock, idempotent=False), script)
    assert await _run(clock, _retry(clock, idempotent=False), Script(ConnectionRefusedError(), "once")) == "once"


async def test_bad_results_are_retried_and_the_last_is_returned() -> None:
    clock = ManualClock()
    retry = _retry(clock, retry_on_result=lambda result: result is None)
    assert await _run(clock, retry, Script(None, None, 7)) == 7
    assert await _run(clock, retry, Script(None, None, None, 7)) is None


async def test_never_sleeps_past_the_deadline() -> None:
    clock = ManualClock()
    script = Script(ConnectionError("one"), ConnectionError("two"), "too late")
    with deadline(2.5, clock=clock):
        task = asyncio.create_task(_retry(clock).call(script))
        await settle()
    await clock.advance(1.0)
    assert str(task.exception()) == "two"
    assert script.calls == 2
    assert "deadline" in task.exception().__notes__[-1]  # type: ignore[union-attr]


async def test_cancelled_while_waiting_it_stops_and_refunds() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, clock=clock)
    retry = _retry(clock, budget=budget)
    task = asyncio.create_task(retry.call(Script(ConnectionError(), "never")))
    await settle()
    assert (budget.running, budget.available) == (1, 0.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (budget.running, budget.available) == (0, 1.0)


async def test_an_exhausted_budget_shows_the_real_error() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.0, clock=clock)
    with pytest.raises(ConnectionError, match="real") as caught:
        await _run(clock, _retry(clock, budget=budget), Script(ConnectionError("real"), "never"))
    assert "budget" in caught.value.__notes__[-1]


async def test_a_long_wait_becomes_a_reschedule() -> None:
    clock = ManualClock()
    retry = _retry(clock)
    error = Transient("busy", retry_after_s=60.0)
    assert await retry.call_or_reschedule(1.0, Script(error)) == Reschedule(clock.time() + 60.0, 60.0, 2, error)
    assert await retry.call_or_reschedule(1.0, Script("done")) == "done"
    task = asyncio.create_task(retry.call_or_reschedule(1.0, Script(ConnectionError(), ConnectionError("b"), "never")))
    await settle()
    await clock.advance(1.0)
    rescheduled = task.result()
    assert isinstance(rescheduled, Reschedule)
    assert (rescheduled.attempt, rescheduled.delay_s) == (3, 2.0)


def test_sync_and_decorated(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = list[float]()
    monkeypatch.setattr(time, "sleep", slept.append)
    retry = Retry(RetrySettings(jitter_factor=0.0))
    assert retry.call_sync(Script(ConnectionError(), "done").sync) == "done"
    script = Script(ConnectionError(), ConnectionError(), "done")

    @retry
    def work() -> object:
        return script.sync()

    assert work() == "done"
    script = Script(ConnectionError(), ConnectionError(), "done")
    numbers = []
    for attempt in retry.attempts_sync():
        with attempt:
            numbers.append(attempt.number)
            script.sync()
    assert numbers == [1, 2, 3]
    assert slept == [1.0, 1.0, 2.0, 1.0, 2.0]


async def test_iterator() -> None:
    clock = ManualClock()
    retry = _retry(clock)

    async def block(script: Script) -> object:
        result: object = None
        async for attempt in retry.attempts():
            with attempt:
                result = await script()
        return result

    for script, ends in [
        (Script(ConnectionError(), "done"), "done"),
        (Script(Permanent("no")), Permanent),
        (Script(*[ConnectionError()] * 3), ConnectionError),
    ]:
        task = asyncio.create_task(block(script))
        await settle()
        await clock.advance(10.0)
        if isinstance(ends, type):
            assert isinstance(task.exception(), ends)
        else:
            assert task.result() == ends
        assert not script.ends


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"backoff_multiplier": 0.5},
        {"jitter_factor": 1.5},
        {"initial_delay_s": -1.0},
        {"max_delay_s": math.inf},
        {"delay_min_s": math.nan},
    ],
)
def test_numbers_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        RetrySettings(**wrong)  # type: ignore[arg-type]
