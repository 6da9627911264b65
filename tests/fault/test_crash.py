"""kill -9 at random instants under load: accepted is accounted for, and nothing delivered is sent again."""

from __future__ import annotations

import http.client
import json
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.continuity.history import check
from bellbuoy.service.drills.node import NotAsExpected
from tests.support.server import Server, to_android, to_email, to_iphone, to_phone, wait_for

pytestmark = pytest.mark.fault
KILLS = 20
MAKERS = (to_android, to_iphone, to_email, to_phone)


class Load:
    """Clients that send until told to stop, and remember every answer."""

    def __init__(self, server: Server, clients: int = 6) -> None:
        self._server = server
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.history: list[dict[str, Any]] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _run(self, client: int) -> None:
        n = 0
        while not self._stop.is_set():
            n += 1
            number = client * 100_000 + n
            key = f"k-{number}"
            document = MAKERS[n % 4](number, collapse_key=key)
            self._note("invoke", key)
            # A client whose connection broke does not know what happened, so it asks again with its key.
            while not self._stop.is_set():
                try:
                    answer = self._server.call("POST", "/v1/notifications", document, Idempotency_Key=key)
                except (OSError, http.client.HTTPException):
                    time.sleep(0.02)
                    continue
                if answer.status == 202:
                    self._note("ok", key, answer.json()["id"])
                    break
                assert answer.status in (429, 503), answer
                time.sleep(0.02)

    def _note(self, kind: str, key: str, notification_id: str | None = None) -> None:
        with self._lock:
            self.history.append({"type": kind, "key": key, "id": notification_id})


def test_twenty_kills_lose_nothing_and_send_nothing_delivered_twice(tmp_path: Path) -> None:
    # The stand-ins run in a process of their own, so that what providers saw survives every kill.
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    wiring = outside.start_sandbox()
    rng = random.Random(20)
    server = Server(tmp_path / "data", env=wiring, arguments=("serve", "--port", str(_free_port())))
    try:
        server.start()
        recorded: dict[str, int] = {}
        with Load(server) as load:
            for _ in range(KILLS):
                time.sleep(rng.uniform(0.05, 0.9))
                recorded |= _recorded_delivered(server)
                server.kill()
                server.start()
        wait_for(lambda: server.books()["pending"] == 0, within_s=60, why="everything is settled")
        books = server.books()
        notifications = all_of(server)
        seen = {name: outside.received_all(name) for name in ("fcm", "apns", "smtp", "sms")}
        report = check(load.history, notifications, seen, recorded)
        print(json.dumps(report.summary()))
        assert report.lost == []
        assert report.unexpected == []
        assert report.sent_after_delivered == []
        assert report.calls_beyond_doubt == []
        assert books["difference"] == 0
        assert books["accepted"] == len(notifications) >= len([h for h in load.history if h["type"] == "ok"]) > 100
        assert books["possible_duplicates"] >= report.duplicates
        assert Counter(n["status"] for n in notifications) == {"delivered": len(notifications)}
    finally:
        for process in (server, outside):
            if process.process is not None:
                process.kill()


def all_of(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = server.get(f"/v1/notifications?limit=200{cursor}")
        found += page["items"]
        if page["next_cursor"] is None:
            return found
        cursor = f"&cursor={page['next_cursor']}"


def _recorded_delivered(server: Server) -> dict[str, int]:
    """Deliveries that the ledger calls delivered at this moment, with how many attempts they had."""
    page = server.get("/v1/notifications?status=delivered&limit=200")
    return {d["id"]: len(d["attempts"]) for n in page["items"] for d in n["deliveries"] if d["status"] == "delivered"}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_stop_ends_what_is_under_way_and_exits_with_0(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        server.fault("smtp", kind="latency", ms=700)
        sent = [server.send(to_email(n)) for n in range(8)]
        wait_for(lambda: any(server.status_of(s) == "delivering" for s in sent))
        assert server.stop() == 0
        server.start()
        for one in sent:
            assert server.wait_status(one, "delivered")["deliveries"][0]["attempts"][0]["outcome"] == "delivered"
        assert server.books()["possible_duplicates"] == 0
        assert "service_stopped" in [e["event"] for e in server.events()]


def test_a_second_service_on_the_same_data_is_refused_with_the_cure(tmp_path: Path) -> None:
    with Server(tmp_path / "data"):
        second = Server(tmp_path / "data")
        with pytest.raises(NotAsExpected, match="another bellbuoy uses the data directory"):
            second.start()
        second.log.read_text()
        assert second.process is not None
        assert second.process.wait(timeout=10) == 2
        assert second.process.stdout is not None
        second.process.stdout.close()


def test_an_api_and_a_worker_share_the_work_through_the_ledger(tmp_path: Path) -> None:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    wiring = outside.start_sandbox()
    env = {**wiring, "BELLBUOY_DELIVERY__LEASE_S": "3"}
    api = Server(tmp_path / "data", env=env, arguments=("api", "--port", "0"))
    worker = Server(tmp_path / "data", env=env, arguments=("worker",))
    try:
        api.start()
        sent = [api.send(to_email(n)) for n in range(20)]
        assert {api.status_of(s) for s in sent} == {"accepted"}
        worker.start_silent()
        for one in sent:
            api.wait_status(one, "delivered")
        # A worker that dies in the middle of attempts: its leases end, and another takes over.
        outside.fault("smtp", kind="hang")
        late = [api.send(to_email(100 + n)) for n in range(5)]
        wait_for(lambda: all(api.status_of(s) == "delivering" for s in late))
        worker.kill()
        outside.fault("smtp")
        worker.start_silent()
        for one in late:
            attempts = api.wait_status(one, "delivered")["deliveries"][0]["attempts"]
            assert [a["outcome"] for a in attempts] == ["uncertain", "delivered"]
        assert worker.stop() == 0
        assert api.stop() == 0
    finally:
        for process in (worker, api, outside):
            if process.process is not None:
                process.kill()


def test_a_worker_that_was_frozen_past_its_lease_wakes_up_and_harms_nothing(tmp_path: Path) -> None:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    env = {**outside.start_sandbox(), "BELLBUOY_DELIVERY__LEASE_S": "2"}
    api = Server(tmp_path / "data", env=env, arguments=("api", "--port", "0"))
    frozen, other = (Server(tmp_path / "data", env=env, arguments=("worker",)) for _ in range(2))
    try:
        api.start()
        frozen.start_silent()
        outside.fault("smtp", kind="latency", ms=600)
        sent = [api.send(to_email(n, collapse_key=f"c-{n}")) for n in range(10)]
        wait_for(lambda: all(api.status_of(s) == "delivering" for s in sent))
        assert frozen.process is not None
        frozen.process.send_signal(signal.SIGSTOP)
        other.start_silent()
        for one in sent:
            api.wait_status(one, "delivered")
        frozen.process.send_signal(signal.SIGCONT)
        wait_for(lambda: "lease_lost" in [e["event"] for e in frozen.events()], why="its writes are refused")
        for one in sent:
            attempts = api.get(f"/v1/notifications/{one}")["deliveries"][0]["attempts"]
            assert [a["outcome"] for a in attempts] == ["uncertain", "delivered"]
        books = api.books()
        assert books["delivered"] == len(sent)
        assert outside.received("smtp")["duplicate_count"] <= books["possible_duplicates"] == len(sent)
    finally:
        for process in (frozen, other, api, outside):
            if process.process is not None:
                process.kill()


def test_a_key_revoked_on_one_api_is_refused_by_the_other(tmp_path: Path) -> None:
    first, second = (Server(tmp_path / "data", arguments=("api", "--port", "0")) for _ in range(2))
    try:
        first.start()
        made = first.call("POST", "/v1/keys", {"name": "n", "scopes": ["read"]}).json()
        second.start()
        assert second.call("GET", "/v1/health", key=made["key"]).status == 200
        late = first.call("POST", "/v1/keys", {"name": "late", "scopes": ["read"]}).json()
        first.call("DELETE", f"/v1/keys/{made['id']}")
        wait_for(lambda: second.call("GET", "/v1/health", key=made["key"]).status == 401, within_s=5)
        wait_for(lambda: second.call("GET", "/v1/health", key=late["key"]).status == 200, within_s=5)
    finally:
        for process in (first, second):
            if process.process is not None:
                process.kill()
