"""The cluster from POST to recorded `delivered`, beside the embedded default and Celery on RabbitMQ in the same run.

    make bench-cluster                   # a table
    make bench-cluster ARGS=--json
    make bench-cluster ARGS=--faults     # accepting while either home is frozen

The ledger is on the stand-in for MongoDB that the tests use, so no figure says how fast a MongoDB is. The queue is on a
RabbitMQ of one node, in quorum queues with confirms for ours and for Celery. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pymongo
from bench.support import provider
from bench.support.figures import Run, medians
from bench.support.frozen import measure
from bench.support.machine import facts, require_programs
from bench.support.payload import posted
from bench.support.peers import peer
from bench.support.processes import Broken, await_port, await_that, free_port, python, running
from bench.support.service import post_all, posted_and_delivered, settings
from tests.support.mongodb import MongoServer
from tests.support.rabbitmq import RabbitServer

from bellbuoy.model.notification import URGENCY

LOOK_S = 1.0
"""Between two looks at what is left, each of which the stand-in feels."""


@dataclass
class Servers:
    """The stand-in for MongoDB and RabbitMQ, which live as long as the benchmark; each run has its own part of them."""

    mongodb: MongoServer
    rabbitmq: RabbitServer
    runs: int = 0

    def wiring(self) -> dict[str, str]:
        """An empty database and an empty virtual host, as settings."""
        self.runs += 1
        return {"BELLBUOY_LEDGER__URL": self.mongodb.uri(f"bench{self.runs}"), "BELLBUOY_QUEUE__URL": self.broker()}

    def broker(self) -> str:
        """The URL of an empty virtual host."""
        return self.rabbitmq.uri(self.rabbitmq.make_vhost())

    def left(self) -> int:
        """How many notifications of the last `wiring` need a worker: cheaper than the books while it is timed."""
        with pymongo.MongoClient(self.mongodb.uri(f"bench{self.runs}")) as client:
            there = client.get_default_database()["notifications"]
            due = {"$gt": 0}
            return sum(there.count_documents({"priority": priority, "due_at": due}) for priority in URGENCY.values())


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600, help="notifications in one run of ours")
    parser.add_argument("--peer-count", type=int, default=2_000, help="messages in one run of Celery")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, in turn")
    parser.add_argument("--faults", action="store_true", help="freeze either home instead, and compare accept times")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second, with --faults")
    parser.add_argument("--frozen-s", type=float, default=30.0, help="how long a home is frozen, with --faults")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    require_programs()
    with tempfile.TemporaryDirectory(prefix="bellbuoy-bench-") as place:
        folder = Path(place)
        mongodb, rabbitmq = MongoServer(folder), RabbitServer(folder / "rabbitmq")
        try:
            mongodb.start()
            rabbitmq.start()
            if options.faults:
                report = measure(folder, mongodb, rabbitmq, rate_per_s=options.rate, frozen_s=options.frozen_s)
            else:
                report = compare(folder, Servers(mongodb, rabbitmq), options)
            report["machine"] = facts(folder)
        except Broken as error:
            sys.exit(f"error {error}")
        finally:
            mongodb.kill()
            rabbitmq.stop()
    print(json.dumps(report, indent=None if options.json else 2))


def compare(folder: Path, servers: Servers, options: argparse.Namespace) -> dict[str, object]:
    """Time all in turn, `options.runs` times."""
    systems: dict[str, Callable[[Path], Run]] = {
        "cluster, 1 worker": lambda place: cluster(place, servers, options.count, workers=1),
        "cluster, 2 workers": lambda place: cluster(place, servers, options.count, workers=2),
        "embedded": lambda place: embedded(place, options.count * 10),
        "celery on rabbitmq": lambda place: celery(place, servers, options.peer_count),
    }
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    backlogs: dict[int, list[float]] = {1: [], 2: []}
    for number in range(options.runs):
        for name, system in systems.items():
            runs[name].append(system(_made(folder / f"{len(runs[name])}-{name.replace(' ', '-')}")))
            _tell(f"run {number + 1} of {options.runs}: {name} {runs[name][-1].delivered_per_s:.0f}/s")
        for workers, rates in backlogs.items():
            rates.append(
                backlog(_made(folder / f"{number}-backlog-{workers}"), servers, options.count, workers=workers)
            )
            _tell(f"run {number + 1} of {options.runs}: a backlog with {workers} workers {rates[-1]:.0f}/s")
    ours, theirs = runs["cluster, 2 workers"], runs["celery on rabbitmq"]
    return {
        **{name: medians(some) for name, some in runs.items()},
        "cluster / celery by run": [
            round(a.delivered_per_s / b.delivered_per_s, 2) for a, b in zip(ours, theirs, strict=True)
        ],
        "backlog delivered_per_s by run": {
            f"{n} workers": [round(r, 1) for r in rates] for n, rates in backlogs.items()
        },
        "backlog 2 workers / 1 by run": [round(b / a, 2) for a, b in zip(backlogs[1], backlogs[2], strict=True)],
    }


def embedded(folder: Path, count: int) -> Run:
    """One run of `bellbuoy serve` by itself."""
    with ExitStack() as stack:
        port = free_port()
        env = _provider(stack, folder) | settings(folder / "data", port)
        service = stack.enter_context(running(python("bellbuoy", "serve"), log=folder / "log", env=env))
        await_port(port, service, log=folder / "log")
        return posted_and_delivered(folder, port, count, service)


def cluster(folder: Path, servers: Servers, count: int, *, workers: int) -> Run:
    """One run of one `bellbuoy api` and so many `bellbuoy worker`."""
    log = folder / "log"
    with ExitStack() as stack:
        port, env = free_port(), _provider(stack, folder) | servers.wiring()
        api = stack.enter_context(running(python("bellbuoy", "api"), log=log, env=env | settings(folder / "api", port)))
        await_port(port, api, log=log)
        _workers(stack, folder, env, workers)
        return posted_and_delivered(folder, port, count, api, warm_up=200, left=servers.left, every_s=LOOK_S)


def backlog(folder: Path, servers: Servers, count: int, *, workers: int) -> float:
    """How many a second are delivered when all were accepted before any worker was there."""
    log, body = folder / "log", folder / "body.json"
    body.write_bytes(posted())
    with ExitStack() as stack:
        port, env = free_port(), _provider(stack, folder) | servers.wiring()
        api = stack.enter_context(running(python("bellbuoy", "api"), log=log, env=env | settings(folder / "api", port)))
        await_port(port, api, log=log)
        post_all(port, body, folder / "h2load", count)
        _workers(stack, folder, env, workers)
        # From the first few on: how long an interpreter takes to start is not the question.
        await_that(lambda: servers.left() < count, api, log=log, what="begin", every_s=LOOK_S, seconds_max=60)
        began, left = time.time(), servers.left()
        ended = await_that(lambda: servers.left() == 0, api, log=log, what="deliver", every_s=LOOK_S, seconds_max=300)
        return left / (ended - began)


def celery(folder: Path, servers: Servers, count: int) -> Run:
    """One run of Celery on the same RabbitMQ."""
    return peer(folder, "celery", count, broker=servers.broker())


def _provider(stack: ExitStack, folder: Path) -> dict[str, str]:
    port = free_port()
    env = provider.prepare(folder, port)
    nghttpd = stack.enter_context(running(provider.command(folder, port), log=folder / "log"))
    await_port(port, nghttpd, log=folder / "log")
    return env


def _workers(stack: ExitStack, folder: Path, env: dict[str, str], count: int) -> None:
    for n in range(count):
        own = env | settings(folder / f"worker-{n}", 0)
        stack.enter_context(running(python("bellbuoy", "worker"), log=folder / "log", env=own))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
