"""Every fault against every provider: all settle once it is over, and what came twice was in doubt and counted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server, to_android, to_email, to_iphone, to_phone, wait_for

pytestmark = pytest.mark.fault

MAKERS = {"fcm": to_android, "apns": to_iphone, "smtp": to_email, "sms": to_phone}
FAULTS: list[dict[str, Any]] = [
    {"kind": "outage"},
    {"kind": "outage", "refuse": True},
    {"kind": "latency", "ms": 300},
    {"kind": "timeout", "after_s": 2},
    {"kind": "hang"},
    {"kind": "quota", "retry_after_s": 1},
    {"kind": "goaway", "after": 3},
    {"kind": "reset"},
    {"kind": "reset", "deliver": True},
    {"kind": "bad_credentials"},
]
SHORT = {
    "BELLBUOY_RETRY__INITIAL_DELAY_S": "0.2",
    # So that a fault of a second or two never uses up a delivery's attempts before it is over.
    "BELLBUOY_RETRY__MAX_ATTEMPTS": "20",
    "BELLBUOY_DELIVERY__CREDENTIAL_HOLD_S": "1",
    **{f"BELLBUOY_BREAKERS__{name.upper()}__RECOVERY_TIMEOUT_S": "1" for name in MAKERS},
    **{f"BELLBUOY_BREAKERS__{name.upper()}__TIMEOUT_S": "1" for name in MAKERS},
    **{f"BELLBUOY_PROVIDERS__{name.upper()}__SERVER_ERROR_WAIT_S": "0.2" for name in MAKERS},
}
FAULT_S = 1.3
_numbers = itertools.count(1_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir: Path = tmp_path_factory.mktemp("matrix") / "data"
    with Server(data_dir, env=SHORT) as running:
        yield running


@pytest.mark.parametrize("provider", MAKERS)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_a_fault_that_ends_leaves_nothing_lost_stuck_or_doubled_in_secret(
    server: Server, fault: dict[str, Any], provider: str
) -> None:
    books, seen = server.books(), server.received(provider)
    server.fault(provider, **fault)
    numbers = [next(_numbers) for _ in range(12)]
    sent = [server.send(MAKERS[provider](n, collapse_key=f"c-{n}")) for n in numbers]
    time.sleep(FAULT_S)  # The fault lasts this long; what happens in it is for the assertions below, not for luck.
    server.fault(provider)
    wait_for(lambda: {server.status_of(one) for one in sent} == {"delivered"}, within_s=60, why="all delivered")
    after, now = server.books(), server.received(provider)
    doubled = now["duplicate_count"] - seen["duplicate_count"]
    assert now["unique"] - seen["unique"] == 12
    assert doubled <= after["possible_duplicates"] - books["possible_duplicates"]
    assert after["difference"] == 0
    assert not [e for e in server.events() if e["event"] in ("worker_error", "request_failed")]
