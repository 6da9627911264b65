"""How the service and what it depends on are doing, and the gauges that show it."""

from __future__ import annotations

from typing import Any

import msgspec

from bellbuoy.delivery.send import Lane
from bellbuoy.errors import StoreError
from bellbuoy.health.mode import MODES
from bellbuoy.health.probes import Probe
from bellbuoy.resilience import CircuitBreaker
from bellbuoy.service.api.context import Context
from bellbuoy.service.times import stamp

_STATE_NUMBERS = {"closed": 0, "half_open": 1, "open": 2, "isolated": 3}


def breaker_view(breaker: CircuitBreaker) -> dict[str, Any]:
    """A breaker as operators see it."""
    snapshot = breaker.snapshot()
    return {
        "name": breaker.name,
        "state": str(snapshot.state),
        "failure_count": snapshot.failure_count,
        "success_count": snapshot.success_count,
        "opened_at": stamp(snapshot.opened_at),
        "retry_after_s": None if snapshot.retry_after_s is None else round(snapshot.retry_after_s, 3),
    }


def all_breakers(context: Context) -> dict[str, CircuitBreaker]:
    """Every breaker of this process, by its name."""
    found = [lane.breaker for lane in context.lanes.values()]
    if context.stores.watched.breaker is not None:
        found.append(context.stores.watched.breaker)
    if context.stores.queue is not None:
        found.append(context.stores.queue.breaker)
    if context.stores.cache.watched is not None:
        found.append(context.stores.cache.watched.breaker)
    return {breaker.name: breaker for breaker in found}


async def health(context: Context) -> dict[str, Any]:
    """`unhealthy` when nothing can be accepted, `degraded` when something is wrong, else `healthy`.

    It says what probes and real work have last found, and asks nothing itself: whoever looks must not have to wait for
    what is down.
    """
    stores, probes = context.stores, context.vitals.probes
    found = context.vitals.monitor.issues
    dependencies = {"ledger": _store(probes["database_down"], stores.watched.breaker, context)}
    if any((name, "homes") in context.telemetry.issues for name in ("database_down", "disk_full")):
        dependencies["ledger"]["status"] = "unhealthy"  # A real write was refused, which says more than a probe.
    homes = ["ledger"]
    if stores.queue is not None:
        homes.append("queue")
        dependencies["queue"] = _store(probes["message_queue_down"], stores.queue.breaker, context)
    if stores.cache.watched is not None:
        dependencies["cache"] = _store(probes["cache_down"], stores.cache.watched.breaker, context)
    issues = list(found)
    for lane in context.lanes.values():
        dependencies[lane.name] = _provider(lane, probes[f"{lane.name}_down"], f"{lane.name}_down" in found)
        if str(lane.breaker.state) != "closed":
            issues.append(f"{lane.name}_down")
    raised = list(context.telemetry.issues.values())
    issues += sorted({issue.name for issue in raised})
    if stores.homes.kept.pending():
        issues.append("journal_pending")
    homeless = not stores.homes.kept.ready()
    unhealthy = all(dependencies[home]["status"] == "unhealthy" for home in homes) and homeless
    return {
        "status": "unhealthy" if unhealthy else "degraded" if issues else "healthy",
        "issues": list(dict.fromkeys(issues)),
        "modes": list(context.vitals.monitor.modes),
        "dependencies": dependencies,
        "details": [{**msgspec.to_builtins(one), "since": stamp(one.since)} for one in raised],
    }


def _store(probe: Probe, breaker: CircuitBreaker | None, context: Context) -> dict[str, Any]:
    state = None if breaker is None else str(breaker.state)
    bad = probe.looks_bad(context.clock.monotonic()) or probe.refusal is not None
    status = "unhealthy" if bad else "healthy" if state in (None, "closed") else "degraded"
    latency_ms = None if bad or probe.latency_ms is None else round(probe.latency_ms, 3)
    return {"status": status, "latency_ms": latency_ms, "breaker": state}


def _provider(lane: Lane, probe: Probe, down: bool) -> dict[str, Any]:
    state = str(lane.breaker.state)
    unhealthy = state in ("open", "isolated") or down
    status = "unhealthy" if unhealthy else "healthy" if lane.recovered else "degraded"
    latency = lane.latency_ms if lane.latency_ms is not None else probe.latency_ms
    return {"status": status, "latency_ms": None if latency is None else round(latency, 3), "breaker": state}


async def collect(context: Context) -> None:
    """Bring the gauges up to date; each is asked from the data when somebody looks."""
    telemetry = context.telemetry
    for name, breaker in all_breakers(context).items():
        telemetry.breaker_state.labels(name).set(_STATE_NUMBERS.get(str(breaker.state), 0))
    for mode in MODES:
        telemetry.mode_active.labels(mode).set(float(mode in context.vitals.monitor.modes))
    telemetry.journal_pending.set(context.stores.homes.kept.pending())
    try:
        now = context.clock.time()
        depth, oldest = await context.ledger.backlog(now=now)
        telemetry.queue_depth.labels("ledger").set(depth)
        telemetry.oldest_pending.set(max(0.0, now - oldest) if oldest is not None else 0.0)
        telemetry.dead_letters.set(await context.ledger.dead_letter_count())
        telemetry.books_difference.set(await context.ledger.difference())
    except StoreError as error:
        telemetry.event("request_failed", path="/metrics", code=error.code)
    if context.stores.queue is None:
        return
    try:
        for lane, depth in (await context.stores.queue.depth()).items():
            telemetry.queue_depth.labels(lane).set(depth)
    except StoreError as error:
        telemetry.event("request_failed", path="/metrics", code=error.code)
