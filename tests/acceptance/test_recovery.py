"""A provider stays down: three attempts, then one page, one ticket and one message, which end when it is back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, wait_for

pytestmark = pytest.mark.acceptance
TARGETS = ("pagerduty", "slack", "jira")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    env = outside.start_sandbox() | {
        "BELLBUOY_RECOVERY__SERVICE_FIRST_S": "1",
        "BELLBUOY_BREAKERS__FCM__RECOVERY_TIMEOUT_S": "2",
    }
    try:
        with Server(tmp_path / "data", env=env, arguments=("serve", "--port", "0")) as server:
            server.control = outside.control
            yield server
    finally:
        outside.kill()


def incident(server: Server) -> dict[str, Any]:
    """The newest, empty when there is none."""
    items = server.get("/v1/incidents")["items"]
    return dict(items[0]) if items else {}


def has_status(server: Server, status: str) -> bool:
    return incident(server).get("status") == status


def told(server: Server, target: str) -> list[dict[str, Any]]:
    return [item for item in server.received_all(target) if item["delivered"]]


def ended_up(server: Server, status: str) -> dict[str, Any]:
    wait_for(partial(has_status, server, status), within_s=60, why=status)
    return incident(server)


def test_humans_are_told_once_over_a_restart_and_told_when_it_is_over(server: Server) -> None:
    server.fault("fcm", kind="outage")
    one = ended_up(server, "exhausted")
    assert (one["issue"], one["component"], one["plan"], one["attempts"]) == ("fcm_down", "fcm", "external_service", 3)
    assert [(step["name"], step["status"]) for step in one["steps"]][:2] == [
        ("rebuild_transport", "undone"),
        ("probe_service", "failed"),
    ]
    for target in TARGETS:
        wait_for(lambda target=target: told(server, target), why=target)  # type: ignore[misc]
    assert {e["target"] for e in incident(server)["escalations"]} == set(TARGETS)
    server.kill()
    server.start()
    wait_for(lambda: "fcm_down" in server.get("/v1/health")["issues"])
    assert incident(server)["status"] == "exhausted"
    (page,) = told(server, "pagerduty")
    assert page["collapse_id"] == one["id"]
    assert [len(told(server, target)) for target in ("slack", "jira")] == [1, 1]
    server.fault("fcm")
    assert ended_up(server, "resolved")["id"] == one["id"]
    wait_for(lambda: [item["endpoint"] for item in told(server, "pagerduty")] == ["trigger", "resolve"])
    assert {item["collapse_id"] for item in told(server, "pagerduty")} == {one["id"]}


def test_an_operator_acknowledges_has_it_tried_again_and_calls_it_over(server: Server) -> None:
    server.fault("fcm", kind="outage")
    one = ended_up(server, "exhausted")
    path = f"/v1/incidents/{one['id']}"
    acknowledged = server.call("POST", f"{path}/acknowledge")
    assert acknowledged.status == 200
    assert acknowledged.json()["acknowledged_by"] == "bootstrap"
    wait_for(lambda: "acknowledge" in {item["endpoint"] for item in told(server, "pagerduty")})
    assert server.call("POST", f"{path}/retry").status == 200
    wait_for(lambda: incident(server)["attempts"] == 3 and has_status(server, "exhausted"), within_s=60)
    assert one["id"] in server.cli("incidents")
    assert "resolved" in server.cli("incidents", "resolve", one["id"])
    assert server.call("POST", f"{path}/resolve").status == 409
    assert server.call("POST", "/v1/incidents/inc-0/resolve").status == 404
    assert len(server.get("/v1/incidents")["items"]) == 1


def test_what_ends_before_its_time_tells_nobody(server: Server) -> None:
    server.fault("smtp", kind="outage")
    wait_for(lambda: incident(server).get("issue") == "smtp_down")
    server.fault("smtp")
    ended_up(server, "resolved")
    assert [told(server, target) for target in TARGETS] == [[], [], []]
