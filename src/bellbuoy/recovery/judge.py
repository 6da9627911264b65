"""Whether things are worse since a change. Pure.

Worse is said on evidence only: the lower end of the confidence interval of the error rate (Wilson, JASA 1927) has to
be beyond the bound, so a few failures among many calls prove nothing, and five of five do. As good is said on evidence
too: whatever was measured before has to have been measured after. All else is unclear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Literal

from msgspec import Struct

from bellbuoy.model.change import Figures

_Z = 2.58  # 99 %, since every change is looked at many times.
_FAILURES_MIN = 3
P95_SLACK_S = 0.1
"""A p95 that grew by less is not worse, by whatever factor."""


class Bounds(Struct, frozen=True):
    """How much worse is too much.

    Args:
        error_rate_worse_by: added to the error rate before the change, as a share of the calls.
        p95_worse_times: times the p95 before the change.
        calls_min: fewer calls of a dependency say nothing of it.
    """

    error_rate_worse_by: float = 0.05
    p95_worse_times: float = 2.0
    calls_min: int = 20


class Verdict(Struct, frozen=True):
    """What the figures say, and why in words."""

    is_: Literal["worse", "as_good", "unclear"]
    why: str


def judge(
    before: Mapping[str, Figures],
    after: Mapping[str, Figures],
    bounds: Bounds,
    *,
    concerned: Set[str],
    ended: bool,
) -> Verdict:
    """Compare what was measured before a change and since.

    Args:
        concerned: dependencies of which one at least has to have been measured, for it to be as good.
        ended: whether the window is over. Latencies are compared then only, as a few slow calls at first say little.
    """
    known = {name: figures for name, figures in before.items() if figures.calls >= bounds.calls_min}
    doubts = [] if concerned & known.keys() else [f"too few calls before of {' or '.join(sorted(concerned)) or 'any'}"]
    for name, was in sorted(known.items()):
        now = after.get(name, Figures())
        rate_was = was.failures / was.calls
        limit = rate_was + bounds.error_rate_worse_by
        if now.failures >= _FAILURES_MIN and lower_end(now.failures, now.calls) > limit:
            return Verdict("worse", f"{name}: {_percent(now.failures / now.calls)} failed, before {_percent(rate_was)}")
        if now.calls < bounds.calls_min:
            doubts.append(f"too few calls after of {name}: {now.calls}")
            continue
        if now.failures / now.calls > limit:
            doubts.append(f"{name}: {_percent(now.failures / now.calls)} failed, which may be chance")
        if ended and (was.p95_s is None or now.p95_s is None):
            doubts.append(f"no p95 of {name}")
        elif ended and slower(was.p95_s or 0.0, now.p95_s or 0.0, bounds.p95_worse_times):
            return Verdict("worse", f"{name}: p95 {now.p95_s:.3f} s, before {was.p95_s:.3f} s")
    return Verdict("unclear", "; ".join(doubts)) if doubts else Verdict("as_good", "as before")


def slower(was_s: float, now_s: float, times: float) -> bool:
    """Whether a p95 is over so many times that before, and over the slack as well."""
    return now_s > max(was_s * times, was_s + P95_SLACK_S)


def lower_end(failures: int, calls: int) -> float:
    """The lower end of Wilson's 99 % interval for a rate."""
    rate, z2 = failures / calls, _Z * _Z
    spread = _Z * math.sqrt(rate * (1 - rate) / calls + z2 / (4 * calls * calls))
    return (rate + z2 / (2 * calls) - spread) / (1 + z2 / calls)


def _percent(rate: float) -> str:
    return f"{rate * 100:.1f} %"
