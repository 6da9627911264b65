"""Every drill on a cluster passes, and fails when the protection that it is about is taken out."""

from __future__ import annotations

import pytest

from bellbuoy.continuity.catalogue import DRILLS, STORE_FAULTS
from tests.support.drills import find_wanting, find_wanting_in_turn, pass_all

pytestmark = [pytest.mark.fault, pytest.mark.timeout(900)]

CLUSTER = [name for name, drill in DRILLS.items() if drill.stack == "cluster"]
BACKED_UP = [name for name, drill in DRILLS.items() if drill.stack == "backed_up_cluster"]
SABOTAGES = {
    "every_home_is_needed": [f"{store}_{kind}" for store in ("mongodb", "rabbitmq") for kind in STORE_FAULTS],
    "redis_is_needed": [f"redis_{kind}" for kind in STORE_FAULTS],
}


OF_BACKUPS = {"sends_are_forgotten": ["mongodb_restore"]}
"""Each on a cluster of its own: a database that was lost does not mend by itself."""


def test_every_drill_on_a_cluster_has_a_protection_that_is_taken_out() -> None:
    assert sorted(name for names in SABOTAGES.values() for name in names) == sorted(CLUSTER)
    assert [name for names in OF_BACKUPS.values() for name in names] == BACKED_UP


@pytest.mark.parametrize("names", [CLUSTER, BACKED_UP], ids=["cluster", "backed_up_cluster"])
def test_a_drill_passes(names: list[str]) -> None:
    pass_all(names)


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_a_drill_fails_without_the_protection_that_it_is_about(sabotage: str) -> None:
    find_wanting_in_turn(SABOTAGES[sabotage], sabotage)


@pytest.mark.parametrize("sabotage", OF_BACKUPS)
def test_a_drill_of_a_restore_fails_without_the_protection_that_it_is_about(sabotage: str) -> None:
    find_wanting(OF_BACKUPS[sabotage], sabotage)
