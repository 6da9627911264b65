"""Flags over HTTP and the command line: set, read, remembered, held off by a mode, followed by other processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, to_android, wait_for

pytestmark = pytest.mark.acceptance


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server


def flag(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.get(f"/v1/flags/{name}")
    return found


def put(server: Server, name: str, enabled: object) -> int:
    return server.call("PUT", f"/v1/flags/{name}", {"enabled": enabled}).status


def test_a_flag_is_off_until_somebody_sets_it_and_remembers_who_did(server: Server) -> None:
    known = {one["name"]: one for one in server.get("/v1/flags")["items"]}
    assert set(known) == {"email_fallback", "sms_fallback", "analytics_tracking"}
    assert not any(one["enabled"] or one["effective"] for one in known.values())
    assert all(one["description"] for one in known.values())
    assert put(server, "email_fallback", True) == put(server, "email_fallback", False) == 200
    assert put(server, "email_fallback", False) == 200, "what is so already is no change"
    found = flag(server, "email_fallback")
    assert (found["enabled"], found["effective"], found["version"]) == (False, False, 2)
    assert [one["value"] for one in found["history"]] == [False, True]
    assert all(one["changed_by"] and one["changed_at"] for one in found["history"])
    told = [event for event in server.events() if event["event"] == "feature_flag_updated"]
    assert [(event["flag"], event["value"]) for event in told] == [("email_fallback", True), ("email_fallback", False)]


def test_operators_have_flags_of_their_own(server: Server) -> None:
    assert server.call("GET", "/v1/flags/new-checkout").status == 404
    assert put(server, "new-checkout", True) == 200
    found = flag(server, "new-checkout")
    assert (found["enabled"], found["effective"], found["description"]) == (True, True, None)


@pytest.mark.parametrize("document", [{}, {"enabled": "yes"}, {"enabled": None}, {"enabled": True, "other": 1}, [True]])
def test_what_is_no_state_of_a_flag_is_refused(server: Server, document: object) -> None:
    assert server.call("PUT", "/v1/flags/f", document).status == 422


@pytest.mark.parametrize("name", ["Upper", "a:b", "-x", "x" * 65])
def test_what_is_no_name_of_a_flag_is_refused(server: Server, name: str) -> None:
    assert put(server, name, True) == 422


def test_a_flag_outlives_a_crash(server: Server) -> None:
    put(server, "sms_fallback", True)
    server.kill()
    server.start()
    wait_for(lambda: flag(server, "sms_fallback")["effective"], why="known after the start")


def test_while_the_store_is_away_flags_are_read_and_not_set(server: Server) -> None:
    put(server, "sms_fallback", True)
    assert server.call("PUT", "/v1/modes/read_only", {"pinned": True}).status == 200
    refused = server.call("PUT", "/v1/flags/sms_fallback", {"enabled": False})
    assert (refused.status, refused.json()["code"]) == (503, "read_only")
    assert refused.headers["retry-after"]
    assert flag(server, "sms_fallback")["effective"]


def test_high_latency_turns_analytics_off_and_gives_back_what_was_set(server: Server) -> None:
    put(server, "analytics_tracking", True)
    counted = 'bellbuoy_category_total{category="orders",outcome="delivered"}'

    def metrics() -> str:
        return server.call("GET", "/metrics").body.decode()

    server.wait_status(server.send(to_android(1, category="orders")), "delivered")
    wait_for(lambda: f"{counted} 1.0" in metrics(), why="counted")
    assert server.call("PUT", "/v1/modes/analytics_off", {"pinned": True}).status == 200
    found = flag(server, "analytics_tracking")
    assert (found["enabled"], found["effective"]) == (True, False)
    server.wait_status(server.send(to_android(2, category="orders")), "delivered")
    assert server.call("PUT", "/v1/modes/analytics_off", {"pinned": None}).status == 200
    assert flag(server, "analytics_tracking")["effective"]
    server.wait_status(server.send(to_android(3, category="orders")), "delivered")
    wait_for(lambda: f"{counted} 2.0" in metrics(), why="counted again, without what came in the mode")
    told = [event for event in server.events() if event["event"] == "feature_flag_updated" and "because" in event]
    assert [(event["effective"], event["because"]) for event in told] == [
        (False, "analytics_off"),
        (True, "mode_ended"),
    ]


def test_a_fallback_flag_is_a_mode_while_fcm_is_down(server: Server) -> None:
    server.fault("fcm", kind="outage")
    wait_for(lambda: "fcm_fallback" in server.get("/v1/health")["modes"], why="fcm_fallback")
    assert "email_fallback" not in server.get("/v1/health")["modes"]
    put(server, "email_fallback", True)
    assert "email_fallback" in server.get("/v1/health")["modes"]
    put(server, "email_fallback", False)
    assert "email_fallback" not in server.get("/v1/health")["modes"]


def test_all_processes_of_a_machine_follow(tmp_path: Path) -> None:
    arguments = ("serve", "--sandbox", "--port", "0", "--workers", "2")
    with Server(tmp_path / "data", arguments=arguments) as server:
        put(server, "email_fallback", True)
        wait_for(
            lambda: all(flag(server, "email_fallback")["effective"] for _ in range(20)),
            why="whichever process answers knows it",
        )


def test_the_command_line_lists_sets_and_tells_the_history(server: Server) -> None:
    assert "email_fallback" in server.cli("flags")
    assert server.cli("flags", "set", "email_fallback", "on") == "email_fallback is on\n"
    assert json.loads(server.cli("flags", "set", "mine", "on", "--json"))["enabled"] is True
    items = {one["name"]: one for one in json.loads(server.cli("flags", "list", "--json"))["items"]}
    assert items["email_fallback"]["effective"]
    assert items["mine"]["effective"]
    history = json.loads(server.cli("flags", "history", "email_fallback", "--json"))["items"]
    assert [(one["version"], one["value"]) for one in history] == [(1, True)]
    server.cli("flags", "set", "email_fallback", "maybe", status=2)
