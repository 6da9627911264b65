"""A machine is lost under load, and its ledger comes back as it was at a second that somebody chose."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import apsw
import pytest

from bellbuoy.adapters.cipher import read_keys
from bellbuoy.adapters.objectstore import Objects
from bellbuoy.adapters.sqlite import SqlitePlace
from bellbuoy.clock import SystemClock
from bellbuoy.continuity.history import check
from bellbuoy.continuity.restore import Restore
from bellbuoy.continuity.vault import Vault
from bellbuoy.service.drills.shifted import set_clock
from bellbuoy.service.telemetry import ServiceTelemetry
from tests.fault.test_crash import Load, all_of
from tests.support.rabbitmq import free_port
from tests.support.s3 import Region
from tests.support.server import Server, to_android, wait_for

pytestmark = pytest.mark.fault
TABLES = ("accepted", "notifications", "dead_letters", "users", "tombstones", "keys")
Rows = dict[str, list[Any]]


def rows(path: Path) -> tuple[int, float, Rows]:
    """The number and time of the last change of a ledger, and all its rows, in one reading."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        connection.execute("BEGIN")
        last = connection.execute("SELECT number, at FROM changes ORDER BY number DESC LIMIT 1").fetchall()
        number, at = cast(tuple[int, float], last[0])
        return number, at, {t: connection.execute(f"SELECT * FROM {t} ORDER BY 1").fetchall() for t in TABLES}
    finally:
        connection.close()


class Witness:
    """Reads the whole ledger now and then while it is written, and remembers what it saw and when."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.seen: list[tuple[int, float, Rows]] = []

    def __enter__(self) -> Witness:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            self.seen.append(rows(self._path))


def rfc3339(at: float) -> str:
    """The first microsecond that is not before."""
    microseconds = int(at * 1e6) + 1
    return f"{datetime.fromtimestamp(microseconds // 10**6, UTC):%Y-%m-%dT%H:%M:%S}.{microseconds % 10**6:06}Z"


class Operator:
    """Runs `bellbuoy backup` with the settings of the service."""

    def __init__(self, data_dir: Path, env: dict[str, str]) -> None:
        self._data_dir = data_dir
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")} | env

    def run(self, *arguments: str, status: int = 0) -> tuple[Any, str]:
        """What it printed as JSON, None where it printed none, and what it complained of."""
        command = [sys.executable, "-m", "bellbuoy", "backup", *arguments, "--data-dir", str(self._data_dir)]
        done = subprocess.run(command, capture_output=True, text=True, env=self._env, timeout=120)
        assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.startswith("{") else None, done.stderr

    def doctor(self) -> Any:
        """What `bellbuoy doctor` finds of the first target."""
        command = [sys.executable, "-m", "bellbuoy", "doctor", "--json", "--data-dir", str(self._data_dir)]
        done = subprocess.run(command, capture_output=True, text=True, env=self._env, timeout=120)
        findings = json.loads(done.stdout)["findings"]
        return next(one for one in findings if one["subject"] == "backups, first")


def settings(root: Path) -> dict[str, str]:
    key_file = root / "keys"
    if not key_file.exists():
        made = subprocess.run([sys.executable, "-m", "bellbuoy", "backup", "key"], capture_output=True, text=True)
        key_file.write_text(made.stdout)
        key_file.chmod(0o600)
    return {
        "BELLBUOY_BACKUP__URL": f"file://{root / 'archive'}",
        "BELLBUOY_BACKUP__KEY_FILE": str(key_file),
        "BELLBUOY_BACKUP__SHIP_S": "1",
        "BELLBUOY_BACKUP__SENDS_DIR": str(root / "other-disk" / "sends"),
    }


def test_a_lost_data_directory_comes_back_as_it_was_at_any_second(tmp_path: Path) -> None:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    wiring = outside.start_sandbox()
    env = settings(tmp_path)
    data = tmp_path / "data"
    server = Server(data, env=wiring | env, arguments=("serve", "--port", str(free_port())))
    operator = Operator(data, env)
    try:
        server.start()
        server.control = outside.control
        # At every moment some are on their way, so that every second has attempts without an outcome.
        server.fault("fcm", kind="latency", ms=500)
        with Load(server, clients=4) as load, Witness(data / "bellbuoy.db") as witness:
            wait_for(lambda: len(witness.seen) > 5 and len(load.history) > 200, why="load")
            operator.run("full", "--json")
            wait_for(lambda: len(witness.seen) > 12, why="load")
            operator.run("incremental", "--json")
            after_incremental = len(witness.seen)
            wait_for(lambda: len(witness.seen) > after_incremental + 12, why="load")
            # What is compared lies before the last shipping, and what was sent after it is on the other disk.
            last = operator.run("incremental", "--json")[0]["id"]
            server.kill()
        assert last is not None
        shutil.rmtree(data)

        began = time.monotonic()
        chosen = witness.seen[8:after_incremental:3] + witness.seen[after_incremental : after_incremental + 10 : 4]
        for number, (_, at, before) in enumerate(chosen):
            assert state_at(tmp_path, at, tmp_path / f"side-{number}") == before
        report, _ = operator.run("restore", "--to", str(data), "--at", rfc3339(chosen[-2][1]), "--json")
        assert report["rpo_s"] > 0
        assert 0 < report["rto_s"] < time.monotonic() - began
        assert report["reconciled"]["delivered"] > 0
        kept = {row[1] for row in chosen[-2][2]["notifications"]}

        server.start()
        wait_for(lambda: server.books()["pending"] == 0, within_s=60, why="all of it is settled")
        books = server.books()
        assert books["accepted"] == len(kept)
        assert books["difference"] == 0
        assert books["delivered"] + books["uncertain"] == len(kept)
        seen = {name: outside.received_all(name) for name in ("fcm", "apns", "smtp", "sms")}
        # What was accepted later is not in the ledger, so only the notifications that are say something here.
        found = check([], all_of(server), seen, {})
        print(json.dumps(found.summary()), report)
        assert found.calls_beyond_doubt == []
        assert found.duplicates <= report["reconciled"]["uncertain"]
        assert server.stop() == 0
    finally:
        for one in (server, outside):
            if one.process is not None:
                one.kill()


def more(load: Load) -> None:
    """Wait until a hundred more were sent."""
    before = len(load.history)
    wait_for(lambda: len(load.history) > before + 100, why="load")


def fulls(operator: Operator) -> list[str]:
    return [one["id"] for one in operator.run("list", "--json")[0]["items"] if one["kind"] == "full"]


def state_at(root: Path, at: float, to: Path) -> Rows:
    """The rows at a moment as they are in the archive, before what was sent since then is taken in."""
    to.mkdir()
    clock = SystemClock()
    targets = {"first": Objects(f"file://{root / 'archive'}")}
    vault = Vault(targets, read_keys(root / "keys"), clock=clock, telemetry=ServiceTelemetry())
    restore = Restore(vault, scratch=to / "scratch", clock=clock)
    place = SqlitePlace("ledger", to / "bellbuoy.db")

    async def run() -> None:
        await restore.run(await restore.plan(at), [place])
        await place.finish("side")

    asyncio.run(run())
    return rows(to / "bellbuoy.db")[2]


def test_what_cannot_be_restored_is_refused_and_says_why(tmp_path: Path) -> None:
    env = settings(tmp_path)
    data = tmp_path / "data"
    operator = Operator(data, env)
    with Server(data, env=env) as server:
        sent = server.send(to_android(1))
        server.wait_status(sent, "delivered")
        operator.run("full", "--json")
        server.wait_status(server.send(to_android(2)), "delivered")
        wait_for(
            lambda: any((tmp_path / "archive" / "log" / "ledger").rglob("*-*")), why="changes after it are shipped"
        )
        for force in ((), ("--force",)):
            _, complaint = operator.run("restore", "--to", str(data), *force, status=1)
            assert "has the data directory" in complaint
        assert server.status_of(sent) == "delivered"
        future = f"{datetime.fromtimestamp(time.time() + 3600, UTC):%Y-%m-%dT%H:%M:%SZ}"
        _, complaint = operator.run("restore", "--to", str(tmp_path / "side"), "--at", future, status=1)
        assert "the last second that can is --at" in complaint
        assert not (tmp_path / "side" / "bellbuoy.db").exists()
        _, complaint = operator.run("restore", "--to", str(tmp_path / "side"), "--at", "yesterday", status=2)
        assert "2026-12-01T08:00:05Z" in complaint
        server.stop()
    _, complaint = operator.run("restore", "--to", str(data), status=1)
    assert "--force" in complaint
    operator.run("restore", "--to", str(data), "--force", "--json")
    _, complaint = operator.run("restore", "--to", str(tmp_path / "side"), "--json")
    assert "BELLBUOY_BOOTSTRAP_KEY" in complaint
    (tmp_path / "side" / "bootstrap.key").touch()
    _, complaint = operator.run("restore", "--to", str(tmp_path / "side"), "--force", "--json")
    assert "BELLBUOY_BOOTSTRAP_KEY" not in complaint
    verified, _ = operator.run("verify", "--json")
    assert verified["sound"]
    assert operator.doctor()["level"] == "ok"
    victim = next(path for path in (tmp_path / "archive").rglob("*.000000"))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1])
    verified, _ = operator.run("verify", "--json", status=1)
    assert list(verified["bad"]) == [f"first: {victim.relative_to(tmp_path / 'archive')}"]
    assert operator.run("verify", victim.parents[1].name, "--json", status=1)[0]["bad"] == verified["bad"]
    victim.write_bytes(whole)
    victim = next(path for path in (tmp_path / "archive" / "log" / "ledger").rglob("*-*") if path.is_file())
    victim.unlink()
    verified, _ = operator.run("verify", "--json", status=1)
    assert not verified["sound"]
    assert all("missing: no second after" in why for why in verified["bad"].values())
    with Server(data, env=env) as server:
        assert server.status_of(sent) == "delivered"


def test_a_region_that_burns_down_stops_nothing_and_heals(tmp_path: Path, regions: tuple[Region, Region]) -> None:
    first, second = regions
    env = settings(tmp_path) | {
        "BELLBUOY_BACKUP__URL": "s3://backups/bellbuoy",
        "BELLBUOY_BACKUP__ENDPOINT": first.endpoint,
        "BELLBUOY_BACKUP__SECOND_URL": "s3://backups/bellbuoy",
        "BELLBUOY_BACKUP__SECOND_ENDPOINT": second.endpoint,
    }
    data = tmp_path / "data"
    operator = Operator(data, env)
    with Server(data, env=env) as server:
        sent = [server.send(to_android(n)) for n in range(20)]
        wait_for(lambda: len(second.names()) > 3 and first.names() == second.names(), why="both have all of it")
        second.stop()
        sent += [server.send(to_android(n)) for n in range(20, 40)]
        for one in sent:
            server.wait_status(one, "delivered")
        wait_for(
            lambda: lag_s(server, "second") > 3 > lag_s(server, "first"), why="the second lags, the first does not"
        )
        operator.run("full", "--json")
        second.start()
        wait_for(lambda: lag_s(server, "second") < 3, why="the second has caught up")
        assert len(second.names()) > 3
        server.stop()
    assert first.names() == second.names()
    events = [event["event"] for event in server.events()]
    assert "backup_target_away" in events
    assert "backup_target_healed" in events

    first.stop()
    shutil.rmtree(data)
    operator.run("restore", "--to", str(data), "--json")
    with Server(data, env=env) as server:
        assert {server.status_of(one) for one in sent} == {"delivered"}


def lag_s(server: Server, target: str) -> float:
    """What the metric says."""
    name = f'bellbuoy_backup_lag_seconds{{target="{target}"}} '
    text = server.call("GET", "/metrics").body.decode()
    return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)


def test_nothing_is_sent_twice_in_secret_after_a_clock_that_was_ahead(tmp_path: Path) -> None:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    wiring = outside.start_sandbox()
    env = settings(tmp_path)
    data = tmp_path / "data"
    server = Server(data, env=wiring | env, arguments=("drilled", "--port", str(free_port())))
    operator = Operator(data, env)
    try:
        server.start()
        server.control = outside.control
        server.fault("fcm", kind="latency", ms=300)
        with Load(server, clients=4) as load:
            for offset_s in (601.0, 0.0):
                more(load)
                set_clock(data, offset_s)
            wait_for(lambda: len(fulls(operator)) > 1, within_s=30, why="a full copy that begins the changes anew")
            chosen = time.time() + 0.5
            wait_for(lambda: time.time() > chosen + 3, why="what was done by then is shipped, and more is done")
            server.kill()
        shutil.rmtree(data)
        report, _ = operator.run("restore", "--to", str(data), "--at", rfc3339(chosen), "--json")
        assert report["restored"]["reached"] == pytest.approx(chosen, abs=1.0)
        plain = Server(data, env=wiring | env, arguments=("serve", "--port", str(free_port())))
        plain.control = outside.control
        with plain:
            wait_for(lambda: plain.books()["pending"] == 0, within_s=60, why="all of it is settled")
            assert plain.books()["difference"] == 0
            accepted_ahead = [one for one in all_of(plain) if one["accepted_at"] > rfc3339(chosen + 60)]
            assert accepted_ahead, "what was accepted while the clock was ahead is there as well"
            seen = {name: outside.received_all(name) for name in ("fcm", "apns", "smtp", "sms")}
            found = check([], all_of(plain), seen, {})
            # Leases ended when the clock went ahead, so some were sent again then, and are counted.
            assert found.calls_beyond_doubt == []
            assert found.duplicates <= report["reconciled"]["uncertain"] + plain.books()["possible_duplicates"]
    finally:
        for one in (server, outside):
            if one.process is not None:
                one.kill()
