"""The sandbox's life: starting, stopping, and coming back with everything it knew."""

from __future__ import annotations

import asyncio
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from bellbuoy.clock import ManualClock, SystemClock
from bellbuoy.errors import ConfigurationError
from bellbuoy.sandbox import Sandbox, SandboxSettings
from bellbuoy.sandbox.certificates import Credentials
from bellbuoy.sandbox.received import Item, Journal, Received

from .clients import ApnsClient, Control, FcmClient, eventually, http_client


async def test_everything_comes_back_after_a_kill(data_dir: Path, clock: ManualClock) -> None:
    first = Sandbox(SandboxSettings(data_dir=data_dir), clock=clock)
    await first.start()
    async with http_client(first, http2=True) as client:
        fcm, apns, control = FcmClient(first, client, clock), ApnsClient(first, client, clock), Control(first, client)
        await fcm.login()
        await fcm.send("t-1", android={"notification": {"tag": "a"}})
        await fcm.send("sandbox-internal")
        await apns.send()
        await control.call("DELETE", "/apns/received")
        await apns.send(apns_collapse_id="b")
        before = {name: await control.received(name) for name in ("fcm", "apns")}
    wired = first.wiring()
    # What a kill leaves behind: the file as it is now, and one line that was being written.
    log = data_dir / "sandbox" / "received.ndjson"
    left = log.read_bytes() + b'{"provider":"fcm","at":1.0,"id":"to'
    await first.aclose()
    log.write_bytes(left)

    second = Sandbox(SandboxSettings(data_dir=data_dir), clock=clock)
    await second.start()
    try:
        again = second.wiring()
        assert again["providers"]["apns"]["key_id"] == wired["providers"]["apns"]["key_id"]
        assert again["alerts"]["pagerduty"]["routing_key"] == wired["alerts"]["pagerduty"]["routing_key"]
        async with http_client(second, http2=True) as client:
            fcm, control = FcmClient(second, client, clock), Control(second, client)
            assert {name: await control.received(name) for name in ("fcm", "apns")} == before
            await fcm.login()
            await fcm.send("t-1", android={"notification": {"tag": "a"}})
            assert (await control.received("fcm"))["duplicates"] == {"a": 1}
    finally:
        await second.aclose()


async def test_what_was_answered_is_on_file(sandbox: Sandbox, fcm: FcmClient, data_dir: Path) -> None:
    _, body = await fcm.send()
    assert body["name"].encode() in (data_dir / "sandbox" / "received.ndjson").read_bytes()


async def test_a_taken_back_answer_stays_taken_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log")
    assert list(journal.load()) == []
    log = Received("fcm", ManualClock(), journal, items_max=2)
    items = [
        log.add(Item(provider="fcm", at=0.0, endpoint="t", error=error, delivered=error is None))
        for error in (None, "INTERNAL", None, None)
    ]
    for item in (items[0], items[1], items[3], items[3]):
        log.take_back(item)
    journal.close()
    again = Received("fcm", ManualClock(), Journal(None), items_max=2)
    reader = Journal(tmp_path / "log")
    for record in reader.load():
        again.replay(record)
    reader.close()
    assert log.describe() == again.describe()
    assert (again.accepted, again.unanswered, again.count) == (1, 3, 3)


async def test_garbage_in_the_log_is_passed_over(data_dir: Path, clock: ManualClock) -> None:
    (data_dir / "sandbox" / "received.ndjson").write_bytes(b'not json\n{"provider":"nobody","at":1}\n\n')
    sandbox = Sandbox(SandboxSettings(data_dir=data_dir), clock=clock)
    await sandbox.start()
    await sandbox.aclose()


def test_keys_are_private_and_kept(tmp_path: Path) -> None:
    first = Credentials(tmp_path / "s", "127.0.0.1")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    for path in (tmp_path / "s").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    second = Credentials(tmp_path / "s", "127.0.0.1")
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == kept
    assert first.secrets == second.secrets
    # Another host needs another server certificate, under the authority the clients already trust.
    Credentials(tmp_path / "s", "sandbox.internal")
    assert (tmp_path / "s" / "ca.pem").read_bytes() == kept["ca.pem"]
    assert (tmp_path / "s" / "server.pem").read_bytes() != kept["server.pem"]


def test_damaged_keys_are_made_anew(tmp_path: Path) -> None:
    Credentials(tmp_path / "s", "127.0.0.1")
    for path in (tmp_path / "s").iterdir():
        path.write_bytes(b"damaged")
    Credentials(tmp_path / "s", "127.0.0.1")


async def test_wiring_has_what_a_service_needs(sandbox: Sandbox) -> None:
    wiring = sandbox.wiring()
    assert set(wiring) == {"tls", "providers", "alerts"}
    assert set(wiring["providers"]) == {"fcm", "apns", "smtp", "sms"}
    assert set(wiring["providers"]["fcm"]) == {"base_url", "project_id", "credentials_file"}
    assert set(wiring["providers"]["apns"]) == {
        *("base_url", "team_id", "key_id", "key_file", "topic"),
        "probe_interval_s",
    }
    assert set(wiring["providers"]["smtp"]) == {"url", "from"}
    assert set(wiring["providers"]["sms"]) == {"base_url", "account_sid", "auth_token", "from"}
    assert set(wiring["alerts"]["jira"]) == {"base_url", "email", "api_token", "project"}
    account = msgspec.json.decode(Path(wiring["providers"]["fcm"]["credentials_file"]).read_bytes())
    assert account["token_uri"] == wiring["providers"]["fcm"]["base_url"] + "/token"
    msgspec.json.encode(wiring)


async def test_chosen_ports_are_used_and_given_back(data_dir: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        taken = Sandbox(SandboxSettings(data_dir=data_dir, sms_port=port), clock=SystemClock())
        sock.listen()
        with pytest.raises(ConfigurationError, match=str(port)):
            await taken.start()
    for _ in range(2):
        sandbox = Sandbox(SandboxSettings(data_dir=data_dir, sms_port=port))
        await sandbox.start()
        assert sandbox.urls["sms"] == f"http://127.0.0.1:{port}"
        await sandbox.aclose()
        await sandbox.aclose()


async def test_run_serves_until_cancelled_and_leaves_no_task(credentials_folder: Path) -> None:
    sandbox = Sandbox(SandboxSettings())
    with pytest.raises(RuntimeError):
        sandbox.wiring()
    running = asyncio.create_task(sandbox.run())
    await eventually(lambda: "control" in sandbox.urls and sandbox.urls["control"][-2:] != ":0")
    clock = SystemClock()
    async with http_client(sandbox, http2=True) as client:
        await eventually(lambda: all(not url.endswith(":0") for url in sandbox.urls.values()))
        await eventually(lambda: Path(sandbox.wiring()["providers"]["fcm"]["credentials_file"]).exists())
        fcm, control = FcmClient(sandbox, client, clock), Control(sandbox, client)
        await fcm.login()
        assert (await fcm.send())[0] == 200
        await control.fault("fcm", kind="hang")
        hanging = asyncio.create_task(fcm.send())
        await eventually(lambda: sandbox.stations["fcm"].held == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert isinstance((await asyncio.gather(hanging, return_exceptions=True))[0], Exception)
    left = {task.get_name() for task in asyncio.all_tasks() if "sandbox" in task.get_name()}
    assert left == set()


async def test_an_idle_fcm_connection_is_closed(data_dir: Path) -> None:
    sandbox = Sandbox(SandboxSettings(data_dir=data_dir, fcm_idle_s=0.05))
    await sandbox.start()
    try:
        async with http_client(sandbox, http2=True) as client:
            fcm = FcmClient(sandbox, client, SystemClock())
            await fcm.login()
            listener = sandbox.stations["fcm"].listener
            assert listener is not None
            await eventually(lambda: not listener.connections)
            assert (await fcm.send())[0] == 200
    finally:
        await sandbox.aclose()
