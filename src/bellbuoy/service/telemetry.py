"""Logs and metrics: the one place where structlog and prometheus-client are used."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.health.meters import Meters
from bellbuoy.model.operation import Issue

_OfAll = Literal["livemax", "livemostrecent", "livesum"]
"""What a gauge shows where there are several processes."""

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own: where the processes of one service keep their metrics, so that any of them can show all."""

EVENTS: dict[str, str] = {
    # name -> level
    "service_started": "info",
    "service_stopping": "info",
    "service_stopped": "info",
    "supervisor_stopped": "info",
    "supervisor_lost": "error",
    "process_died": "error",
    "process_not_started": "error",
    "process_killed": "error",
    "processes_replaced": "info",
    "replacement_failed": "error",
    "processes_share_a_file": "warning",
    "scaled": "info",
    "scaling_failed": "error",
    "replacement_asked_for": "info",
    "rollout_watched": "info",
    "rollback_started": "warning",
    "rollback_done": "warning",
    "rollback_stalled": "error",
    "bootstrap_key_written": "info",
    "leases_recovered": "info",
    "circuit_breaker_opened": "warning",
    "circuit_breaker_half_open": "info",
    "circuit_breaker_closed": "info",
    "circuit_breaker_isolated": "warning",
    "retry_attempt": "warning",
    "retry_success": "info",
    "retry_exhausted": "error",
    "retry_non_retryable": "warning",
    "external_service_failure": "error",
    "database_failure": "error",
    "messagequeue_failure": "error",
    "cache_failure": "error",
    "high_latency_detected": "warning",
    "memory_pressure": "warning",
    "degraded_mode_active": "warning",
    "degraded_mode_ended": "info",
    "mode_pinned": "warning",
    "pins_not_read": "error",
    "feature_flag_updated": "warning",
    "flags_not_read": "error",
    "setting_updated": "warning",
    "settings_not_read": "error",
    "template_updated": "info",
    "change_inconclusive": "warning",
    "health_failed": "error",
    "incident_opened": "warning",
    "incident_resolved": "info",
    "incidents_not_shared": "warning",
    "incident_acknowledged": "info",
    "recovery_asked_for": "warning",
    "recovery_started": "warning",
    "recovery_successful": "info",
    "recovery_failed": "error",
    "recovery_exhausted": "error",
    "recovery_stalled": "error",
    "escalated": "error",
    "escalation_sent": "info",
    "escalation_retried": "warning",
    "escalation_uncertain": "warning",
    "escalation_withdrawn": "info",
    "escalation_failed": "error",
    "escalation_stalled": "error",
    "issue_raised": "error",
    "issue_cleared": "info",
    "tokens_invalidated": "warning",
    "held_released": "info",
    "lease_lost": "warning",
    "worker_error": "error",
    "claim_failed": "error",
    "save_failed": "error",
    "lease_renewal_failed": "error",
    "hand_back_failed": "error",
    "release_failed": "error",
    "keys_not_read": "error",
    "started_without_ledger": "warning",
    "old_records_forgotten": "info",
    "retention_failed": "error",
    "heal_failed": "error",
    "journal_healed": "info",
    "journal_damaged": "error",
    "publish_failed": "warning",
    "feed_failed": "error",
    "messages_given_up": "warning",
    "ledger_away": "warning",
    "shared_state_lost": "warning",
    "shared_state_regained": "info",
    "idempotency_conflict": "warning",
    "silent_push_failed": "warning",
    "cancel_not_resumed": "error",
    "request_failed": "error",
    "audit_failed": "error",
    "audit_pruned": "info",
    "audit_not_pruned": "warning",
    "isolated": "warning",
    "isolation_lifted": "warning",
    "isolation_not_read": "error",
    "key_created": "info",
    "key_revoked": "info",
    "breaker_changed_by_hand": "warning",
    "dead_letters_replayed": "info",
    "dead_letter_discarded": "info",
    "dead_letters_discarded": "info",
    "tombstones_restored": "info",
    "deliveries_reconsidered": "warning",
    "backup_source_left_out": "warning",
    "drill_overdue": "warning",
    "drills_not_read": "error",
    "drill_record_unreadable": "warning",
    "backup_taken": "info",
    "backup_failed": "error",
    "backup_gap": "error",
    "backup_archive_empty": "error",
    "backup_object_damaged": "error",
    "backup_target_away": "error",
    "backup_target_healed": "info",
    "backup_verified": "info",
    "backup_not_sound": "error",
    "backup_pruned": "info",
    "sends_not_noted": "error",
}
"""Every event that may be logged, and its level; `docs/operations.md` explains each."""

CATEGORIES_MAX = 20
"""How many categories a process counts by their names; what comes after is `other`."""

LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)


def configure_logging(level: str, form: str) -> None:
    """Send events to standard error, as JSON lines or, with `form` `console`, for people."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    render: Any = structlog.dev.ConsoleRenderer() if form == "console" else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


FAILED = frozenset({"retryable", "uncertain", "credential_rejected"})
"""Outcomes that say that something is wrong with the provider or with us, rather than with one recipient."""


class Metering(Protocol):
    """Takes measurements; see `Meters.add`."""

    def add(self, dependency: str, now: float, seconds: float | None, *, failed: bool, calls: int = 1) -> None: ...


class ServiceTelemetry:
    """Implements `bellbuoy.ports.operations.Telemetry` over structlog, one Prometheus registry, and health's meters."""

    def __init__(self, clock: Clock | None = None, meters: Meters | None = None) -> None:
        self.registry = CollectorRegistry()
        self.meters = meters or Meters()
        self.more_meters: list[Metering] = []  # Of those who measure since a moment of their own.
        self._clock = clock or SystemClock()
        self.issues: dict[tuple[str, str], Issue] = {}
        self._log = structlog.get_logger("bellbuoy")
        metrics = self.registry
        self._accepted = Counter("bellbuoy_accepted_total", "Notifications accepted.", ["home"], registry=metrics)
        for home in ("ledger", "queue", "journal"):
            self._accepted.labels(home)  # There from the start, so that a rate over it has a beginning.
        self._requests = Counter(
            "bellbuoy_requests_total", "Requests that were answered.", ["kind", "status"], registry=metrics
        )
        self._requests.labels("accept", "202")
        self._deliveries = Counter(
            "bellbuoy_deliveries_total", "Attempts by their outcome.", ["provider", "outcome"], registry=metrics
        )
        self._delivery_seconds = Histogram(
            "bellbuoy_delivery_seconds", "From acceptance to delivery.", registry=metrics, buckets=LATENCY_BUCKETS_S
        )
        self._provider_seconds = Histogram(
            "bellbuoy_provider_seconds",
            "One attempt with a provider.",
            ["provider"],
            registry=metrics,
            buckets=LATENCY_BUCKETS_S,
        )
        self.breaker_state = self._gauge(
            "bellbuoy_breaker_state", "0 closed, 1 half open, 2 open, 3 isolated.", ["name"], of_all="livemax"
        )
        self.queue_depth = self._gauge("bellbuoy_queue_depth", "Notifications that are due.", ["queue"])
        self.oldest_pending = self._gauge(
            "bellbuoy_oldest_pending_seconds", "Age of the oldest notification that is due."
        )
        self.mode_active = self._gauge(
            "bellbuoy_mode_active", "1 while the service works in this mode.", ["mode"], of_all="livemax"
        )
        self._recovery = Counter(
            "bellbuoy_recovery_total", "Attempts of plans by their result.", ["plan", "result"], registry=metrics
        )
        self._escalations = Counter(
            "bellbuoy_escalations_total", "Attempts to tell a human.", ["target", "result"], registry=metrics
        )
        self._escalations_waiting = self._gauge("bellbuoy_escalations_waiting", "Alerts that are still to be sent.")
        self._category = Counter(
            "bellbuoy_category_total", "Notifications that are over.", ["category", "outcome"], registry=metrics
        )
        self._categories: set[str] = set()
        self.listeners: list[Callable[[str, Mapping[str, object]], None]] = []  # Are told of every event; never wait.
        self.analytics: Callable[[], bool] = lambda: False  # Whether to count by category.
        self.dead_letters = self._gauge("bellbuoy_dead_letters", "Dead letters that wait.")
        self.journal_pending = self._gauge(
            "bellbuoy_journal_pending", "Notifications that only the journal has.", of_all="livesum"
        )
        self.books_difference = self._gauge(
            "bellbuoy_books_difference", "Accepted less all that became of it; always 0."
        )
        self.audit_entries = Counter("bellbuoy_audit_entries_total", "Entries of the audit log.", registry=metrics)
        self.audit_lost = Counter(
            "bellbuoy_audit_lost_total", "Entries that gave way while the disk took none.", registry=metrics
        )
        self.audit_waiting = self._gauge(
            "bellbuoy_audit_waiting", "Entries of the audit log that wait for the disk.", of_all="livesum"
        )
        self.drill_overdue = self._gauge(
            "bellbuoy_drill_overdue", "1 while a planned drill is overdue.", ["drill"], of_all="livemax"
        )
        self.backup_verified = self._gauge(
            "bellbuoy_backup_last_verified_seconds", "Age of the last backup that was restored and found sound."
        )
        self.backup_lag = self._gauge(
            "bellbuoy_backup_lag_seconds", "What a target lacks, in seconds of changes.", ["target"]
        )
        # Counting in a dictionary costs a tenth of a counter's lock; they are added up when somebody looks.
        self._counts: dict[tuple[Any, ...], int] = {}
        # A labelled child costs a lookup under a lock; the few there are get looked up once.
        self._children: dict[tuple[str, ...], Any] = {}

    def event(self, name: str, **fields: object) -> None:
        # A log on a full disk, or whose reader is gone, fails nothing of what it tells. A closed stream: ValueError.
        with contextlib.suppress(OSError, ValueError):
            getattr(self._log, EVENTS.get(name, "info"))(name, **fields)
        for heard in self.listeners:
            heard(name, fields)

    def accepted(self, home: str, count: int) -> None:
        self._count(count, self._accepted, home)

    def answered(self, kind: str, status: int) -> None:
        """A request was answered; `kind` is `accept` where it was to accept notifications, else `other`."""
        self._count(1, self._requests, kind, str(status))

    def attempt(self, provider: str, outcome: str, seconds: float | None) -> None:
        self._count(1, self._deliveries, provider, outcome)
        self.measured(provider, seconds, failed=outcome in FAILED)
        if seconds is not None:
            self._child(self._provider_seconds, provider).observe(seconds)

    def delivered(self, seconds: float) -> None:
        self._delivery_seconds.observe(max(0.0, seconds))

    def over(self, category: str | None, status: str) -> None:
        if not self.analytics():
            return
        name = category or "none"
        if name not in self._categories:
            if len(self._categories) >= CATEGORIES_MAX:
                name = "other"
            self._categories.add(name)
        self._count(1, self._category, name, status)

    def measured(self, dependency: str, seconds: float | None, *, failed: bool, calls: int = 1) -> None:
        now = self._clock.monotonic()
        self.meters.add(dependency, now, seconds, failed=failed, calls=calls)
        for more in self.more_meters:
            more.add(dependency, now, seconds, failed=failed, calls=calls)

    def recovery(self, plan: str, result: str) -> None:
        self._recovery.labels(plan, result).inc()

    def escalation(self, target: str, result: str) -> None:
        self._escalations.labels(target, result).inc()

    def escalations_waiting(self, count: int) -> None:
        self._escalations_waiting.set(count)

    def raise_issue(self, issue: Issue) -> None:
        key = (issue.name, issue.component)
        if key not in self.issues:
            self.issues[key] = issue
            self.event("issue_raised", issue=issue.name, component=issue.component, detail=issue.detail)

    def clear_issue(self, name: str, component: str) -> None:
        if self.issues.pop((name, component), None) is not None:
            self.event("issue_cleared", issue=name, component=component)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format; of all processes where there are several."""
        self.publish()
        if METRICS_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        of_all = CollectorRegistry()
        multiprocess.MultiProcessCollector(of_all)  # type: ignore[no-untyped-call]
        return generate_latest(of_all)

    def publish(self) -> None:
        """Add up what was counted since the last time."""
        counts, self._counts = self._counts, {}
        for (metric, *labels), count in counts.items():
            metric.labels(*labels).inc(count)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = (), *, of_all: _OfAll = "livemostrecent") -> Gauge:
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=of_all)

    def _count(self, count: int, metric: Counter, *labels: str) -> None:
        key = (metric, *labels)
        self._counts[key] = self._counts.get(key, 0) + count

    def _child(self, metric: Any, *labels: str) -> Any:
        key = (metric._name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child
