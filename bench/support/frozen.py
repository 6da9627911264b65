"""How long accepting takes while a home is frozen, compared with before in the same run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tests.support.mongodb import MongoServer
from tests.support.rabbitmq import RabbitServer
from tests.support.stack import Stack, SteadyLoad

WARM_UP_S = 5.0


def measure(
    folder: Path, mongodb: MongoServer, rabbitmq: RabbitServer, *, rate_per_s: float, frozen_s: float
) -> dict[str, Any]:
    """Freeze MongoDB's stand-in, then RabbitMQ, under a steady load.

    Args:
        folder: for the nodes' data.
        mongodb, rabbitmq: running servers.
        rate_per_s: requests a second.
        frozen_s: seconds for which each is frozen, and seconds before that which it is compared with.
    """
    report: dict[str, Any] = {"rate_per_s": rate_per_s, "frozen_s": frozen_s}
    stack = Stack(folder, mongodb, rabbitmq)
    try:
        stack.start()
        for name, home in (("mongodb", mongodb), ("rabbitmq", rabbitmq)):
            stack.well()
            report[f"{name} frozen"] = _frozen(stack, home, name, rate_per_s, frozen_s)
            print(name, report[f"{name} frozen"], file=sys.stderr, flush=True)
    finally:
        stack.close()
    return report


def _frozen(
    stack: Stack, home: MongoServer | RabbitServer, name: str, rate_per_s: float, frozen_s: float
) -> dict[str, Any]:
    with SteadyLoad(stack.accepting, name, rate_per_s) as load:
        time.sleep(WARM_UP_S)
        before = time.monotonic()
        time.sleep(frozen_s)
        froze = time.monotonic()
        home.freeze()
        try:
            time.sleep(frozen_s)
        finally:
            thawed = time.monotonic()
            home.thaw()
        time.sleep(2.0)
    spans = {"before": (before, froze), "frozen": (froze, thawed)}
    times = {
        f"{span} p{share * 100:g} ms": round(load.latency_s(share, since, until) * 1000, 1)
        for span, (since, until) in spans.items()
        for share in (0.5, 0.99)
    }
    ratio = load.latency_s(0.99, froze, thawed) / load.latency_s(0.99, before, froze)
    return {**times, "p99 frozen / before": round(ratio, 2), "refused": len(load.refused)}
