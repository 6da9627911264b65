"""PagerDuty over a scripted transport, and every answer it knows."""

from __future__ import annotations

import json

import pytest

from bellbuoy.adapters.pagerduty import PROBE_KEY, PagerDuty, classify
from bellbuoy.clock import ManualClock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    Transient,
)
from tests.unit.adapters.alerts.support import NOW, alert
from tests.unit.adapters.transport.fakes import FakeTransport, answer

TAKEN = answer(202, b'{"status": "success", "message": "Event processed", "dedup_key": "inc-0123456789abcdef"}')


def pager(transport: FakeTransport, **changed: str) -> PagerDuty:
    fields = {"base_url": "https://pages.test/", "routing_key": "s3cret", "source": "node-1"}
    return PagerDuty(**{**fields, **changed}, transport=transport, clock=ManualClock())


@pytest.mark.parametrize(
    ("http", "body", "kind"),
    [
        (302, b"", CredentialRejected),
        (400, b'{"status": "invalid event", "errors": ["\'payload.summary\' is missing"]}', Permanent),
        (400, b'{"status": "invalid event", "errors": ["Invalid routing key"]}', CredentialRejected),
        (400, b"<html>", Permanent),
        (401, b"", CredentialRejected),
        (403, b"", CredentialRejected),
        (404, b"", CredentialRejected),
        (405, b"", CredentialRejected),
        (408, b"", Transient),
        (413, b"", Permanent),
        (429, b'{"status": "throttle exceeded"}', Transient),
        (500, b"", OutcomeUnknown),
        (502, b"", OutcomeUnknown),
        (503, b"", Transient),
        (504, b"", OutcomeUnknown),
    ],
)
def test_every_answer(http: int, body: bytes, kind: type[ProviderError]) -> None:
    error = classify(http, body, None, NOW)
    assert type(error) is kind
    assert error.provider_status == http


@pytest.mark.parametrize(
    ("http", "retry_after", "wait_s", "throttled"),
    [(429, None, 10.0, True), (429, "3", 3.0, True), (503, None, None, False), (503, "9", 9.0, False)],
)
def test_the_wait(http: int, retry_after: str | None, wait_s: float | None, throttled: bool) -> None:
    error = classify(http, b"", retry_after, NOW)
    assert isinstance(error, Transient)
    assert (error.retry_after_s, error.throttled) == (wait_s, throttled)


def test_a_server_error_passes_on_when_to_come_back() -> None:
    assert classify(500, b"", "7", NOW).retry_after_s == 7.0


async def test_a_trigger_says_everything() -> None:
    transport = FakeTransport(TAKEN)
    assert await pager(transport).send(alert()) == "inc-0123456789abcdef"
    [(url, headers, body)] = transport.requests
    assert (url, headers) == ("https://pages.test/v2/enqueue", {"content-type": "application/json"})
    assert json.loads(body) == {
        "routing_key": "s3cret",
        "event_action": "trigger",
        "dedup_key": "inc-0123456789abcdef",
        "client": "Bellbuoy",
        "links": [{"href": "https://docs.test/runbooks/database_connection.md", "text": "Runbook"}],
        "payload": {
            "summary": "database_down (ledger): automatic recovery failed 3 times",
            "source": "node-1",
            "severity": "critical",
            "timestamp": "2027-01-15T08:00:00+00:00",
            "component": "ledger",
            "group": "bellbuoy",
            "custom_details": {
                "incident": "inc-0123456789abcdef",
                "description": "3 probes in a row failed & <no> answer.",
                "runbook": "https://docs.test/runbooks/database_connection.md",
            },
        },
    }


@pytest.mark.parametrize("action", ["acknowledge", "resolve"])
async def test_what_follows_names_the_key_only(action: str) -> None:
    transport = FakeTransport(TAKEN)
    await pager(transport).send(alert(action=action))
    expected = {"routing_key": "s3cret", "event_action": action, "dedup_key": "inc-0123456789abcdef"}
    assert json.loads(transport.requests[0][2]) == expected


async def test_what_is_too_long_is_cut_to_the_limits() -> None:
    transport = FakeTransport(TAKEN)
    await pager(transport).send(alert(title="t" * 2_000, description="ä" * 1_000_000, incident="i" * 300))
    body = transport.requests[0][2]
    event = json.loads(body)
    assert len(event["payload"]["summary"]) == 1_024
    assert len(event["dedup_key"]) == 255
    assert len(body) < 524_288


async def test_an_event_that_was_taken_needs_no_name() -> None:
    assert await pager(FakeTransport(answer(202, b"<html>"))).send(alert()) is None


async def test_a_failure_reaches_the_caller_without_the_key_and_closing_the_transport() -> None:
    transport = FakeTransport(answer(429, b"s3cret", retry_after="4"))
    made = pager(transport)
    with pytest.raises(Transient) as caught:
        await made.send(alert())
    assert caught.value.retry_after_s == 4.0
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
    await made.aclose()
    assert transport.closed == 1


async def test_a_probe_pages_nobody() -> None:
    transport = FakeTransport(TAKEN)
    await pager(transport).probe()
    event = json.loads(transport.requests[0][2])
    assert (event["event_action"], event["dedup_key"]) == ("resolve", PROBE_KEY)


@pytest.mark.parametrize("changed", [{"routing_key": ""}, {"base_url": "http://pages.test"}])
def test_what_cannot_work_is_said_at_once(changed: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"alerts\.pagerduty"):
        pager(FakeTransport(TAKEN), **changed)
