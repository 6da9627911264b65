"""Every kind of fault, as a client meets it."""

from __future__ import annotations

import asyncio
import socket
from urllib.parse import urlsplit

import h2.events
import msgspec
import pytest
from pyreqwest.exceptions import ConnectError, PyreqwestError

from bellbuoy.adapters.transport import Http2Transport, PyreqwestTransport
from bellbuoy.clock import ManualClock
from bellbuoy.sandbox import Sandbox
from bellbuoy.sandbox.faults import KINDS

from .clients import DEVICE, ApnsClient, Control, FcmClient, RawHttp2, eventually

BROKEN = (PyreqwestError, OSError)


async def test_an_outage_and_its_end(fcm: FcmClient, apns: ApnsClient, control: Control) -> None:
    await control.fault("fcm", kind="outage", retry_after_s=3)
    await control.fault("apns", kind="outage")
    response = await fcm.post({"message": {"token": "t"}})
    assert (response.status, response.get_header("retry-after")) == (503, "3")
    assert (await apns.send())[:2] == (503, "ServiceUnavailable")
    await control.clear("fcm")
    assert (await fcm.send())[0] == 200
    assert (await apns.send())[0] == 503


async def test_refused_connections(fcm: FcmClient, control: Control, sandbox: Sandbox) -> None:
    address = urlsplit(sandbox.urls["fcm"])
    await fcm.send()
    await control.fault("fcm", kind="outage", refuse=True)
    with pytest.raises(BROKEN):
        await fcm.send()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
    await control.clear("fcm")
    assert (await fcm.send())[0] == 200


async def test_refusal_ends_by_itself(fcm: FcmClient, control: Control, sandbox: Sandbox, clock: ManualClock) -> None:
    await control.fault("fcm", kind="outage", refuse=True, for_s=5)
    with pytest.raises(BROKEN):
        await fcm.send()
    await clock.advance(5)
    await sandbox.stations["fcm"].settle()
    assert (await fcm.send())[0] == 200


async def test_latency_keeps_the_answer_back(fcm: FcmClient, control: Control, clock: ManualClock) -> None:
    await control.fault("fcm", kind="latency", ms=1_500)
    sending = asyncio.create_task(fcm.send())
    await eventually(lambda: clock.next_wake_s is not None)
    await clock.advance(1.499)
    assert not sending.done()
    await clock.advance(0.002)
    assert (await sending)[0] == 200


async def test_jitter_stays_in_its_bounds(fcm: FcmClient, control: Control, clock: ManualClock) -> None:
    await control.fault("fcm", kind="latency", ms=100, jitter_ms=50)
    sending = [asyncio.create_task(fcm.send(f"t-{n}")) for n in range(20)]
    await eventually(lambda: len(clock._sleepers) == 20)
    waits = {deadline - clock.monotonic() for deadline, _, _ in clock._sleepers}
    assert len(waits) > 1
    assert all(0.05 <= wait <= 0.15 for wait in waits)
    await clock.advance(0.2)
    await asyncio.gather(*sending)


async def test_a_client_that_left_is_unanswered(
    fcm: FcmClient, control: Control, clock: ManualClock, sandbox: Sandbox
) -> None:
    await control.fault("fcm", kind="latency", ms=1_000)
    raw = await RawHttp2.connect(sandbox, "fcm")
    try:
        stream_id = raw.request(fcm.path, {"authorization": f"Bearer {fcm.bearer}"}, b'{"message":{"token":"t"}}')
        await eventually(lambda: sandbox.stations["fcm"].held == 1)
        received = await control.received("fcm")
        assert (received["count"], received["accepted"]) == (1, 1)
        raw.h2.reset_stream(stream_id, 8)
        raw.h2.ping(b"12345678")
        raw.flush()
        # The answer to the ping says that the reset before it has been read.
        await raw.wait(lambda: bool(raw.of(h2.events.PingAckReceived)))
        await clock.advance(1)
        await eventually(lambda: sandbox.stations["fcm"].held == 0)
    finally:
        await raw.aclose()
    received = await control.received("fcm")
    assert (received["count"], received["accepted"], received["unanswered"]) == (1, 0, 1)
    assert received["items"][0]["answered"] is False


async def test_an_error_rate_is_kept(fcm: FcmClient, control: Control) -> None:
    await control.fault("fcm", kind="error_rate", rate=0.3, code="UNAVAILABLE")
    statuses = [(await fcm.send(f"t-{n}"))[0] for n in range(200)]
    assert set(statuses) == {200, 503}
    assert 40 <= statuses.count(503) <= 80
    await control.fault("fcm", kind="error_rate", rate=0)
    assert (await fcm.send())[0] == 200
    await control.fault("fcm", kind="error_rate", rate=1)
    assert (await fcm.send())[0] == 500


@pytest.mark.parametrize("deliver", [True, False])
async def test_a_timeout_says_nothing_and_drops(
    fcm: FcmClient, control: Control, clock: ManualClock, deliver: bool
) -> None:
    await control.fault("fcm", kind="timeout", after_s=8, deliver=deliver)
    sending = asyncio.create_task(fcm.send())
    await eventually(lambda: clock.next_wake_s is not None)
    await clock.advance(7.9)
    assert not sending.done()
    await clock.advance(0.2)
    with pytest.raises(BROKEN):
        await sending
    received = await control.received("fcm")
    assert (received["count"], received["unanswered"], received["accepted"]) == (int(deliver), 1, 0)


async def test_a_hang_holds_until_cleared(apns: ApnsClient, control: Control, sandbox: Sandbox) -> None:
    assert (await apns.send())[0] == 200
    await control.fault("apns", kind="hang", count=1)
    sending = asyncio.create_task(apns.send())
    await eventually(lambda: sandbox.stations["apns"].held == 1)
    assert (await apns.send())[0] == 200
    fault = (await control.call("GET", "/apns/fault"))[1]["fault"]
    assert (fault["applied"], fault["active"]) == (1, False)
    await control.clear("apns")
    with pytest.raises(BROKEN):
        await sending
    assert (await control.received("apns"))["unanswered"] == 1


async def test_a_reset_cuts_the_connection(fcm: FcmClient, control: Control) -> None:
    await control.fault("fcm", kind="reset", count=1)
    with pytest.raises(BROKEN):
        await fcm.send()
    assert (await fcm.send())[0] == 200
    received = await control.received("fcm")
    assert (received["count"], received["unanswered"]) == (1, 1)
    await control.fault("fcm", kind="reset", count=1, deliver=True)
    with pytest.raises(BROKEN):
        await fcm.send()
    assert (await control.received("fcm"))["count"] == 2


async def test_a_quota_by_the_second(fcm: FcmClient, control: Control, clock: ManualClock) -> None:
    await control.fault("fcm", kind="quota", per_s=2, retry_after_s=4)
    assert [(await fcm.send())[0] for _ in range(4)] == [200, 200, 429, 429]
    response = await fcm.post({"message": {"token": "t"}})
    assert response.get_header("retry-after") == "4"
    await clock.advance(1)
    assert [(await fcm.send())[0] for _ in range(3)] == [200, 200, 429]
    await control.fault("fcm", kind="quota")
    response = await fcm.post({"message": {"token": "t"}})
    assert (response.status, response.get_header("retry-after")) == (429, "1")


async def test_bad_credentials(fcm: FcmClient, apns: ApnsClient, control: Control) -> None:
    await control.fault("fcm", kind="bad_credentials", target="all")
    await control.fault("apns", kind="bad_credentials", code="Forbidden")
    assert (await fcm.send())[0] == 401
    status, body = await fcm.token(fcm.assertion())
    assert (status, body["error"]) == (401, "invalid_grant")
    assert (await apns.send())[:2] == (403, "Forbidden")


async def test_only_the_token_endpoint(fcm: FcmClient, control: Control) -> None:
    await control.fault("fcm", kind="outage", target="token")
    assert (await fcm.send())[0] == 200
    assert (await fcm.token(fcm.assertion()))[0] == 503


async def test_unregistered_tokens(fcm: FcmClient, apns: ApnsClient, control: Control) -> None:
    await control.fault("fcm", kind="unregistered", tokens=["a", "b"])
    assert [(await fcm.send(token))[0] for token in "abc"] == [404, 404, 200]
    await control.fault("fcm", kind="unregistered", share=0.5)
    first = [(await fcm.send(f"t-{n}"))[0] for n in range(100)]
    assert 25 <= first.count(404) <= 75
    assert [(await fcm.send(f"t-{n}"))[0] for n in range(100)] == first
    await control.fault("apns", kind="unregistered")
    assert (await apns.send())[:2] == (410, "Unregistered")


async def test_count_match_and_time(fcm: FcmClient, control: Control, clock: ManualClock) -> None:
    await control.fault("fcm", kind="error", code="INTERNAL", match="bad", count=2)
    tokens = ["bad-1", "good", "bad-2", "bad-3"]
    assert [(await fcm.send(token))[0] for token in tokens] == [500, 200, 500, 200]
    await control.fault("fcm", kind="outage", for_s=10)
    await clock.advance(9.9)
    assert (await fcm.send())[0] == 503
    await clock.advance(0.1)
    assert (await fcm.send())[0] == 200
    assert (await control.call("GET", "/fcm/fault"))[1]["fault"] is None


async def test_a_status_of_ones_own(fcm: FcmClient, control: Control) -> None:
    await control.fault("fcm", kind="error", status=502)
    assert (await fcm.send())[0] == 502
    await control.fault("fcm", kind="error", status=418, code="TEAPOT")
    status, body = await fcm.send()
    assert (status, body["error"]["status"], body["error"]["details"][0]["errorCode"]) == (418, "TEAPOT", "TEAPOT")
    await control.fault("fcm", kind="outage", status=500)
    status, body = await fcm.send()
    assert (status, body["error"]["details"][0]["errorCode"]) == (500, "INTERNAL")


async def test_goaway_now_names_the_last_stream(apns: ApnsClient, control: Control, sandbox: Sandbox) -> None:
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        stream_id = raw.request(f"/3/device/{DEVICE}", apns.headers(), b'{"aps":{}}')
        await raw.wait(lambda: raw.status(stream_id) == 200)
        await control.fault("apns", kind="goaway", reason='{"reason":"Shutdown"}')
        await raw.wait(lambda: bool(raw.of(h2.events.ConnectionTerminated)))
        (end,) = raw.of(h2.events.ConnectionTerminated)
        assert (end.error_code, end.last_stream_id) == (0, stream_id)
        assert msgspec.json.decode(end.additional_data) == {"reason": "Shutdown"}
        await raw.wait(lambda: raw.closed)
    finally:
        await raw.aclose()
    assert (await apns.send())[0] == 200


async def test_goaway_lets_begun_streams_end(
    apns: ApnsClient, control: Control, sandbox: Sandbox, clock: ManualClock
) -> None:
    await control.fault("apns", kind="latency", ms=100)
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        stream_id = raw.request(f"/3/device/{DEVICE}", apns.headers(), b'{"aps":{}}')
        await raw.wait(lambda: clock.next_wake_s is not None)
        await control.fault("apns", kind="goaway")
        await raw.wait(lambda: bool(raw.of(h2.events.ConnectionTerminated)))
        assert raw.status(stream_id) is None
        # h2's client takes no more after a GOAWAY, so only the bytes can tell.
        await clock.advance(0.1)
        await raw.wait(lambda: raw.closed)
    finally:
        await raw.aclose()
    assert (await control.received("apns"))["accepted"] == 1


async def test_goaway_every_few_requests_loses_nothing(apns: ApnsClient, control: Control) -> None:
    await control.fault("apns", kind="goaway", after=3)
    statuses = [(await apns.send())[0] for _ in range(10)]
    assert statuses == [200] * 10
    received = await control.received("apns")
    assert (received["count"], received["duplicates_by_id"]) == (10, {})


async def test_goaway_promises_no_answer_to_what_came_in_the_same_read(
    apns: ApnsClient, control: Control, sandbox: Sandbox
) -> None:
    ca_file = sandbox.wiring()["tls"]["ca_file"]
    transport = Http2Transport(other=PyreqwestTransport(), ca_file=ca_file)
    url, headers = f"{sandbox.urls['apns']}/3/device/{DEVICE}", tuple(apns.headers().items())
    try:
        await transport.post(url, headers, b'{"aps":{}}')  # From now on the connection takes many streams at once.
        await control.fault("apns", kind="goaway", after=3)
        answers = await asyncio.gather(*(transport.post(url, headers, b'{"aps":{}}') for _ in range(8)))
    finally:
        await transport.aclose()
    assert {answer.status for answer in answers} == {200}
    assert (await control.received("apns"))["count"] == 9


async def test_goaway_may_disown_the_request(apns: ApnsClient, control: Control, sandbox: Sandbox) -> None:
    await control.fault("apns", kind="goaway", after=2, deliver=False)
    raw = await RawHttp2.connect(sandbox, "apns")
    try:
        path = f"/3/device/{DEVICE}"
        first = raw.request(path, apns.headers(), b'{"aps":{}}')
        await raw.wait(lambda: raw.status(first) == 200)
        raw.request(path, apns.headers(), b'{"aps":{}}')
        await raw.wait(lambda: bool(raw.of(h2.events.ConnectionTerminated)))
        assert raw.of(h2.events.ConnectionTerminated)[0].last_stream_id == first
    finally:
        await raw.aclose()
    received = await control.received("apns")
    assert (received["count"], received["unanswered"]) == (1, 1)


async def test_fcm_ends_a_connection_with_too_many_streams(fcm: FcmClient, control: Control, sandbox: Sandbox) -> None:
    await control.fault("fcm", kind="hang")
    raw = await RawHttp2.connect(sandbox, "fcm")
    try:
        await raw.wait(lambda: bool(raw.of(h2.events.RemoteSettingsChanged)))
        raw.h2.remote_settings.max_concurrent_streams = 1_000
        raw.h2.remote_settings.acknowledge()
        headers = {"authorization": f"Bearer {fcm.bearer}"}
        for _ in range(101):
            raw.request(fcm.path, headers, b'{"message":{"token":"t"}}')
        await raw.wait(lambda: bool(raw.of(h2.events.ConnectionTerminated)))
        assert raw.of(h2.events.ConnectionTerminated)[0].additional_data == b"exceeded_max_concurrent_streams"
    finally:
        await raw.aclose()


@pytest.mark.parametrize("provider", ["fcm", "apns", "smtp", "sms", "pagerduty", "slack", "jira"])
@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_is_taken_by_every_provider(control: Control, provider: str, kind: str) -> None:
    needs: dict[str, dict[str, object]] = {"latency": {"ms": 5}, "error_rate": {"rate": 0.5}, "error": {"status": 500}}
    fault = await control.fault(provider, kind=kind, **needs.get(kind, {}))
    assert (fault["kind"], fault["applied"], fault["active"]) == (kind, 0, True)
    assert (await control.call("GET", f"/{provider}/fault"))[1]["fault"]["kind"] == kind
    await control.clear(provider)
    assert (await control.call("GET", f"/{provider}/fault"))[1]["fault"] is None


async def test_alerts_share_a_port_and_its_refusal(control: Control, sandbox: Sandbox) -> None:
    listener = sandbox.stations["slack"].listener
    assert listener is not None
    await control.fault("slack", kind="outage", refuse=True)
    await control.fault("jira", kind="outage", refuse=True)
    assert listener.refusing
    with pytest.raises(ConnectError):
        await control._client.post(sandbox.wiring()["alerts"]["slack"]["webhook_url"]).build().send()
    await control.clear("slack")
    assert listener.refusing
    await control.clear("jira")
    assert not listener.refusing


async def test_plain_http_faults(control: Control, sandbox: Sandbox, clock: ManualClock) -> None:
    url = sandbox.wiring()["alerts"]["slack"]["webhook_url"]

    async def post() -> int:
        response = await control._client.post(url).body_bytes(b'{"text":"hi"}').build().send()
        return response.status

    await control.fault("slack", kind="reset")
    with pytest.raises(BROKEN):
        await post()
    await control.fault("slack", kind="timeout", after_s=1)
    sending = asyncio.create_task(post())
    await eventually(lambda: clock.next_wake_s is not None)
    await clock.advance(1)
    with pytest.raises(BROKEN):
        await sending
    await control.fault("slack", kind="hang")
    sending = asyncio.create_task(post())
    await eventually(lambda: sandbox.stations["slack"].held == 1)
    await control.clear("slack")
    with pytest.raises(BROKEN):
        await sending
    await control.fault("slack", kind="goaway", after=1)
    assert [await post() for _ in range(3)] == [200, 200, 200]
    await control.fault("slack", kind="goaway", after=1, deliver=False)
    with pytest.raises(BROKEN):
        await post()
    received = await control.received("slack")
    assert (received["count"], received["unanswered"]) == (5, 4)
