"""The arithmetic of a benchmark, apart from anything that is timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

OURS = "bellbuoy"


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a load generator: when it began (seconds since the epoch), its status, how long it took."""

    began: float
    status: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """One timed run of one system."""

    delivered_per_s: float
    accept_p50_ms: float
    accept_p99_ms: float
    drain_per_s: float
    """The rate once nothing was enqueued any more."""


def parse_h2load_log(lines: Iterable[str]) -> list[Request]:
    """Read what `h2load --log-file` writes: start in microseconds, status (-1 is a failure), microseconds taken.

    Raises:
        ValueError: a line has another shape.
    """
    requests = []
    for line in lines:
        began, status, taken = line.split()[:3]
        requests.append(Request(int(began) / 1e6, int(status), int(taken) / 1e6))
    return requests


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def summarize(count: int, *, first: float, last: float, enqueued: float, left: int, accepts_s: Sequence[float]) -> Run:
    """Make a run's figures.

    Args:
        count: notifications delivered.
        first: when the first was handed over, in seconds.
        last: when the last was seen to be recorded, in seconds.
        enqueued: when the last was handed over, in seconds.
        left: how many were not yet recorded by then.
        accepts_s: how long each hand-over took, in seconds.
    """
    return Run(
        delivered_per_s=count / (last - first),
        accept_p50_ms=percentile(accepts_s, 0.5) * 1000,
        accept_p99_ms=percentile(accepts_s, 0.99) * 1000,
        drain_per_s=left / (last - enqueued) if left and last > enqueued else 0.0,
    )


def medians(runs: Sequence[Run]) -> dict[str, float]:
    """Return the median of each figure over the runs; `drain_per_s` only where something was left to drain."""
    drains = [run.drain_per_s for run in runs if run.drain_per_s]
    figures = {
        "delivered_per_s": round(median(run.delivered_per_s for run in runs), 1),
        "accept_p50_ms": round(median(run.accept_p50_ms for run in runs), 2),
        "accept_p99_ms": round(median(run.accept_p99_ms for run in runs), 2),
    }
    return figures | ({"drain_per_s": round(median(drains), 1)} if drains else {})


def ratios(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[float]]:
    """Return, for each peer, our rate over its rate in each run: both sides of a pair met the same machine."""
    return {
        peer: [
            round(ours.delivered_per_s / theirs.delivered_per_s, 2)
            for ours, theirs in zip(runs[OURS], others, strict=True)
        ]
        for peer, others in runs.items()
        if peer != OURS
    }


def missed(measured: Mapping[str, Sequence[float]], targets: Mapping[str, float]) -> list[str]:
    """Say, for each target whose median ratio is not reached, by how much."""
    return [
        f"{peer}: {median(measured[peer]):.2f}x, wanted {target:g}x"
        for peer, target in targets.items()
        if peer in measured and median(measured[peer]) < target
    ]
