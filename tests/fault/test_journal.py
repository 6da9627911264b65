"""The ledger takes nothing: the journal does, and everything is delivered once it is back, whatever died meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bellbuoy.service.drills.damage import held
from tests.support.server import Server, to_email, wait_for

pytestmark = pytest.mark.fault


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as running:
        yield running


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
