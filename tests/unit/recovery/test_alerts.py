"""What is told, in which words, and what comes next: pure."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from msgspec.structs import replace

from bellbuoy.model.operation import AlertAction, Incident, StepReport
from bellbuoy.recovery.alerts import ACTIONS, Queued, Status, Step, alert_of, next_step

NOW = 1_800_000_000.0
INCIDENT = Incident(
    id="inc-1",
    key="database_connection_ledger",
    issue="database_down",
    component="ledger",
    plan="database_connection",
    detail="it is gone",
    opened_at=NOW,
    attempts=3,
    steps=[StepReport("close_stale_connections", "done"), StepReport("reinitialise_pool", "failed", "store_error")],
)


def queued(action: AlertAction, status: Status, unknowns: int = 0) -> Queued:
    alert = alert_of(INCIDENT, action, runbooks="https://docs.test", now=NOW)
    return Queued(alert, "slack", next_at=NOW, status=status, unknowns=unknowns)


def having(**status: Status) -> dict[AlertAction, Queued]:
    return {action: queued(action, status[action]) for action in ACTIONS if action in status}


@pytest.mark.parametrize(
    ("has", "step"),
    [
        ({}, None),
        ({"trigger": "waiting"}, ("send", "trigger")),
        ({"trigger": "sent"}, None),
        ({"trigger": "waiting", "acknowledge": "waiting"}, ("send", "trigger")),
        ({"trigger": "sent", "acknowledge": "waiting"}, ("send", "acknowledge")),
        ({"trigger": "failed", "acknowledge": "waiting"}, ("withdraw", "acknowledge")),
        ({"trigger": "waiting", "resolve": "waiting"}, ("withdraw", "trigger")),
        ({"trigger": "withdrawn", "resolve": "waiting"}, ("withdraw", "resolve")),
        ({"trigger": "failed", "resolve": "waiting"}, ("withdraw", "resolve")),
        ({"resolve": "waiting"}, ("withdraw", "resolve")),
        ({"trigger": "sending", "resolve": "waiting"}, ("send", "trigger")),
        ({"trigger": "sent", "resolve": "waiting"}, ("send", "resolve")),
        ({"trigger": "sent", "acknowledge": "waiting", "resolve": "waiting"}, ("withdraw", "acknowledge")),
        ({"trigger": "sent", "resolve": "sent"}, None),
    ],
)
def test_one_after_the_other_and_nothing_that_need_not_be_told(has: dict[str, Status], step: Step | None) -> None:
    assert next_step(having(**has)) == step


def test_who_may_have_been_told_hears_of_the_end() -> None:
    has = having(resolve="waiting") | {"trigger": queued("trigger", "withdrawn", unknowns=1)}
    assert next_step(has) == ("send", "resolve")


def reachable() -> list[dict[AlertAction, Queued]]:
    """Every state but those in which something was told that follows what was not."""
    states = []
    for statuses in itertools.product([None, *get_args(Status)], repeat=3):
        has = {a: queued(a, s) for a, s in zip(ACTIONS, statuses, strict=True) if s is not None}
        follows = any(has[a].status in ("sending", "sent") for a in ACTIONS[1:] if a in has)
        if not follows or ("trigger" in has and has["trigger"].told):
            states.append(has)
    return states


def test_from_anywhere_it_comes_to_an_end_and_in_order() -> None:
    assert len(reachable()) > 150
    for has in reachable():
        sent = []
        while (step := next_step(has)) is not None:
            what, action = step
            assert not has[action].over
            has[action] = replace(has[action], status="sent" if what == "send" else "withdrawn")
            if what == "send":
                sent.append(action)
        assert all(one.over for one in has.values())
        assert sent == sorted(sent, key=ACTIONS.index)
        if "resolve" in sent:
            assert has["trigger"].told


def test_a_failed_recovery_in_words() -> None:
    alert = alert_of(INCIDENT, "trigger", runbooks="https://docs.test/runbooks", now=NOW + 99)
    assert alert.incident == "inc-1"
    assert (alert.severity, alert.component, alert.at) == ("critical", "ledger", NOW)
    assert alert.title == "database_down (ledger): automatic recovery failed 3 times"
    assert alert.description == (
        "it is gone. Its plan, database_connection, was tried 3 times. Steps of the last attempt: "
        "close_stale_connections done, reinitialise_pool failed (store_error)."
    )
    assert alert.runbook == "https://docs.test/runbooks/database_connection.md"


def test_a_plan_that_was_tried_once_in_words() -> None:
    alert = alert_of(replace(INCIDENT, attempts=1, steps=[]), "trigger", runbooks="https://docs.test", now=NOW)
    assert alert.title == "database_down (ledger): automatic recovery failed once"
    assert alert.description == "it is gone. Its plan, database_connection, was tried once."


def test_what_no_plan_mends_in_words() -> None:
    incident = Incident("inc-2", "disk_full_disk", "disk_full", "disk", None, "4 MiB free", NOW)
    alert = alert_of(incident, "trigger", runbooks="https://docs.test", now=NOW)
    assert (alert.title, alert.description) == ("disk_full (disk) needs a person", "4 MiB free")
    assert alert.runbook == "https://docs.test/disk_full.md"


def test_what_follows_in_words() -> None:
    taken = replace(INCIDENT, acknowledged_at=NOW + 5, acknowledged_by="key-1")
    alert = alert_of(taken, "acknowledge", runbooks="https://docs.test", now=NOW + 9)
    assert (alert.title, alert.at) == ("database_down (ledger): key-1 has it in hand", NOW + 5)
    over = replace(INCIDENT, status="resolved", resolved_at=NOW + 60, resolved_by="recovery")
    alert = alert_of(over, "resolve", runbooks="https://docs.test", now=NOW + 99)
    assert (alert.title, alert.at) == ("database_down (ledger) is over", NOW + 60)
    assert alert.description == "It lasted 60 s, and recovery ended it."
