"""Notifications a second from POST to recorded `delivered`, with Celery and taskiq doing the same work in the same run.

    make bench            # a table
    make bench ARGS=--json

Ours posts with h2load over HTTP/1.1 on 64 connections; every 202 is fsynced. The peers enqueue through their own client
and record a delivery in Redis. Each system has the machine to itself while it is timed. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import redis
from bench.support import provider
from bench.support.figures import OURS, Run, medians, missed, parse_h2load_log, ratios, summarize
from bench.support.machine import facts, require_programs
from bench.support.payload import posted
from bench.support.processes import (
    Broken,
    await_port,
    await_that,
    environment,
    free_port,
    python,
    running,
)

KEY = "benchmark-key-of-32-characters!!"
TARGETS = {"celery": 8.0, "taskiq": 3.0}
CONNECTIONS = 64
WARM_UP = 1_000


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="notifications in one run of ours")
    parser.add_argument("--peer-count", type=int, default=4_000, help="messages in one run of a peer")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 when a target ratio is missed")
    options = parser.parse_args()
    require_programs()
    with tempfile.TemporaryDirectory(prefix="bellbuoy-bench-") as folder:
        try:
            report = compare(Path(folder), options)
        except Broken as error:
            sys.exit(f"error {error}")
    print(json.dumps(report) if options.json else _table(report))
    sys.exit(1 if options.check and report["missed"] else 0)


def compare(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Time all three in turn, `options.runs` times."""
    machine = facts(folder)
    runs: dict[str, list[Run]] = {OURS: [], "celery": [], "taskiq": []}
    for number in range(options.runs):
        for name, some in runs.items():
            place = folder / f"{name}-{number}"
            place.mkdir()
            run = ours(place, options.count) if name == OURS else peer(place, name, options.peer_count)
            some.append(run)
            print(
                f"run {number + 1} of {options.runs}: {name} {run.delivered_per_s:.0f}/s", file=sys.stderr, flush=True
            )
    measured = ratios(runs)
    return {
        **{name: medians(some) for name, some in runs.items()},
        "ratios": {name: sorted(some)[len(some) // 2] for name, some in measured.items()},
        "ratios_by_run": measured,
        "targets": TARGETS,
        "missed": missed(measured, TARGETS),
        "machine": machine,
    }


def ours(folder: Path, count: int) -> Run:
    """One run of Bellbuoy."""
    provider_port, port = free_port(), free_port()
    env = provider.prepare(folder, provider_port) | {
        "BELLBUOY_BOOTSTRAP_KEY": KEY,
        "BELLBUOY_SERVER__PORT": str(port),
        "BELLBUOY_DATA__DIR": str(folder / "data"),
        "BELLBUOY_LOG__LEVEL": "error",
    }
    log = folder / "log"
    with ExitStack() as stack:
        nghttpd = stack.enter_context(running(provider.command(folder, provider_port), log=log))
        await_port(provider_port, nghttpd, log=log)
        service = stack.enter_context(running(python("bellbuoy", "serve"), log=log, env=env))
        await_port(port, service, log=log)
        body = folder / "body.json"
        body.write_bytes(posted())
        _post_all(port, body, folder / "warm", WARM_UP)
        await_that(lambda: _pending(port) == 0, service, log=log, what="warm up", every_s=0.1, seconds_max=60)
        first = time.time()
        accepts = _post_all(port, body, folder / "h2load", count)
        enqueued, left = time.time(), _pending(port)
        last = await_that(
            lambda: _pending(port) == 0, service, log=log, what="deliver all", every_s=0.1, seconds_max=300
        )
        books = _books(port)
        if books["delivered"] != count + WARM_UP or books["difference"]:
            raise Broken(f"the books say {books}")
    return summarize(count, first=first, last=last, enqueued=enqueued, left=left, accepts_s=accepts)


def _post_all(port: int, body: Path, log: Path, count: int) -> list[float]:
    """POST the same notification `count` times; returns how many seconds each took."""
    command = ["h2load", "--h1", "-n", str(count), "-c", str(CONNECTIONS), "--log-file", str(log), "-d", str(body)]
    command += ["-H", "content-type: application/json", "-H", f"authorization: Bearer {KEY}"]
    subprocess.run([*command, f"http://127.0.0.1:{port}/v1/notifications"], check=True, capture_output=True)
    requests = parse_h2load_log(log.read_text().splitlines())
    if any(request.status != 202 for request in requests):
        raise Broken(f"not every POST was answered with 202: {sorted({r.status for r in requests})}")
    return [request.seconds for request in requests]


def _books(port: int) -> dict[str, int]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/audit", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, int] = json.load(answer)
        return found


def _pending(port: int) -> int:
    return _books(port)["pending"]


@contextmanager
def _redis(folder: Path, log: Path) -> Iterator[str]:
    """A Redis of our own that appends to disk every second, as most who care for their queue run it."""
    port = free_port()
    options = ["--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "everysec", "--dir", str(folder)]
    with running(["redis-server", "--port", str(port), *options], log=log) as server:
        await_port(port, server, log=log)
        yield f"redis://127.0.0.1:{port}/0"


WORKERS = {
    "celery": ["celery", "-A", "bench.peers.celery_app", "worker", "--concurrency", "2", "--loglevel", "WARNING"],
    "taskiq": ["taskiq", "worker", "--workers", "2", "--log-level", "WARNING", "bench.peers.taskiq_app:broker"],
}


def peer(folder: Path, name: str, count: int) -> Run:
    """One run of a peer: workers up and warm, then `count` messages enqueued by a process of its own."""
    log, sink_port = folder / "log", free_port()
    with ExitStack() as stack:
        url = stack.enter_context(_redis(folder, log))
        sink = stack.enter_context(running(python("bench.support.sink", str(sink_port)), log=log))
        await_port(sink_port, sink, log=log)
        env = {"BENCH_REDIS": url, "BENCH_SINK": f"http://127.0.0.1:{sink_port}/"}
        store = stack.enter_context(redis.Redis.from_url(url))
        workers = stack.enter_context(running(python(*WORKERS[name]), log=log, env=env))

        def results() -> int:
            # Each result is a key of its own; the queue's own keys are the few that were there before.
            return int(store.dbsize())  # type: ignore[arg-type]

        warm = WARM_UP // 5
        _enqueue(name, warm, env)
        await_that(lambda: results() >= warm, workers, log=log, what="warm up", every_s=0.05, seconds_max=120)
        time.sleep(1.0)
        before = results()

        def delivered() -> int:
            return results() - before

        first = time.time()
        _enqueue(name, count, env)
        enqueued, left = time.time(), count - delivered()
        last = await_that(
            lambda: delivered() >= count, workers, log=log, what="deliver all", every_s=0.02, seconds_max=300
        )
    return summarize(
        count, first=first, last=last, enqueued=enqueued, left=left, accepts_s=[(enqueued - first) / count]
    )


def _enqueue(name: str, count: int, env: dict[str, str]) -> None:
    subprocess.run(python(f"bench.peers.{name}_app", str(count)), env=environment(env), check=True, capture_output=True)


def _table(report: dict[str, object]) -> str:
    lines = [f"{'':<10}{'delivered/s':>12}{'accept p50 ms':>15}{'accept p99 ms':>15}{'ours is':>10}"]
    for name in (OURS, *TARGETS):
        row: dict[str, float] = report[name]  # type: ignore[assignment]
        ratio = report["ratios"].get(name)  # type: ignore[attr-defined]
        times = f"{ratio:.1f}x" if ratio else ""
        figures = f"{row['delivered_per_s']:>12.0f}{row['accept_p50_ms']:>15.2f}{row['accept_p99_ms']:>15.2f}"
        lines.append(f"{name:<10}{figures}{times:>10}")
    lines += [f"missed: {one}" for one in report["missed"]]  # type: ignore[attr-defined]
    lines.append("machine: " + json.dumps(report["machine"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
