"""APNs's stand-in: tokens, headers, reasons, streams."""

from __future__ import annotations

import uuid
from pathlib import Path

import h2.events
import h2.settings
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bellbuoy.clock import ManualClock
from bellbuoy.sandbox import Sandbox
from bellbuoy.sandbox.apns import MAGIC_PREFIXES, TABLE

from .clients import DEVICE, ApnsClient, Control, RawHttp2

STREAMS = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS


async def test_a_push_is_accepted_and_shown_as_received(apns: ApnsClient, control: Control) -> None:
    apns_id = str(uuid.uuid4())
    status, reason, response = await apns.send(apns_id=apns_id, apns_collapse_id="order-17")
    assert (status, reason) == (200, None)
    assert response.get_header("apns-id") == apns_id
    (item,) = (await control.received("apns"))["items"]
    assert (item["id"], item["endpoint"], item["collapse_id"]) == (apns_id, DEVICE, "order-17")
    assert (item["title"], item["body"], item["data"]) == ("Hi", "there", {"order": "17"})
    assert item["headers"]["apns-push-type"] == "alert"


async def test_an_id_is_made_when_none_is_given(apns: ApnsClient) -> None:
    _, _, response = await apns.send(apns_id=None)
    made = response.get_header("apns-id")
    assert made is not None
    assert str(uuid.UUID(made)) == made


def _foreign_key() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


async def test_provider_tokens_are_checked(apns: ApnsClient) -> None:
    wrong = {
        "another key": apns.provider_token(key=_foreign_key()),
        "another kid": apns.provider_token(kid="ABCDEFGHIJ"),
        "another team": apns.provider_token(iss="ABCDEFGHIJ"),
        "of the future": apns.provider_token(age_s=-600),
        "no token": "nonsense",
    }
    for what, token in wrong.items():
        apns.jwt = token
        assert (await apns.send())[:2] == (403, "InvalidProviderToken"), what
    apns.jwt = None
    assert (await apns.send())[:2] == (403, "MissingProviderToken")
    apns.jwt = apns.provider_token(age_s=3_601)
    assert (await apns.send())[:2] == (403, "ExpiredProviderToken")
    apns.jwt = apns.provider_token(age_s=3_599)
    assert (await apns.send())[0] == 200


async def test_a_token_expires_an_hour_after_it_was_made(apns: ApnsClient, clock: ManualClock) -> None:
    assert (await apns.send())[0] == 200
    await clock.advance(3_600)
    assert (await apns.send())[0] == 200
    await clock.advance(1)
    assert (await apns.send())[:2] == (403, "ExpiredProviderToken")


async def test_new_tokens_may_come_every_twenty_minutes(apns: ApnsClient, clock: ManualClock) -> None:
    first = apns.jwt
    assert (await apns.send())[0] == 200
    await clock.advance(1_199)
    second = apns.jwt = apns.provider_token()
    assert (await apns.send())[:2] == (429, "TooManyProviderTokenUpdates")
    apns.jwt = first
    assert (await apns.send())[0] == 200
    await clock.advance(1)
    apns.jwt = second
    assert (await apns.send())[0] == 200
    apns.jwt = first
    assert (await apns.send())[0] == 200


async def test_a_token_made_long_after_the_last_is_welcome_at_once(apns: ApnsClient, clock: ManualClock) -> None:
    apns.jwt = apns.provider_token(age_s=2_100)
    assert (await apns.send())[0] == 200
    apns.jwt = apns.provider_token()
    assert (await apns.send())[0] == 200
    apns.jwt = apns.provider_token(age_s=1)
    assert (await apns.send())[:2] == (429, "TooManyProviderTokenUpdates")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"apns_topic": None}, "MissingTopic"),
        ({"apns_topic": "bad topic!"}, "BadTopic"),
        ({"apns_topic": "com.example.other"}, "TopicDisallowed"),
        ({"apns_id": "not-a-uuid"}, "BadMessageId"),
        ({"apns_id": "0A0A0A0A-0000-4000-8000-000000000000"}, "BadMessageId"),
        ({"apns_push_type": "shout"}, "InvalidPushType"),
        ({"apns_priority": "7"}, "BadPriority"),
        ({"apns_push_type": "background", "apns_priority": "10"}, "BadPriority"),
        ({"apns_expiration": "tomorrow"}, "BadExpirationDate"),
        ({"apns_expiration": "-1"}, "BadExpirationDate"),
        ({"apns_collapse_id": "x" * 65}, "BadCollapseId"),
    ],
)
async def test_headers_are_checked(apns: ApnsClient, headers: dict[str, str | None], reason: str) -> None:
    assert (await apns.send(**headers))[:2] == (400, reason)  # type: ignore[arg-type]


async def test_good_headers_at_the_edge(apns: ApnsClient) -> None:
    assert (await apns.send(apns_collapse_id="x" * 64))[0] == 200
    assert (await apns.send(apns_push_type="background", apns_priority="5"))[0] == 200
    assert (await apns.send(apns_priority=None, apns_push_type=None, apns_expiration=None))[0] == 200


async def test_paths_methods_and_tokens(apns: ApnsClient) -> None:
    assert (await apns.to("/3/devices/" + DEVICE))[:2] == (404, "BadPath")
    assert (await apns.send(method="PUT"))[:2] == (405, "MethodNotAllowed")
    assert (await apns.send(token=""))[:2] == (400, "MissingDeviceToken")
    assert (await apns.send(token="xyz"))[:2] == (400, "BadDeviceToken")
    assert (await apns.send(token="0a" * 31))[:2] == (400, "BadDeviceToken")
    assert (await apns.send(token="0" * 64))[:2] == (400, "BadDeviceToken")


async def test_payload_sizes(apns: ApnsClient) -> None:
    def sized(size: int) -> bytes:
        return b'{"aps":{"alert":"' + b"x" * (size - len(b'{"aps":{"alert":""}}')) + b'"}}'

    assert (await apns.send(body=sized(4_096)))[0] == 200
    assert (await apns.send(body=sized(4_097)))[:2] == (413, "PayloadTooLarge")
    voip: dict[str, str | None] = {"apns_push_type": "voip", "apns_topic": apns.topic + ".voip"}
    assert (await apns.send(body=sized(5_120), **voip))[0] == 200  # type: ignore[arg-type]
    assert (await apns.send(body=sized(5_121), **voip))[:2] == (413, "PayloadTooLarge")  # type: ignore[arg-type]
    for empty in (b"", b"{}", b"not json", b"[]"):
        assert (await apns.send(body=empty))[:2] == (400, "PayloadEmpty")


@pytest.mark.parametrize("prefix", sorted(MAGIC_PREFIXES))
async def test_a_magic_token_gets_its_reason(apns: ApnsClient, clock: ManualClock, prefix: str) -> None:
    reason = MAGIC_PREFIXES[prefix]
    status, found, _ = await apns.send(token=prefix + "0" * 56)
    assert (status, found) == (TABLE.rows[reason].status, reason)


@pytest.mark.parametrize("reason", sorted(TABLE.rows))
async def test_every_row_can_be_asked_for(apns: ApnsClient, control: Control, reason: str) -> None:
    await control.fault("apns", kind="error", reason=reason)
    assert (await apns.send())[:2] == (TABLE.rows[reason].status, reason)
    assert (await control.received("apns"))["errors"] == {reason: 1}


async def test_gone_tokens_say_since_when(apns: ApnsClient, control: Control, clock: ManualClock) -> None:
    raw = apns.client.post(f"{apns.base}/3/device/{'dead0410' + '0' * 56}").headers(apns.headers())
    response = await raw.body_bytes(b'{"aps":{}}').build().send()
    body = msgspec.json.decode(bytes(await response.bytes()))
    assert body == {"reason": "Unregistered", "timestamp": int(clock.time() * 1_000)}
    await control.fault("apns", kind="unregistered", timestamp_ms=123)
    raw = apns.client.post(f"{apns.base}/3/device/{DEVICE}").headers(apns.headers())
    response = await raw.body_bytes(b'{"aps":{}}').build().send()
    assert msgspec.json.decode(bytes(await response.bytes()))["timestamp"] == 123


async def test_one_stream_until_the_first_good_push(apns: ApnsClient, sandbox: Sandbox) -> None:
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        await raw.wait(lambda: bool(raw.of(h2.events.RemoteSettingsChanged)))
        assert raw.h2.remote_settings.max_concurrent_streams == 1
        path = f"/3/device/{DEVICE}"
        bad = raw.request(path, apns.headers(authorization="bearer nonsense"), b'{"aps":{}}')
        await raw.wait(lambda: raw.status(bad) is not None)
        assert raw.h2.remote_settings.max_concurrent_streams == 1
        good = raw.request(path, apns.headers(), b'{"aps":{}}')
        await raw.wait(lambda: raw.status(good) is not None)
        await raw.wait(lambda: raw.h2.remote_settings.max_concurrent_streams == 1_000)
    finally:
        await raw.aclose()


async def test_a_stream_above_the_limit_is_refused(apns: ApnsClient, sandbox: Sandbox) -> None:
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        await raw.wait(lambda: bool(raw.of(h2.events.RemoteSettingsChanged)))
        # The acknowledgement has left with the answer to the settings; now break the promise it made.
        raw.h2.remote_settings[STREAMS] = 10
        raw.h2.remote_settings.acknowledge()
        headers = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", f"/3/device/{DEVICE}")]
        raw.h2.send_headers(1, headers)
        raw.h2.send_headers(3, headers)
        raw.flush()
        await raw.wait(lambda: bool(raw.of(h2.events.StreamReset)))
        (reset,) = raw.of(h2.events.StreamReset)
        assert (reset.stream_id, reset.error_code) == (3, 7)
    finally:
        await raw.aclose()


async def test_repeated_headers_are_refused(apns: ApnsClient, sandbox: Sandbox) -> None:
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        pseudo = {":method": "POST", ":scheme": "https", ":authority": "a", ":path": f"/3/device/{DEVICE}"}
        headers = [*pseudo.items(), *apns.headers().items(), ("apns-topic", apns.topic)]
        raw.h2.send_headers(1, headers)
        raw.h2.send_data(1, b'{"aps":{}}', end_stream=True)
        raw.flush()
        await raw.wait(lambda: bool(raw.of(h2.events.DataReceived)))
        assert raw.of(h2.events.DataReceived)[0].data == b'{"reason":"DuplicateHeaders"}'
    finally:
        await raw.aclose()


async def test_pings_are_answered(sandbox: Sandbox) -> None:
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        raw.h2.ping(b"12345678")
        raw.flush()
        await raw.wait(lambda: bool(raw.of(h2.events.PingAckReceived)))
    finally:
        await raw.aclose()


def test_keys_are_private(sandbox: Sandbox) -> None:
    wiring = sandbox.wiring()["providers"]
    for path in (wiring["apns"]["key_file"], wiring["fcm"]["credentials_file"]):
        assert Path(path).stat().st_mode & 0o777 == 0o600
