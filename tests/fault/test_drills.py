"""Every drill on an embedded stack passes, and fails when the protection that it is about is taken out."""

from __future__ import annotations

import pytest

from bellbuoy.continuity.catalogue import DRILLS, PROVIDER_FAULTS, PROVIDERS
from bellbuoy.service.drills import session
from tests.support.drills import find_wanting, pass_all

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]

GROUPS = {
    **{provider: [f"{provider}_{kind}" for kind in (*PROVIDER_FAULTS, "isolated")] for provider in PROVIDERS},
    "lives": ["worker_kill", "worker_pause", "duplicate_delivery", "region_loss"],
    "damages": ["mode_pinned", "complete_outage", "corruption", "poison_message"],
    "places": ["disk_full", "clock_jump"],
    "backups": ["backup_target_away", "backup_restore", "backup_target_full"],
}
"""Drills of a group share a stack where they can."""
EMBEDDED = {name for name, drill in DRILLS.items() if drill.stack not in session.CLUSTERS}

SABOTAGES = [
    ("fcm_outage", "no_retry"),
    ("sms_error_rate", "no_retry"),
    ("apns_reset", "no_retry"),
    ("smtp_goaway", "no_retry"),
    ("fcm_hang", "no_guard"),
    ("apns_latency", "one_bulkhead"),
    ("smtp_bad_credentials", "credentials_are_final"),
    ("sms_isolated", "no_hold"),
    ("mode_pinned", "modes_refuse"),
    ("worker_kill", "leases_never_end"),
    ("worker_pause", "no_fence"),
    ("region_loss", "leases_never_end"),
    ("duplicate_delivery", "no_deduplication"),
    ("complete_outage", "early_answer"),
    ("disk_full", "accept_without_room"),
    ("clock_jump", "one_clock"),
    ("corruption", "no_checksum"),
    ("corruption", "damage_ends_the_journal"),
    ("poison_message", "permanent_is_retried"),
    ("poison_message", "damage_stops_all"),
    ("backup_restore", "nothing_is_shipped"),
    ("backup_restore", "one_target"),
    ("backup_target_away", "no_heal"),
    ("backup_target_full", "every_target_is_needed"),
]


def test_every_drill_is_in_a_group_and_has_a_fault() -> None:
    assert {name for names in GROUPS.values() for name in names} == EMBEDDED
    assert session.FAULTS.keys() == DRILLS.keys()


def test_every_drill_has_a_protection_that_is_taken_out() -> None:
    """Of a fault that every provider can have, with one of them: the protection is the same code."""
    sabotaged = {drill for drill, _ in SABOTAGES}
    kinds = {name.partition("_")[2] for name in sabotaged if name.partition("_")[0] in PROVIDERS}
    covered = sabotaged | {f"{provider}_{kind}" for provider in PROVIDERS for kind in kinds}
    assert covered >= EMBEDDED


@pytest.mark.parametrize("group", GROUPS)
def test_a_drill_passes(group: str) -> None:
    pass_all(GROUPS[group])


@pytest.mark.parametrize(("drill", "sabotage"), SABOTAGES)
def test_a_drill_fails_without_the_protection_that_it_is_about(drill: str, sabotage: str) -> None:
    find_wanting([drill], sabotage)
