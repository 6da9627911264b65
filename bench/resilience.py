"""What a guarded call costs, ours and our peers', on the success path.

    python bench/resilience.py          a table
    python bench/resilience.py --json   {"guard_ns": {name: median}, "breaker_ns": {name: median}, ...}
    python bench/resilience.py --check  fails when one of the limits below is exceeded

Kits that are not installed are left out of the table; `--check` wants those that it compares with. The figures are
those of asyncio's own loop; `uvloop_guard_ns` and `uvloop_breaker_ns` are the same under uvloop.

pybreaker's decorator does nothing for an `async def` function: it judges the making of the coroutine, which always
succeeds, and its `call_async` is for Tornado. It is therefore measured on a function that is not asynchronous, and
`bellbuoy (sync)` beside it.

Every kit runs in the same process, one after the other in each round, so that a disturbance of the machine meets all of
them; the figure is the median of the rounds. What is measured is the time of the processor that the thread takes, all
there is to a call that never waits: other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from bellbuoy.errors import CircuitOpen
from bellbuoy.resilience import BreakerSettings, Bulkhead, CircuitBreaker, Guard, Retry, Timeout

Call = Callable[[], Awaitable[Any]]
ROUNDS, CALLS = 15, 2_000


# At most this share of the peer's figure.
LIMITS = (("guard_ns", "nopanic", 0.25), ("breaker_ns", "nopanic", 0.5), ("breaker_ns", "circuitbreaker", 1.0))
# With 10^5 failures in the window one more costs at most this much of what it costs with 10^2: noise, not growth.
FLATNESS_MAX = 1.5


async def work() -> int:
    return 1


def work_sync() -> int:
    return 1


def breakers() -> dict[str, Callable[[], Call]]:
    """Kits by name, each with what makes a call through its breaker alone."""
    return {
        "bare": lambda: work,
        "bellbuoy": lambda: CircuitBreaker("b", BreakerSettings())(work),
        "nopanic": lambda: _kit("nopanic").circuit_breaker()(work),
        "interlock-cb": lambda: _kit("interlock").CircuitBreaker(name="b")(work),
        "pyresilience": _pyresilience_breaker,
        "hyx": lambda: _kit("hyx.circuitbreaker").consecutive_breaker()(work),
        "purgatory": lambda: _kit("purgatory").AsyncCircuitBreakerFactory()("b")(work),
        "aiobreaker": lambda: _kit("aiobreaker").CircuitBreaker()(work),
        "circuitbreaker": lambda: _kit("circuitbreaker").circuit()(work),
        "bellbuoy (sync)": lambda: _sync(CircuitBreaker("b", BreakerSettings())(work_sync)),
        "pybreaker": lambda: _sync(_kit("pybreaker").CircuitBreaker()(work_sync)),
    }


def retries() -> dict[str, Callable[[], Call]]:
    """Kits by name, each with what makes a call through its retry alone."""
    return {
        "bare": lambda: work,
        "bellbuoy": lambda: Retry()(work),
        "nopanic": lambda: _kit("nopanic").retry(3)(work),
        "pyresilience": lambda: _kit("pyresilience").resilient(retry=_kit("pyresilience").RetryConfig())(work),
        "hyx": lambda: _kit("hyx.retry").retry()(work),
        "stamina": lambda: _kit("stamina").retry(on=Exception)(work),
        "tenacity": lambda: _tenacity_retry(work),
        "backoff": lambda: _backoff_retry(work),
    }


def guards() -> dict[str, Callable[[], Call]]:
    """Kits by name, each with what makes a call through its breaker, retry, timeout and bulkhead."""
    return {
        "bare": lambda: work,
        "bellbuoy": _ours,
        "nopanic": _nopanic,
        "pyresilience": _pyresilience,
        "hyx": _hyx,
        "interlock-cb + stamina": _interlock,
        "circuitbreaker + tenacity": _tenacity,
        "aiobreaker + backoff": _backoff,
    }


def _kit(name: str) -> Any:
    return importlib.import_module(name)


def _ours() -> Call:
    guard = Guard("g", Retry(), Bulkhead("g", concurrency_max=100), CircuitBreaker("g"), Timeout(10.0))
    return lambda: guard.call(work)


def _nopanic() -> Call:
    kit = _kit("nopanic")
    call: Call = kit.compose(kit.retry(3), kit.bulkhead(100), kit.circuit_breaker(), kit.timeout(10.0))(work)
    return call


def _pyresilience_breaker() -> Call:
    kit = _kit("pyresilience")
    call: Call = kit.resilient(circuit_breaker=kit.CircuitBreakerConfig())(work)
    return call


def _pyresilience() -> Call:
    kit = _kit("pyresilience")
    call: Call = kit.resilient(
        circuit_breaker=kit.CircuitBreakerConfig(),
        retry=kit.RetryConfig(),
        timeout=kit.TimeoutConfig(seconds=10.0),
        bulkhead=kit.BulkheadConfig(max_concurrent=100),
    )(work)
    return call


def _hyx() -> Call:
    guarded = _kit("hyx.timeout").timeout(10.0)(work)
    guarded = _kit("hyx.circuitbreaker").consecutive_breaker()(guarded)
    guarded = _kit("hyx.bulkhead").bulkhead(100, 100)(guarded)
    call: Call = _kit("hyx.retry").retry()(guarded)
    return call


def _with_asyncio(guarded: Call) -> Call:
    places = asyncio.Semaphore(100)

    async def call() -> Any:
        async with places, asyncio.timeout(10.0):
            return await guarded()

    return call


def _interlock() -> Call:
    call: Call = _kit("stamina").retry(on=Exception)(_with_asyncio(_kit("interlock").CircuitBreaker(name="g")(work)))
    return call


def _tenacity() -> Call:
    return _tenacity_retry(_with_asyncio(_kit("circuitbreaker").circuit()(work)))


def _tenacity_retry(fn: Call) -> Call:
    kit = _kit("tenacity")
    call: Call = kit.retry(stop=kit.stop_after_attempt(3), wait=kit.wait_random_exponential())(fn)
    return call


def _backoff() -> Call:
    return _backoff_retry(_with_asyncio(_kit("aiobreaker").CircuitBreaker()(work)))


def _backoff_retry(fn: Call) -> Call:
    kit = _kit("backoff")
    call: Call = kit.on_exception(kit.expo, Exception, max_tries=3)(fn)
    return call


class _sync:
    """A call that is not asynchronous, which `_time` makes as such."""

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn

    async def __call__(self) -> Any:
        return self.fn()


async def measure(makers: dict[str, Callable[[], Call]]) -> dict[str, int]:
    """Nanoseconds a call, the median of the rounds, for each kit that is there."""
    calls: dict[str, Call] = {}
    for name, make in makers.items():
        with contextlib.suppress(ImportError):
            calls[name] = make()
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        await _time(call, CALLS // 4)  # Warmed up, and a kit that is used wrongly fails here.
    for _ in range(ROUNDS):
        for name, call in calls.items():
            rounds[name].append(await _time(call, CALLS))
    return {name: round(statistics.median(times)) for name, times in rounds.items()}


async def _time(call: Call, calls: int) -> float:
    if isinstance(call, _sync):
        fn = call.fn
        began = time.thread_time_ns()
        for _ in range(calls):
            fn()
        return (time.thread_time_ns() - began) / calls
    began = time.thread_time_ns()
    for _ in range(calls):
        await call()
    return (time.thread_time_ns() - began) / calls


async def refusal_ns() -> int:
    """What an open breaker costs a call, the exception and its handling included."""
    breaker = CircuitBreaker("b")
    breaker.isolate()

    async def refused() -> None:
        with contextlib.suppress(CircuitOpen):
            await breaker.call(work)

    return round(statistics.median([await _time(refused, CALLS) for _ in range(ROUNDS)]))


def failure_ns() -> dict[str, int]:
    """What recording a failure costs when that many are in the window already."""
    found = {}
    for held in (100, 1_000, 10_000, 100_000):
        breaker = CircuitBreaker("b", BreakerSettings(failure_threshold=held + ROUNDS * 500 + 1))
        error = ConnectionError()
        for _ in range(held):
            breaker.admit().failure(error)
        times = []
        for _ in range(ROUNDS):
            began = time.thread_time_ns()
            for _ in range(500):
                breaker.admit().failure(error)
            times.append((time.thread_time_ns() - began) / 500)
        found[str(held)] = round(statistics.median(times))
    return found


def breaker_bytes() -> int:
    """Memory of one breaker that has been used, of a thousand."""
    settings = BreakerSettings()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [CircuitBreaker("b", settings) for _ in range(1_000)]
    for breaker in kept:
        breaker.admit().failure(ConnectionError())
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return taken // len(kept)


async def run() -> dict[str, Any]:
    return {
        "guard_ns": await measure(guards()),
        "breaker_ns": await measure(breakers()),
        "retry_ns": await measure(retries()),
        "refusal_ns": await refusal_ns(),
        "failure_ns": failure_ns(),
        "breaker_bytes": breaker_bytes(),
    }


async def run_again() -> dict[str, Any]:
    """What depends on the loop, for another loop than asyncio's."""
    return {"uvloop_guard_ns": await measure(guards()), "uvloop_breaker_ns": await measure(breakers())}


def exceeded(found: dict[str, Any]) -> list[str]:
    """The limits that `found` does not keep, in words."""
    wrong = []
    for group, peer, share in LIMITS:
        ours, theirs = found[group]["bellbuoy"], found[group].get(peer)
        if theirs is None:
            wrong.append(f"{peer} is not installed, so {group} is compared with nothing")
        elif ours > share * theirs:
            wrong.append(f"{group} is {ours}, more than {share:g} of {peer}'s {theirs}")
    few, *_, many = found["failure_ns"].values()
    if many > FLATNESS_MAX * few:
        wrong.append(f"a failure costs {many} ns with 10^5 in the window and {few} ns with 10^2")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="fail when a limit is exceeded")
    options = parser.parse_args()
    found = asyncio.run(run())
    with contextlib.suppress(ImportError), asyncio.Runner(loop_factory=_kit("uvloop").new_event_loop) as runner:
        found |= runner.run(run_again())
    if options.json:
        print(json.dumps(found))
    else:
        for title, group in found.items():
            if isinstance(group, dict):
                print(title)
                for name, value in sorted(group.items(), key=lambda pair: pair[1]):
                    print(f"  {name:28}{value:>9,}")
        print(f"refusal_ns {found['refusal_ns']:,}; breaker_bytes {found['breaker_bytes']:,}")
    wrong = exceeded(found) if options.check else []
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
