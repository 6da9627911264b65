"""Jira over a scripted transport, and every answer it knows."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from bellbuoy.adapters.jira import Jira, classify
from bellbuoy.adapters.transport import Response
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

API = "https://site.test/rest/api/3"


def said(status: int, document: object = None) -> Response:
    return answer(status, b"" if document is None else json.dumps(document).encode())


def found(status: dict[str, Any] | None = None) -> Response:
    fields = {"status": status or {"name": "To Do", "statusCategory": {"key": "new"}}}
    return said(200, {"issues": [{"id": "1", "key": "OPS-7", "fields": fields}], "isLast": True})


NONE = said(200, {"issues": [], "isLast": True})
MADE = said(201, {"id": "1", "key": "OPS-7", "self": "x"})


def pager(transport: FakeTransport, **changed: str) -> Jira:
    fields = {"base_url": "https://site.test/", "email": "a@b.c", "api_token": "s3cret", "project": "OPS"}
    return Jira(**{**fields, **changed}, transport=transport, clock=ManualClock())


def asked(transport: FakeTransport) -> list[str]:
    return [url.removeprefix(API) for url, _, _ in transport.requests]


@pytest.mark.parametrize(
    ("http", "kind"),
    [
        (302, CredentialRejected),
        (400, Permanent),
        (401, CredentialRejected),
        (403, CredentialRejected),
        (404, CredentialRejected),
        (405, CredentialRejected),
        (408, Transient),
        (410, CredentialRejected),
        (413, Permanent),
        (422, Permanent),
        (429, Transient),
        (500, OutcomeUnknown),
        (502, OutcomeUnknown),
        (503, Transient),
        (504, OutcomeUnknown),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"errorMessages": ["s3cret"], "errors": {}}'])
def test_every_answer(http: int, kind: type[ProviderError], body: bytes) -> None:
    error = classify(http, body, None, NOW)
    assert type(error) is kind
    assert error.provider_status == http
    assert "s3cret" not in f"{error} {error.hint}"


@pytest.mark.parametrize(
    ("http", "retry_after", "wait_s", "throttled"),
    [(429, None, 30.0, True), (429, "3", 3.0, True), (503, None, None, False), (503, "9", 9.0, False)],
)
def test_the_wait(http: int, retry_after: str | None, wait_s: float | None, throttled: bool) -> None:
    error = classify(http, b"", retry_after, NOW)
    assert isinstance(error, Transient)
    assert (error.retry_after_s, error.throttled) == (wait_s, throttled)


def test_the_fields_that_were_refused_are_named_and_not_what_was_in_them() -> None:
    error = classify(400, b'{"errors": {"issuetype": "s3cret", "a b": "x", "team": "y"}}', None, NOW)
    assert "issuetype, team" in str(error)
    assert "s3cret" not in f"{error} {error.hint}"
    assert "a b" not in str(error)


async def test_a_trigger_looks_for_the_ticket_and_makes_it() -> None:
    transport = FakeTransport(NONE, MADE)
    assert await pager(transport).send(alert()) == "OPS-7"
    assert asked(transport) == ["/search/jql", "/issue"]
    basic = "Basic " + base64.b64encode(b"a@b.c:s3cret").decode()
    assert all(headers["authorization"] == basic for _, headers, _ in transport.requests)
    jql = 'project = "OPS" AND labels = "inc-0123456789abcdef" ORDER BY created ASC'
    assert json.loads(transport.requests[0][2]) == {"jql": jql, "maxResults": 1, "fields": ["status"]}
    fields = json.loads(transport.requests[1][2])["fields"]
    assert fields["project"] == {"key": "OPS"}
    assert fields["issuetype"] == {"name": "Task"}
    assert fields["labels"] == ["bellbuoy", "inc-0123456789abcdef"]
    assert fields["summary"] == "database_down (ledger): automatic recovery failed 3 times"
    assert (fields["description"]["type"], fields["description"]["version"]) == ("doc", 1)
    text = json.dumps(fields["description"])
    for part in ("3 probes in a row", "critical", "ledger", "2027-01-15T08:00:00", "runbooks/database_connection.md"):
        assert part in text


async def test_a_ticket_that_is_there_is_not_made_again() -> None:
    transport = FakeTransport(found())
    assert await pager(transport).send(alert()) == "OPS-7"
    assert asked(transport) == ["/search/jql"]


async def test_what_is_too_long_is_cut_and_one_line() -> None:
    transport = FakeTransport(NONE, MADE)
    await pager(transport).send(alert(title="a\nb" * 300, description="d" * 100_000))
    fields = json.loads(transport.requests[1][2])["fields"]
    assert len(fields["summary"]) == 255
    assert "\n" not in fields["summary"]
    assert len(json.dumps(fields["description"])) < 32_767


async def test_the_end_is_a_comment_and_the_way_to_done() -> None:
    ways = {
        "transitions": [
            {"id": "11", "name": "Start", "to": {"name": "In Progress", "statusCategory": {"key": "indeterminate"}}},
            {"id": "31", "name": "Finish", "to": {"name": "Shipped", "statusCategory": {"key": "done"}}},
        ]
    }
    transport = FakeTransport(found(), said(201, {"id": "1"}), said(200, ways), said(204))
    assert await pager(transport).send(alert(action="resolve")) == "OPS-7"
    path = "/issue/OPS-7/transitions"
    assert asked(transport) == ["/search/jql", "/issue/OPS-7/comment", path, path]
    assert json.loads(transport.requests[3][2]) == {"transition": {"id": "31"}}


async def test_without_a_way_to_done_the_comment_is_all() -> None:
    transport = FakeTransport(found(), said(201, {"id": "1"}), said(200, {"transitions": []}))
    assert await pager(transport).send(alert(action="resolve")) == "OPS-7"
    assert len(transport.requests) == 3


@pytest.mark.parametrize("status", [{"name": "Done"}, {"name": "Shipped", "statusCategory": {"key": "done"}}])
async def test_a_ticket_that_is_done_is_left_alone(status: dict[str, Any]) -> None:
    transport = FakeTransport(found(status))
    assert await pager(transport).send(alert(action="resolve")) == "OPS-7"
    assert len(transport.requests) == 1


@pytest.mark.parametrize("action", ["acknowledge", "resolve"])
async def test_of_what_has_no_ticket_nothing_is_said(action: str) -> None:
    transport = FakeTransport(NONE)
    assert await pager(transport).send(alert(action=action)) is None
    assert len(transport.requests) == 1


async def test_a_ticket_whose_key_is_known_is_not_searched() -> None:
    there = said(200, {"key": "OPS-7", "fields": {"status": {"name": "To Do"}}})
    transport = FakeTransport(there, said(201, {"id": "1"}), said(200, {"transitions": []}))
    assert await pager(transport).send(alert(action="resolve", reference="OPS-7")) == "OPS-7"
    path = "/issue/OPS-7"
    assert asked(transport) == [f"{path}?fields=status", f"{path}/comment", f"{path}/transitions"]
    transport = FakeTransport(said(404), NONE)
    assert await pager(transport).send(alert(action="resolve", reference="OPS-7")) is None
    assert asked(transport) == [f"{path}?fields=status", "/search/jql"]
    with pytest.raises(CredentialRejected):
        await pager(FakeTransport(said(401))).send(alert(action="resolve", reference="OPS-7"))


async def test_an_acknowledgement_is_a_comment() -> None:
    transport = FakeTransport(found(), said(201, {"id": "1"}))
    assert await pager(transport).send(alert(action="acknowledge")) == "OPS-7"
    assert asked(transport) == ["/search/jql", "/issue/OPS-7/comment"]


async def test_a_question_without_an_answer_has_made_nothing_and_a_ticket_may_have_been_made() -> None:
    lost = OutcomeUnknown("lost", error_code="connection_lost")
    with pytest.raises(Transient):
        await pager(FakeTransport(lost)).send(alert())
    with pytest.raises(Transient):
        await pager(FakeTransport(said(502))).send(alert())
    for ill in (lost, said(502)):
        with pytest.raises(OutcomeUnknown):
            await pager(FakeTransport(NONE, ill)).send(alert())


async def test_an_answer_that_cannot_be_read() -> None:
    with pytest.raises(Transient):
        await pager(FakeTransport(answer(200, b"<html>"))).send(alert())
    assert await pager(FakeTransport(NONE, answer(201, b"<html>"))).send(alert()) is None


async def test_a_probe_reads_the_project_and_closing_the_transport() -> None:
    transport = FakeTransport(said(200, {"key": "OPS"}))
    made = pager(transport)
    await made.probe()
    assert asked(transport) == ["/project/OPS"]
    await made.aclose()
    assert transport.closed == 1
    for ill, kind in ((said(401), CredentialRejected), (said(404), CredentialRejected), (said(503), Transient)):
        with pytest.raises(kind):
            await pager(FakeTransport(ill)).probe()


@pytest.mark.parametrize(
    "changed",
    [
        {"email": ""},
        {"api_token": ""},
        {"project": 'OPS" OR project = "X'},
        {"issue_type": ""},
        {"base_url": "http://site.test"},
    ],
)
def test_what_cannot_work_is_said_at_once(changed: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"alerts\.jira"):
        pager(FakeTransport(NONE), **changed)
