"""How the service and what it depends on are doing, and the gauges that show it."""

from __future__ import annotations

from typing import Any

import msgspec

from bellbuoy.delivery.send import Lane
from bellbuoy.errors import StoreError
from bellbuoy.health.mode import MODES
from bellbuoy.health.probes import Probe
from bellbuoy.resilience import CircuitBreaker
from bellbuoy.service.api import views
from bellbuoy.service.api.context import Context
from bellbuoy.service.watch import GuardedQueue, WatchedCache

_STATE_NUMBERS = {"closed": 0, "half_open": 1, "open": 2, "isolated": 3}


def breaker_view(breaker: CircuitBreaker) -> dict[str, Any]:
    """A breaker as operators see it."""
    snapshot = breaker.snapshot()
    return {
        "name": breaker.name,
        "state": str(snapshot.state),
        "failure_count": snapshot.failure_count,
        "success_count": snapshot.success_count,
        "opened_at": views.stamp(snapshot.opened_at),
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
    """`unhealthy` when nothing can be accepted, `degraded` when something is wrong, else `healthy`."""
    dependencies: dict[str, dict[str, Any]] = {}
    issues: list[str] = []
    breaker = str(context.stores.watched.breaker.state) if context.stores.watched.breaker is not None else None
    try:
        latency_ms = await context.stores.watched.check()
        latency_ms = None if latency_ms is None else round(latency_ms, 3)
        dependencies["ledger"] = {"status": "healthy", "latency_ms": latency_ms, "breaker": breaker}
    except StoreError as error:
        dependencies["ledger"] = {"status": "unhealthy", "latency_ms": None, "breaker": breaker}
        issues.append("disk_full" if error.code == "store_full" else "database_down")
    homes = ["ledger"]
    if context.stores.queue is not None:
        homes.append("queue")
        dependencies["queue"] = await _server(context.stores.queue)
        if dependencies["queue"]["status"] == "unhealthy":
            issues.append("message_queue_down")
    found = context.vitals.monitor.issues
    if context.stores.cache.watched is not None:
        dependencies["cache"] = await _server(context.stores.cache.watched)
        if dependencies["cache"]["status"] == "unhealthy":
            issues.append("cache_down")
    for lane in context.lanes.values():
        probe = context.vitals.probes[f"{lane.name}_down"]
        dependencies[lane.name] = _provider(lane, probe, f"{lane.name}_down" in found)
        if str(lane.breaker.state) != "closed":
            issues.append(f"{lane.name}_down")
    raised = list(context.telemetry.issues.values())
    issues += [*found, *sorted({issue.name for issue in raised})]
    if context.stores.homes.kept.pending():
        issues.append("journal_pending")
    issues = list(dict.fromkeys(issues))
    homeless = not context.stores.homes.kept.ready()
    unhealthy = all(dependencies[home]["status"] == "unhealthy" for home in homes) and homeless
    return {
        "status": "unhealthy" if unhealthy else "degraded" if issues else "healthy",
        "issues": issues,
        "modes": list(context.vitals.monitor.modes),
        "dependencies": dependencies,
        "details": [{**msgspec.to_builtins(one), "since": views.stamp(one.since)} for one in raised],
    }


async def _server(server: GuardedQueue | WatchedCache) -> dict[str, Any]:
    state = str(server.breaker.state)
    try:
        latency_ms = round(await server.check() or 0.0, 3)
    except StoreError:
        return {"status": "unhealthy", "latency_ms": None, "breaker": state}
    return {"status": "healthy" if state == "closed" else "degraded", "latency_ms": latency_ms, "breaker": state}


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
