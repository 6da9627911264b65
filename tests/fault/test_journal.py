"""The ledger takes nothing: the journal does, and everything is delivered once it is back, whatever died meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.server import Server, to_email, wait_for

pytestmark = pytest.mark.fault

# Another program that writes to the ledger's file and does not come to an end, as a careless backup might.
_HOLD = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA busy_timeout = 30000")
c.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as running:
        yield running


@contextmanager
def held(database: Path) -> Iterator[None]:
    """Nobody else can write to the ledger."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        yield
    finally:
        holder.stdin.close()
        holder.wait(timeout=10)
        holder.stdout.close()


@pytest.mark.parametrize("killed", [False, True], ids=["stays", "killed"])
def test_a_ledger_that_takes_nothing_loses_nothing(server: Server, killed: bool) -> None:
    server.wait_status(server.send(to_email(1)), "delivered")
    with held(server.data_dir / "bellbuoy.db"), ThreadPoolExecutor(20) as clients:

        def send(n: int) -> str:
            answer = server.call("POST", "/v1/notifications", to_email(n), Idempotency_Key=f"key-{n % 20}")
            assert answer.status == 202, answer
            assert answer.json()["homes"] == ["journal"]
            return str(answer.json()["id"])

        # Two clients a key, so that there are twenty notifications.
        ids = set(clients.map(lambda n: send(n % 20 + 100), range(40)))
        assert len(ids) == 20
        for one in ids:
            assert server.get(f"/v1/notifications/{one}")["status"] == "accepted"
        health = server.get("/v1/health")
        assert health["status"] == "degraded"
        assert {"database_down", "journal_pending"} <= set(health["issues"])
        assert server.call("GET", "/readyz").status == 200
        if killed:
            server.kill()
    if killed:
        server.start()
    for one in ids:
        server.wait_status(one, "delivered", within_s=60)
    # What was slow stays in the window of the meters for half a minute.
    wait_for(lambda: server.get("/v1/health")["issues"] == [], within_s=60)
    books = server.books()
    assert (books["accepted"], books["delivered"], books["difference"]) == (21, 21, 0)
    assert server.received("smtp")["duplicate_count"] == 0
