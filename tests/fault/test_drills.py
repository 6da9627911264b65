"""Every drill on an embedded stack passes, and fails when the protection that it is about is taken out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bellbuoy.continuity.catalogue import DRILLS, PROVIDER_FAULTS, PROVIDERS
from bellbuoy.service.drills import session
from bellbuoy.service.drills.node import wait_for
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
    ("backup_restore", "sends_are_forgotten"),
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


def _left(folder: Path) -> list[int]:
    """The processes that were started with something in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_a_drill_that_is_killed_leaves_nothing_behind(number: signal.Signals, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("BELLBUOY_")}
    command = [sys.executable, "-m", "bellbuoy", "drill", "run", "worker_kill", "--duration", "60"]
    here = tmp_path / "scratch"
    here.mkdir()
    with (tmp_path / "out").open("wb") as out:
        drill = subprocess.Popen(command, env=env | {"TMPDIR": str(here)}, cwd=tmp_path, stdout=out, stderr=out)
    try:
        # The warden, the sandbox, two that accept and two that deliver, and what these have started themselves.
        wait_for(lambda: len(_left(here)) >= 6, within_s=60, why="its stack runs")
        drill.send_signal(number)
        drill.wait(timeout=60)
        wait_for(lambda: not _left(here) and not list(here.iterdir()), within_s=30, why="nothing is left")
    finally:
        drill.kill()
        drill.wait(timeout=30)
