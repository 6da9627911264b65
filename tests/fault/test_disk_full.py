"""A disk without room: 503 with Retry-After, no half record, and on again when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellbuoy.service.drills.small_disk import fill
from tests.support.server import Server, to_email, wait_for

pytestmark = pytest.mark.fault


def test_a_full_disk_refuses_whole_and_recovers(disk: Path) -> None:
    # The stand-ins write a log of their own, so they live elsewhere: only the ledger is short of room.
    outside = Server(disk.parent / "outside", arguments=("sandbox", "--json", "--port", "0"))
    env = outside.start_sandbox()
    server = Server(disk / "data", env=env, arguments=("serve", "--port", "0"))
    ballast = disk / "ballast"
    try:
        server.start()
        before = [server.send(to_email(n)) for n in range(20)]
        wait_for(lambda: server.books()["pending"] == 0)
        fill(ballast)
        accepted, refused = [], 0
        for n in range(100, 1_100):
            answer = server.call("POST", "/v1/notifications", to_email(n), Idempotency_Key=f"k-{n}")
            if answer.status == 202:
                accepted.append(answer.json()["id"])
                continue
            refused += 1
            assert answer.status == 503, answer
            assert int(answer.headers["retry-after"]) >= 1
            problem = answer.json()
            assert problem["code"] == "store_full"
            assert problem["retryable"] is True
            assert problem["hint"]
            if refused == 20:
                break
        assert refused == 20, "the disk never filled"
        health = server.get("/v1/health")
        assert (health["status"], "disk_full" in health["issues"]) == ("unhealthy", True)
        assert server.call("GET", "/readyz").status == 503
        assert server.call("GET", "/livez").status == 200
        ballast.unlink()
        wait_for(lambda: server.call("GET", "/readyz").status == 200, why="there is room again")
        after = server.send(to_email(5_000))
        for one in (*before, *accepted, after):
            server.wait_status(one, "delivered", within_s=60)
        books = server.books()
        assert books["accepted"] == len(before) + len(accepted) + 1
        assert books["difference"] == 0
        assert server.stop() == 0
    finally:
        for process in (server, outside):
            if process.process is not None:
                process.kill()
