"""PagerDuty, Slack and Jira: what wakes people."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from pyreqwest.client import Client

from bellbuoy.sandbox import Sandbox
from bellbuoy.sandbox.alerts import PagerDuty, Slack
from bellbuoy.sandbox.jira import Jira

from .clients import Control


@pytest.fixture
def wiring(sandbox: Sandbox) -> dict[str, Any]:
    return sandbox.wiring()["alerts"]


async def post(
    client: Client, url: str, document: object, basic: tuple[str, str] | None = None
) -> tuple[int, Any, str | None]:
    request = client.post(url).header("content-type", "application/json")
    if basic is not None:
        request = request.basic_auth(*basic)
    response = await request.body_bytes(msgspec.json.encode(document)).build().send()
    raw = bytes(await response.bytes())
    is_json = (response.get_header("content-type") or "").startswith("application/json")
    return response.status, msgspec.json.decode(raw) if raw and is_json else raw, response.get_header("retry-after")


def event(wiring: dict[str, Any], action: str = "trigger", **more: object) -> dict[str, object]:
    payload = {"summary": "FCM is down", "source": "bellbuoy", "severity": "critical"}
    key = wiring["pagerduty"]["routing_key"]
    return {"routing_key": key, "event_action": action, "dedup_key": "inc-1", "payload": payload, **more}


async def test_pagerduty_keeps_one_incident_by_key(
    wiring: dict[str, Any], client: Client, control: Control, sandbox: Sandbox
) -> None:
    url = wiring["pagerduty"]["base_url"] + "/v2/enqueue"
    station = sandbox.stations["pagerduty"]
    assert isinstance(station, PagerDuty)
    for action, state in (
        ("trigger", "triggered"),
        ("trigger", "triggered"),
        ("acknowledge", "acknowledged"),
        ("trigger", "acknowledged"),
        ("resolve", "resolved"),
        ("trigger", "triggered"),
    ):
        status, body, _ = await post(client, url, event(wiring, action))
        assert (status, body["status"], body["dedup_key"]) == (202, "success", "inc-1")
        assert station.incidents == {"inc-1": state}
    received = await control.received("pagerduty")
    assert (received["count"], received["duplicates"]) == (6, {"inc-1": 3})
    assert received["items"][0]["title"] == "FCM is down"


@pytest.mark.parametrize(
    "wrong",
    [
        {"routing_key": "x"},
        {"event_action": "shout"},
        {"event_action": "resolve", "dedup_key": None},
        {"dedup_key": "x" * 256},
        {"payload": {}},
        {"payload": {"summary": "x" * 1_025, "source": "s", "severity": "info"}},
        {"payload": {"summary": "x", "source": "s", "severity": "bad"}},
    ],
)
async def test_pagerduty_refuses_what_is_not_an_event(
    wiring: dict[str, Any], client: Client, wrong: dict[str, object]
) -> None:
    url = wiring["pagerduty"]["base_url"] + "/v2/enqueue"
    status, body, _ = await post(client, url, {**event(wiring), **wrong})
    assert (status, body["status"]) == (400, "invalid event")
    assert body["errors"]


async def test_pagerduty_has_a_size_and_a_path(wiring: dict[str, Any], client: Client) -> None:
    base = wiring["pagerduty"]["base_url"]
    assert (await post(client, base + "/v2/enqueue", event(wiring, client="x" * 524_288)))[0] == 413
    assert (await post(client, base + "/v1/enqueue", event(wiring)))[0] == 404


async def test_slack_says_ok(wiring: dict[str, Any], client: Client, control: Control) -> None:
    url = wiring["slack"]["webhook_url"]
    assert await post(client, url, {"text": "FCM is down"}) == (200, b"ok", None)
    assert (await post(client, url, {}))[:2] == (400, b"invalid_payload")
    assert (await post(client, url, {"channel": "#x"}))[:2] == (400, b"no_text")
    assert (await post(client, url + "x", {"text": "hi"}))[:2] == (404, b"no_service")
    form = client.post(url).form({"payload": '{"text": "by form"}'})
    assert (await form.build().send()).status == 200
    await control.fault("slack", kind="quota", retry_after_s=30)
    assert await post(client, url, {"text": "hi"}) == (429, b"rate_limited", "30")
    received = await control.received("slack")
    assert (received["count"], received["rejected"]) == (2, 4)


def issue(**more: object) -> dict[str, object]:
    fields = {
        "project": {"key": "OPS"},
        "issuetype": {"name": "Task"},
        "summary": "FCM is down",
        "labels": ["bellbuoy", "incident-1"],
        "description": {"type": "doc", "version": 1, "content": []},
    }
    return {"fields": {**fields, **more}}


async def test_jira_makes_finds_and_moves_issues(wiring: dict[str, Any], client: Client, control: Control) -> None:
    base = wiring["jira"]["base_url"] + "/rest/api/3"
    basic = (wiring["jira"]["email"], wiring["jira"]["api_token"])
    jql = {"jql": 'project = OPS AND labels = "incident-1" AND statusCategory != Done'}
    assert (await post(client, base + "/search/jql", jql, basic))[1] == {"issues": [], "isLast": True}
    status, made, _ = await post(client, base + "/issue", issue(), basic)
    assert (status, made["key"]) == (201, "OPS-1")
    assert (await post(client, base + "/issue", issue(), basic))[1]["key"] == "OPS-2"
    assert (await control.received("jira"))["duplicates"] == {"bellbuoy,incident-1": 1}
    found = (await post(client, base + "/search/jql", jql, basic))[1]["issues"]
    assert [each["key"] for each in found] == ["OPS-2", "OPS-1"]
    other = {"jql": 'project = OPS AND labels in ("incident-2", other)'}
    assert (await post(client, base + "/search/jql", other, basic))[1]["issues"] == []
    assert (await post(client, base + "/issue/OPS-2/comment", {"body": {}}, basic))[0] == 201
    assert (await post(client, base + "/issue/OPS-2/transitions", {"transition": {"id": "31"}}, basic))[0] == 204
    found = (await post(client, base + "/search/jql", jql, basic))[1]["issues"]
    assert [each["key"] for each in found] == ["OPS-1"]
    response = await client.get(base + "/issue/OPS-2").basic_auth(*basic).build().send()
    assert (await response.json())["fields"]["status"] == {"name": "Done"}


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"project": {"key": "NO"}}, "project"),
        ({"issuetype": None}, "issuetype"),
        ({"summary": ""}, "summary"),
        ({"summary": "x" * 256}, "summary"),
        ({"labels": ["with space"]}, "labels"),
        ({"description": "plain"}, "description"),
    ],
)
async def test_jira_checks_fields(wiring: dict[str, Any], client: Client, wrong: dict[str, object], field: str) -> None:
    base = wiring["jira"]["base_url"] + "/rest/api/3"
    basic = (wiring["jira"]["email"], wiring["jira"]["api_token"])
    status, body, _ = await post(client, base + "/issue", issue(**wrong), basic)
    assert (status, list(body["errors"])) == (400, [field])


async def test_jira_wants_its_user(wiring: dict[str, Any], client: Client) -> None:
    base = wiring["jira"]["base_url"] + "/rest/api/3"
    assert (await post(client, base + "/issue", issue(), ("a@b.c", "wrong")))[0] == 401
    assert (await post(client, base + "/search/jql", {"jql": ""}))[0] == 401


@pytest.mark.parametrize(
    ("name", "code"), [(each.name, code) for each in (PagerDuty, Slack, Jira) for code in each.table.rows]
)
async def test_every_row_can_be_asked_for(
    wiring: dict[str, Any], client: Client, control: Control, name: str, code: str
) -> None:
    await control.fault(name, kind="error", code=code)
    table = {each.name: each.table for each in (PagerDuty, Slack, Jira)}[name]
    url, document, basic = _good(wiring, name)
    assert (await post(client, url, document, basic))[0] == table.rows[code].status
    assert (await control.received(name))["errors"] == {code: 1}


@pytest.mark.parametrize("name", ["pagerduty", "slack", "jira"])
@pytest.mark.parametrize(("kind", "status"), [("outage", 503), ("quota", 429), ("bad_credentials", (401, 403))])
async def test_the_general_kinds(
    wiring: dict[str, Any], client: Client, control: Control, name: str, kind: str, status: int | tuple[int, ...]
) -> None:
    await control.fault(name, kind=kind)
    url, document, basic = _good(wiring, name)
    found = (await post(client, url, document, basic))[0]
    assert found in (status if isinstance(status, tuple) else (status,))
    await control.clear(name)
    assert (await post(client, url, document, basic))[0] in (200, 201, 202)


def _good(wiring: dict[str, Any], name: str) -> tuple[str, object, tuple[str, str] | None]:
    if name == "pagerduty":
        return wiring["pagerduty"]["base_url"] + "/v2/enqueue", event(wiring), None
    if name == "slack":
        return wiring["slack"]["webhook_url"], {"text": "hi"}, None
    basic = (wiring["jira"]["email"], wiring["jira"]["api_token"])
    return wiring["jira"]["base_url"] + "/rest/api/3/issue", issue(), basic
