"""Providers that are down, hang, call every token gone, or reject our credential; from outside, on short breakers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, to_android, to_iphone, to_phone, wait_for

pytestmark = pytest.mark.fault

SHORT = {
    "BELLBUOY_BREAKERS__FCM__RECOVERY_TIMEOUT_S": "2",
    "BELLBUOY_BREAKERS__APNS__RECOVERY_TIMEOUT_S": "2",
    "BELLBUOY_BREAKERS__SMTP__RECOVERY_TIMEOUT_S": "2",
    "BELLBUOY_BREAKERS__SMS__FAILURE_THRESHOLD": "100",
    "BELLBUOY_BREAKERS__FCM__TIMEOUT_S": "1",
    "BELLBUOY_BREAKERS__SMTP__TIMEOUT_S": "1",
    "BELLBUOY_PROVIDERS__FCM__SERVER_ERROR_WAIT_S": "0.2",
    "BELLBUOY_PROVIDERS__SMS__SERVER_ERROR_WAIT_S": "0.2",
    "BELLBUOY_PROVIDERS__SMTP__SERVER_ERROR_WAIT_S": "0.2",
    "BELLBUOY_RETRY__INITIAL_DELAY_S": "0.2",
    "BELLBUOY_DELIVERY__CREDENTIAL_HOLD_S": "2",
    "BELLBUOY_DELIVERY__PURGE_SUSPECT_S": "1",
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data", env=SHORT) as running:
        yield running


def breaker(server: Server, name: str) -> str:
    return next(str(b["state"]) for b in server.get("/v1/breakers")["items"] if b["name"] == name)


def test_an_fcm_outage_is_not_felt_by_apns_and_loses_nothing(server: Server) -> None:
    server.fault("fcm", kind="outage")
    held = [server.send(to_android(n)) for n in range(30)]
    wait_for(lambda: breaker(server, "fcm") == "open", why="the breaker opens")
    apns = [server.send(to_iphone(n)) for n in range(1, 101)]
    for one in apns:
        found = server.wait_status(one, "delivered")
        assert [a["outcome"] for a in found["deliveries"][0]["attempts"]] == ["delivered"]
    assert breaker(server, "apns") == "closed"
    assert {server.status_of(one) for one in held} <= {"queued", "delivering"}
    assert server.get("/v1/health")["status"] == "degraded"
    assert "fcm_down" in server.get("/v1/health")["issues"]

    def waits_for_fcm() -> bool:
        explained = server.get(f"/v1/notifications/{held[-1]}/explain")
        return bool(explained["next"] and explained["next"]["why"].startswith("held"))

    wait_for(waits_for_fcm, why="explain says that it is held")
    server.fault("fcm")
    for one in held:
        server.wait_status(one, "delivered", within_s=60)
    assert breaker(server, "fcm") == "closed"
    names = [e["event"] for e in server.events() if e.get("breaker") == "fcm"]
    assert names[0] == "circuit_breaker_opened"
    assert names[-1] == "circuit_breaker_closed"
    assert server.books()["difference"] == 0
    assert server.received("fcm")["duplicate_count"] == 0


def test_in_an_outage_what_is_urgent_takes_the_next_channel(server: Server) -> None:
    user = {"email": "ann@example.com", "devices": [{"device_id": "p", **to_android(1)["recipient"]["device"]}]}
    server.call("PUT", "/v1/users/ann", user)
    server.call("POST", "/v1/breakers/fcm", {"action": "isolate"})
    to_ann = {"recipient": {"user_id": "ann"}, "content": {"title": "t"}}
    urgent, normal = server.send({**to_ann, "priority": "high"}), server.send(to_ann)
    found = server.wait_status(urgent, "delivered")
    assert [(d["provider"], d["status"]) for d in found["deliveries"]] == [("fcm", "cancelled"), ("smtp", "delivered")]
    server.wait_status(normal, "queued")


@pytest.mark.parametrize("on_uncertain", ["stop", "retry"])
def test_a_provider_that_never_answers_leaves_the_outcome_unknown(server: Server, on_uncertain: str) -> None:
    server.fault("fcm", kind="hang")
    sent = server.send(to_android(1, on_uncertain=on_uncertain))
    if on_uncertain == "stop":
        found = server.wait_status(sent, "uncertain", within_s=20)
        assert found["deliveries"][0]["status"] == "uncertain"
        assert [a["outcome"] for a in found["deliveries"][0]["attempts"]] == ["uncertain"]
    else:
        wait_for(lambda: _outcomes(server, sent)[:1] == ["uncertain"])
        server.fault("fcm")
        server.wait_status(sent, "delivered", within_s=30)
        assert server.books()["possible_duplicates"] >= 1
        assert server.received("fcm")["duplicate_count"] >= 1  # The one that hung had been taken, and we say so.


def _outcomes(server: Server, sent: str) -> list[str]:
    return [a["outcome"] for d in server.get(f"/v1/notifications/{sent}")["deliveries"] for a in d["attempts"]]


def test_a_thousand_tokens_gone_at_once_purge_nothing(server: Server) -> None:
    users = [
        {"user_id": f"u-{n}", "devices": [{"device_id": "p", **to_android(n)["recipient"]["device"]}]}
        for n in range(1000)
    ]
    body = b"\n".join(json.dumps(u).encode() for u in users)
    assert server.call("POST", "/v1/users/batch", body, Content_Type="application/x-ndjson").json()["accepted"] == 1000
    server.fault("fcm", kind="unregistered")
    done = server.send_lines([{"recipient": {"user_id": u["user_id"]}, "content": {"title": "t"}} for u in users])
    assert done["accepted"] == 1000
    wait_for(lambda: "credential_rejected" in server.get("/v1/health")["issues"], why="an issue is raised")
    assert server.get("/v1/tombstones")["items"] == []
    server.fault("fcm")
    # With the right project again what was held goes out; the few judged before the guard tripped have failed.
    wait_for(lambda: server.books()["pending"] == 0, within_s=90, why="all settled")
    books = server.books()
    assert books["delivered"] > 800
    assert books["delivered"] + books["failed"] == 1000
    assert server.get("/v1/tombstones")["items"] == []
    assert all(d["invalidated_at"] is None for d in server.get("/v1/users/u-7/devices")["items"])


def test_a_few_gone_tokens_among_many_are_purged_and_can_be_taken_back(server: Server) -> None:
    for n in range(5):
        device = {"device_id": "p", "platform": "android", "provider": "fcm", "token": f"gone-{n}"}
        server.call("PUT", f"/v1/users/g-{n}", {"devices": [device]})
    server.fault("fcm", kind="unregistered", tokens=[f"gone-{n}" for n in range(5)])
    server.send_lines([to_android(n) for n in range(100)])
    sent = [server.send({"recipient": {"user_id": f"g-{n}"}, "content": {"title": "t"}}) for n in range(5)]
    for one in sent:
        assert _outcomes(server, server.wait_status(one, "failed")["id"]) == ["recipient_gone"]
    wait_for(lambda: len(server.get("/v1/tombstones")["items"]) == 5, why="five tombstones")
    again = server.send({"recipient": {"user_id": "g-0"}, "content": {"title": "t"}})
    assert server.wait_status(again, "failed")["code"] == "no_route"
    server.fault("fcm")
    assert server.call("POST", "/v1/tombstones/restore", {"user_id": "g-0"}).json() == {"restored": 1}
    assert "restored 4" in server.cli("tombstones", "restore", "--all")
    back = server.send({"recipient": {"user_id": "g-0"}, "content": {"title": "t"}})
    server.wait_status(back, "delivered")


def test_a_rejected_credential_holds_and_comes_back(server: Server) -> None:
    server.fault("apns", kind="bad_credentials")
    sent = [server.send(to_iphone(n)) for n in range(1, 20)]
    wait_for(lambda: "credential_rejected" in server.get("/v1/health")["issues"])
    before = server.received("apns")["requests"]
    assert before <= 60, "a channel that is held does not hammer its provider"
    server.fault("apns")
    for one in sent:
        server.wait_status(one, "delivered", within_s=60)
    # That calls failed stays in the window of the meters for half a minute.
    assert "credential_rejected" not in server.get("/v1/health")["issues"]


def test_dead_letters_are_listed_and_replayed_once(server: Server) -> None:
    server.fault("sms", kind="error_rate", rate=1.0, count=9)
    sent = [server.send(to_phone(n)) for n in range(3)]
    for one in sent:
        assert len(server.wait_status(one, "dead_lettered", within_s=40)["deliveries"][0]["attempts"]) >= 3
    letters = server.get("/v1/dead-letters?provider=sms")["items"]
    assert {letter["notification_id"] for letter in letters} == set(sent)
    server.fault("sms")
    server.call("POST", "/v1/breakers/sms", {"action": "close"})
    dry = server.call("POST", "/v1/dead-letters/replay", {"filter": {"provider": "sms"}, "dry_run": True}).json()
    assert (dry["matched"], dry["replayed"], dry["dry_run"]) == (3, 3, True)
    assert len(server.get("/v1/dead-letters")["items"]) == 3
    assert server.call("POST", f"/v1/dead-letters/{letters[0]['id']}/replay").status == 200
    assert server.call("POST", f"/v1/dead-letters/{letters[0]['id']}/replay").status == 404
    done = server.call("POST", "/v1/dead-letters/replay", {"filter": {"provider": "sms"}, "rate_per_s": 5}).json()
    assert (done["matched"], done["replayed"], done["skipped"]) == (2, 2, [])
    for one in sent:
        server.wait_status(one, "delivered")
    assert server.get("/v1/dead-letters")["items"] == []
    assert server.received("sms")["count"] == 3


def test_dead_letters_are_discarded_by_a_filter(server: Server) -> None:
    server.fault("sms", kind="error_rate", rate=1.0, count=6)
    sent = [server.send(to_phone(n)) for n in range(2)]
    for one in sent:
        server.wait_status(one, "dead_lettered", within_s=40)
    server.fault("sms")
    server.call("POST", "/v1/breakers/sms", {"action": "close"})
    refused = server.call("POST", "/v1/dead-letters/discard", {})
    assert (refused.status, refused.json()["errors"][0]["path"]) == (422, "$.filter")
    assert "0 matched" in server.cli("dead-letters", "discard", "--expired")
    assert "2 would be discarded" in server.cli("dead-letters", "discard", "--provider", "sms", "--dry-run")
    assert "2 matched, 2 discarded" in server.cli("dead-letters", "discard", "--provider", "sms")
    assert server.get("/v1/dead-letters")["items"] == []
    assert server.get("/v1/audit")["difference"] == 0


def test_retry_after_is_waited_out(server: Server) -> None:
    server.fault("fcm", kind="quota", retry_after_s=2, count=1)
    began = time.time()
    sent = server.send(to_android(1))
    found = server.wait_status(sent, "delivered", within_s=20)
    first, second = found["deliveries"][0]["attempts"]
    assert (first["outcome"], first["error_code"], first["provider_status"]) == ("retryable", "QUOTA_EXCEEDED", 429)
    assert second["outcome"] == "delivered"
    assert time.time() - began >= 2


def test_a_goaway_under_load_loses_and_doubles_nothing(server: Server) -> None:
    server.fault("apns", kind="goaway", after=20)
    sent = server.send_lines([to_iphone(n, collapse_key=f"c-{n}") for n in range(1, 301)])
    assert sent["accepted"] == 300
    wait_for(lambda: server.books()["pending"] == 0, within_s=60)
    books = server.books()
    assert books["delivered"] == 300
    assert server.received("apns")["duplicate_count"] <= books["possible_duplicates"]
