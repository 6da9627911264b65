"""Slack over a scripted transport, and every answer it knows."""

from __future__ import annotations

import json

import pytest

from bellbuoy.adapters.slack import Slack, classify, message
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

URL = "https://hooks.test/services/T0/B0/s3cret"


def pager(transport: FakeTransport, url: str = URL) -> Slack:
    return Slack(webhook_url=url, transport=transport, clock=ManualClock())


@pytest.mark.parametrize(
    ("http", "body", "kind"),
    [
        (302, b"", CredentialRejected),
        (400, b"invalid_payload", Permanent),
        (400, b"no_text", Permanent),
        (400, b"invalid_blocks", Permanent),
        (403, b"invalid_token", CredentialRejected),
        (403, b"action_prohibited", CredentialRejected),
        (404, b"no_service", CredentialRejected),
        (404, b"channel_not_found", CredentialRejected),
        (410, b"channel_is_archived", CredentialRejected),
        (429, b"rate_limited", Transient),
        (408, b"", Transient),
        (500, b"rollup_error", Transient),
        (502, b"<html>", Transient),
        (503, b"", Transient),
        (504, b"", OutcomeUnknown),
    ],
)
def test_every_answer(http: int, body: bytes, kind: type[ProviderError]) -> None:
    error = classify(http, body, None, NOW)
    assert type(error) is kind
    assert error.provider_status == http


def test_only_words_of_slacks_own_are_repeated() -> None:
    assert classify(400, b"no_text", None, NOW).error_code == "no_text"
    assert classify(400, b"what we had sent", None, NOW).error_code is None


@pytest.mark.parametrize(
    ("http", "retry_after", "wait_s", "throttled"),
    [(429, None, 1.0, True), (429, "30", 30.0, True), (503, None, None, False), (503, "9", 9.0, False)],
)
def test_the_wait(http: int, retry_after: str | None, wait_s: float | None, throttled: bool) -> None:
    error = classify(http, b"", retry_after, NOW)
    assert isinstance(error, Transient)
    assert (error.retry_after_s, error.throttled) == (wait_s, throttled)


def test_a_message_has_blocks_and_a_text_with_the_incident() -> None:
    said = message(alert())
    assert said["text"] == ("🔴 database_down (ledger): automatic recovery failed 3 times (inc-0123456789abcdef)")
    header, description, runbook, about = said["blocks"]
    title = "🔴 database_down (ledger): automatic recovery failed 3 times"
    assert header == {"type": "header", "text": {"type": "plain_text", "text": title}}
    assert description["text"] == {"type": "mrkdwn", "text": "3 probes in a row failed &amp; &lt;no&gt; answer."}
    assert runbook["text"]["text"] == "<https://docs.test/runbooks/database_connection.md|Runbook>"
    assert about["elements"][0]["text"] == (
        "Incident `inc-0123456789abcdef` · ledger · critical · 2027-01-15 08:00:00 UTC"
    )


def test_what_may_have_been_said_before_says_so() -> None:
    about = message(alert(repeated=True))["blocks"][-1]["elements"][0]["text"]
    assert about.endswith("this may have been said before")


def test_what_is_too_long_is_cut_to_the_limits() -> None:
    said = message(alert(title="t" * 9_000, description="&" * 9_000))
    assert len(said["text"]) == 4_000
    assert [len(said["blocks"][n]["text"]["text"]) for n in (0, 1)] == [150, 3_000]


@pytest.mark.parametrize("action", ["acknowledge", "resolve"])
def test_what_follows_needs_no_runbook(action: str) -> None:
    said = message(alert(action=action, description=""))
    assert [block["type"] for block in said["blocks"]] == ["header", "context"]


async def test_a_message_is_one_request() -> None:
    transport = FakeTransport(answer(200, b"ok"))
    assert await pager(transport).send(alert()) is None
    [(url, headers, body)] = transport.requests
    assert url == URL
    assert headers == {"content-type": "application/json", "x-bellbuoy-id": "inc-0123456789abcdef"}
    assert json.loads(body) == message(alert())


async def test_a_failure_reaches_the_caller_without_the_url_and_closing_the_transport() -> None:
    transport = FakeTransport(answer(404, b"no_service"))
    made = pager(transport)
    with pytest.raises(CredentialRejected) as caught:
        await made.send(alert())
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
    await made.aclose()
    assert transport.closed == 1


async def test_a_probe_says_nothing_in_the_channel() -> None:
    transport = FakeTransport(answer(400, b"no_text"))
    await pager(transport).probe()
    assert json.loads(transport.requests[0][2]) == {"text": ""}
    for ill, kind in ((answer(404, b"no_service"), CredentialRejected), (answer(503), Transient)):
        with pytest.raises(kind):
            await pager(FakeTransport(ill)).probe()


@pytest.mark.parametrize("url", ["", "http://hooks.test/services/s3cret", "https://u:s3cret@hooks.test/x"])
def test_what_cannot_work_is_said_at_once_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"alerts\.slack") as caught:
        pager(FakeTransport(answer(200)), url)
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
