"""ApnsProvider over a scripted transport: headers, payloads, and the provider token."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bellbuoy.adapters.apns import ApnsProvider, ProviderToken, collapse_id, encode
from bellbuoy.adapters.transport import Response
from bellbuoy.clock import ManualClock
from bellbuoy.errors import ConfigurationError, CredentialRejected, Permanent, ProviderError, Transient
from bellbuoy.model.delivery import Message
from bellbuoy.model.notification import Content
from tests.unit.adapters.transport.fakes import FakeTransport, answer

KEY = ec.generate_private_key(ec.SECP256R1())
TOKEN = "3ddc1b" * 10 + "beef"
OK = answer(200, apns_id="6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569")
QUANTUM = 1_800_000_300
"""A multiple of 2,100 seconds."""


def reason(http: int, word: str, **headers: str) -> Response:
    return answer(http, json.dumps({"reason": word}).encode(), **headers)


def message(**changed: Any) -> Message:
    fields: dict[str, Any] = {
        "delivery_id": "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
        "notification_id": "01J0000000000000000000000A",
        "endpoint": TOKEN,
        "content": Content(title="Order", body="On its way", data={"order": "17"}),
        "expires_at": 1_800_000_060.5,
        "ttl_s": 60,
        "platform": "ios",
    }
    return Message(**{**fields, **changed})


def token(clock: ManualClock) -> ProviderToken:
    return ProviderToken(team_id="TEAM123456", key_id="KEY1234567", key=KEY, clock=clock)


def issued(authorization: str) -> int:
    scheme, _, encoded = authorization.partition(" ")
    assert scheme == "bearer"
    header = jwt.get_unverified_header(encoded)
    assert header == {"alg": "ES256", "kid": "KEY1234567"}
    claims = jwt.decode(encoded, KEY.public_key(), algorithms=["ES256"], options={"verify_iat": False})
    assert set(claims) == {"iss", "iat"}
    assert claims["iss"] == "TEAM123456"
    return int(claims["iat"])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(epoch_s=QUANTUM + 600.0)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "AuthKey.p8"
    file.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


def provider(transport: FakeTransport, key_file: Path, clock: ManualClock, **changed: Any) -> ApnsProvider:
    fields: dict[str, Any] = {
        "base_url": "https://apns.test:2197/",
        "team_id": "TEAM123456",
        "key_id": "KEY1234567",
        "topic": "com.example.app",
    }
    return ApnsProvider(**{**fields, **changed}, key_file=key_file, transport=transport, clock=clock)


async def test_a_message_has_every_header(key_file: Path, clock: ManualClock) -> None:
    transport = FakeTransport(OK)
    receipt = await provider(transport, key_file, clock).send(message(priority="high"))
    assert (receipt.provider_status, receipt.message_id) == (200, "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569")
    [(url, headers, body)] = transport.requests
    assert url == f"https://apns.test:2197/3/device/{TOKEN}"
    assert issued(headers.pop("authorization")) == QUANTUM
    assert headers == {
        "apns-topic": "com.example.app",
        "apns-push-type": "alert",
        "apns-priority": "10",
        "apns-expiration": "1800000060",
        "apns-collapse-id": "01J0000000000000000000000A",
        "apns-id": "6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569",
        "content-type": "application/json",
    }
    assert json.loads(body) == {
        "aps": {"alert": {"title": "Order", "body": "On its way"}, "sound": "default"},
        "order": "17",
    }


@pytest.mark.parametrize(("priority", "expected"), [("high", "10"), ("normal", "5"), ("low", "1")])
async def test_priorities(key_file: Path, clock: ManualClock, priority: str, expected: str) -> None:
    transport = FakeTransport(OK)
    await provider(transport, key_file, clock).send(message(priority=priority))
    assert transport.requests[0][1]["apns-priority"] == expected


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
async def test_without_text_it_is_a_background_push(key_file: Path, clock: ManualClock, priority: str) -> None:
    transport = FakeTransport(OK)
    silent = message(content=Content(data={"a": "b"}), priority=priority, expires_at=0.0, ttl_s=0)
    await provider(transport, key_file, clock).send(silent)
    [(_, headers, body)] = transport.requests
    assert (headers["apns-push-type"], headers["apns-priority"]) == ("background", "5")
    assert headers["apns-expiration"] == "0"
    assert json.loads(body) == {"aps": {"content-available": 1}, "a": "b"}


def test_a_low_priority_alert_makes_no_sound() -> None:
    assert "sound" not in json.loads(encode(message(priority="low")))["aps"]


def test_data_may_not_pose_as_apples_own() -> None:
    with pytest.raises(Permanent) as caught:
        encode(message(content=Content(data={"aps": "{}"})))
    assert caught.value.error_code == "reserved_key"


def test_a_payload_over_the_limit_is_not_sent() -> None:
    room = 4096 - len(encode(message(content=Content(body="x"))))
    assert len(encode(message(content=Content(body="x" * (room + 1))))) == 4096
    with pytest.raises(Permanent) as caught:
        encode(message(content=Content(body="x" * (room + 2))))
    assert caught.value.error_code == "PayloadTooLarge"


@pytest.mark.parametrize(
    ("key", "expected"), [(None, "01J0000000000000000000000A"), ("order 17", "order 17"), ("x" * 64, "x" * 64)]
)
def test_the_collapse_id_is_the_senders_key_or_the_notification(key: str | None, expected: str) -> None:
    assert collapse_id(message(collapse_key=key)) == expected


@pytest.mark.parametrize("key", ["x" * 65, "é", "日本" * 10])
def test_a_collapse_id_that_no_header_carries_becomes_a_digest(key: str) -> None:
    first = collapse_id(message(collapse_key=key))
    assert first.isascii()
    assert len(first) == 43
    assert first == collapse_id(message(collapse_key=key))
    assert first != collapse_id(message(collapse_key=key + "x"))


async def test_a_retry_has_the_same_bytes_and_ids(key_file: Path, clock: ManualClock) -> None:
    transport = FakeTransport(reason(503, "Shutdown"), OK)
    apns = provider(transport, key_file, clock)
    with pytest.raises(Transient):
        await apns.send(message())
    await clock.advance(900)
    await apns.send(message(ttl_s=1))
    assert transport.requests[0] == transport.requests[1]


@pytest.mark.parametrize("endpoint", ["../../admin", "zz" * 32, "", "ab", "a" * 401, "abcdef0123456789\n"])
async def test_nothing_but_hexadecimal_gets_into_the_path(key_file: Path, clock: ManualClock, endpoint: str) -> None:
    transport = FakeTransport(OK)
    with pytest.raises(Permanent):
        await provider(transport, key_file, clock).send(message(endpoint=endpoint))
    assert transport.requests == []


async def test_one_token_serves_for_35_minutes(clock: ManualClock) -> None:
    mine = token(clock)
    first = mine.authorization()
    seen = {first}
    for _ in range(2_100 // 30):
        seen.add(mine.authorization())
        await clock.advance(30)
    assert len(seen) == 2
    assert issued(mine.authorization()) == QUANTUM + 2_100


async def test_replicas_and_restarts_present_the_same_token(clock: ManualClock) -> None:
    first = token(clock).authorization()
    await clock.advance(600)
    assert token(clock).authorization() == first


async def test_a_token_is_never_an_hour_old_nor_changed_within_20_minutes(clock: ManualClock) -> None:
    """Whatever moment Apple complains at."""
    for complaint in range(0, 4_200, 150):
        local = ManualClock(epoch_s=QUANTUM + 40.0)
        mine = token(local)
        dates: list[int] = []
        for tick in range(0, 9_000, 150):
            authorization = mine.authorization()
            if tick == complaint:
                authorization = mine.after_expired(authorization) or authorization
            date = issued(authorization)
            assert local.time() - 3_600 < date <= local.time()
            if not dates or dates[-1] != date:
                dates.append(date)
            await local.advance(150)
        assert all(later - earlier >= 1_200 for earlier, later in itertools.pairwise(dates))


async def test_a_clock_that_is_set_back_dates_the_token_anew(clock: ManualClock) -> None:
    mine = token(clock)
    mine.authorization()
    clock.jump(-5)
    assert issued(mine.authorization()) == QUANTUM
    clock.jump(-86_400)
    assert issued(mine.authorization()) <= clock.time()


async def test_a_clock_set_forward_and_back_leaves_a_usable_token(clock: ManualClock) -> None:
    mine = token(clock)
    clock.jump(86_400)
    mine.authorization()
    clock.jump(-86_400)
    assert issued(mine.authorization()) == QUANTUM


async def test_an_expired_token_is_minted_anew_once_for_all(key_file: Path, clock: ManualClock) -> None:
    await clock.advance(1_000)
    transport = FakeTransport(*[reason(403, "ExpiredProviderToken")] * 10, OK)
    apns = provider(transport, key_file, clock)
    receipts = await asyncio.gather(*(apns.send(message()) for _ in range(10)))
    assert len(receipts) == 10
    tokens = [headers["authorization"] for _, headers, _ in transport.requests]
    assert [issued(t) for t in tokens] == [QUANTUM] * 10 + [QUANTUM + 1_500] * 10
    assert len(set(tokens)) == 2


async def test_a_young_token_is_not_minted_anew(key_file: Path, clock: ManualClock) -> None:
    transport = FakeTransport(reason(403, "ExpiredProviderToken"))
    apns = provider(transport, key_file, clock)
    for _ in range(5):
        with pytest.raises(CredentialRejected) as caught:
            await apns.send(message())
    assert "clock" in (caught.value.hint or "")
    assert len({headers["authorization"] for _, headers, _ in transport.requests}) == 1
    assert len(transport.requests) == 5


async def test_a_token_called_expired_twice_is_a_rejected_credential(key_file: Path, clock: ManualClock) -> None:
    await clock.advance(1_000)
    transport = FakeTransport(reason(403, "ExpiredProviderToken"))
    with pytest.raises(CredentialRejected):
        await provider(transport, key_file, clock).send(message())
    assert len(transport.requests) == 2


async def test_too_many_token_updates_keeps_the_token_and_waits(key_file: Path, clock: ManualClock) -> None:
    transport = FakeTransport(reason(429, "TooManyProviderTokenUpdates"))
    apns = provider(transport, key_file, clock)
    waits = []
    for _ in range(2):
        with pytest.raises(Transient) as caught:
            await apns.send(message())
        assert caught.value.throttled
        waits.append(caught.value.retry_after_s)
        await clock.advance(590)
    assert waits == [600.0, 60.0]
    assert len({headers["authorization"] for _, headers, _ in transport.requests}) == 1


async def test_a_probe_is_content_when_only_the_token_is_wrong(key_file: Path, clock: ManualClock) -> None:
    transport = FakeTransport(reason(400, "BadDeviceToken"))
    await provider(transport, key_file, clock).probe()
    assert transport.requests[0][0].endswith("/3/device/" + "0" * 64)
    for ill in (reason(403, "InvalidProviderToken"), reason(400, "BadTopic"), reason(503, "Shutdown")):
        with pytest.raises(ProviderError):
            await provider(FakeTransport(ill), key_file, clock).probe()


async def test_closing_closes_the_transport(key_file: Path, clock: ManualClock) -> None:
    transport = FakeTransport(OK)
    await provider(transport, key_file, clock).aclose()
    assert transport.closed == 1


def test_a_useless_key_is_a_configuration_error(tmp_path: Path, clock: ManualClock) -> None:
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    p384 = ec.generate_private_key(ec.SECP384R1())
    pem = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file = tmp_path / "key.p8"
    for content in (None, b"", b"secret", rsa_key.private_bytes(*pem), p384.private_bytes(*pem)):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigurationError) as caught:
            provider(FakeTransport(OK), file, clock)
        assert "providers.apns.key_file" in (caught.value.hint or "")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("setting", ["team_id", "key_id", "topic"])
def test_names_must_be_given(key_file: Path, clock: ManualClock, setting: str) -> None:
    for value in ("", "a b", "é", "x\n"):
        with pytest.raises(ConfigurationError) as caught:
            provider(FakeTransport(OK), key_file, clock, **{setting: value})
        assert f"providers.apns.{setting}" in str(caught.value)
