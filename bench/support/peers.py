"""Celery and taskiq as a benchmark runs them, each with two processes that work."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import redis

from .figures import Run, summarize
from .processes import await_port, await_that, environment, free_port, python, running
from .service import WARM_UP


@contextmanager
def redis_server(folder: Path, log: Path) -> Iterator[str]:
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


def peer(folder: Path, name: str, count: int, *, broker: str | None = None) -> Run:
    """One run of a peer: workers up and warm, then `count` messages enqueued by a process of its own.

    Args:
        folder: for logs and data.
        name: a key of `WORKERS`.
        count: messages.
        broker: URL of another broker than Redis, which keeps the results all the same.
    """
    log, sink_port = folder / "log", free_port()
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(folder, log))
        sink = stack.enter_context(running(python("bench.support.sink", str(sink_port)), log=log))
        await_port(sink_port, sink, log=log)
        env = {"BENCH_REDIS": url, "BENCH_SINK": f"http://127.0.0.1:{sink_port}/"}
        env |= {"BENCH_BROKER": broker} if broker is not None else {}
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
