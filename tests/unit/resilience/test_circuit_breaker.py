"""The breaker's states, its permits, and everything that must not move it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.errors import (
    BulkheadFull,
    CircuitOpen,
    CredentialRejected,
    DeadlineExceeded,
    OutcomeUnknown,
    Permanent,
    RecipientGone,
    TimeoutExceeded,
    Transient,
)
from bellbuoy.resilience import (
    APNS,
    FCM,
    MONGODB,
    REDIS,
    BreakerSettings,
    CircuitBreaker,
    CircuitEvent,
    CircuitOpened,
    State,
)
from bellbuoy.resilience.classify import Verdict
from tests.unit.resilience.support import Scene, fail, hang, ok, settle


async def test_opens_at_the_threshold_and_not_before() -> None:
    scene = Scene()
    scene.fail(2)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN
    assert scene.events == [CircuitOpened("them", 1_800_000_000.0, 3, 10.0, "failures")]
    with pytest.raises(CircuitOpen) as refusal:
        scene.breaker.admit()
    assert refusal.value.retry_after_s == 10.0


async def test_refusal_counts_down() -> None:
    scene = Scene()
    scene.fail()
    await scene.clock.advance(4.0, turns=0)
    with pytest.raises(CircuitOpen) as refusal:
        await scene.breaker.call(ok)
    assert refusal.value.retry_after_s == 6.0


async def test_failures_older_than_the_window_never_count() -> None:
    scene = Scene()
    scene.fail(2)
    await scene.clock.advance(60.0, turns=0)
    scene.fail(2)
    assert scene.state() is State.CLOSED
    assert scene.breaker.snapshot().failure_count == 2
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_failure_just_inside_the_window_counts() -> None:
    scene = Scene()
    scene.fail(2)
    await scene.clock.advance(59.9, turns=0)
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_successes_between_failures_do_not_hide_them() -> None:
    scene = Scene()
    for _ in range(3):
        scene.fail(1)
        if scene.state() is State.CLOSED:
            await scene.breaker.call(ok)
    assert scene.state() is State.OPEN


async def test_closes_after_enough_probes() -> None:
    scene = Scene()
    await scene.half_open()
    assert scene.state() is State.HALF_OPEN
    scene.succeed(1)
    assert (scene.breaker.state, scene.breaker.snapshot().success_count) == (State.HALF_OPEN, 1)
    scene.succeed(1)
    assert scene.state() is State.CLOSED
    assert scene.story == ["CircuitOpened", "CircuitHalfOpened", "CircuitClosed"]
    assert scene.breaker.snapshot().failure_count == 0


async def test_no_more_probes_run_than_are_still_needed() -> None:
    scene = Scene(success_threshold=3)
    await scene.half_open()
    scene.succeed(1)
    for _ in range(2):
        scene.breaker.admit()
    with pytest.raises(CircuitOpen):
        scene.breaker.admit()


async def test_a_failed_probe_opens_it_for_the_whole_time_again() -> None:
    scene = Scene()
    await scene.half_open()
    scene.succeed(1)
    scene.fail(1)
    assert scene.breaker.retry_after_s == 10.0
    await scene.clock.advance(10.0, turns=0)
    scene.succeed(1)
    assert scene.state() is State.HALF_OPEN  # The success before the failure is not carried over.


async def test_half_open_admits_as_many_as_must_succeed() -> None:
    scene = Scene()
    await scene.half_open()
    results = await asyncio.gather(*(scene.breaker.call(_later, ok) for _ in range(50)), return_exceptions=True)
    assert results.count("fine") == 2
    refusals = [one for one in results if isinstance(one, CircuitOpen)]
    assert len(refusals) == 48
    assert {one.retry_after_s for one in refusals} == {1.0}
    assert scene.state() is State.CLOSED


async def _later(fn: Callable[[], object]) -> object:
    await asyncio.sleep(0)
    return await fn()  # type: ignore[misc]


async def test_a_cancelled_probe_frees_its_place_and_says_nothing() -> None:
    scene = Scene()
    await scene.half_open()
    probes = [asyncio.create_task(scene.breaker.call(hang)) for _ in range(2)]
    await settle()
    with pytest.raises(CircuitOpen):
        scene.breaker.admit()
    for probe in probes:
        probe.cancel()
    await asyncio.gather(*probes, return_exceptions=True)
    assert scene.state() is State.HALF_OPEN
    scene.succeed(2)
    assert scene.state() is State.CLOSED


async def test_cancelled_calls_never_open_it() -> None:
    scene = Scene()
    calls = [asyncio.create_task(scene.breaker.call(hang)) for _ in range(10)]
    await settle()
    for call in calls:
        call.cancel()
    assert all(isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*calls, return_exceptions=True))
    assert scene.breaker.snapshot().failure_count == 0


async def test_a_late_success_does_not_close_it() -> None:
    scene = Scene(success_threshold=1)
    late = scene.breaker.admit()
    await scene.half_open()
    probe = scene.breaker.admit()
    late.success()
    assert scene.state() is State.HALF_OPEN
    probe.failure(ConnectionError())
    late.success()
    assert scene.state() is State.OPEN


async def test_a_late_failure_neither_reopens_nor_extends() -> None:
    scene = Scene()
    late = [scene.breaker.admit() for _ in range(3)]
    stragglers = [asyncio.create_task(scene.breaker.call(_fail_after, scene.clock, 4.0)) for _ in range(3)]
    await settle()
    scene.fail()
    await scene.clock.advance(4.0)
    assert [type(task.exception()) for task in stragglers] == [ConnectionError] * 3
    assert scene.breaker.retry_after_s == 6.0
    await scene.clock.advance(6.0, turns=0)
    scene.succeed(2)
    for permit in late:
        permit.failure(ConnectionError())
    assert (scene.breaker.state, scene.breaker.snapshot().failure_count) == (State.CLOSED, 0)


async def _fail_after(clock: ManualClock, delay_s: float) -> None:
    await clock.sleep(delay_s)
    raise ConnectionError


async def test_a_stale_probe_takes_no_place_in_the_next_round() -> None:
    scene = Scene()
    await scene.half_open()
    stale, failing = scene.breaker.admit(), scene.breaker.admit()
    failing.failure(ConnectionError())
    await scene.clock.advance(10.0, turns=0)
    fresh = [scene.breaker.admit(), scene.breaker.admit()]
    stale.success()
    with pytest.raises(CircuitOpen):
        scene.breaker.admit()
    fresh[0].success()
    assert scene.state() is State.HALF_OPEN


async def test_a_hung_probe_is_given_up_and_counts_against() -> None:
    scene = Scene()
    await scene.half_open()
    hung = [scene.breaker.admit(), scene.breaker.admit()]
    await scene.clock.advance(9.9, turns=0)
    with pytest.raises(CircuitOpen, match="tested"):
        scene.breaker.admit()
    await scene.clock.advance(0.1, turns=0)
    with pytest.raises(CircuitOpen):
        scene.breaker.admit()
    assert isinstance(scene.events[-1], CircuitOpened)
    assert scene.events[-1].reason == "lease"
    await scene.clock.advance(10.0, turns=0)
    for permit in hung:
        permit.success()
    scene.succeed(2)
    assert scene.state() is State.CLOSED


async def test_a_permit_reports_once() -> None:
    scene = Scene()
    permit = scene.breaker.admit()
    for _ in range(5):
        permit.failure(ConnectionError())
    assert scene.breaker.snapshot().failure_count == 1


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ConnectionError(), True),
        (TimeoutError(), True),
        (TimeoutExceeded("late"), True),
        (TimeoutExceeded("never admitted", started=False), False),
        (OSError(), True),
        (Transient("503"), True),
        (Transient("429", throttled=True), False),
        (OutcomeUnknown("cut"), True),
        (Permanent("bad request"), False),
        (RecipientGone("gone"), False),
        (CredentialRejected("key"), False),
        (CircuitOpen("another"), False),
        (BulkheadFull("full"), False),
        (DeadlineExceeded("past"), False),
        (ValueError("a bug"), True),
        (KeyboardInterrupt(), False),
    ],
)
async def test_what_counts(error: BaseException, counts: bool) -> None:
    scene = Scene()
    for _ in range(3):
        with pytest.raises(type(error)):
            await scene.breaker.call(fail, error)
    assert (scene.state() is State.OPEN) is counts


@pytest.mark.parametrize("error", [CredentialRejected("key"), BulkheadFull("full")])
async def test_what_says_nothing_neither_closes_nor_opens_it_half_open(error: Exception) -> None:
    scene = Scene(success_threshold=1)
    await scene.half_open()
    for _ in range(3):
        with pytest.raises(type(error)):
            await scene.breaker.call(fail, error)
    assert scene.state() is State.HALF_OPEN


@pytest.mark.parametrize("error", [Permanent("bad request"), Transient("429", throttled=True)])
async def test_an_answer_that_shows_health_closes_it(error: Exception) -> None:
    scene = Scene(success_threshold=1)
    await scene.half_open()
    with pytest.raises(type(error)):
        await scene.breaker.call(fail, error)
    assert scene.state() is State.CLOSED


async def test_wall_clock_jumps_change_nothing() -> None:
    scene = Scene()
    scene.fail(2)
    scene.clock.jump(86_400.0)
    scene.fail(1)
    assert scene.state() is State.OPEN
    scene.clock.jump(-3 * 86_400.0)
    await scene.clock.advance(9.0, turns=0)
    assert scene.breaker.retry_after_s == 1.0
    await scene.clock.advance(1.0, turns=0)
    assert scene.state() is State.HALF_OPEN


async def test_by_hand() -> None:
    scene = Scene()
    scene.breaker.isolate()
    await scene.clock.advance(3_600.0, turns=0)
    with pytest.raises(CircuitOpen) as refusal:
        await scene.breaker.call(ok)
    assert refusal.value.retry_after_s is None
    snapshot = scene.breaker.snapshot()
    assert (snapshot.state, snapshot.opened_at, snapshot.retry_after_s) == (State.ISOLATED, 1_800_000_000.0, None)
    scene.breaker.close()
    assert await scene.breaker.call(ok) == "fine"
    scene.fail()
    scene.breaker.reset()
    assert scene.breaker.snapshot() == CircuitBreaker("fresh").snapshot()
    assert scene.story == ["CircuitIsolated", "CircuitClosed", "CircuitOpened", "CircuitClosed"]


async def test_a_call_that_began_before_isolation_does_not_end_it() -> None:
    scene = Scene()
    permit = scene.breaker.admit()
    scene.breaker.isolate()
    permit.success()
    assert scene.state() is State.ISOLATED


async def test_reading_changes_nothing() -> None:
    scene = Scene()
    await scene.half_open()
    for _ in range(3):
        assert scene.breaker.snapshot().state is State.HALF_OPEN
        assert scene.state() is State.HALF_OPEN
    assert scene.story == ["CircuitOpened"]
    assert scene.breaker.snapshot().opened_at == 1_800_000_000.0


async def test_disabled_admits_everything_and_learns_nothing() -> None:
    scene = Scene()
    scene.breaker.disable()
    scene.fail(10)
    assert (scene.breaker.state, scene.breaker.snapshot().failure_count) == (State.DISABLED, 0)
    assert await scene.breaker.call(ok) == "fine"


async def test_shadow_tells_and_refuses_nothing() -> None:
    scene = Scene(shadow=True)
    scene.fail()
    assert scene.state() is State.OPEN
    assert isinstance(scene.events[0], CircuitOpened)
    assert scene.events[0].shadow
    assert await scene.breaker.call(ok) == "fine"
    await scene.clock.advance(10.0, turns=0)
    probes = [scene.breaker.admit() for _ in range(10)]
    assert sum(permit.probe for permit in probes) == 2
    for permit in probes:
        permit.success()
    assert scene.state() is State.CLOSED


async def test_consecutive_failures() -> None:
    scene = Scene(consecutive=True)
    for _ in range(10):
        scene.fail(2)
        assert await scene.breaker.call(ok) == "fine"
    assert scene.state() is State.CLOSED
    scene.fail(2)
    await scene.clock.advance(1_000.0, turns=0)
    scene.fail(1)
    assert scene.state() is State.OPEN


@pytest.mark.parametrize("window_calls", [None, 20])
async def test_failure_ratio_needs_enough_calls(window_calls: int | None) -> None:
    scene = Scene(failure_ratio=0.5, minimum_calls=10, window_calls=window_calls)
    scene.fail(9)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_failure_ratio_counts_successes() -> None:
    scene = Scene(failure_ratio=0.5, minimum_calls=10)
    for _ in range(12):
        await scene.breaker.call(ok)
    scene.fail(11)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_slow_calls_open_it() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=4)
    for _ in range(2):
        await scene.breaker.call(ok)
    permits = [scene.breaker.admit() for _ in range(2)]
    await scene.clock.advance(1.5, turns=0)
    permits[0].success()
    assert scene.state() is State.OPEN
    event = scene.events[0]
    assert isinstance(event, CircuitOpened)
    assert event.reason == "slow_calls"


async def test_calls_still_running_are_slow_already() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=4)
    hung = [scene.breaker.admit() for _ in range(4)]
    await scene.clock.advance(1.1, turns=0)
    with pytest.raises(CircuitOpen) as refusal:
        scene.breaker.admit()
    assert refusal.value.retry_after_s == 10.0
    assert scene.events == [CircuitOpened("them", 1_800_000_001.1, 0, 10.0, "slow_calls")]
    for permit in hung:
        permit.success()
    assert scene.state() is State.OPEN


async def test_a_running_slow_call_is_counted_once() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=4)
    slow = scene.breaker.admit()
    await scene.clock.advance(1.1, turns=0)
    scene.succeed(1)
    slow.success()
    scene.succeed(2)
    # One slow among four: had it been counted twice, it would be two among five... and two among four on the way.
    assert scene.state() is State.CLOSED


async def test_cancelled_calls_are_not_slow_calls() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=2)
    dropped = [scene.breaker.admit() for _ in range(5)]
    for permit in dropped:
        permit.drop()
    await scene.clock.advance(5.0, turns=0)
    scene.succeed(5)
    assert scene.state() is State.CLOSED


async def test_a_slow_probe_counts_against() -> None:
    scene = Scene(slow_call_s=1.0)
    await scene.half_open()
    probe = scene.breaker.admit()
    await scene.clock.advance(2.0, turns=0)
    probe.success()
    assert scene.state() is State.OPEN


async def test_open_time_grows_is_capped_and_begins_anew() -> None:
    scene = Scene(reopen_multiplier=2.0, recovery_timeout_s_max=35.0)
    scene.fail()
    waits = []
    for _ in range(5):
        wait = scene.breaker.retry_after_s
        assert wait is not None
        waits.append(wait)
        await scene.clock.advance(wait, turns=0)
        scene.fail(1)
    assert waits == [10.0, 20.0, 35.0, 35.0, 35.0]
    await scene.clock.advance(35.0, turns=0)
    scene.succeed(2)
    scene.fail()
    assert scene.breaker.retry_after_s == 10.0


def test_open_time_jitter_only_adds_and_never_overflows() -> None:
    settings = BreakerSettings(reopen_multiplier=3.0, recovery_jitter=0.2, recovery_timeout_s_max=600.0)
    rng = random.Random(1)
    waits = [settings.open_s(0, rng) for _ in range(200)]
    assert all(60.0 <= wait <= 72.0 for wait in waits)
    assert max(waits) - min(waits) > 6
    assert 600.0 <= settings.open_s(10**6, rng) <= 720.0


async def test_rounds_are_counted_until_it_closes() -> None:
    scene = Scene(success_threshold=1)
    scene.fail()
    rounds = []
    for _ in range(2):
        await scene.clock.advance(10.0, turns=0)
        scene.fail(1)
        rounds.append(scene.breaker.snapshot().rounds)
    scene.breaker.close()
    assert [*rounds, scene.breaker.snapshot().rounds] == [1, 2, 0]


async def test_open_time_jitter_is_drawn_from_the_chance_it_was_given() -> None:
    settings = BreakerSettings(1, 10.0, recovery_jitter=0.5)
    breaker = CircuitBreaker("them", settings, clock=ManualClock(), rng=random.Random(7))
    breaker.admit().failure(ConnectionError())
    assert breaker.retry_after_s == pytest.approx(settings.open_s(0, random.Random(7)))


async def test_what_a_reader_sees_at_the_end_of_the_open_time() -> None:
    scene = Scene()
    scene.fail()
    await scene.clock.advance(9.5, turns=0)
    assert (scene.state(), scene.breaker.retry_after_s) == (State.OPEN, 0.5)
    await scene.clock.advance(0.5, turns=0)
    snapshot = scene.breaker.snapshot()
    assert (snapshot.state, snapshot.retry_after_s, snapshot.success_count) == (State.HALF_OPEN, None, 0)
    scene.breaker.isolate()
    assert scene.breaker.retry_after_s == float("inf")
    scene.breaker.close()
    assert scene.breaker.retry_after_s is None


def test_the_names_of_the_states() -> None:
    assert [*State] == ["closed", "open", "half_open", "isolated", "disabled"]


async def test_permits_say_whether_they_are_probes_and_until_when() -> None:
    scene = Scene(slow_call_s=1.0)
    assert not scene.breaker.admit().probe
    scene.breaker.disable()
    assert not scene.breaker.admit().probe
    scene.breaker.close()
    await scene.half_open()
    probe = scene.breaker.admit()
    now = scene.clock.monotonic()
    assert (probe.probe, probe.started, probe.deadline) == (True, now, now + 10.0)
    assert not Scene().breaker.admit().probe


async def test_arguments_and_results_pass_through() -> None:
    for scene in (Scene(), Scene(consecutive=True)):
        assert await scene.breaker.call(ok, value="well") == "well"
    assert Scene().breaker.call_sync(str.format, "{x}", x=1) == "1"


async def test_blocking_calls_are_learnt_from() -> None:
    scene = Scene(consecutive=True)
    for ends in ("0", "0", "1", "0", "0"):
        with contextlib.suppress(ZeroDivisionError):
            scene.breaker.call_sync(_divide, int(ends))
    assert scene.state() is State.CLOSED
    with pytest.raises(ZeroDivisionError):
        scene.breaker.call_sync(_divide, 0)
    assert scene.state() is State.OPEN


def _divide(by: int) -> int:
    return 1 // by


async def test_opened_by_hand_it_says_that_others_did() -> None:
    scene = Scene()
    scene.breaker.open(for_s=7.0)
    scene.breaker.open()
    assert scene.events == [CircuitOpened("them", 1_800_000_000.0, 0, 7.0, "shared")]
    assert scene.breaker.retry_after_s == 10.0


async def test_a_gate_keeps_an_open_breaker_from_probing() -> None:
    scene = Scene()
    scene.breaker.gate = lambda: False
    await scene.half_open()
    with pytest.raises(CircuitOpen) as refusal:
        scene.breaker.admit()
    assert refusal.value.retry_after_s == 1.0
    scene.breaker.gate = lambda: True
    assert scene.breaker.admit().probe


async def test_a_hung_probe_counts_once_and_its_round_goes_on_if_that_may_be() -> None:
    scene = Scene(success_threshold=4, close_ratio=0.8, timeout_s=2.0)
    await scene.half_open()
    hung = scene.breaker.admit()
    await scene.clock.advance(4.0, turns=0)
    scene.succeed(1)  # The hung one was given up when this one asked, and is the one that may fail.
    hung.failure(ConnectionError())
    assert scene.state() is State.HALF_OPEN
    scene.succeed(3)
    assert scene.state() is State.CLOSED


async def test_several_hung_probes_open_it_once() -> None:
    scene = Scene(reopen_multiplier=2.0)
    await scene.half_open()
    for _ in range(2):
        scene.breaker.admit()
    await scene.clock.advance(10.0, turns=0)
    with pytest.raises(CircuitOpen) as refusal:
        scene.breaker.admit()
    assert (refusal.value.retry_after_s, scene.breaker.snapshot().rounds) == (20.0, 1)


async def test_a_failed_probe_is_told_of_as_such() -> None:
    scene = Scene(consecutive=True)
    await scene.half_open()
    scene.fail(1)
    assert scene.events[-1] == CircuitOpened("them", 1_800_000_010.0, 4, 10.0, "probe")


@pytest.mark.parametrize("verdict", [Verdict.SLOW, Verdict.OK])
async def test_a_probe_that_a_classifier_calls_slow_counts_against(verdict: Verdict) -> None:
    clock, events = ManualClock(), list[CircuitEvent]()
    settings = BreakerSettings(3, 10.0, success_threshold=1)
    breaker = CircuitBreaker(
        "them", settings, clock=clock, classifier=lambda outcome: verdict, judge_results=True, on_event=events.append
    )
    breaker.open()
    await clock.advance(10.0, turns=0)
    await breaker.call(ok)
    last = events[-1]
    if verdict is Verdict.OK:
        assert breaker.state is State.CLOSED
    else:
        assert isinstance(last, CircuitOpened)
        assert last.reason == "slow_calls"


async def test_a_probe_as_slow_as_is_allowed_counts_for() -> None:
    scene = Scene(slow_call_s=1.0, success_threshold=1)
    await scene.half_open()
    probe = scene.breaker.admit()
    await scene.clock.advance(1.0, turns=0)
    probe.success()
    assert scene.state() is State.CLOSED


async def test_a_classifier_can_call_a_fast_call_slow() -> None:
    settings = BreakerSettings(slow_call_s=60.0, minimum_calls=3)
    breaker = CircuitBreaker("them", settings, classifier=lambda outcome: Verdict.SLOW, judge_results=True)
    for _ in range(3):
        await breaker.call(ok)
    assert breaker.state is State.OPEN


async def test_failures_that_are_slow_count_as_slow_calls_too() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=1.0, minimum_calls=2, failure_threshold=10)
    permits = [scene.breaker.admit() for _ in range(2)]
    await scene.clock.advance(2.0, turns=0)
    for permit in permits:
        permit.failure(ConnectionError())
    assert scene.state() is State.OPEN
    last = scene.events[-1]
    assert isinstance(last, CircuitOpened)
    assert (last.reason, last.failure_count) == ("slow_calls", 1)


async def test_failures_that_are_fast_are_no_slow_calls() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=2, failure_threshold=10)
    scene.fail(5)
    assert scene.state() is State.CLOSED


async def test_calls_as_slow_as_is_allowed_are_not_slow() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.1, minimum_calls=2)
    for _ in range(3):
        permits = [scene.breaker.admit() for _ in range(2)]
        await scene.clock.advance(1.0, turns=0)
        permits[0].success()
        scene.breaker.admit().success()
        permits[1].success()
    assert scene.state() is State.CLOSED


@pytest.mark.parametrize("rule", [{}, {"consecutive": True}, {"failure_ratio": 0.5, "minimum_calls": 3}])
async def test_failures_before_it_closed_count_no_more(rule: dict[str, Any]) -> None:
    scene = Scene(**rule)
    scene.fail(2)
    assert scene.breaker.snapshot().failure_count == 2
    scene.breaker.close()
    assert scene.breaker.snapshot().failure_count == 0
    scene.fail(2)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ({"consecutive": True}, {"failure_threshold": 4}),
        ({"failure_ratio": 0.5, "minimum_calls": 3}, {"minimum_calls": 4}),
        ({"failure_ratio": 0.5, "minimum_calls": 2, "window_calls": 6}, {"failure_ratio": 0.8, "minimum_calls": 4}),
    ],
)
async def test_reconfigured_within_a_rule_it_keeps_the_count(rule: dict[str, Any], change: dict[str, Any]) -> None:
    scene = Scene(**rule)
    scene.fail(1)
    scene.breaker.configure(scene.breaker.settings.replace(**change))
    scene.fail(2)
    assert (scene.state(), scene.breaker.snapshot().failure_count) == (State.CLOSED, 3)
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_what_was_slow_before_it_closed_counts_no_more() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.3, minimum_calls=3)
    slow = [scene.breaker.admit() for _ in range(2)]
    await scene.clock.advance(1.5, turns=0)
    slow[0].success()
    scene.breaker.close()
    scene.succeed(2)
    assert scene.state() is State.CLOSED


async def test_each_new_state_makes_permits_void() -> None:
    scene = Scene()
    permit = scene.breaker.admit()
    for _ in range(2):
        scene.breaker.isolate()
        scene.breaker.close()
    permit.failure(ConnectionError())
    assert scene.breaker.snapshot().failure_count == 0
    assert scene.story == ["CircuitIsolated", "CircuitClosed"] * 2
    scene.breaker.close()
    assert len(scene.events) == 4  # It was closed already.


async def test_without_a_ramp_it_admits_all_at_once() -> None:
    scene = Scene(success_threshold=1)
    await scene.half_open()
    scene.succeed(1)
    assert scene.breaker._ramp is None
    assert all(_admitted(scene) for _ in range(100))


async def test_closed_by_hand_it_admits_all_at_once() -> None:
    scene = Scene(ramp_s=10.0, ramp_start=0.1)
    scene.breaker.isolate()
    scene.breaker.close()
    assert all(_admitted(scene) for _ in range(10))


async def test_who_is_refused_during_a_ramp_is_told_to_come_back_soon() -> None:
    scene = Scene(ramp_s=10.0, ramp_start=0.1, success_threshold=1)
    await scene.half_open()
    scene.succeed(1)
    assert _admitted(scene)
    with pytest.raises(CircuitOpen, match="coming back") as refusal:
        scene.breaker.admit()
    assert refusal.value.retry_after_s == 1.0
    assert scene.breaker.snapshot().admitted_share == pytest.approx(0.1)
    await scene.clock.advance(10.0, turns=0)
    assert _admitted(scene)
    assert scene.breaker._ramp is None


async def test_the_ramps_share_is_counted_out() -> None:
    scene = Scene(ramp_s=10.0, ramp_start=0.5, success_threshold=1)
    await scene.half_open()
    scene.succeed(1)
    assert [_admitted(scene) for _ in range(6)] == [True, True, False, True, False, True]
    await scene.clock.advance(20.0, turns=0)
    assert scene.breaker.snapshot().admitted_share == 1.0


async def test_a_ramp_can_be_short_and_be_ended() -> None:
    scene = Scene(ramp_s=0.5, ramp_start=0.1, success_threshold=1)
    await scene.half_open()
    scene.succeed(1)
    await scene.clock.advance(0.25, turns=0)
    assert scene.breaker.snapshot().admitted_share == pytest.approx(0.55)
    scene.breaker.configure(scene.breaker.settings.replace(ramp_s=0.0))
    assert all(_admitted(scene) for _ in range(10))


def test_open_time_grows_by_powers() -> None:
    settings = BreakerSettings(recovery_timeout_s=10.0, reopen_multiplier=3.0, recovery_timeout_s_max=500.0)
    assert [settings.open_s(n, random.Random(1)) for n in range(5)] == pytest.approx([10, 30, 90, 270, 500])


async def test_recovery_is_ramped() -> None:
    scene = Scene(ramp_s=10.0, ramp_start=0.1, success_threshold=1)
    await scene.half_open()
    scene.succeed(1)
    admitted = []
    for _ in range(10):
        admitted.append(sum(_admitted(scene) for _ in range(100)))
        await scene.clock.advance(1.0, turns=0)
    assert all(abs(many - (10 + 9 * second)) <= 2 for second, many in enumerate(admitted))
    assert sum(_admitted(scene) for _ in range(100)) == 100
    assert scene.breaker.snapshot().admitted_share == 1.0


def _admitted(scene: Scene) -> bool:
    try:
        scene.breaker.admit().success()
    except CircuitOpen:
        return False
    return True


async def test_close_ratio_allows_some_probes_to_fail() -> None:
    scene = Scene(success_threshold=4, close_ratio=0.8)
    await scene.half_open()
    scene.fail(1)
    scene.succeed(3)
    assert scene.state() is State.HALF_OPEN
    scene.succeed(1)
    assert scene.state() is State.CLOSED
    await scene.half_open()
    scene.fail(2)
    assert scene.breaker.retry_after_s == 10.0


async def test_reconfigured_it_keeps_what_it_knows() -> None:
    scene = Scene()
    scene.fail(2)
    scene.breaker.configure(scene.breaker.settings.replace(failure_threshold=4))
    scene.fail(1)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN
    scene.breaker.configure(scene.breaker.settings.replace(recovery_timeout_s=30.0))
    assert scene.breaker.retry_after_s == 30.0
    scene.breaker.configure(scene.breaker.settings.replace(failure_ratio=0.5, slow_call_s=1.0))
    assert scene.state() is State.OPEN
    assert scene.breaker.settings.failure_ratio == 0.5


async def test_reconfigured_it_goes_by_another_rule() -> None:
    scene = Scene()
    scene.fail(2)
    scene.breaker.configure(scene.breaker.settings.replace(consecutive=True))
    scene.fail(2)
    assert await scene.breaker.call(ok) == "fine"  # Successes matter now.
    scene.fail(2)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_reconfigured_it_begins_and_ceases_to_mind_slow_calls() -> None:
    scene = Scene()
    settings = scene.breaker.settings
    strict = settings.replace(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=2)

    async def slow(times: int) -> None:
        permits = [scene.breaker.admit() for _ in range(times)]
        await scene.clock.advance(1.5, turns=0)
        for permit in permits:
            permit.success()

    await slow(5)
    scene.breaker.configure(strict)
    await slow(1)
    scene.breaker.configure(strict.replace(slow_call_s=1.2, minimum_calls=3))
    await slow(1)
    assert scene.state() is State.CLOSED
    scene.breaker.configure(settings)
    await slow(5)
    assert scene.state() is State.CLOSED
    scene.breaker.configure(strict.replace(slow_call_s=2.0))
    await slow(5)
    assert scene.state() is State.CLOSED
    scene.breaker.configure(strict)
    await slow(4)  # With the five that were fast by the numbers of their time.
    assert scene.state() is State.CLOSED
    scene.breaker.configure(strict.replace(slow_call_ratio=0.45))
    scene.succeed(1)
    await slow(1)  # Five of eleven.
    assert scene.state() is State.OPEN


async def test_slow_calls_in_a_window_of_another_length_are_counted_anew() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.5, minimum_calls=2)
    for window_s in (60.0, 20.0):
        scene.breaker.configure(scene.breaker.settings.replace(monitoring_window_s=window_s))
        permit = scene.breaker.admit()
        await scene.clock.advance(1.5, turns=0)
        permit.success()
    assert scene.state() is State.CLOSED


async def test_another_ratio_holds_for_what_was_counted() -> None:
    scene = Scene(failure_ratio=0.5, minimum_calls=4)
    scene.succeed(1)
    scene.breaker.configure(scene.breaker.settings.replace(failure_ratio=0.9))
    scene.fail(8)
    assert scene.state() is State.CLOSED
    scene.fail(1)
    assert scene.state() is State.OPEN


async def test_what_still_ran_when_it_closed_is_never_a_slow_call() -> None:
    scene = Scene(slow_call_s=1.0, slow_call_ratio=0.1, minimum_calls=2)
    running = [scene.breaker.admit() for _ in range(2)]
    await scene.clock.advance(0.5, turns=0)
    scene.breaker.close()
    await scene.clock.advance(1.0, turns=0)
    scene.succeed(3)
    for permit in running:
        permit.success()
    assert scene.state() is State.CLOSED


async def test_an_open_time_goes_on_unless_it_is_changed() -> None:
    scene = Scene()
    scene.breaker.open(for_s=99.0)
    scene.breaker.configure(scene.breaker.settings.replace(failure_threshold=9))
    assert scene.breaker.retry_after_s == 99.0
    scene.breaker.close()
    scene.breaker.configure(scene.breaker.settings.replace(recovery_timeout_s=30.0))
    assert scene.breaker.retry_after_s is None
    scene.fail(9)
    assert scene.breaker.retry_after_s == 30.0


@pytest.mark.parametrize("change", [{"monitoring_window_s": 20.0}, {"failure_ratio": 0.5}, {"window_calls": 3}])
async def test_a_reconfigured_window_is_the_one_that_counts(change: dict[str, float]) -> None:
    scene = Scene(minimum_calls=3, failure_ratio=1.0)
    scene.fail(2)
    scene.breaker.configure(scene.breaker.settings.replace(**change))
    kept = "failure_ratio" in change  # Of a window of another size nothing is kept.
    assert scene.breaker.snapshot().failure_count == (2 if kept else 0)
    await scene.clock.advance(30.0, turns=0)
    scene.fail(1)
    assert scene.state() is (State.OPEN if kept else State.CLOSED)


async def test_a_narrower_window_of_failures_forgets_at_once() -> None:
    scene = Scene()
    scene.fail(2)
    await scene.clock.advance(30.0, turns=0)
    scene.breaker.configure(scene.breaker.settings.replace(monitoring_window_s=20.0))
    scene.fail(1)
    assert (scene.state(), scene.breaker.snapshot().failure_count) == (State.CLOSED, 1)


async def test_results_can_be_bad() -> None:
    def judge(outcome: object) -> Verdict:
        return Verdict.FAIL if outcome == "bad" else Verdict.OK

    breaker = CircuitBreaker("them", BreakerSettings(2), classifier=judge, judge_results=True)
    assert [await breaker.call(ok, "bad"), await breaker.call(ok, "good")] == ["bad", "good"]
    assert breaker.snapshot().state is State.CLOSED
    await breaker.call(ok, "bad")
    assert breaker.snapshot().state is State.OPEN


async def test_decorates_both_kinds_of_functions() -> None:
    breaker = CircuitBreaker("them", BreakerSettings(1))

    @breaker
    async def double(x: int) -> int:
        return 2 * x

    @breaker
    def halve(x: int) -> float:
        return 1 / x

    assert (await double(4), halve(2), await double(x=4), halve(x=2)) == (8, 0.5, 8, 0.5)
    with pytest.raises(ZeroDivisionError):
        halve(0)
    with pytest.raises(CircuitOpen):
        await double(1)
    assert double.__name__ == "double"


async def test_events_as_a_stream() -> None:
    scene = Scene()
    stream = scene.breaker.stream(keep_max=2)
    reading = asyncio.ensure_future(anext(stream))
    await settle()
    scene.fail()
    assert type(await reading).__name__ == "CircuitOpened"
    scene.breaker.isolate()
    scene.breaker.close()
    scene.breaker.isolate()
    stream.close()
    assert [type(event).__name__ async for event in stream] == ["CircuitClosed", "CircuitIsolated"]
    assert stream.lost == 1


async def test_a_listener_that_raises_does_not_harm(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: object) -> None:
        raise RuntimeError("no")

    breaker = CircuitBreaker("them", BreakerSettings(1), on_event=broken)
    with pytest.raises(ConnectionError):
        await breaker.call(fail)
    assert breaker.snapshot().state is State.OPEN
    assert "listener failed" in caplog.text


def test_the_ready_made_numbers() -> None:
    numbers = [
        (one.failure_threshold, one.recovery_timeout_s, one.monitoring_window_s, one.success_threshold, one.timeout_s)
        for one in (FCM, APNS, MONGODB, REDIS)
    ]
    assert numbers == [(5, 60, 300, 3, 10), (3, 30, 180, 2, 15), (8, 20, 120, 5, 5), (10, 10, 60, 3, 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"failure_threshold": 0},
        {"recovery_timeout_s": -1.0},
        {"timeout_s": float("nan")},
        {"failure_ratio": 0.0},
        {"close_ratio": 1.1},
        {"reopen_multiplier": 0.9},
        {"recovery_jitter": -0.1},
        {"ramp_s": -1.0},
    ],
)
def test_numbers_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        BreakerSettings().replace(**wrong)
