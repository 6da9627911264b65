"""The product as a benchmark runs it: what it is told, how it is posted to, and what its books say."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

from .figures import Run, parse_h2load_log, summarize
from .payload import posted
from .processes import Broken, await_that

KEY = "benchmark-key-of-32-characters!!"
CONNECTIONS = 64
WARM_UP = 1_000


def settings(folder: Path, port: int) -> dict[str, str]:
    """The environment of a process that keeps its data in `folder` and listens on `port`, if it does."""
    return {
        "BELLBUOY_BOOTSTRAP_KEY": KEY,
        "BELLBUOY_SERVER__PORT": str(port),
        "BELLBUOY_DATA__DIR": str(folder),
        "BELLBUOY_LOG__LEVEL": "error",
    }


def post_all(port: int, body: Path, log: Path, count: int) -> list[float]:
    """POST the same notification `count` times; returns how many seconds each took.

    Raises:
        Broken: one was not answered with 202.
    """
    command = ["h2load", "--h1", "-n", str(count), "-c", str(CONNECTIONS), "--log-file", str(log), "-d", str(body)]
    command += ["-H", "content-type: application/json", "-H", f"authorization: Bearer {KEY}"]
    subprocess.run([*command, f"http://127.0.0.1:{port}/v1/notifications"], check=True, capture_output=True)
    requests = parse_h2load_log(log.read_text().splitlines())
    if any(request.status != 202 for request in requests):
        raise Broken(f"not every POST was answered with 202: {sorted({r.status for r in requests})}")
    return [request.seconds for request in requests]


def books(port: int) -> dict[str, int]:
    """What `GET /v1/audit` says."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/audit", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, int] = json.load(answer)
        return found


def pending(port: int) -> int:
    """How many notifications are not over."""
    return books(port)["pending"]


def posted_and_delivered(
    folder: Path,
    port: int,
    count: int,
    service: Popen[bytes],
    *,
    warm_up: int = WARM_UP,
    left: Callable[[], int] | None = None,
    every_s: float = 0.1,
) -> Run:
    """Warm up, post `count` notifications, and wait until every one is recorded as delivered.

    Args:
        folder: of this run, with its `log`.
        port: where it listens.
        count: notifications.
        service: the process; when it ends, so does the run.
        warm_up: notifications before those that are timed.
        left: how many notifications are not over; None to ask the books, which is quick where the ledger is a file.
        every_s: seconds between two looks at that, which cost the ledger something too.

    Raises:
        Broken: something was refused or not delivered, or the books do not balance.
    """
    body, log = folder / "body.json", folder / "log"
    left = left or (lambda: pending(port))
    body.write_bytes(posted())
    post_all(port, body, folder / "warm", warm_up)
    await_that(lambda: left() == 0, service, log=log, what="warm up", every_s=every_s, seconds_max=120)
    first = time.time()
    accepts = post_all(port, body, folder / "h2load", count)
    enqueued, rest = time.time(), left()
    last = await_that(lambda: left() == 0, service, log=log, what="deliver all", every_s=every_s, seconds_max=300)
    found = books(port)
    if found["delivered"] != count + warm_up or found["difference"]:
        raise Broken(f"the books say {found}")
    return summarize(count, first=first, last=last, enqueued=enqueued, left=rest, accepts_s=accepts)
