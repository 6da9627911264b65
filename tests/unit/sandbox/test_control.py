"""The control API and what it reports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.clock import ManualClock
from bellbuoy.sandbox import Sandbox
from bellbuoy.sandbox.faults import KINDS
from bellbuoy.sandbox.received import Item, Journal, Received

from .clients import ApnsClient, Control, FcmClient


async def test_the_overview_names_everything(control: Control, sandbox: Sandbox, fcm: FcmClient) -> None:
    await fcm.send()
    await control.fault("sms", kind="outage")
    status, body = await control.call("GET", "")
    assert status == 200
    assert body["urls"] == sandbox.urls
    assert set(body["urls"]) == {"fcm", "apns", "smtp", "sms", "alerts", "control"}
    assert set(body["providers"]) == {"fcm", "apns", "smtp", "sms", "pagerduty", "slack", "jira"}
    assert body["providers"]["fcm"]["count"] == 1
    assert body["providers"]["sms"]["fault"]["kind"] == "outage"
    assert (await control.call("GET", "/fcm"))[1]["count"] == 1


@pytest.mark.parametrize(
    ("wish", "path", "words"),
    [
        ({"kind": "explosion"}, "$.kind", KINDS),
        ({}, "$.kind", KINDS),
        ([], "$", ("object",)),
        ({"kind": "latency"}, "$.ms", ("required",)),
        ({"kind": "latency", "ms": -1}, "$.ms", ("milliseconds",)),
        ({"kind": "latency", "ms": "5"}, "$.ms", ("milliseconds",)),
        ({"kind": "latency", "ms": True}, "$.ms", ("milliseconds",)),
        ({"kind": "latency", "ms": 5, "rate": 0.5}, "$.rate", ("ms", "jitter_ms", "count", "for_s", "match")),
        ({"kind": "error_rate", "rate": 1.5}, "$.rate", ("0 to 1",)),
        ({"kind": "error"}, "$.code", ("UNREGISTERED",)),
        ({"kind": "error", "code": "NONSENSE"}, "$.code", ("UNREGISTERED", "INTERNAL")),
        ({"kind": "outage", "refuse": True, "count": 3}, "$.refuse", ("count",)),
        ({"kind": "unregistered", "tokens": [1]}, "$.tokens", ("list",)),
        ({"kind": "outage", "count": 0}, "$.count", ("1 or more",)),
        ({"kind": "outage", "target": "moon"}, "$.target", ("send",)),
    ],
)
async def test_wrong_wishes_are_told_what_is_right(
    control: Control, wish: object, path: str, words: tuple[str, ...]
) -> None:
    status, body = await control.call("PUT", "/fcm/fault", wish)
    assert (status, body["code"], body["errors"][0]["path"]) == (422, "invalid", path)
    for word in words:
        assert word in body["errors"][0]["message"]
    assert (await control.call("GET", "/fcm/fault"))[1]["fault"] is None


async def test_what_is_not_there(control: Control) -> None:
    status, body = await control.call("GET", "/pigeon/fault")
    assert status == 404
    assert "fcm" in body["detail"]
    assert (await control.call("POST", "/fcm/fault"))[0] == 405
    assert (await control.call("GET", "/fcm/nothing"))[0] == 404


async def test_a_body_that_is_not_json(control: Control, sandbox: Sandbox) -> None:
    request = control._client.put(sandbox.urls["control"] + "/_control/fcm/fault").body_bytes(b"{kind")
    assert (await request.build().send()).status == 422


@pytest.mark.parametrize("query", ["?limit=x", "?limit=-1", "?limit=10001", "?offset=-1"])
async def test_wrong_pages(control: Control, query: str) -> None:
    assert (await control.call("GET", f"/fcm/received{query}"))[0] == 422


async def test_pages_and_tokens(control: Control, fcm: FcmClient) -> None:
    for n in range(6):
        await fcm.send(f"t-{n % 2}", data={"n": str(n)})
    received = await control.received("fcm", "?limit=2&offset=1")
    assert [item["data"]["n"] for item in received["items"]] == ["1", "2"]
    received = await control.received("fcm", "?token=t-1&offset=1")
    assert [item["data"]["n"] for item in received["items"]] == ["3", "5"]
    assert received["count"] == 6
    assert (await control.received("fcm", "?token=nobody"))["items"] == []
    assert (await control.received("fcm", "?limit=0"))["items"] == []


async def test_duplicates_are_per_endpoint(control: Control, fcm: FcmClient) -> None:
    tag: dict[str, Any] = {"android": {"notification": {"tag": "a"}}}
    for token in ("t-1", "t-1", "t-1", "t-2"):
        await fcm.send(token, **tag)
    await fcm.send("t-1")
    await fcm.send("t-1")
    received = await control.received("fcm")
    assert (received["count"], received["unique"], received["duplicate_count"]) == (6, 4, 2)
    assert received["duplicates"] == received["duplicates_by_id"] == {"a": 2}


async def test_apns_tells_collapsing_from_repeating(control: Control, apns: ApnsClient) -> None:
    one, two = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
    for apns_id in (one, two, two):
        await apns.send(apns_collapse_id="score", apns_id=apns_id)
    received = await control.received("apns")
    assert (received["duplicates"], received["duplicates_by_id"]) == ({"score": 2}, {two: 1})


async def test_forgetting(control: Control, fcm: FcmClient, apns: ApnsClient, data_dir: Path) -> None:
    await fcm.send()
    await apns.send()
    status, body = await control.call("DELETE", "/fcm/received")
    assert (status, body["count"]) == (200, 0)
    assert (await control.received("fcm"))["items"] == []
    assert (await control.received("apns"))["count"] == 1
    log = data_dir / "sandbox" / "received.ndjson"
    assert log.stat().st_size > 0
    await control.call("DELETE", "/apns/received")
    assert log.stat().st_size == 0
    await fcm.send()
    assert log.stat().st_size > 0


async def test_rejections_are_counted_by_code(control: Control, fcm: FcmClient) -> None:
    await fcm.send("sandbox-unregistered")
    await fcm.send("sandbox-unregistered")
    await fcm.send("sandbox-internal")
    received = await control.received("fcm")
    assert received["errors"] == {"UNREGISTERED": 2, "INTERNAL": 1}
    assert (received["requests"], received["rejected"], received["count"]) == (3, 3, 0)
    assert (received["items"][0]["status"], received["items"][0]["error"]) == (404, "UNREGISTERED")


async def test_memory_is_bounded_and_counts_are_not() -> None:
    log = Received("fcm", ManualClock(), Journal(None), items_max=10)
    for n in range(100):
        log.add(Item(provider="fcm", at=0.0, endpoint="t", collapse_id=str(n % 50), delivered=True, body="x" * 9_000))
    shown = log.describe()
    assert len(shown["items"]) == 10
    assert (shown["count"], shown["unique"], shown["duplicate_count"]) == (100, 50, 50)
    assert len(shown["items"][0]["body"]) == 500


async def test_the_app_can_be_mounted_elsewhere(sandbox: Sandbox) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/_control", "query_string": b"", "headers": []}
    await sandbox.control_app({**scope, "root_path": ""}, receive, send)
    assert sent[0]["status"] == 200


async def test_many_at_once(control: Control, fcm: FcmClient) -> None:
    results = await asyncio.gather(*(fcm.send(f"t-{n}") for n in range(300)))
    assert [status for status, _ in results] == [200] * 300
    assert (await control.received("fcm"))["count"] == 300
