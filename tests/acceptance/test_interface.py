"""The HTTP interface as a client meets it."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.server import KEY, Server, request, to_android, to_email, to_iphone, to_phone, wait_for

GOOD = '{"recipient": {"user_id": "u-1"}, "content": {"title": "t", "body": "b"}%s}'
LONG = "x" * 5_000

# Each: what is wrong, the body, the statuses that are right, the code.
INVALID: list[tuple[str, bytes, tuple[int, ...], str | None]] = [
    ("not JSON", b'{"recipient":', (400,), "not_json"),
    ("empty", b"", (400,), "not_json"),
    ("not UTF-8", b'{"recipient": {"user_id": "\xff"}}', (400,), "not_json"),
    ("deep", b"[" * 30_000 + b"]" * 30_000, (400,), "not_json"),
    ("array", b"[]", (422,), "invalid"),
    ("null", b"null", (422,), "invalid"),
    ("number", b"7", (422,), "invalid"),
    ("no recipient", b'{"content": {"title": "t"}}', (422,), "invalid"),
    ("no content", b'{"recipient": {"user_id": "u"}}', (422,), "invalid"),
    ("empty content", b'{"recipient": {"user_id": "u"}, "content": {}}', (422,), "invalid"),
    (
        "two recipients",
        b'{"recipient": {"user_id": "u", "phone": "+15551234567"}, "content": {"title": "t"}}',
        (422,),
        "invalid",
    ),
    ("empty recipient", b'{"recipient": {}, "content": {"title": "t"}}', (422,), "invalid"),
    ("unknown field", (GOOD % ', "titel": 1').encode(), (422,), "invalid"),
    ("priority", (GOOD % ', "priority": "urgent"').encode(), (422,), "invalid"),
    ("ttl below", (GOOD % ', "ttl_s": -1').encode(), (422,), "invalid"),
    ("ttl above", (GOOD % ', "ttl_s": 2419201').encode(), (422,), "invalid"),
    ("ttl is no number", (GOOD % ', "ttl_s": "1"').encode(), (422,), "invalid"),
    ("channel", (GOOD % ', "channels": ["fax"]').encode(), (422,), "invalid"),
    ("no channels", (GOOD % ', "channels": []').encode(), (422,), "invalid"),
    ("channel twice", (GOOD % ', "channels": ["push", "push"]').encode(), (422,), "invalid"),
    ("naive time", (GOOD % ', "send_at": "2030-01-01T08:00:00"').encode(), (422,), "invalid"),
    ("beginning of time", (GOOD % ', "send_at": "0001-01-01T00:00:00+23:59"').encode(), (422,), "invalid"),
    ("end of time", (GOOD % ', "send_at": "9999-12-31T23:59:59-23:59"').encode(), (422,), "invalid"),
    ("no time", (GOOD % ', "send_at": "soon"').encode(), (422,), "invalid"),
    ("long collapse key", (GOOD % f', "collapse_key": "{"k" * 65}"').encode(), (422,), "invalid"),
    ("collapse key of 33 two-byte letters", (GOOD % f', "collapse_key": "{"é" * 33}"').encode(), (422,), "invalid"),
    ("data", b'{"recipient": {"user_id": "u"}, "content": {"title": "t", "data": {"n": 1}}}', (422,), "invalid"),
    ("NUL", b'{"recipient": {"user_id": "u"}, "content": {"title": "a\\u0000b"}}', (422,), "invalid"),
    ("lone surrogate", b'{"recipient": {"user_id": "u"}, "content": {"title": "\\ud800"}}', (400, 422), None),
    ("mail", b'{"recipient": {"email": "nobody"}, "content": {"title": "t"}}', (422,), "invalid"),
    (
        "mail header",
        b'{"recipient": {"email": "a@example.com\\r\\nBcc: b@example.com"}, "content": {"title": "t"}}',
        (422,),
        "invalid",
    ),
    ("mail newline", b'{"recipient": {"email": "a@example.com\\n"}, "content": {"title": "t"}}', (422,), "invalid"),
    ("phone", b'{"recipient": {"phone": "call me"}, "content": {"title": "t"}}', (422,), "invalid"),
    ("empty user", b'{"recipient": {"user_id": ""}, "content": {"title": "t"}}', (422,), "invalid"),
    (
        "APNs token that is a path",
        b'{"recipient": {"device": {"platform": "ios", "provider": "apns", "token": "/"}}, "content": {"title": "t"}}',
        (422,),
        "invalid",
    ),
    (
        "push payload",
        json.dumps({"recipient": {"user_id": "u"}, "content": {"body": LONG}}).encode(),
        (422,),
        "payload_too_large",
    ),
    (
        "over 64 KiB",
        json.dumps({"recipient": {"user_id": "u"}, "content": {"body": "x" * 70_000}}).encode(),
        (413,),
        "body_too_large",
    ),
]


@pytest.mark.parametrize(
    ("body", "statuses", "code"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID]
)
def test_what_is_wrong_is_refused_with_its_place(
    server: Server, body: bytes, statuses: tuple[int, ...], code: str | None
) -> None:
    answer = server.call("POST", "/v1/notifications", body)
    problem = answer.json()
    assert answer.status in statuses
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "code", "retryable"} <= set(problem)
    assert problem["status"] == answer.status
    assert problem["retryable"] is False
    if code is not None:
        assert problem["code"] == code
    if code == "invalid":
        assert problem["errors"][0]["path"].startswith("$")


def test_a_long_text_is_fine_for_mail(server: Server) -> None:
    sent = server.send({"recipient": {"email": "a@example.com"}, "content": {"title": "t", "body": LONG}})
    assert server.wait_status(sent, "delivered")


def test_every_channel_delivers(server: Server) -> None:
    makers = {"fcm": to_android, "apns": to_iphone, "smtp": to_email, "sms": to_phone}
    sent = {provider: server.send(make(1)) for provider, make in makers.items()}
    for provider, notification_id in sent.items():
        found = server.wait_status(notification_id, "delivered")
        (delivery,) = found["deliveries"]
        assert delivery["provider"] == provider
        assert delivery["status"] == "delivered"
        (attempt,) = delivery["attempts"]
        assert attempt["n"] == 1
        assert attempt["outcome"] == "delivered"
        assert attempt["latency_ms"] > 0
        assert server.received(provider)["count"] >= 1
    assert delivery["endpoint"] != "+15550000001"


def test_an_answer_says_where_to_look(server: Server) -> None:
    answer = server.call("POST", "/v1/notifications", to_email(2))
    document = answer.json()
    assert answer.status == 202
    assert document["status"] == "accepted"
    assert document["homes"] == ["ledger"]
    assert answer.headers["location"] == document["links"]["self"] == f"/v1/notifications/{document['id']}"
    assert server.call("GET", answer.headers["location"]).status == 200


def test_fifty_clients_with_one_key_make_one_notification(server: Server) -> None:
    def ask(n: int) -> tuple[str, bool]:
        quoted = '"order-50"' if n % 2 else "order-50"
        answer = server.call("POST", "/v1/notifications", to_email(50), Idempotency_Key=quoted)
        assert answer.status == 202
        return answer.json()["id"], answer.headers.get("idempotent-replayed") == "true"

    before = server.books()["accepted"]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert len({answer[0] for answer in answers}) == 1
    assert sum(1 for _, replayed in answers if not replayed) == 1
    assert server.books()["accepted"] == before + 1
    server.wait_status(answers[0][0], "delivered")
    got = [i for i in server.received("smtp", limit=1000)["items"] if i["endpoint"] == "u50@example.com"]
    assert len(got) == 1


def test_a_key_with_another_body_is_refused_and_the_first_stands(server: Server) -> None:
    first = server.send(to_email(51), Idempotency_Key="order-51")
    other = server.call("POST", "/v1/notifications", to_email(52), Idempotency_Key="order-51")
    assert other.status == 422
    assert other.json()["code"] == "idempotency_key_reused"
    spaced = json.dumps(to_email(51), indent=3).encode()
    again = server.call("POST", "/v1/notifications", spaced, Idempotency_Key="order-51")
    assert again.json()["id"] == first
    assert again.headers["idempotent-replayed"] == "true"
    assert server.call("POST", "/v1/notifications", to_email(51), Idempotency_Key="k" * 256).status == 422


def test_a_batch_answers_in_order_and_one_bad_line_stops_no_other(server: Server) -> None:
    lines = [to_email(60), {"nonsense": 1}, to_email(61)]
    for body, kind in (
        (json.dumps({"notifications": lines}).encode(), "application/json"),
        (b"\n".join(json.dumps(line).encode() for line in lines) + b"\n", "application/x-ndjson"),
    ):
        answer = server.call("POST", "/v1/notifications/batch", body, Content_Type=kind)
        document = answer.json()
        assert answer.status == 200
        assert (document["accepted"], document["rejected"]) == (2, 1)
        assert ["id" in result for result in document["results"]] == [True, False, True]
        assert document["results"][1]["error"]["code"] == "invalid"
        assert server.status_of(document["results"][2]["id"])
    huge = {"recipient": {"email": "a@example.com"}, "content": {"body": "x" * 70_000}}
    refused = server.call("POST", "/v1/notifications/batch", {"notifications": [huge]}).json()["results"][0]
    assert refused["error"]["code"] == "body_too_large"
    assert server.call("POST", "/v1/notifications/batch", {"notifications": []}).status == 422
    assert server.call("POST", "/v1/notifications/batch", {"notifications": [to_email(1)] * 1001}).status == 422


def test_a_batch_s_key_never_meets_the_key_of_a_single_request(server: Server) -> None:
    body = {"notifications": [to_email(1), to_email(2)]}
    batch = server.call("POST", "/v1/notifications/batch", body, Idempotency_Key="meet")
    entries = [result["id"] for result in batch.json()["results"]]
    for index in range(2):
        single = server.call("POST", "/v1/notifications", to_email(9), Idempotency_Key=f"meet:{index}")
        assert single.status == 202
        assert single.json()["id"] not in entries
    again = server.call("POST", "/v1/notifications/batch", body, Idempotency_Key="meet")
    assert [result["id"] for result in again.json()["results"]] == entries


def test_keys_and_scopes(server: Server) -> None:
    assert request("GET", f"{server.url}/v1/health").status == 401
    assert server.call("GET", "/v1/health", key="x" * 40).status == 401
    assert server.call("GET", "/v1/health", key=KEY[:-1] + "?").status == 401
    made = server.call("POST", "/v1/keys", {"name": "reader", "scopes": ["read"]})
    assert made.status == 201
    reader = made.json()
    assert server.call("GET", "/v1/health", key=reader["key"]).status == 200
    assert server.call("POST", "/v1/notifications", to_email(1), key=reader["key"]).status == 403
    assert server.call("POST", "/v1/keys", {"name": "n", "scopes": ["send"]}, key=reader["key"]).status == 403
    assert server.call("DELETE", f"/v1/keys/{reader['id']}").status == 200
    assert server.call("GET", "/v1/health", key=reader["key"]).status == 401
    assert all("key" not in k and "hash" not in k for k in server.get("/v1/keys")["items"])


def test_paths_methods_and_media_types(server: Server) -> None:
    assert server.call("GET", "/v1/nowhere").status == 404
    assert server.call("GET", "/v1/notifications/none").json()["code"] == "not_found"
    wrong = server.call("DELETE", "/v1/notifications")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, POST")
    assert (
        server.call("POST", "/v1/notifications", b"a=b", Content_Type="application/x-www-form-urlencoded").status == 415
    )
    assert server.call("GET", "/v1/notifications?limit=0").status == 422
    assert server.call("GET", "/v1/notifications?colour=red").status == 422
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs"):
        assert request("GET", server.url + path).status == 200


def test_users_devices_and_what_they_allow(server: Server) -> None:
    user = {"email": "ann@example.com", "timezone": "Europe/Berlin", "preferences": {"categories": {"news": False}}}
    assert server.call("PUT", "/v1/users/ann", user).status == 200
    phone = {"platform": "android", "provider": "fcm", "token": "ann-phone"}
    assert server.call("PUT", "/v1/users/ann/devices/phone", phone).status == 200
    assert server.call("PUT", "/v1/users/ann", {**user, "locale": "de"}).json()["devices"][0]["device_id"] == "phone"
    assert [d["token"] for d in server.get("/v1/users/ann/devices")["items"]] == ["ann-phone"]
    sent = server.send({"recipient": {"user_id": "ann"}, "content": {"title": "t"}})
    assert server.wait_status(sent, "delivered")["deliveries"][0]["device_id"] == "phone"
    muted = server.send({"recipient": {"user_id": "ann"}, "content": {"title": "t"}, "category": "news"})
    assert server.wait_status(muted, "suppressed")
    assert server.call("DELETE", "/v1/users/ann/devices/phone").status == 204
    mailed = server.send({"recipient": {"user_id": "ann"}, "content": {"title": "t"}})
    assert server.wait_status(mailed, "delivered")["deliveries"][0]["provider"] == "smtp"
    assert server.call("DELETE", "/v1/users/ann").status == 204
    lost = server.send({"recipient": {"user_id": "ann"}, "content": {"title": "t"}})
    assert server.wait_status(lost, "failed")["code"] == "no_route"
    for bad in ({"timezone": "Mars/Base"}, {"email": "x"}, {"preferences": {"channels": ["fax"]}}, {"unknown": 1}):
        assert server.call("PUT", "/v1/users/bad", bad).status == 422
    assert server.call("GET", "/v1/users/bad").status == 404


def test_what_is_scheduled_can_be_cancelled_once(server: Server) -> None:
    answer = server.call("POST", "/v1/notifications", to_email(70, send_at="2099-01-01T00:00:00Z"))
    assert answer.json()["status"] == "scheduled"
    path = f"/v1/notifications/{answer.json()['id']}"
    assert server.get(f"{path}/explain")["next"]["at"].startswith("2099-01-01")
    assert server.call("POST", f"{path}/cancel").json()["status"] == "cancelled"
    assert server.call("POST", f"{path}/cancel").status == 409
    assert server.call("POST", "/v1/notifications/none/cancel").status == 404
    assert server.get(f"{path}/explain")["next"] is None


def test_listing_pages_through_everything_once(server: Server) -> None:
    server.send_lines([to_email(n) for n in range(80, 90)])
    wait_for(lambda: server.books()["pending"] == 0)
    seen, cursor = [], ""
    while True:
        page = server.get(f"/v1/notifications?status=delivered&limit=7{cursor}")
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert len(seen) == len(set(seen)) == server.books()["delivered"]


def test_the_books_balance_and_metrics_say_so(server: Server) -> None:
    server.send(to_email(90))
    wait_for(lambda: server.books()["pending"] == 0)
    books = server.books()
    terms = ("delivered", "failed", "expired", "cancelled", "suppressed", "dead_lettered", "uncertain", "pending")
    assert books["accepted"] == sum(books[term] for term in terms)
    assert books["difference"] == 0
    text = request("GET", f"{server.url}/metrics").body.decode()
    assert "bellbuoy_books_difference 0.0" in text
    assert f'bellbuoy_accepted_total{{home="ledger"}} {float(books["accepted"])}' in text
    assert 'bellbuoy_breaker_state{name="fcm"} 0.0' in text


def test_no_secret_or_personal_data_reaches_the_log(server: Server) -> None:
    server.fault("smtp", kind="error_rate", rate=1.0)
    server.send(to_email(4711))
    wait_for(lambda: any(e["event"] == "retry_attempt" for e in server.events()))
    server.fault("smtp")
    log = server.log.read_text()
    for secret in (KEY, "u4711@example.com", "4711", "token-1", "+1555"):
        assert secret not in log


def test_health_names_every_dependency(server: Server) -> None:
    health = server.get("/v1/health")
    assert set(health["dependencies"]) == {"ledger", "fcm", "apns", "smtp", "sms"}
    assert health["dependencies"]["ledger"]["status"] == "healthy"
    breakers = {b["name"]: b["state"] for b in server.get("/v1/breakers")["items"]}
    assert breakers.keys() == {"fcm", "apns", "smtp", "sms", "sqlite"}


def test_a_breaker_can_be_isolated_and_closed_by_hand(server: Server) -> None:
    assert server.call("POST", "/v1/breakers/sms", {"action": "isolate"}).json()["state"] == "isolated"
    held = server.send(to_phone(99))
    server.wait_status(held, "queued")
    assert server.get("/v1/health")["status"] == "degraded"
    assert server.call("POST", "/v1/breakers/sms", {"action": "close"}).json()["state"] == "closed"
    server.wait_status(held, "delivered")
    assert server.call("POST", "/v1/breakers/none", {"action": "close"}).status == 404
    assert server.call("POST", "/v1/breakers/sms", {"action": "break"}).status == 422


def _raw(server: Server, data: bytes) -> bytes:
    """Send bytes as they are; returns what came back until the other side closed."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        got = b""
        with contextlib.suppress(OSError):
            while part := connection.recv(65_536):
                got += part
        return got


def test_a_head_without_end_is_refused_before_it_fills_the_memory(server: Server) -> None:
    answer = _raw(server, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20_000_000)
    assert answer.startswith(b"HTTP/1.1 400") or answer == b""
    assert request("GET", f"{server.url}/livez").status == 200


def test_what_needs_no_key_is_for_this_machine_by_its_own_name(server: Server) -> None:
    for path, refused in (("/metrics", 401), ("/_control", 404)):
        assert request("GET", server.url + path).status == 200
        assert request("GET", server.url + path, headers={"Host": "evil.example"}).status == refused
        assert request("GET", server.url + path, headers={"X-Forwarded-For": "127.0.0.1"}).status == refused


def test_the_ledger_is_its_owner_s_alone(server: Server) -> None:
    modes = {path.stat().st_mode & 0o077 for path in server.data_dir.glob("bellbuoy.db*")}
    assert modes == {0}


def test_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    one = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    two = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = _raw(server, one + one + two)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"404"]
