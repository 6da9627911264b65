"""`bellbuoy drill` as an operator runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bellbuoy.service.drills.node import wait_for
from bellbuoy.service.drills.stack import SOON
from tests.support.server import KEY, Server, request

pytestmark = pytest.mark.acceptance


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")}
    command = [sys.executable, "-m", "bellbuoy", "drill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_drill_is_run_reported_and_recorded(tmp_path: Path) -> None:
    page, data = tmp_path / "report.html", ("--data-dir", str(tmp_path / "data"))
    done = run("run", "smtp_outage", "--json", "--html", str(page), *data)
    assert done.returncode == 0, (done.stdout, done.stderr)
    (report,) = json.loads(done.stdout)["reports"]
    assert (report["drill"], report["result"]) == ("smtp_outage", "passed")
    assert report["counts"]["lost"] == 0
    assert {"nothing_lost", "books_balance", "others_felt_nothing"} <= {check["name"] for check in report["checks"]}
    assert "smtp_outage" in page.read_text()
    listed = {row["drill"]: row for row in json.loads(run("list", "--json", *data).stdout)["items"]}
    assert listed["smtp_outage"]["result"] == "passed"
    assert listed["smtp_outage"]["by"] == report["by"]
    assert listed["fcm_outage"]["last_run"] is None
    assert (listed["fcm_outage"]["every"], listed["region_loss"]["every"]) == ("monthly", "annual")


def test_a_stack_that_runs_is_drilled_when_its_name_was_typed_and_only_by_its_switches(tmp_path: Path) -> None:
    with Server(tmp_path / "live", env=dict(SOON)) as server:
        data = ("--data-dir", str(tmp_path / "records"))
        named = ("--url", server.url, "--key", KEY, *data)
        name = urlsplit(server.url).netloc
        refused = run("run", "sms_isolated", *named)
        assert (refused.returncode, f"--confirm {name}" in refused.stderr) == (2, True)
        refused = run("run", "complete_outage", *named, "--confirm", name)
        assert (refused.returncode, "complete_outage is not run on a stack" in refused.stderr) == (2, True)
        done = run("run", "sms_isolated", *named, "--confirm", name)
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert "everything that was checked holds" in done.stdout
        assert all(one["state"] == "closed" for one in server.get("/v1/breakers")["items"])
        wrong = run("run", "sms_isolated", "--url", server.url, "--key", "wrong", "--confirm", name, *data)
        assert (wrong.returncode, "does not take the key" in wrong.stderr) == (2, True)
        # What an operator has switched stays so, and is not waited for.
        assert server.call("POST", "/v1/breakers/sms", {"action": "isolate"}).status == 200
        refused = run("run", "fcm_outage", *named, "--confirm", name)
        assert (refused.returncode, "bellbuoy breakers set sms close" in refused.stderr) == (2, True), refused
        assert server.call("POST", "/v1/breakers/sms", {"action": "close"}).status == 200
        assert server.call("PUT", "/v1/modes/aggressive_caching", {"pinned": True}).status == 200
        refused = run("run", "fcm_outage", *named, "--confirm", name)
        assert (refused.returncode, "bellbuoy modes pin aggressive_caching" in refused.stderr) == (2, True), refused
        assert server.call("PUT", "/v1/modes/aggressive_caching", {"pinned": False}).status == 200
        refused = run("run", "mode_pinned", *named, "--confirm", name)
        assert (refused.returncode, "somebody has pinned" in refused.stderr) == (2, True), refused
        assert {m["name"]: m["pinned"] for m in server.get("/v1/modes")["items"]}["aggressive_caching"] is False


def test_a_stack_of_several_processes_is_drilled_by_the_control_that_is_its_own(tmp_path: Path) -> None:
    several = ("serve", "--sandbox", "--port", "0", "--workers", "2")
    with Server(tmp_path / "live", env=dict(SOON), arguments=several) as server, Server(tmp_path / "other") as other:
        name, data = urlsplit(server.url).netloc, ("--data-dir", str(tmp_path / "records"))
        named = ("run", "fcm_outage", "--url", server.url, "--key", KEY, "--confirm", name, *data)
        refused = run(*named)
        assert (refused.returncode, "--control" in refused.stderr) == (2, True), refused
        refused = run(*named, "--control", other.control)
        assert (refused.returncode, "does not arrive" in refused.stderr) == (2, True), refused
        refused = run(*named, "--control", "nowhere")
        assert (refused.returncode, "no control that answers" in refused.stderr) == (2, True), refused
        done = run(*named, "--control", f"{server.control}/_control")
        assert done.returncode == 0, (done.stdout, done.stderr)
    refused = run("run", "fcm_outage", "--control", server.control, *data)
    assert (refused.returncode, "--url" in refused.stderr) == (2, True), refused


def test_an_interrupt_undoes_the_fault_first(tmp_path: Path) -> None:
    with Server(tmp_path / "live", env=dict(SOON)) as server:
        command = [sys.executable, "-m", "bellbuoy", "drill", "run", "fcm_outage", "--duration", "60"]
        named = ("--url", server.url, "--key", KEY, "--confirm", urlsplit(server.url).netloc)
        data = ("--data-dir", str(tmp_path / "records"))
        with subprocess.Popen([*command, *named, *data], stdout=subprocess.PIPE, text=True) as running:
            wait_for(lambda: fault(server) is not None, why="the fault is there")
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=60) == 1
        assert fault(server) is None
        (record,) = (tmp_path / "records" / "drills").glob("*.json")
        assert json.loads(record.read_text())["result"] == "aborted"


def fault(server: Server) -> object:
    found: object = request("GET", f"{server.url}/_control/fcm/fault").json()["fault"]
    return found


def test_what_there_is_not_is_said_with_the_cure(tmp_path: Path) -> None:
    done = run("run", "fcm_outrage", "--data-dir", str(tmp_path))
    assert (done.returncode, "bellbuoy drill list" in done.stderr) == (2, True)
