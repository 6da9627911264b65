"""FCM's stand-in: what Google accepts and refuses, in Google's words."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bellbuoy.clock import ManualClock
from bellbuoy.sandbox.fcm import MAGIC_TOKENS, TABLE, TOKEN_S

from .clients import Control, FcmClient, eventually

FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"


async def test_a_message_is_accepted_and_shown_as_received(fcm: FcmClient, control: Control) -> None:
    status, body = await fcm.send(
        notification={"title": "Hi", "body": "there"},
        data={"order": "17", "notification_id": "n-1"},
        android={"priority": "high", "ttl": "60s", "notification": {"tag": "t-1"}},
    )
    assert status == 200
    assert body["name"].startswith("projects/bellbuoy-sandbox/messages/")
    received = await control.received("fcm")
    assert (received["count"], received["requests"], received["accepted"]) == (1, 1, 1)
    (item,) = received["items"]
    assert item["id"] == body["name"]
    assert (item["endpoint"], item["collapse_id"], item["notification"]) == ("device-1", "t-1", "n-1")
    assert (item["title"], item["body"], item["priority"]) == ("Hi", "there", "high")
    assert item["data"] == {"order": "17", "notification_id": "n-1"}
    assert (item["status"], item["error"]) == (200, None)


async def test_a_dry_run_is_checked_and_not_delivered(fcm: FcmClient, control: Control) -> None:
    response = await fcm.post({"validate_only": True, "message": {"token": "device-1"}})
    assert response.status == 200
    received = await control.received("fcm")
    assert (received["count"], received["requests"]) == (0, 0)


async def test_a_dry_run_feels_a_fault_and_uses_none_up(fcm: FcmClient, control: Control) -> None:
    dry = {"validate_only": True, "message": {"token": "device-1"}}
    await control.fault("fcm", kind="outage")
    assert (await fcm.post(dry)).status == 503
    await control.fault("fcm", kind="outage", count=1)
    assert (await fcm.post(dry)).status == 200
    assert (await fcm.send())[0] == 503
    assert (await fcm.send())[0] == 200


@pytest.mark.parametrize("bearer", [None, "ya29.sandbox-not-one"])
async def test_a_send_needs_a_live_bearer(fcm: FcmClient, bearer: str | None) -> None:
    fcm.bearer = bearer
    status, body = await fcm.send()
    assert status == 401
    assert body["error"]["status"] == "UNAUTHENTICATED"
    assert "details" not in body["error"]


async def test_a_bearer_dies_after_its_time(fcm: FcmClient, clock: ManualClock) -> None:
    await clock.advance(TOKEN_S - 1)
    assert (await fcm.send())[0] == 200
    await clock.advance(2)
    assert (await fcm.send())[0] == 401
    await fcm.login()
    assert (await fcm.send())[0] == 200


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        ({"iss": "somebody@else"}, "invalid_grant"),
        ({"aud": "https://oauth2.googleapis.com/token"}, "invalid_grant"),
        ({"scope": "https://www.googleapis.com/auth/drive"}, "invalid_scope"),
        ({"exp": 1_800_000_000 + 3_601}, "invalid_grant"),
        ({"exp": 1_799_999_999}, "invalid_grant"),
        ({"iat": 1_800_000_000 + 600, "exp": 1_800_000_000 + 700}, "invalid_grant"),
        ({"exp": "soon"}, "invalid_grant"),
    ],
)
async def test_a_wrong_assertion_gets_no_token(fcm: FcmClient, claims: dict[str, object], error: str) -> None:
    assertion = fcm.assertion(claims)
    status, body = await fcm.token(assertion)
    assert (status, body["error"]) == (400, error)
    assert body["error_description"]


async def test_an_assertion_needs_our_signature_and_the_right_grant(fcm: FcmClient) -> None:
    other = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    status, body = await fcm.token(fcm.assertion(key=pem.decode()))
    assert (status, body["error"]) == (400, "invalid_grant")
    status, body = await fcm.token(fcm.assertion(), grant="password")
    assert (status, body["error"]) == (400, "unsupported_grant_type")


@pytest.mark.parametrize("part", sorted(MAGIC_TOKENS))
async def test_a_magic_token_gets_its_error(fcm: FcmClient, part: str) -> None:
    code = MAGIC_TOKENS[part]
    row = TABLE.rows[code]
    status, body = await fcm.send(token=f"x-{part}-1")
    assert status == row.status
    error = body["error"]
    assert (error["code"], error["status"], error["message"]) == (row.status, row.label, row.message)
    if row.detailed:
        assert error["details"] == [{"@type": FCM_ERROR, "errorCode": code}]
    else:
        assert "details" not in error


def test_every_row_has_a_magic_token() -> None:
    assert set(MAGIC_TOKENS.values()) == set(TABLE.rows)


@pytest.mark.parametrize("code", sorted(TABLE.rows))
async def test_every_row_can_be_asked_for(fcm: FcmClient, control: Control, code: str) -> None:
    await control.fault("fcm", kind="error", code=code, retry_after_s=7)
    response = await fcm.post({"message": {"token": "device-1"}})
    error = msgspec.json.decode(bytes(await response.bytes()))["error"]
    assert response.status == TABLE.rows[code].status
    assert response.get_header("retry-after") == "7"
    assert error["status"] == TABLE.rows[code].label
    received = await control.received("fcm")
    assert received["errors"] == {code: 1}
    assert (received["count"], received["rejected"]) == (0, 1)


@pytest.mark.parametrize(
    ("message", "detailed"),
    [
        ({"token": ""}, True),
        ({"token": "with space"}, True),
        ({"topic": "news", "condition": "'a' in topics", "token": "t"}, True),
        ({"data": {"n": 1}}, False),
        ({"data": {"from": "x"}}, True),
        ({"data": {"google.x": "x"}}, True),
        ({"data": "text"}, False),
        ({"notification": {"titel": "x"}}, False),
        ({"surprise": 1}, False),
        ({"android": {"ttl": "2419201s"}}, True),
        ({"android": {"ttl": "-1s"}}, True),
        ({"android": {"ttl": 60}}, True),
        ({"android": {"priority": "urgent"}}, False),
        ({"data": {"k": "x" * 4_096}}, True),
        ({"apns": {"payload": {"k": "x" * 4_096}}}, True),
    ],
)
async def test_a_bad_message_is_an_invalid_argument(fcm: FcmClient, message: dict[str, object], detailed: bool) -> None:
    status, body = await fcm.send(**{"token": "device-1", **message})  # type: ignore[arg-type]
    assert (status, body["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert ("details" in body["error"]) is detailed


async def test_limits_are_inclusive(fcm: FcmClient) -> None:
    room = 4_096 - len(b'{"data":{"k":""}}')
    assert (await fcm.send(data={"k": "x" * room}))[0] == 200
    assert (await fcm.send(data={"k": "x" * (room + 1)}))[0] == 400
    assert (await fcm.send(android={"ttl": "2419200s"}))[0] == 200
    assert (await fcm.send(android={"ttl": "0s"}))[0] == 200
    big = {"topic": "news", "data": {"k": "x" * 2_048}}
    assert (await fcm.post({"message": big})).status == 400


async def test_what_is_not_a_message_at_all(fcm: FcmClient) -> None:
    documents: list[object] = [b"not json", b"[]", b"{}", {"message": {"token": "t"}, "extra": 1}, {"message": {}}]
    for document in documents:
        assert (await fcm.post(document)).status == 400


async def test_another_project_is_denied_and_another_path_not_found(fcm: FcmClient) -> None:
    message = {"message": {"token": "t"}}
    assert (await fcm.post(message, "/v1/projects/other/messages:send")).status == 403
    response = await fcm.post(message, "/v2/whatever")
    assert response.status == 404
    assert "details" not in msgspec.json.decode(bytes(await response.bytes()))["error"]


@pytest.mark.parametrize(
    ("message", "collapse_id"),
    [
        ({"android": {"notification": {"tag": "a"}, "collapse_key": "b"}}, "a"),
        ({"android": {"collapse_key": "b"}, "apns": {"headers": {"apns-collapse-id": "c"}}}, "b"),
        ({"apns": {"headers": {"apns-collapse-id": "c"}}, "webpush": {"headers": {"Topic": "d"}}}, "c"),
        ({"webpush": {"headers": {"Topic": "d"}}}, "d"),
        ({}, None),
    ],
)
async def test_where_the_collapse_id_is_found(
    fcm: FcmClient, control: Control, message: dict[str, object], collapse_id: str | None
) -> None:
    await fcm.send(token="device-1", **message)
    assert (await control.received("fcm"))["items"][0]["collapse_id"] == collapse_id


async def test_a_slow_token_waits_and_arrives(fcm: FcmClient, control: Control, clock: ManualClock) -> None:
    sending = asyncio.create_task(fcm.send(token="sandbox-slow"))
    await eventually(lambda: clock.next_wake_s is not None)
    assert (await control.received("fcm"))["count"] == 1
    await clock.advance(2.0)
    assert (await sending)[0] == 200
