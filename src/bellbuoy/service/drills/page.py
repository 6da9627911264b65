"""The report of drills as one page that needs nothing else: styles and charts inside, in light and dark."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Sequence

from bellbuoy.continuity.drill import DrillReport, Reading
from bellbuoy.service.drills.charts import Band, Line, bands, lines

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #5d6b7e; --paper: #ffffff; --edge: #d8dee8; --good: #14734a;
  --bad: #b3261e; --warn: #8a5a00; --a: #1f6feb; --b: #d4622a; --c: #b3261e; --fault: #f3b3ae55; --band: #7a5af866; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9f1; --dim: #9aa7ba; --paper: #14181f; --edge: #333c49;
  --good: #4cc38a; --bad: #ff7b72; --warn: #e3b341; --a: #6cb0ff; --b: #ffa36b; --c: #ff7b72; --fault: #ff7b7233;
  --band: #a08bff77; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 920px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--edge);
  padding-top: 1.5rem; }
.dim, figcaption, .tick { color: var(--dim); } .passed { color: var(--good); } .failed, .aborted { color: var(--bad); }
.inconclusive { color: var(--warn); } figure { margin: 1rem 0; } svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25rem .75rem .25rem 0;
  border-bottom: 1px solid var(--edge); vertical-align: top; }
.grid { stroke: var(--edge); } .tick, .row { font-size: 11px; fill: var(--dim); } .row { fill: var(--ink); }
.end { text-anchor: end; } .mid { text-anchor: middle; } .fault { fill: var(--fault); } .band { fill: var(--band); }
.line { fill: none; stroke-width: 1.8; } .line.a { stroke: var(--a); } .line.b { stroke: var(--b); }
.line.c { stroke: var(--c); } .key { margin-left: .75rem; } .key.a { color: var(--a); } .key.b { color: var(--b); }
.key.c { color: var(--c); }
"""


def page(reports: Sequence[DrillReport]) -> str:
    """The page."""
    rows = "".join(
        f'<tr><td><a href="#{_id(index)}">{html.escape(one.drill)}</a></td><td class="{one.result}">{one.result}</td>'
        f"<td>{html.escape(one.why)}</td></tr>"
        for index, one in enumerate(reports)
    )
    sections = "".join(_section(index, one) for index, one in enumerate(reports))
    passed = sum(1 for one in reports if one.result == "passed")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Bellbuoy drills</title>'
        f"<style>{_STYLE}</style></head><body><h1>Drills: {passed} of {len(reports)} passed</h1>"
        f"<table><tr><th>drill</th><th>result</th><th>why</th></tr>{rows}</table>{sections}</body></html>\n"
    )


def _section(index: int, report: DrillReport) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(report.started_at))
    checks = "".join(
        f'<tr><td class="{"passed" if check.passed else "failed"}">{"ok" if check.passed else "FAIL"}</td>'
        f'<td>{html.escape(check.says)}</td><td class="dim">{html.escape(check.detail)}</td></tr>'
        for check in report.checks
    )
    counts = "".join(f"<tr><td>{html.escape(n)}</td><td>{value:g}</td></tr>" for n, value in report.counts.items())
    return (
        f'<h2 id="{_id(index)}">{html.escape(report.drill)} <span class="{report.result}">{report.result}</span></h2>'
        f"<p>{html.escape(report.fault)} <em>Expected:</em> {html.escape(report.hypothesis)}</p>"
        f'<p class="dim">{when}, by {html.escape(report.by)}, on a stack of kind {html.escape(report.stack)}</p>'
        f"{_charts(report)}<table><tr><th></th><th>checked</th><th></th></tr>{checks}</table>"
        f"<h3>Counted</h3><table>{counts}</table>"
    )


def _charts(report: DrillReport) -> str:
    readings = report.timeline
    if not readings:
        return ""
    until_s = max([readings[-1].at_s, *(phase.to_s for phase in report.phases)])
    throughput = [
        Line("accepted", "a", [(r.at_s, r.accepted / r.span_s) for r in readings]),
        Line("refused or broken", "c", [(r.at_s, (r.refused + r.broken) / r.span_s) for r in readings]),
    ]
    latency = [
        Line("p50", "a", [(r.at_s, _ms(r.p50_s)) for r in readings]),
        Line("p99", "b", [(r.at_s, _ms(r.p99_s)) for r in readings]),
    ]
    pending = [Line("pending", "b", [(r.at_s, r.pending) for r in readings])]
    return (
        lines("Requests", "a second", throughput, report.phases, until_s)
        + lines("Latency of acceptance", "ms", latency, report.phases, until_s)
        + lines("Accepted and not over", "notifications", pending, report.phases, until_s)
        + bands("Modes", _bands((r, r.modes or ()) for r in readings), report.phases, until_s)
        + bands("Issues", _bands((r, r.issues or ()) for r in readings), report.phases, until_s)
    )


def _bands(readings: Iterable[tuple[Reading, Sequence[str]]]) -> list[Band]:
    """From what was so at each reading to when it was so; each reading speaks for the span before it."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for reading, names in readings:
        for name in names:
            mine = spans.setdefault(name, [])
            begin = reading.at_s - reading.span_s
            if mine and begin - mine[-1][1] < reading.span_s:
                mine[-1] = (mine[-1][0], reading.at_s)
            else:
                mine.append((begin, reading.at_s))
    return [Band(name, found) for name, found in spans.items()]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _id(index: int) -> str:
    return f"drill-{index}"
