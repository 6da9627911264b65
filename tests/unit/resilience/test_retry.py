"""Back-off, what is retried, and the bounds on it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.clock import ManualClock
from bellbuoy.errors import BulkheadFull, CircuitOpen, OutcomeUnknown, Permanent, TimeoutExceeded, Transient
from bellbuoy.resilience import (
    Bulkhead,
    Reschedule,
    Retry,
    RetryBudget,
    RetryExhausted,
    RetryScheduled,
    RetrySettings,
    Timeout,
    deadline,
    retryable,
)
from bellbuoy.resilience.backoff import Jitter
from bellbuoy.resilience.testing import instant
from tests.unit.resilience.support import hang, settle


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


async def _through_attempts(retry: Retry, script: Script) -> object:
    async for attempt in retry.attempts():
        with attempt as same:
            assert same is attempt
            return await script()
    return None


def _through_attempts_sync(retry: Retry, script: Script) -> object:
    for attempt in retry.attempts_sync():
        with attempt:
            return script.sync()
    return None


async def _sync(result: object) -> object:
    return result


FORMS: dict[str, Callable[[Retry, Script], Awaitable[object]]] = {
    "call": lambda retry, script: retry.call(script),
    "call_or_reschedule": lambda retry, script: retry.call_or_reschedule(60.0, script),
    "call_sync": lambda retry, script: _sync(retry.call_sync(script.sync)),
    "attempts": _through_attempts,
    "attempts_sync": lambda retry, script: _sync(_through_attempts_sync(retry, script)),
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_counts_its_call_and_charges_what_it_repeats(form: str) -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=1.0, per_second_min=0.0, clock=clock)
    retry = _retry(clock, budget=budget)
    with instant():
        assert await FORMS[form](retry, Script("done")) == "done"
        assert (budget.running, budget.available) == (0, 1.0)
        assert await FORMS[form](retry, Script(ConnectionError(), "done")) == "done"
        assert (budget.running, budget.available) == (0, 1.0)
        with pytest.raises(ConnectionError):
            await FORMS[form](retry, Script(*[ConnectionError()] * 3))
        assert (budget.running, budget.available) == (0, 0.0)


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_lets_go_when_it_is_interrupted(form: str) -> None:
    clock = ManualClock()
    budget = RetryBudget(clock=clock)
    with instant(), pytest.raises(asyncio.CancelledError):
        await FORMS[form](_retry(clock, budget=budget), Script(ConnectionError(), asyncio.CancelledError(), "never"))
    await settle()
    assert (budget.running, budget.available) == (0, 99.2)  # The extra attempt was made, so it stays charged.
    assert not budget.has_counted


@pytest.mark.parametrize("form", ["call_sync", "attempts_sync"])
async def test_interrupted_while_waiting_a_blocking_form_refunds(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, clock=clock)
    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await FORMS[form](_retry(clock, budget=budget), Script(ConnectionError(), "never"))
    assert (budget.running, budget.available) == (0, 1.0)


async def test_cancelled_while_waiting_the_iterator_refunds() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, clock=clock)
    task = asyncio.create_task(_through_attempts(_retry(clock, budget=budget), Script(ConnectionError(), "never")))
    await settle()
    assert (budget.running, budget.available) == (1, 0.0)
    task.cancel()
    await settle()
    assert (task.cancelled(), budget.running, budget.available) == (True, 0, 1.0)


async def test_the_iterator_waits_between_its_attempts() -> None:
    clock = ManualClock()
    script = Script(ConnectionError(), "done")
    task = asyncio.create_task(_through_attempts(_retry(clock), script))
    await settle()
    await clock.advance(0.9)
    assert script.calls == 1
    await clock.advance(0.1)
    assert await task == "done"


async def test_arguments_reach_every_attempt() -> None:
    clock, seen = ManualClock(), list[tuple[int, int]]()

    async def work(x: int, *, y: int) -> str:
        seen.append((x, y))
        if len(seen) % 2:
            raise ConnectionError
        return "done"

    with instant():
        assert await _retry(clock).call(work, 1, y=2) == "done"
        assert await _retry(clock).call_or_reschedule(60.0, work, 1, y=2) == "done"
        assert _retry(clock).call_sync(str.format, "{x}", x=1) == "1"
    assert seen == [(1, 2)] * 4


async def test_reconfigured_it_goes_by_the_new_numbers() -> None:
    clock = ManualClock()
    retry = _retry(clock)
    script = Script(ConnectionError(), ConnectionError(), "never")
    task = asyncio.create_task(retry.call(script))
    await settle()
    retry.configure(RetrySettings(max_attempts=2))
    await clock.advance(1.0)
    assert isinstance(task.exception(), ConnectionError)
    assert script.calls == 2


async def test_a_bad_result_that_may_not_be_repeated_is_returned() -> None:
    retry = Retry(RetrySettings(1), retry_on_result=lambda result: True)
    assert await retry.call(Script(7)) == 7


@pytest.mark.parametrize("form", ["call", "call_or_reschedule"])
@pytest.mark.parametrize("ran_before", [False, True])
async def test_a_timeout_around_it_knows_whether_any_attempt_ran(form: str, ran_before: bool) -> None:
    clock = ManualClock()
    bulkhead = Bulkhead("them", concurrency_max=1, queue_max=1, clock=clock)
    script, retry = Script(ConnectionError(), "never"), _retry(clock)
    holders = list[asyncio.Task[str]]()

    async def attempt() -> object:
        return await bulkhead.call(script)

    def hold() -> None:
        holders.append(asyncio.create_task(bulkhead.call(hang)))

    if not ran_before:
        hold()
        await settle()
    task = asyncio.create_task(Timeout(10.0, clock=clock).call(FORMS[form], retry, attempt))  # type: ignore[arg-type]
    await settle()
    if ran_before:
        hold()
    await clock.advance(10.0)
    error = task.exception()
    assert isinstance(error, TimeoutExceeded)
    assert error.started is ran_before
    holders[0].cancel()
    await settle()


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


async def test_a_bad_result_becomes_a_reschedule_as_well_and_is_not_charged() -> None:
    clock = ManualClock()
    budget = RetryBudget(ratio=0.0, per_second_min=0.1, clock=clock)
    retry = _retry(clock, retry_on_result=lambda result: result == "bad", budget=budget)
    assert await retry.call_or_reschedule(0.5, Script("bad")) == Reschedule(clock.time() + 1.0, 1.0, 2, None)
    assert (budget.running, budget.available) == (0, 1.0)


class Busy:
    def __init__(self, retry_after_s: object) -> None:
        self.retry_after_s = retry_after_s


@pytest.mark.parametrize(("asked", "wait_s"), [(7.0, 7.0), (7, 7.0), ("soon", 1.0), (None, 1.0)])
async def test_a_result_can_ask_for_a_wait(asked: object, wait_s: float) -> None:
    clock = ManualClock()
    retry = _retry(clock, retry_on_result=lambda result: isinstance(result, Busy))
    task = asyncio.create_task(retry.call(Script(Busy(asked), "done")))
    await settle()
    await clock.advance(wait_s - 0.1)
    assert not task.done()
    await clock.advance(0.1)
    assert task.result() == "done"


@pytest.mark.parametrize("form", ["call", "call_or_reschedule", "call_sync"])
async def test_bad_results_are_charged_and_let_go(form: str) -> None:
    clock = ManualClock()
    budget = RetryBudget(clock=clock)
    retry = _retry(clock, budget=budget, retry_on_result=lambda result: result is None)
    with instant():
        assert await FORMS[form](retry, Script(None, None, "done")) == "done"
    assert (budget.running, budget.available) == (0, 98.2)  # One call and two extra attempts of a hundred.


Told = list[RetryScheduled | RetryExhausted]


async def test_says_why_it_gave_up() -> None:
    clock, told = ManualClock(), Told()
    final, spent, late = Permanent("no"), ConnectionError("spent"), ConnectionError("late")
    with pytest.raises(Permanent):
        await _retry(clock, on_event=told.append).call(Script(final))
    assert not hasattr(final, "__notes__")  # There is nothing to say of an error that came at once and stays.
    with pytest.raises(Permanent):
        await _run(clock, _retry(clock, on_event=told.append), Script(ConnectionError("one"), final))
    empty = RetryBudget(ratio=0.0, per_second_min=0.0, clock=clock)
    with pytest.raises(ConnectionError):
        await _retry(clock, on_event=told.append, budget=empty).call(Script(spent))
    with deadline(1.0, clock=clock), pytest.raises(ConnectionError):  # It would wait until just then.
        await _retry(clock, on_event=told.append, name="mine").call(Script(late))
    ends = [(one.attempt, one.because) for one in told if isinstance(one, RetryExhausted)]
    assert ends == [(1, "final"), (2, "final"), (1, "budget"), (1, "deadline")]
    assert [error.__notes__ for error in (final, spent, late)] == [
        ["retry: gave up after attempt 2 (final); the one before raised ConnectionError('one')"],
        ["retry: gave up after attempt 1 (budget)"],
        ["mine: gave up after attempt 1 (deadline)"],
    ]


async def test_decorrelated_waits_grow_from_each_other() -> None:
    class Longest(Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    clock, told = ManualClock(), Told()
    retry = Retry(RetrySettings(5, jitter="decorrelated"), clock=clock, rng=Longest(), on_event=told.append)
    with instant(), pytest.raises(ConnectionError):
        await retry.call(Script(*[ConnectionError()] * 5))
    assert [one.delay_s for one in told if isinstance(one, RetryScheduled)] == [3.0, 9.0, 27.0, 30.0]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TimeoutExceeded("late"), False),
        (TimeoutExceeded("never admitted", started=False), True),
        (BulkheadFull("full"), True),
        (OutcomeUnknown("cut"), False),
        (ConnectionResetError(), False),
        (ConnectionRefusedError(), True),
        (Transient("503"), True),
    ],
)
async def test_what_surely_had_no_effect_may_be_repeated(error: Exception, again: bool) -> None:
    script = Script(error, "done")
    retry = _retry(ManualClock(), idempotent=False, retry_on=lambda error: True)
    with instant(), contextlib.suppress(type(error)):
        await retry.call(script)
    assert script.calls == 1 + again


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
