"""FCM in outage for two minutes under load: what APNs notices, what the breaker does, and whether anything is lost.

Runs the product with its sandbox and default settings. Prints APNs deliveries a second and their latency before, during
and after the outage, the breaker's transitions, and the books.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.server import Server, to_android, to_iphone, wait_for


class Clients:
    """Two clients: one sends to iPhones, one to Android phones, each at a fixed rate."""

    def __init__(self, server: Server, rate_per_s: float) -> None:
        self._server = server
        self._rate = rate_per_s
        self.apns: list[str] = []
        self.fcm: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(make, sent))
            for make, sent in ((to_iphone, self.apns), (to_android, self.fcm))
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, make: Any, sent: list[str]) -> None:
        number, due = 0, time.monotonic()
        while not self._stop.is_set():
            number += 1
            sent.append(self._server.send(make(number, collapse_key=f"{make.__name__}-{number}")))
            due += 1 / self._rate
            time.sleep(max(0.0, due - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outage-s", type=float, default=120.0)
    parser.add_argument("--around-s", type=float, default=30.0, help="seconds of load before and after")
    parser.add_argument("--rate", type=float, default=50.0, help="notifications a second for each provider")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
        report = run(server, options)
    print(json.dumps(report, indent=None if options.json else 2))
    sys.exit(0 if report["ok"] else 1)


def run(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """One run; returns the report."""
    marks = [time.time()]
    with Clients(server, options.rate) as clients:
        for seconds, fault in (
            (options.around_s, {"kind": "outage"}),
            (options.outage_s, {}),
            (options.around_s, None),
        ):
            time.sleep(seconds)
            marks.append(time.time())
            print(f"{seconds:.0f} s passed", file=sys.stderr)
            if fault is not None:
                server.fault("fcm", **fault)
    wait_for(lambda: server.books()["pending"] == 0, within_s=180, why="all settled")
    apns = [_delivered(server.get(f"/v1/notifications/{one}")) for one in clients.apns]
    phases = {}
    for name, begin, end in zip(("before", "during", "after"), marks[:-1], marks[1:], strict=True):
        inside = [latency for at, latency in apns if begin <= at < end]
        phases[name] = {
            "apns_per_s": round(len(inside) / (end - begin), 1),
            "apns_p50_ms": round(statistics.median(inside), 1),
            "apns_p99_ms": round(sorted(inside)[int(len(inside) * 0.99)], 1),
        }
    transitions = [
        (round(datetime.fromisoformat(e["timestamp"]).timestamp() - marks[1], 1), e["event"])
        for e in server.events()
        if e.get("breaker") == "fcm"
    ]
    books = server.books()
    duplicates = server.received("fcm")["duplicate_count"]
    return {
        "phases": phases,
        "fcm_breaker_s_since_outage": transitions,
        "books": {k: v for k, v in books.items() if v},
        "fcm_duplicates": duplicates,
        "ok": books["difference"] == 0 and books["accepted"] == books["delivered"] and duplicates == 0,
    }


def _delivered(notification: dict[str, Any]) -> tuple[float, float]:
    """When it was accepted, and after how many milliseconds it was delivered."""
    accepted = datetime.fromisoformat(notification["accepted_at"]).timestamp()
    attempt = notification["deliveries"][-1]["attempts"][-1]
    done = datetime.fromisoformat(attempt["started_at"]).timestamp() + attempt["latency_ms"] / 1000
    return accepted, (done - accepted) * 1000


if __name__ == "__main__":
    main()
