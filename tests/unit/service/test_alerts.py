"""Which targets are on, in what guard, and what the doctor says of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bellbuoy.adapters.sqlite import SqliteControlStore
from bellbuoy.clock import ManualClock, SystemClock
from bellbuoy.errors import CredentialRejected, OutcomeUnknown, Permanent, Transient
from bellbuoy.recovery.incidents import Incidents
from bellbuoy.sandbox import Sandbox, SandboxSettings
from bellbuoy.service.alerts import NEEDED, build_escalation, pagers
from bellbuoy.service.cli.doctor import examine
from bellbuoy.service.settings import Settings, with_overrides
from bellbuoy.service.telemetry import ServiceTelemetry
from tests.unit.adapters.alerts.support import alert


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    running = Sandbox(SandboxSettings())
    await running.start()
    yield running
    await running.aclose()


@pytest.fixture
def settings(sandbox: Sandbox, tmp_path: Path) -> Settings:
    return with_overrides(Settings(), {"alerts": sandbox.wiring()["alerts"], "data": {"dir": str(tmp_path / "data")}})


async def fault(sandbox: Sandbox, name: str, **wish: object) -> None:
    sandbox.stations[name].faults.put(wish)
    await sandbox.stations[name].settle()


def test_without_settings_all_are_off() -> None:
    assert pagers(Settings(), clock=SystemClock()) == []


@pytest.mark.parametrize("name", NEEDED)
async def test_each_is_on_by_its_own_settings(settings: Settings, name: str) -> None:
    document = json.loads(settings.alerts.model_dump_json())
    given: dict[str, Any] = {}
    for key in document[name]:
        value = getattr(getattr(settings.alerts, name), key)
        given[key] = value.get_secret_value() if hasattr(value, "get_secret_value") else value
    (pager,) = pagers(with_overrides(Settings(), {"alerts": {name: given}}), clock=SystemClock())
    assert pager.name == name
    await pager.aclose()


async def test_each_is_in_a_guard_of_its_own(settings: Settings, tmp_path: Path) -> None:
    clock, telemetry = ManualClock(), ServiceTelemetry()
    store = SqliteControlStore(tmp_path / "control.db", clock=clock, inline=True)
    incidents = Incidents(store, store, clock=clock, rng=Random(1), telemetry=telemetry)
    changed = with_overrides(settings, {"breakers": {"slack": {"timeout_s": 3.0}}})
    escalation = build_escalation(changed, store, incidents, clock, Random(1), telemetry)
    found = {}
    for name, target in escalation.targets.items():
        breaker, bulkhead, timeout = target.guard.breaker, target.guard.bulkhead, target.guard.timeout
        assert breaker is not None
        assert bulkhead is not None
        assert timeout is not None
        assert (breaker.name, bulkhead.concurrency_max, timeout.timeout_s) == (name, 1, target.timeout_s)
        found[name] = (breaker.settings.recovery_timeout_s, target.timeout_s)
    assert found == {"pagerduty": (20.0, 10.0), "slack": (60.0, 3.0), "jira": (120.0, 30.0)}
    await escalation.aclose()
    await store.aclose()


@pytest.mark.parametrize("name", NEEDED)
async def test_one_suite_for_every_target(settings: Settings, sandbox: Sandbox, name: str) -> None:
    all_of_them = pagers(settings, clock=SystemClock())
    pager = next(one for one in all_of_them if one.name == name)
    station = sandbox.stations[name]
    await pager.probe()
    first = await pager.send(alert())
    assert await pager.send(alert(action="acknowledge")) == first
    assert await pager.send(alert(action="resolve")) == first
    for wish, kind in (
        ({"kind": "outage"}, Transient),
        ({"kind": "quota", "retry_after_s": 7}, Transient),
        ({"kind": "bad_credentials"}, CredentialRejected),
        ({"kind": "error", "status": 400}, Permanent),
        ({"kind": "reset"}, (OutcomeUnknown, Transient)),
    ):
        await fault(sandbox, name, **wish)
        with pytest.raises(kind) as caught:
            await pager.send(alert(incident="inc-2"))
        if wish["kind"] == "quota":
            assert isinstance(caught.value, Transient)
            assert (caught.value.throttled, caught.value.retry_after_s) == (True, 7.0)
    station.faults.clear()
    await fault(sandbox, name, kind="outage", refuse=True)
    with pytest.raises(Transient):
        await pager.send(alert(incident="inc-3"))
    for one in all_of_them:
        await one.aclose()


async def findings(settings: Settings, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    await examine(settings, fix=False, as_json=True)
    found = json.loads(capsys.readouterr().out)["findings"]
    return {one["subject"]: (one["level"], one["finding"] + " " + one["cure"]) for one in found}


async def test_the_doctor_says_of_each_whether_it_is_on_and_answers(
    settings: Settings, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off = await findings(with_overrides(Settings(), {"data": {"dir": str(tmp_path)}}), capsys)
    for name, needed in NEEDED.items():
        assert off[name] == ("warning", f"off: nobody is told this way set {needed}, or leave it off")
    on = await findings(settings, capsys)
    assert {on[name] for name in NEEDED} == {("ok", "a real request was answered ")}
    assert sandbox.stations["slack"].received.counts()["accepted"] == 0
    assert sandbox.stations["jira"].received.counts()["accepted"] == 0
    await fault(sandbox, "slack", kind="error", code="no_service")
    await fault(sandbox, "jira", kind="bad_credentials", target="all")
    await fault(sandbox, "pagerduty", kind="outage")
    ill = await findings(settings, capsys)
    assert {ill[name][0] for name in NEEDED} == {"error"}
    assert "webhook" in ill["slack"][1]
    assert "api_token" in ill["jira"][1]
    assert settings.alerts.slack.webhook_url is not None
    assert settings.alerts.slack.webhook_url.get_secret_value() not in str(ill)
