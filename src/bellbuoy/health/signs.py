"""What the monitor looks at: probes, breakers, meters, the machine, the backlog, and what others have noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bellbuoy.health.meters import Meters
from bellbuoy.health.monitor import Sign
from bellbuoy.health.probes import Probe
from bellbuoy.model.operation import Issue
from bellbuoy.ports.operations import Host
from bellbuoy.resilience import CircuitBreaker


@dataclass(frozen=True, slots=True)
class Limits:
    """Beyond which numbers something is wrong.

    Args:
        error_rate_max: share of failed calls to providers, over the window.
        p95_latency_s_max: seconds, over all calls in the window.
        database_slow_s: seconds, the 95th percentile of the ledger's acceptances.
        memory_ratio_max: share of the memory that this process may use.
        disk_free_min_bytes: of the data directory's disk.
        backlog_max: notifications that are due and nobody has claimed.
        backlog_age_s_max: seconds that the oldest of those may have waited.
    """

    error_rate_max: float = 0.05
    p95_latency_s_max: float = 2.0
    database_slow_s: float = 1.0
    memory_ratio_max: float = 0.85
    disk_free_min_bytes: int = 64 * 1024 * 1024
    backlog_max: int = 10_000
    backlog_age_s_max: float = 60.0


class Breakers:
    """A breaker that is not closed is certain evidence; one that an operator has isolated too."""

    def __init__(self, breakers: Mapping[tuple[str, str], CircuitBreaker]) -> None:
        self._breakers = breakers

    def __call__(self, now: float) -> Iterator[Sign]:
        for (issue, component), breaker in self._breakers.items():
            state = str(breaker.state)
            yield Sign(issue, component, state in ("open", "half_open", "isolated"), f"its breaker is {state}", True)


class Probes:
    """What the probes of the dependencies last saw, by issue."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = probes

    def __call__(self, now: float) -> Iterator[Sign]:
        for issue, probe in self._probes.items():
            yield Sign(issue, probe.name, probe.looks_bad(now), f"its probe: {probe.failure or 'no answer yet'}")
            if probe.refusal == "store_full":
                yield Sign("disk_full", probe.name, True, "its probe found no room", True)


class Rates:
    """Error rate and latency over the window, of all calls together, and of the ledger's alone."""

    def __init__(self, meters: Meters, limits: Limits) -> None:
        self._meters = meters
        self._limits = limits

    def __call__(self, now: float) -> Iterator[Sign]:
        limits, overall = self._limits, self._meters.overall.reading(now)
        # With too few calls to say, there is no evidence that anything is wrong.
        rate, p95_s = overall.error_rate or 0.0, overall.p95_s or 0.0
        yield Sign("high_error_rate", "service", rate > limits.error_rate_max, f"{rate:.1%} of calls fail")
        yield Sign("high_latency", "service", p95_s > limits.p95_latency_s_max, f"p95 is {p95_s:.1f} s")
        ledger = self._meters.of.get("ledger")
        if ledger is not None:
            slow_s = ledger.reading(now).p95_s or 0.0
            yield Sign("database_slow", "ledger", slow_s > limits.database_slow_s, f"p95 is {slow_s:.1f} s")


class Machine:
    """Memory and disk; what cannot be read is no evidence."""

    def __init__(self, host: Host, limits: Limits) -> None:
        self._host = host
        self._limits = limits

    def __call__(self, now: float) -> Iterator[Sign]:
        ratio = self._host.memory_ratio()
        bad = None if ratio is None else ratio > self._limits.memory_ratio_max
        # Where little of the rest is left there is no time for a second look.
        certain = ratio is not None and ratio > (1 + self._limits.memory_ratio_max) / 2
        yield Sign("memory_pressure", "process", bad, f"{ratio or 0:.0%} of what it may use", certain)
        free = self._host.disk_free_bytes()
        short = None if free is None else free < self._limits.disk_free_min_bytes
        yield Sign("disk_full", "data", short, f"{(free or 0) // 1024**2} MiB are free")


class Backlog:
    """Work that is due and that nobody has claimed; whoever counts it sets `depth` and `oldest_s`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.depth: int | None = None
        self.oldest_s: float = 0.0
        self.meant: Callable[[], bool] = lambda: False  # Whether an operator wants work to wait.

    def __call__(self, now: float) -> Iterator[Sign]:
        if self.meant():
            yield Sign("queue_backlog", "queue", False)
            return
        many = None if self.depth is None else self.depth > self._limits.backlog_max
        # Few that are old are a backlog only where they are not few: a single one may wait for many reasons.
        old = self.depth is not None and self.depth > 100 and self.oldest_s > self._limits.backlog_age_s_max
        yield Sign("queue_backlog", "queue", many or old if many is not None else None, f"{self.depth} are due")


class Noticed:
    """What the homes have noticed at a real write: certain while it stands.

    Args:
        issues: all that is raised, by name and component.
    """

    def __init__(self, issues: Mapping[tuple[str, str], Issue]) -> None:
        self._issues = issues

    def __call__(self, now: float) -> Iterator[Sign]:
        for name in ("database_down", "disk_full"):
            issue = self._issues.get((name, "homes"))
            if issue is not None:
                yield Sign(name, "ledger", True, issue.detail, True)
