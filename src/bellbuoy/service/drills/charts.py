"""Charts as inline SVG: lines over time, and bands of what was so from when to when. No script, nothing fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from bellbuoy.continuity.drill import Phase

WIDTH, HEIGHT = 860, 180
LEFT, RIGHT, TOP, BOTTOM = 56, 24, 14, 24
BAND = 22


@dataclass(frozen=True)
class Line:
    """A series. `tone` is a CSS class that gives it its colour; None is a gap."""

    name: str
    tone: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class Band:
    """What was so, from when to when, in seconds."""

    name: str
    spans: Sequence[tuple[float, float]]


def lines(title: str, unit: str, series: Sequence[Line], phases: Sequence[Phase], until_s: float) -> str:
    """Lines over the seconds of a drill, the fault shaded.

    Args:
        title: what is shown.
        unit: of the values.
        series: the lines.
        phases: of the drill.
        until_s: where the axis of time ends.
    """
    top = _nice(max((value for line in series for _, value in line.points if value is not None), default=1.0))
    parts = [_shade(phases, until_s, HEIGHT)]
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    parts += [_axis(until_s, HEIGHT), *(_path(line, top, until_s) for line in series)]
    legend = " ".join(f'<span class="key {line.tone}">{html.escape(line.name)}</span>' for line in series)
    return _figure(f"{title}, {unit}", legend, parts, HEIGHT)


def bands(title: str, rows: Sequence[Band], phases: Sequence[Phase], until_s: float) -> str:
    """One row for each thing, filled while it was so."""
    height = TOP + BAND * max(1, len(rows)) + BOTTOM
    parts = [_shade(phases, until_s, height)]
    for index, row in enumerate(rows):
        y = TOP + index * BAND
        for begin, end in row.spans:
            x, wide = _x(begin, until_s), max(2.0, _x(end, until_s) - _x(begin, until_s))
            tip = f"<title>{html.escape(row.name)}: {begin:.1f} to {end:.1f} s</title>"
            parts.append(
                f'<rect class="band" x="{x:.1f}" y="{y + 3}" width="{wide:.1f}" height="{BAND - 6}">{tip}</rect>'
            )
        parts.append(f'<text class="row" x="{LEFT + 4}" y="{y + 15}">{html.escape(row.name)}</text>')
    if not rows:
        parts.append(f'<text class="row" x="{LEFT + 4}" y="{TOP + 15}">none</text>')
    return _figure(title, "", [*parts, _axis(until_s, height)], height)


def _figure(title: str, legend: str, parts: Sequence[str], height: float) -> str:
    name = html.escape(title)
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{name} {legend}</figcaption>{drawing}</figure>"


def _shade(phases: Sequence[Phase], until_s: float, height: float) -> str:
    rects = [
        f'<rect class="fault" x="{_x(p.from_s, until_s):.1f}" y="{TOP}" '
        f'width="{max(1.0, _x(p.to_s, until_s) - _x(p.from_s, until_s)):.1f}" height="{height - TOP - BOTTOM}">'
        "<title>the fault</title></rect>"
        for p in phases
        if p.name == "fault"
    ]
    return "".join(rects)


def _axis(until_s: float, height: float) -> str:
    ticks = [until_s * step / 8 for step in range(9)]
    return "".join(
        f'<text class="tick mid" x="{_x(at, until_s):.1f}" y="{height - 8}">{at:.{0 if until_s > 16 else 1}f} s</text>'
        for at in ticks
    )


def _path(line: Line, top: float, until_s: float) -> str:
    """The line, in pieces where there are gaps."""
    drawn, pen = [], "M"
    for at, value in line.points:
        if value is None:
            pen = "M"
            continue
        drawn.append(f"{pen}{_x(at, until_s):.1f} {_y(value, top):.1f}")
        pen = "L"
    return f'<path class="line {line.tone}" d="{" ".join(drawn)}"><title>{html.escape(line.name)}</title></path>'


def _x(at_s: float, until_s: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, at_s / until_s))


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, value / top)


def _nice(largest: float) -> float:
    """The next of 1, 2, 4, 5, 10 times a power of ten."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 4, 5, 10) if step * power >= largest * 0.999)
