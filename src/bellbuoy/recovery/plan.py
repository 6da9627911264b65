"""Which plan mends which issue, its steps, and when it is tried. Pure.

The numbers: at most three attempts, min(2^n, 60) seconds between them, the first 30 s after a database's failure and
60 s after a queue's, since many failures end by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

ATTEMPTS_MAX = 3
WAIT_S_MAX = 60.0
SETTLE_S = 60.0
"""How long after a plan that succeeded its issue may still be there before the attempt counts as failed."""


class Plan(Struct, frozen=True):
    """Steps in order, and how many seconds after the failure the first attempt is made."""

    name: str
    steps: tuple[str, ...]
    first_after_s: float


_PLANS = (
    Plan(
        "database_connection",
        ("close_stale_connections", "drain_connections", "reinitialise_pool", "test_read_and_write", "replay_journal"),
        30.0,
    ),
    Plan(
        "message_queue_connection",
        ("reconnect_queue", "redeclare_topology", "test_publish", "drain_dead_letter_events", "back_to_push"),
        60.0,
    ),
    Plan("memory_leak", ("collect_garbage", "clear_caches", "restart_workers", "watch_memory"), 0.0),
    Plan(
        "queue_backlog",
        ("scale_up", "larger_batches", "parallel_processing", "watch_backlog", "scale_back"),
        0.0,
    ),
    Plan(
        "external_service",
        ("rebuild_transport", "probe_service", "let_breaker_test", "release_held"),
        30.0,
    ),
)
PLANS: Mapping[str, Plan] = {plan.name: plan for plan in _PLANS}

PLAN_OF: Mapping[str, str] = {
    "database_down": "database_connection",
    "message_queue_down": "message_queue_connection",
    "memory_pressure": "memory_leak",
    "queue_backlog": "queue_backlog",
    "fcm_down": "external_service",
    "apns_down": "external_service",
    "smtp_down": "external_service",
    "sms_down": "external_service",
}
"""The plan for each issue that has one; of the others a person is told at once where `ESCALATED_AT_ONCE` names them."""

ESCALATED_AT_ONCE = frozenset({"disk_full", "credential_rejected", "rollout_undone", "rollout_unclear", "backup_stale"})
"""Issues that no plan can mend and somebody must."""

OTHERS = frozenset({"bad_change", "change_inconclusive", "rollback_failed"})
"""Issues of what operators change, whose incidents are begun and ended by the watch over changes."""


def wait_s(failures: int) -> float:
    """Seconds to wait after the n-th failed attempt, from 1: min(2^(n-1), 60)."""
    return min(2.0 ** min(failures - 1, 10), WAIT_S_MAX)


def key_of(issue: str, component: str) -> str:
    """What attempts are counted by: the plan's name (or the issue's where it has none) and the component."""
    return f"{PLAN_OF.get(issue, issue)}_{component}"
