"""Notifications a second from POST to recorded `delivered`, with Celery and taskiq doing the same work in the same run.

    make bench            # a table
    make bench ARGS=--json

Ours posts with h2load over HTTP/1.1 on 64 connections; every 202 is fsynced. The peers enqueue through their own client
and record a delivery in Redis. Each system has the machine to itself while it is timed. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.support import provider
from bench.support.figures import OURS, Run, medians, missed, ratios
from bench.support.machine import facts, require_programs
from bench.support.peers import peer
from bench.support.processes import Broken, await_port, free_port, python, running
from bench.support.service import posted_and_delivered, settings

TARGETS = {"celery": 8.0, "taskiq": 3.0}


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


def ours(folder: Path, count: int, more: Mapping[str, str] | None = None) -> Run:
    """One run of Bellbuoy, with more of its settings in the environment."""
    provider_port, port = free_port(), free_port()
    env = provider.prepare(folder, provider_port) | settings(folder / "data", port) | dict(more or {})
    log = folder / "log"
    with ExitStack() as stack:
        nghttpd = stack.enter_context(running(provider.command(folder, provider_port), log=log))
        await_port(provider_port, nghttpd, log=log)
        service = stack.enter_context(running(python("bellbuoy", "serve"), log=log, env=env))
        await_port(port, service, log=log)
        return posted_and_delivered(folder, port, count, service)


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
