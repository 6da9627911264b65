"""The product over a ledger in MongoDB: one process, and several on data directories of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from tests.support.server import Server, to_email, to_phone, wait_for

pytestmark = pytest.mark.acceptance
QUICK = {"BELLBUOY_RETRY__INITIAL_DELAY_S": "0.1", "BELLBUOY_RETRY__MAX_DELAY_S": "0.1"}


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[tuple[Server, dict[str, str]]]:
    """The sandbox in a process of its own, and the environment that points a service at it."""
    sandbox = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    wiring = sandbox.start_sandbox()
    yield sandbox, wiring
    sandbox.kill()


def test_a_service_over_mongodb_does_what_one_over_sqlite_does(tmp_path: Path, mongodb_url: str) -> None:
    env = {"BELLBUOY_LEDGER__URL": mongodb_url, "BELLBUOY_PROVIDERS__SMS__SERVER_ERROR_WAIT_S": "0", **QUICK}
    with Server(tmp_path / "data", env=env) as server:
        _recipients(server)
        sent = server.send({"recipient": {"user_id": "u-1"}, "content": {"title": "t", "body": "b"}})
        assert server.wait_status(sent, "delivered")["deliveries"][0]["provider"] == "fcm"
        first = server.call("POST", "/v1/notifications", to_email(1), Idempotency_Key="k")
        again = server.call("POST", "/v1/notifications", to_email(1), Idempotency_Key="k")
        assert (first.status, again.status, again.headers["idempotent-replayed"]) == (202, 202, "true")
        assert server.call("POST", "/v1/notifications", to_email(2), Idempotency_Key="k").status == 422
        later = server.send(to_email(3, send_at="2100-01-01T00:00:00Z"))
        assert server.call("POST", f"/v1/notifications/{later}/cancel").status == 200
        assert server.call("POST", f"/v1/notifications/{later}/cancel").status == 409
        _dead_letters(server)
        newest = server.get("/v1/notifications?limit=2")
        rest = server.get(f"/v1/notifications?limit=50&cursor={newest['next_cursor']}")
        books = server.books()
        assert len(newest["items"]) + len(rest["items"]) == books["accepted"] == 4
        assert (books["difference"], books["missing"], books["delivered"], books["cancelled"]) == (0, [], 3, 1)
        assert server.call("GET", "/v1/health").json()["status"] == "healthy"
        assert server.stop() == 0


def _recipients(server: Server) -> None:
    assert server.call("PUT", "/v1/users/u-1", {"email": "a@example.com"}).status in (200, 201)
    device = {"platform": "android", "provider": "fcm", "token": "token-1"}
    for name in ("d-1", "d-2"):
        assert server.call("PUT", f"/v1/users/u-1/devices/{name}", device).status in (200, 201)
    assert server.call("DELETE", "/v1/users/u-1/devices/d-2").status == 204
    assert [d["device_id"] for d in server.get("/v1/users/u-1/devices")["items"]] == ["d-1"]
    assert server.call("GET", "/v1/users/u-2").status == 404


def _dead_letters(server: Server) -> None:
    server.fault("sms", kind="error_rate", rate=1.0, status=500)
    lost = server.send(to_phone(1))
    server.wait_status(lost, "dead_lettered")
    (letter,) = server.get("/v1/dead-letters")["items"]
    assert letter["notification_id"] == lost
    server.fault("sms")
    wait_for(lambda: server.call("POST", f"/v1/dead-letters/{letter['id']}/replay").status == 200)
    server.wait_status(lost, "delivered")
    assert server.get("/v1/dead-letters")["items"] == []


def test_processes_with_their_own_data_directories_share_one_ledger(
    tmp_path: Path, mongodb_url: str, outside: tuple[Server, dict[str, str]]
) -> None:
    sandbox, wiring = outside
    env = {**wiring, "BELLBUOY_LEDGER__URL": mongodb_url, "BELLBUOY_DELIVERY__LEASE_S": "2"}
    first, second = (Server(tmp_path / n, env=env, arguments=("api", "--port", "0")) for n in ("api-1", "api-2"))
    workers = [Server(tmp_path / n, env=env, arguments=("worker",)) for n in ("w-1", "w-2")]
    try:
        first.start()
        second.start()
        keyed = [to_email(n) for n in range(5)]
        ids = [api.send(one, Idempotency_Key=f"k-{n}") for api in (first, second) for n, one in enumerate(keyed)]
        assert len(set(ids)) == 5
        assert {second.status_of(one) for one in ids} == {"accepted"}
        for worker in workers:
            worker.start_silent()
        for one in set(ids):
            second.wait_status(one, "delivered")
        # Killed in the middle of attempts: their leases end, and a worker that is left takes over.
        sandbox.fault("smtp", kind="hang")
        late = [first.send(to_email(100 + n)) for n in range(5)]
        wait_for(lambda: all(second.status_of(s) == "delivering" for s in late))
        for worker in workers:
            worker.kill()
        sandbox.fault("smtp")
        workers[0].start_silent()
        for one in late:
            attempts = second.wait_status(one, "delivered")["deliveries"][0]["attempts"]
            assert [a["outcome"] for a in attempts] == ["uncertain", "delivered"]
        books = first.books()
        assert (books["accepted"], books["delivered"], books["difference"]) == (10, 10, 0)
        assert [s.stop() for s in (workers[0], second, first)] == [0, 0, 0]
    finally:
        for process in (*workers, first, second):
            if process.process is not None:
                process.kill()


def test_the_doctor_finds_and_builds_what_a_shared_ledger_lacks(tmp_path: Path, mongodb_url: str) -> None:
    def doctor(*arguments: str, url: str = mongodb_url) -> Any:
        server = Server(tmp_path / "data")
        return _ledger_finding(server, url, *arguments)

    assert doctor()["finding"].endswith("made at the first start")
    assert doctor("--fix")["level"] == "ok"
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        client.get_default_database()["notifications"].drop_index("due")
    assert "notifications.due" in doctor()["finding"]
    assert doctor("--fix")["level"] == doctor()["level"] == "ok"
    with pymongo.MongoClient[dict[str, Any]](mongodb_url) as client:
        client.get_default_database()["meta"].update_one({"_id": "schema"}, {"$set": {"version": 99}})
    assert "schema version 99" in doctor()["finding"]
    closed = doctor(url="mongodb://user:secret-word@127.0.0.1:1/bellbuoy")
    assert closed["level"] == "error"
    assert "secret-word" not in json.dumps(closed)


def _ledger_finding(server: Server, url: str, *arguments: str) -> Any:
    server.data_dir.mkdir(mode=0o700, exist_ok=True)
    done = server.cli("doctor", "--json", "--data-dir", str(server.data_dir), *arguments, status=None, ledger=url)
    return next(one for one in json.loads(done)["findings"] if one["subject"] == "ledger")
