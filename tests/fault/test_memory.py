"""A flood within 200 MB: it is bounded, nobody is killed, and nothing that was accepted is lost."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.server import Server, wait_for

pytestmark = [pytest.mark.fault, pytest.mark.timeout(300)]
LIMIT_BYTES = 200 * 1024 * 1024
"""Less than the 300 MB within which a flood like this one passes without any pressure."""

ACCEPTED_MAX = 60_000


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own with a limit, below the one that we are in."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    older = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    base = Path("/sys/fs/cgroup/memory" if older else "/sys/fs/cgroup")
    path = older[0] if older else next(path for number, _, path in lines if number == "0")
    folder = base / path.strip("/") / f"bellbuoy-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if older else "memory.max")).write_text(str(LIMIT_BYTES))
    except OSError as error:
        if folder.exists():
            folder.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text().strip())
    folder.rmdir()


def flood(server: Server, seen: Counter[int | str], until: float) -> None:
    body = "x" * 3_000
    for n in range(10_000):
        if time.monotonic() > until or seen["accepted"] > ACCEPTED_MAX:
            return
        device = {"platform": "android", "provider": "fcm", "token": f"token-{n}"}
        line = json.dumps({"recipient": {"device": device}, "content": {"title": "t", "body": body}}).encode()
        answer = server.call(
            "POST", "/v1/notifications/batch", b"\n".join([line] * 200), Content_Type="application/x-ndjson"
        )
        seen[answer.status] += 1
        if answer.status == 200:
            seen["accepted"] += answer.json()["accepted"]


def test_a_flood_within_a_limit_is_bounded_and_loses_nothing(tmp_path: Path, group: Path) -> None:
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    env = outside.start_sandbox() | {"BELLBUOY_DELIVERY__RELEASE_PER_S": "5000"}
    env |= {"BELLBUOY_DELIVERY__RELEASE_RAMP_S": "5", "BELLBUOY_BREAKERS__FCM__RECOVERY_TIMEOUT_S": "2"}
    server = Server(tmp_path / "data", env=env, arguments=("serve", "--port", "0"))
    try:
        server.group = group
        server.start()
        server.control = outside.control
        assert server.process is not None
        server.fault("fcm", kind="hang")
        seen: Counter[int | str] = Counter()
        until = time.monotonic() + 40
        with ThreadPoolExecutor(8) as clients:
            for flooding in [clients.submit(flood, server, seen, until) for _ in range(8)]:
                flooding.result()
        assert server.process.poll() is None
        assert set(seen) <= {200, 429, 503, "accepted"}
        assert "memory_pressure" in {event["event"] for event in server.events()}
        assert any(event.get("mode") == "push_back" for event in server.events())
        server.fault("fcm")
        wait_for(lambda: server.books()["pending"] == 0, within_s=150)
        books = server.books()
        assert server.process.poll() is None
        assert books["accepted"] == seen["accepted"] > 10_000
        assert books["delivered"] == books["accepted"]
        assert books["difference"] == 0
    finally:
        for one in (server, outside):
            if one.process is not None:
                one.kill()
