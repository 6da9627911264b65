"""The table from issues to modes, checked over every set of issues, flags and the pins that matter."""

from __future__ import annotations

from itertools import chain, combinations

import pytest

from bellbuoy.health.mode import AGGRESSIVE_CACHE_S, FALLBACK_FLAGS, MODES, MODES_OF, Tuning, modes_of, tuning_of

ISSUES = sorted(MODES_OF)


def subsets(of: list[str]) -> list[frozenset[str]]:
    return [frozenset(one) for one in chain.from_iterable(combinations(of, n) for n in range(len(of) + 1))]


def test_the_modes_are_the_union_of_what_each_issue_brings_for_every_set_of_issues_and_flags() -> None:
    sets = subsets(ISSUES)
    assert len(sets) == 2 ** len(ISSUES)
    for issues in sets:
        alone = {mode for issue in issues for mode in MODES_OF[issue]}
        for flags in subsets(list(FALLBACK_FLAGS)):
            expected = alone | (flags if "fcm_down" in issues else frozenset())
            found = modes_of(issues, flags, {})
            assert set(found) == expected
            assert all(set(because) - {"flag"} <= issues for because in found.values())


@pytest.mark.parametrize("mode", MODES)
def test_a_pin_wins_over_every_issue(mode: str) -> None:
    for issues in subsets(ISSUES):
        assert mode not in modes_of(issues, frozenset(FALLBACK_FLAGS), {mode: False})
        assert modes_of(issues, frozenset(), {mode: True})[mode] == ("pinned",)


def test_a_pinned_fallback_brings_the_flags_that_are_on() -> None:
    assert set(modes_of(set(), {"email_fallback"}, {"fcm_fallback": True})) == {"fcm_fallback", "email_fallback"}
    assert set(modes_of(set(), {"email_fallback"}, {})) == set()


def test_an_unknown_issue_brings_nothing() -> None:
    assert modes_of({"credential_rejected"}, frozenset(), {}) == {}


def test_without_modes_nothing_is_changed() -> None:
    assert tuning_of(frozenset()) == Tuning()


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_known_to_the_tuning_or_to_the_flow(mode: str) -> None:
    in_flow = {
        "read_only",
        "write_queue",
        "database_polling",
        "dead_letter_events",
        "local_cache",
        "fcm_fallback",
        "hold_ios",
        "external_service_down",
        "email_fallback",
        "sms_fallback",
        "analytics_off",
        "drop_caches",
        "disk_full",
        "sending_stopped",
        "accepting_stopped",
    }
    assert (tuning_of({mode}) == Tuning()) == (mode in in_flow)


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ({"small_batches"}, Tuning(batch=0.25)),
        ({"large_batches"}, Tuning(batch=4.0)),
        ({"small_batches", "large_batches"}, Tuning(batch=0.25)),
        ({"more_workers"}, Tuning(concurrency=2.0)),
        ({"parallel_processing"}, Tuning(concurrency=2.0)),
        ({"more_workers", "fewer_workers"}, Tuning(concurrency=0.5)),
        ({"fast_polling"}, Tuning(poll=0.2)),
        ({"push_back"}, Tuning(in_hand=0.1)),
        ({"cache_only"}, Tuning(prefer_cache=True)),
        ({"aggressive_caching"}, Tuning(cache_s=AGGRESSIVE_CACHE_S)),
        ({"tight_breakers"}, Tuning(tight_breakers=True)),
    ],
)
def test_where_two_modes_pull_apart_the_careful_one_wins(modes: set[str], expected: Tuning) -> None:
    assert tuning_of(modes) == expected
