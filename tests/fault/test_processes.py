"""`serve --workers N`: processes that are killed, replaced, added, drained and left alone by their supervisor."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.server import Server, request, to_email, wait_for

pytestmark = pytest.mark.fault
COUNT = 3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    arguments = ("serve", "--sandbox", "--port", "0", "--workers", str(COUNT))
    # An hour: whatever is delivered after a process died was given back, and did not wait for its lease to end.
    env = {"BELLBUOY_DELIVERY__LEASE_S": "3600"}
    server = Server(tmp_path / "data", env=env, arguments=arguments)
    with server:
        wait_for(lambda: len(started(server)) == COUNT)
        yield server


def nodes(server: Server) -> set[int]:
    """The processes that the supervisor has at this moment."""
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    return {int(pid) for pid in children.split()}


def started(server: Server) -> list[object]:
    return [event for event in server.events() if event["event"] == "service_started"]


def has(server: Server, count: int) -> bool:
    return len(nodes(server)) == count


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def told(server: Server, name: str) -> list[dict[str, object]]:
    return [event for event in server.events() if event["event"] == name]


class Sending:
    """A client that sends one after another, and remembers what it was told."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.ids: list[str] = []
        self.refused: list[int] = []
        self.broken = 0

    def __enter__(self) -> Sending:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            try:
                answer = self._server.call("POST", "/v1/notifications", to_email(n))
            except OSError:
                self.broken += 1
                continue
            if answer.status == 202:
                self.ids.append(answer.json()["id"])
            else:
                self.refused.append(answer.status)


def test_a_machine_without_room_for_another_process_keeps_those_that_there_are(server: Server) -> None:
    assert server.process is not None
    before = nodes(server)
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    # Fewer than it has open, so that neither a socket nor a pipe can be made.
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    victim, *rest = before
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: told(server, "process_not_started"))
    assert nodes(server) == set(rest)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
    wait_for(lambda: has(server, COUNT))
    with Sending(server) as sending:
        wait_for(lambda: len(sending.ids) > 3)
    everything_is_delivered(server, sending.ids)


def test_a_folder_for_metrics_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("")
    command = [sys.executable, "-m", "bellbuoy", "serve", "--sandbox", "--workers", "2", "--port", "0"]
    done = subprocess.run([*command, "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "metrics" in done.stderr
    assert "Traceback" not in done.stderr


def everything_is_delivered(server: Server, ids: list[str]) -> None:
    wait_for(lambda: server.books()["pending"] == 0, within_s=60)
    books = server.books()
    assert (books["difference"], books["missing"], books["unknown"]) == (0, [], [])
    assert books["delivered"] == books["accepted"] >= len(ids) > 0


def test_a_process_that_is_killed_is_replaced_and_its_work_given_back_at_once(server: Server) -> None:
    server.fault("smtp", kind="latency", ms=200)
    before = nodes(server)
    with Sending(server) as sending:
        wait_for(lambda: len(sending.ids) > 20)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(started(server)) == COUNT + 1)
        wait_for(lambda: len(sending.ids) > 60)
    server.fault("smtp")
    assert sending.refused == []
    assert sending.broken <= 1  # The request that was in its hands.
    assert len(nodes(server)) == COUNT
    assert victim not in nodes(server)
    assert [event["pid"] for event in told(server, "process_died")] == [victim]
    everything_is_delivered(server, sending.ids)


def test_all_are_replaced_one_by_one_and_no_request_is_refused(server: Server) -> None:
    before = nodes(server)
    assert server.process is not None
    with Sending(server) as sending:
        wait_for(lambda: len(sending.ids) > 20)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: told(server, "processes_replaced"), within_s=60)
        wait_for(lambda: not any(alive(pid) for pid in before), within_s=60)
    assert (sending.refused, sending.broken) == ([], 0)
    wait_for(lambda: has(server, COUNT))
    assert not nodes(server) & before
    everything_is_delivered(server, sending.ids)


def test_processes_are_added_and_drained(server: Server) -> None:
    assert server.process is not None
    with Sending(server) as sending:
        server.process.send_signal(signal.SIGTTIN)
        wait_for(lambda: len(started(server)) == COUNT + 1)
        assert len(nodes(server)) == COUNT + 1
        for left in (COUNT, COUNT - 1, 1):
            server.process.send_signal(signal.SIGTTOU)
            wait_for(partial(has, server, left))
        wait_for(lambda: len(sending.ids) > 20)
    assert (sending.refused, sending.broken) == ([], 0)
    everything_is_delivered(server, sending.ids)
    server.process.send_signal(signal.SIGTTOU)  # One always stays.
    server.process.send_signal(signal.SIGTTIN)
    wait_for(lambda: len(nodes(server)) == 2)
    assert [event["processes"] for event in told(server, "scaled")] == [4, 3, 2, 1, 2]


def test_any_process_shows_the_metrics_of_all(server: Server) -> None:
    ids = [server.send(to_email(n)) for n in range(30)]
    everything_is_delivered(server, ids)

    def shown(line: str) -> bool:
        texts = [request("GET", f"{server.url}/metrics").body.decode() for _ in range(5)]
        return all(line in text.splitlines() for text in texts)

    # What another process counted in this second is not there yet.
    wait_for(lambda: shown('bellbuoy_accepted_total{home="ledger"} 30.0'))
    wait_for(lambda: shown('bellbuoy_deliveries_total{outcome="delivered",provider="smtp"} 30.0'))
    wait_for(lambda: shown("bellbuoy_delivery_seconds_count 30.0"))


def test_nothing_is_left_running_without_a_supervisor(server: Server) -> None:
    left = nodes(server)
    server.kill()
    wait_for(lambda: not any(alive(pid) for pid in left))


def test_stopping_drains_all(server: Server) -> None:
    ids = [server.send(to_email(n)) for n in range(20)]
    assert len(ids) == 20
    left = nodes(server)
    assert server.stop() == 0
    assert not any(alive(pid) for pid in left)
    assert len(told(server, "service_stopped")) == COUNT


def test_what_cannot_start_as_it_is_configured_says_so_and_ends(tmp_path: Path) -> None:
    (tmp_path / "bellbuoy.toml").write_text(
        '[server]\nport = 0\nworkers = 2\n[providers.fcm]\nproject_id = "p"\ncredentials_file = "nowhere.json"\n'
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")}
    done = subprocess.run(
        [sys.executable, "-m", "bellbuoy", "serve"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "nowhere.json" in done.stderr
