"""Every drill on a cluster passes, and fails when the protection that it is about is taken out."""

from __future__ import annotations

import pytest

from bellbuoy.continuity.catalogue import DRILLS
from tests.support.drills import find_wanting, pass_all

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]


def test_a_drill_passes() -> None:
    pass_all([name for name, drill in DRILLS.items() if drill.stack == "cluster"])


@pytest.mark.parametrize(
    ("drills", "sabotage"),
    [(["mongodb_cut", "rabbitmq_cut"], "every_home_is_needed"), (["redis_cut"], "redis_is_needed")],
)
def test_a_drill_fails_without_the_protection_that_it_is_about(drills: list[str], sabotage: str) -> None:
    # Whoever asks a store that was cut off hears nothing for the five seconds of its timeout.
    find_wanting(drills, sabotage, seconds=7.0)
