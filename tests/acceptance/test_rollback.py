"""Settings that change while the service runs, and what becomes of a change that does harm, none, or nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, to_android, wait_for

pytestmark = pytest.mark.acceptance
RATE = "providers.fcm.rate_per_s"
WATCH_S = 6


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    env = {
        "BELLBUOY_ROLLBACK__WATCH_S": str(WATCH_S),
        "BELLBUOY_PROVIDERS__FCM__RATE_PER_S": "20",
        "BELLBUOY_BREAKERS__FCM__FAILURE_THRESHOLD": "1000",
    }
    with Server(tmp_path / "data", env=env) as server:
        yield server


def setting(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/v1/settings/{name}")
    return found


def change(server: Server, name: str, value: object) -> str:
    answer = server.call("PUT", f"/v1/settings/{name}", {"value": value})
    assert answer.status == 200, answer
    return f"setting:{name}:{answer.json()['version']}"


def found(server: Server, id: str) -> dict[str, Any]:
    return next(one for one in server.get("/v1/changes")["items"] if one["id"] == id)


def decided(server: Server, id: str) -> dict[str, Any]:
    """The change once its watch is over."""

    def look() -> dict[str, Any] | None:
        one = found(server, id)
        return one if one["status"] not in ("watched", "reverting") else None

    one: dict[str, Any] = wait_for(look, within_s=WATCH_S + 30, why=f"{id} is decided")
    return one


def busy(server: Server) -> None:
    """FCM has work for a minute at the configured rate, and has had enough of it for a measurement."""
    done = server.send_lines([to_android(n) for n in range(1_000)])
    assert done["accepted"] == 1_000
    wait_for(lambda: server.received("fcm", limit=1)["count"] >= 40, why="a measurement")


def incidents(server: Server, issue: str) -> list[dict[str, Any]]:
    return [one for one in server.get("/v1/incidents")["items"] if one["issue"] == issue]


def test_automated_rollback(server: Server) -> None:
    """A setting that raises the error rate is taken back by itself."""
    # The provider takes forty a second, so the pace that is configured does no harm and the one that is set does.
    server.fault("fcm", kind="quota", per_s=40)
    busy(server)
    id = change(server, RATE, 50_000)
    assert setting(server, RATE)["value"] == 50_000
    one = decided(server, id)
    assert (one["status"], one["decided_by"]) == ("reverted", "rollback"), one
    assert one["why"].startswith("fcm: ")
    now = setting(server, RATE)
    assert (now["value"], now["version"], now["status"], now["changed_by"]) == (20, 2, "restored", "rollback")
    (incident,) = incidents(server, "bad_change")
    assert (incident["component"], incident["status"], incident["resolved_by"]) == (id, "resolved", "rollback")
    assert one["why"] in incident["detail"]
    told = [event for event in server.events() if event["event"].startswith("rollback_")]
    assert [event["event"] for event in told] == ["rollback_started", "rollback_done"]
    assert told[1]["result"] == "reverted"


def test_a_setting_that_does_no_harm_is_left(server: Server) -> None:
    server.fault("fcm", kind="quota", per_s=60)
    busy(server)
    id = change(server, RATE, 30)
    one = decided(server, id)
    assert one["status"] == "kept", one
    assert setting(server, RATE)["value"] == 30
    assert not incidents(server, "bad_change")


def test_a_flag_after_which_things_get_worse_is_taken_back(server: Server) -> None:
    busy(server)
    assert server.call("PUT", "/v1/flags/new-sender", {"enabled": True}).status == 200
    server.fault("fcm", kind="error_rate", rate=0.9)
    one = decided(server, "flag:new-sender:1")
    assert one["status"] == "reverted", one
    now = server.get("/v1/flags/new-sender")
    assert (now["enabled"], now["effective"], now["status"]) == (False, False, "restored")


def test_a_watch_outlives_a_crash(server: Server) -> None:
    busy(server)
    id = change(server, "retry.max_attempts", 5)
    server.kill()
    server.start()
    assert decided(server, id)["status"] == "kept"
    assert setting(server, "retry.max_attempts")["value"] == 5


def test_what_nobody_can_say_is_held_and_a_human_is_asked(server: Server) -> None:
    id = change(server, "retry.max_attempts", 4)
    one = decided(server, id)
    assert one["status"] == "inconclusive", one
    assert setting(server, "retry.max_attempts")["value"] == 4
    (incident,) = wait_for(lambda: incidents(server, "change_inconclusive"), why="an incident")
    assert (incident["component"], incident["status"]) == (id, "open")
    assert server.get("/v1/health")["status"] == "healthy"
    assert json.loads(server.cli("rollback", id, "--keep", "--json"))["status"] == "kept"
    (incident,) = incidents(server, "change_inconclusive")
    assert incident["status"] == "resolved"


def test_an_operator_takes_a_change_back(server: Server) -> None:
    first = change(server, "breakers.fcm.failure_threshold", 7)
    second = change(server, "breakers.fcm.failure_threshold", 9)
    assert found(server, first)["status"] == "superseded"
    refused = server.call("POST", f"/v1/changes/{first}/rollback")
    assert (refused.status, refused.json()["code"]) == (409, "conflict")
    assert server.cli("rollback", second) == f"{second} is reverted\n"
    assert setting(server, "breakers.fcm.failure_threshold")["value"] == 7
    assert server.call("POST", f"/v1/changes/{second}/rollback").status == 409
    assert server.call("POST", "/v1/changes/setting:nothing:1/rollback").status == 404
    assert server.call("POST", "/v1/changes/nothing/rollback").status == 404


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("retry.max_attempts", 0, 422),
        ("retry.max_attempts", 2.5, 422),
        ("retry.max_attempts", "5", 422),
        ("retry.max_attempts", True, 422),
        ("retry.initial_delay_s", 31, 422),
        ("breakers.fcm.recovery_timeout_s", 0, 422),
        ("providers.smtp.concurrency_max", 11, 422),
        ("providers.fcm.rate_per_s", 0, 422),
        ("delivery.release_per_s", 1e-9, 422),
        ("server.port", 80, 404),
        ("nothing", 1, 404),
    ],
)
def test_only_what_could_be_configured_can_be_set(server: Server, name: str, value: object, status: int) -> None:
    assert server.call("PUT", f"/v1/settings/{name}", {"value": value}).status == status


def test_all_processes_of_a_machine_go_by_a_setting(tmp_path: Path) -> None:
    arguments = ("serve", "--sandbox", "--port", "0", "--workers", "2")
    with Server(tmp_path / "data", arguments=arguments) as server:
        change(server, "retry.max_attempts", 1)
        wait_for(
            lambda: all(setting(server, "retry.max_attempts")["value"] == 1 for _ in range(20)),
            why="whichever process answers knows it",
        )
        for n in range(4):
            device = {"platform": "android", "provider": "fcm", "token": f"sandbox-unavailable-{n}"}
            sent = server.send({"recipient": {"device": device}, "content": {"title": "t"}})
            (delivery,) = server.wait_status(sent, "dead_lettered")["deliveries"]
            assert len(delivery["attempts"]) == 1, "whichever process delivers goes by it"


def test_the_command_line_lists_and_sets(server: Server) -> None:
    assert "retry.max_attempts" in server.cli("settings")
    assert server.cli("settings", "set", "retry.max_attempts", "6") == "retry.max_attempts is 6\n"
    items = {one["name"]: one for one in json.loads(server.cli("settings", "list", "--json"))["items"]}
    assert (items["retry.max_attempts"]["value"], items["retry.max_attempts"]["default"]) == (6, 3)
    assert server.cli("settings", "set", "retry.max_attempts", "default") == "retry.max_attempts is 3\n"
    for wrong in ("many", "nan", "inf", "1e999"):
        server.cli("settings", "set", "retry.max_attempts", wrong, status=2)
    server.cli("settings", "set", "retry.max_attempts", "-1", status=1)  # The service refused it, not the command line.
    ids = [one["id"] for one in json.loads(server.cli("rollback", "--json"))["items"]]
    assert ids == ["setting:retry.max_attempts:2", "setting:retry.max_attempts:1"]
    server.cli("rollback", "--keep", status=2)
