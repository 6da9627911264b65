"""A provider fails: what a client, the recipient and the operator see, without and with traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, to_android, to_email, to_iphone, wait_for

pytestmark = pytest.mark.acceptance
BOTH = {
    "device_id": "both",
    "platform": "ios",
    "provider": "fcm",
    "token": "by-fcm",
    "alternate": {"provider": "apns", "token": "ab" * 32},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    # A breaker that is tried again soon, so that a test need not wait a minute for what it does not test.
    env = {f"BELLBUOY_BREAKERS__{name}__RECOVERY_TIMEOUT_S": "1" for name in ("FCM", "APNS", "SMTP", "SMS")}
    with Server(tmp_path / "data", env=env) as server:
        yield server


def modes(server: Server) -> set[str]:
    return set(server.get("/v1/health")["modes"])


def failed(server: Server, provider: str, *expected: str) -> None:
    server.fault(provider, kind="outage")
    wait_for(lambda: set(expected) <= modes(server), why=f"{expected}")


def recovered(server: Server, provider: str) -> None:
    server.fault(provider)
    wait_for(lambda: not modes(server), within_s=60, why="no mode is active")


def offered(server: Server, document: dict[str, Any]) -> dict[str, Any]:
    answer = server.call("POST", "/v1/notifications", document)
    assert answer.status == 202, answer
    found: dict[str, Any] = answer.json()
    found["header"] = answer.headers.get("bellbuoy-degraded")
    return found


def put_user(server: Server, **user: Any) -> None:
    assert server.call("PUT", "/v1/users/u", user).status == 200


def to_user(**fields: Any) -> dict[str, Any]:
    return {"recipient": {"user_id": "u"}, "content": {"title": "t", "body": "b"}, **fields}


def test_a_provider_fails_without_traffic_and_its_modes_begin_and_end(server: Server) -> None:
    assert modes(server) == set()
    failed(server, "fcm", "fcm_fallback", "external_service_down")
    health = server.get("/v1/health")
    assert health["status"] == "degraded"
    assert "fcm_down" in health["issues"]
    assert health["dependencies"]["fcm"]["status"] == "unhealthy"
    listing = {mode["name"]: mode for mode in server.get("/v1/modes")["items"]}
    assert listing["fcm_fallback"]["active"]
    assert listing["fcm_fallback"]["because"] == ["fcm_down"]
    assert listing["fcm_fallback"]["since"] is not None
    recovered(server, "fcm")
    assert server.get("/v1/health")["status"] == "healthy"
    names = [event["event"] for event in server.events()]
    assert names.count("external_service_failure") == 1
    assert names.count("degraded_mode_active") == names.count("degraded_mode_ended") == 2


def test_what_is_not_urgent_is_answered_queued_and_delivered_after(server: Server) -> None:
    failed(server, "fcm", "external_service_down")
    held = offered(server, to_android(1))
    assert held["status"] == "queued"
    assert "external_service_down" in held["degraded"]
    assert held["header"] == ", ".join(held["degraded"])
    assert offered(server, to_android(2, priority="high"))["status"] == "accepted"
    # Nobody else waits for FCM.
    other = offered(server, to_email(3))
    assert other["status"] == "accepted"
    server.wait_status(other["id"], "delivered")
    assert server.status_of(held["id"]) in ("queued", "delivering")
    recovered(server, "fcm")
    server.wait_status(held["id"], "delivered", within_s=60)


def test_the_same_key_gets_the_same_answer_after_the_mode_has_ended(server: Server) -> None:
    failed(server, "fcm", "external_service_down")
    first = server.call("POST", "/v1/notifications", to_android(1), Idempotency_Key="k").json()
    recovered(server, "fcm")
    again = server.call("POST", "/v1/notifications", to_android(1), Idempotency_Key="k").json()
    assert first["status"] == "queued"
    assert again == first


def test_a_device_that_apns_reaches_as_well_gets_it_there(server: Server) -> None:
    put_user(server, devices=[BOTH])
    usual = server.send(to_user())
    server.wait_status(usual, "delivered")
    failed(server, "fcm", "fcm_fallback")
    diverted = offered(server, to_user())
    assert diverted["status"] == "accepted"
    found = server.wait_status(diverted["id"], "delivered")
    assert [d["provider"] for d in found["deliveries"] if d["status"] == "delivered"] == ["apns"]
    assert server.received("apns")["count"] == 1


def test_what_was_held_before_goes_the_other_way_once_there_is_one(server: Server) -> None:
    put_user(server, devices=[BOTH], email="ann@example.com", preferences={"channels": ["push", "email"]})
    pinned = {"pinned": False}
    assert server.call("PUT", "/v1/modes/fcm_fallback", pinned).status == 200
    failed(server, "fcm", "external_service_down")
    assert server.call("POST", "/v1/breakers/fcm", {"action": "isolate"}).status == 200
    held = [server.send(to_user()) for _ in range(3)]
    for one in held:
        server.wait_status(one, "queued")
    assert server.call("PUT", "/v1/modes/fcm_fallback", {"pinned": None}).status == 200
    for one in held:
        found = server.wait_status(one, "delivered")
        assert [d["provider"] for d in found["deliveries"] if d["status"] == "delivered"] == ["apns"]
        assert "diverted" in {e["event"] for e in server.get(f"/v1/notifications/{one}/explain")["timeline"]}


def test_while_apns_is_down_ios_is_held_and_urgency_goes_down_its_channels(server: Server) -> None:
    put_user(server, email="ann@example.com", devices=[{**BOTH, "provider": "apns", "token": "cd" * 32}])
    failed(server, "apns", "hold_ios")
    held = offered(server, to_iphone(1))
    assert held["status"] == "queued"
    urgent = offered(server, to_user(priority="high"))
    assert urgent["status"] == "accepted"
    found = server.wait_status(urgent["id"], "delivered")
    assert [d["channel"] for d in found["deliveries"] if d["status"] == "delivered"] == ["email"]
    recovered(server, "apns")
    server.wait_status(held["id"], "delivered", within_s=60)


def test_an_operator_holds_a_mode_on_and_lets_it_go(server: Server) -> None:
    put_user(server, email="ann@example.com")
    now = server.call("PUT", "/v1/modes/read_only", {"pinned": True}).json()
    assert (now["active"], now["pinned"], now["because"]) == (True, True, ["pinned"])
    for method, path, document in (
        ("PUT", "/v1/users/u", {"email": "ben@example.com"}),
        ("DELETE", "/v1/users/u", None),
        ("POST", "/v1/users/batch", None),
        ("PUT", "/v1/users/u/devices/d", BOTH),
        ("DELETE", "/v1/users/u/devices/d", None),
        ("POST", "/v1/keys", {"name": "n", "scopes": ["read"]}),
        ("DELETE", "/v1/keys/bootstrap", None),
    ):
        answer = server.call(method, path, document)
        assert (answer.status, answer.json()["code"]) == (503, "read_only"), (method, path)
        assert answer.json()["retryable"]
        assert answer.headers["retry-after"] == "5"
        assert answer.headers["bellbuoy-degraded"] == "read_only"
    assert server.get("/v1/users/u")["email"] == "ann@example.com"
    server.wait_status(server.send(to_user()), "delivered")
    server.kill()
    server.start()
    assert modes(server) == {"read_only"}, "a pin outlives a restart"
    assert "read_only is not active" in server.cli("modes", "pin", "read_only", "auto")
    put_user(server, email="ben@example.com")
    assert server.call("PUT", "/v1/modes/unknown", {"pinned": True}).status == 404
    assert server.call("PUT", "/v1/modes/read_only", {"pinned": "yes"}).status == 422
    server.cli("modes", "pin", "read_only", "maybe", status=2)
    server.cli("breakers", "set", "fcm", "maybe", status=2)


def test_the_metrics_and_the_command_line_show_the_modes(server: Server) -> None:
    failed(server, "sms", "external_service_down")
    text = server.call("GET", "/metrics").body.decode()
    assert 'bellbuoy_mode_active{mode="external_service_down"} 1.0' in text
    assert 'bellbuoy_mode_active{mode="read_only"} 0.0' in text
    assert "sms_down" in server.cli("modes")
    assert "sms_down" in server.cli("status")


def test_a_provider_that_comes_and_goes_each_second_makes_a_handful_of_changes(server: Server) -> None:
    for _ in range(10):
        server.fault("sms", kind="outage")
        time.sleep(1.0)
        server.fault("sms")
        time.sleep(1.0)
    changes = [event for event in server.events() if event["event"].startswith("degraded_mode_")]
    assert len(changes) <= 3
    recovered(server, "sms")
