"""Run drills, with or without what protects the service, and look for what has to be found wanting."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bellbuoy.clock import SystemClock
from bellbuoy.continuity.catalogue import DRILLS
from bellbuoy.continuity.drill import DrillReport
from bellbuoy.service.drills import session
from bellbuoy.service.drills.cluster import OwnClusterStack
from bellbuoy.service.drills.conduct import Pace, conduct
from bellbuoy.service.drills.stack import SOON
from tests.support.missing import required

UNPROTECTED = Path(__file__).with_name("unprotected.py")

WANTED = {
    "no_retry": "all_delivered",
    "no_guard": "cut_off",
    "one_bulkhead": "others_felt_nothing",
    "credentials_are_final": "all_delivered",
    "no_hold": "all_delivered",
    "modes_refuse": "nothing_refused",
    "leases_never_end": "recovered",
    "no_fence": "no_secret_duplicate",
    "no_deduplication": "one_key_one_id",
    "early_answer": "nothing_lost",
    "accept_without_room": "nothing_lost",
    "one_clock": "durations_hold",
    "no_checksum": "recovered",
    "damage_ends_the_journal": "nothing_lost",
    "permanent_is_retried": "recovered",
    "damage_stops_all": "recovered",
    "every_home_is_needed": "nothing_refused",
    "redis_is_needed": "nothing_refused",
    "nothing_is_shipped": "rpo",
    "one_target": "recovered",
    "every_target_is_needed": "other_goes_on",
    "no_heal": "same_objects",
    "sends_are_forgotten": "no_secret_duplicate",
}
"""What has to be found wanting when a protection is taken out."""


def drilled(names: Sequence[str], plan: session.Plan) -> list[DrillReport]:
    reports: list[DrillReport] = []
    with required():
        session.run(names, plan, by="tests", clock=SystemClock(), tell=print, done=reports.append)
    return reports


def pass_all(names: Sequence[str]) -> None:
    """Run drills in their short form; every one has to pass."""
    reports = drilled(names, session.Plan(pace=Pace(steady_s=0.7, after_s=0.4)))
    assert [(one.drill, one.result, one.why) for one in reports if one.result != "passed"] == []
    assert len(reports) == len(names)
    for report in reports:
        assert report.counts["accepted"] > 20
        assert [phase.name for phase in report.phases] == ["steady", "fault", "after", "settling"]


def find_wanting(names: Sequence[str], sabotage: str) -> None:
    """Run drills without a protection; every one has to find that it is not there."""
    # What is not over by then is wanting by itself; a duplicate shows only once everything is.
    settle_s_max = 30.0 if WANTED[sabotage] == "no_secret_duplicate" else 5.0
    pace = Pace(steady_s=0.7, after_s=0.4, settle_s_max=settle_s_max)
    # -P: modules beside it are named as drivers are.
    plan = session.Plan(pace=pace, command=(sys.executable, "-P", str(UNPROTECTED), sabotage))
    for report in drilled(names, plan):
        _is_wanting(report, WANTED[sabotage])


def find_wanting_in_turn(names: Sequence[str], sabotage: str) -> None:
    """As `find_wanting`, with all drills on one cluster.

    `session.run` gives up a stack on which a drill has failed; here each has to, and what was broken mends by itself.
    """
    # Whoever asks a store that was cut off or is frozen hears nothing for the five seconds of its timeout.
    pace = Pace(rate_per_s=10.0, steady_s=1.2, seconds=7.0, after_s=0.2, settle_s_max=2.0)
    # What one drill has spoilt is out of the meters soon enough for the next.
    env = {**SOON, "BELLBUOY_HEALTH__WINDOW_S": "3"}
    with required(), tempfile.TemporaryDirectory(prefix="bellbuoy-drill-") as folder:
        stack = OwnClusterStack(Path(folder), env, (sys.executable, "-P", str(UNPROTECTED), sabotage))
        try:
            stack.start()
            for name in names:
                drill, fault = DRILLS[name], session.FAULTS[name]
                report = conduct(stack, drill, fault, pace, name=name, by="tests", clock=SystemClock(), tell=print)
                # A late answer is no refusal, but it is beyond the drill's limits.
                _is_wanting(report, "contained" if name.endswith("_latency") else WANTED[sabotage])
        finally:
            stack.close()


def _is_wanting(report: DrillReport, wanted: str) -> None:
    assert report.result in ("failed", "aborted"), (report.drill, report.why)
    assert wanted in {check.name for check in report.checks if not check.passed}, (report.drill, report.why)
