"""The plans and their numbers."""

from __future__ import annotations

from bellbuoy.health.mode import MODES_OF
from bellbuoy.recovery.plan import ATTEMPTS_MAX, ESCALATED_AT_ONCE, PLAN_OF, PLANS, key_of, wait_s


def test_the_numbers() -> None:
    assert ATTEMPTS_MAX == 3
    assert [wait_s(n) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert wait_s(10**9) == 60
    assert PLANS["database_connection"].first_after_s == 30
    assert PLANS["message_queue_connection"].first_after_s == 60


def test_every_plan_is_for_an_issue_that_health_finds() -> None:
    assert set(PLAN_OF.values()) == set(PLANS)
    assert set(PLAN_OF) <= set(MODES_OF)
    assert not ESCALATED_AT_ONCE & set(PLAN_OF)


def test_attempts_are_counted_by_plan_and_component() -> None:
    assert key_of("fcm_down", "fcm") == "external_service_fcm"
    assert key_of("disk_full", "data") == "disk_full_data"
