"""Latency against load as a plot: one hand-written SVG that needs only a browser.

ms |            * p99          x: answered requests per second, so an overloaded server shows as a line that
   |          .-               turns upwards; each point is marked with its requested rate
   |  *--*--*-   * p50         y: from zero up; logarithmic if the largest value is far above the smallest
   +---------------- requests/s
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL_HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 60, 40, 48
LABEL_HEIGHT, TITLE_HEIGHT = 15, 50
HEIGHT = TITLE_HEIGHT + 2 * PANEL_HEIGHT
LOG_FROM = 30.0  # times the smallest value
TITLES = {"ttft": "Time to first token (ms)", "tpot": "Time per output token (ms)"}

STYLE = """
:root { color-scheme: light dark; }
.octavo { --ink: #1d2330; --soft: #667085; --grid: #e3e7ee; --paper: #ffffff; --a: #2563c9; --b: #c2571a; }
@media (prefers-color-scheme: dark) {
  .octavo { --ink: #e8ebf1; --soft: #98a2b3; --grid: #2b3240; --paper: #12161e; --a: #7db0ff; --b: #ffa366; }
}
svg.octavo { background: var(--paper); font: 13px system-ui, sans-serif; max-width: 100%; height: auto; }
.octavo text { fill: var(--ink); }
.octavo .soft { fill: var(--soft); font-size: 12px; }
.octavo .title { font-size: 15px; font-weight: 600; }
.octavo .grid { stroke: var(--grid); }
.octavo .axis { stroke: var(--soft); }
.octavo .p50 { stroke: var(--a); }  .octavo .p99 { stroke: var(--b); }
.octavo .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.octavo circle { stroke-width: 2; fill: var(--paper); }
.octavo text.p50 { fill: var(--a); stroke: none; font-weight: 600; }
.octavo text.p99 { fill: var(--b); stroke: none; font-weight: 600; }
"""
_PAGE_STYLE = """
body.octavo { margin: 2rem auto; max-width: 760px; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 14px system-ui, sans-serif; }
table { border-collapse: collapse; width: 100%; margin-top: 1.5rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 500; }
"""


@dataclass(frozen=True, slots=True)
class Point:
    """One load: requested and reached rates, and (metric, percentage) -> ms or None."""

    offered: float
    requests_per_s: float
    output_tokens_per_s: float
    times_ms: Mapping[tuple[str, int], float | None]

    @property
    def name(self) -> str:
        return f"{self.offered:g}" if math.isfinite(self.offered) else "∞"


def render(points: Sequence[Point], title: str, is_page: bool) -> str:
    """The SVG, or an HTML page with the numbers below it."""
    picture = _svg(points, title)
    return page(picture, cells(points), title, "Latencies are milliseconds.") if is_page else picture


def page(picture: str, rows: Sequence[Sequence[str]], title: str, note: str) -> str:
    """An HTML page: the picture, a table whose first row is its headings, and a note."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        f'<style>{_PAGE_STYLE}</style></head><body class="octavo">\n{picture}\n{_table(rows)}\n<p>{escape(note)}</p>\n'
        "</body></html>\n"
    )


def cells(points: Sequence[Point]) -> list[list[str]]:
    """A row of headings, then the numbers of each point."""
    columns = [(metric, percentage) for metric in TITLES for percentage in (50, 99)]
    head = ["asked for", "requests/s", "output tokens/s", *(f"{metric.upper()} p{p}" for metric, p in columns)]
    rows = [head]
    for point in points:
        reached = [point.name, f"{point.requests_per_s:,.2f}", f"{point.output_tokens_per_s:,.1f}"]
        times = [point.times_ms[column] for column in columns]
        rows.append(reached + ["–" if value is None else f"{value:,.1f}" for value in times])
    return rows


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps the values of one axis to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            steps = (1, 2, 5) if last - first <= 3 else (1,)
            made = [step * 10.0**power for power in range(first, last + 1) for step in steps]
            return [tick for tick in made if self.low <= tick * 1.000001 and tick <= self.high * 1.000001]
        step = _round_step((self.high - self.low) / 5)
        return [index * step for index in range(int(self.high / step + 1e-9) + 1)]


def scale_for(values: Sequence[float], start: float, end: float, may_be_log: bool) -> Scale:
    """From zero to a round number above the largest value; or logarithmic, from a round number below the smallest."""
    largest = max(values, default=1.0) or 1.0
    smallest = min((value for value in values if value > 0), default=largest)
    if may_be_log and largest / smallest > LOG_FROM and min(values) > 0:
        low, high = _round_down(smallest), -_round_down(-largest)
        return Scale(low, high, start, end, is_log=True)
    step = _round_step(largest / 5)
    return Scale(0.0, step * math.ceil(largest / step - 1e-9), start, end)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999999)


def _round_down(value: float) -> float:
    """1, 2 or 5 times a power of ten, at most `value`. For -x: minus the smallest such number from x up."""
    size = abs(value)
    power = 10.0 ** math.floor(math.log10(size))
    steps = (1, 2, 5, 10)
    if value > 0:
        return max(step * power for step in steps if step * power <= size * 1.000001)
    return -min(step * power for step in steps if step * power >= size * 0.999999)


def _svg(points: Sequence[Point], title: str) -> str:
    panels = [_panel(points, metric, TITLE_HEIGHT + index * PANEL_HEIGHT) for index, metric in enumerate(TITLES)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="octavo" role="img" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}"><title>{escape(title)}: latency against load</title>\n'
        f"<style>{STYLE}</style>\n"
        f'<text x="{LEFT}" y="28" class="title">{escape(title)}</text>\n'
        f'<text x="{WIDTH - RIGHT}" y="28" class="soft" text-anchor="end">at each point: requests/s asked for</text>\n'
        + "\n".join(panels)
        + "\n</svg>"
    )


def _panel(points: Sequence[Point], metric: str, top: float) -> str:
    begin, end = top + TOP, top + PANEL_HEIGHT - BOTTOM
    lines = {percentage: series(points, metric, percentage) for percentage in (50, 99)}
    values = [value for line in lines.values() for _, value in line]
    across = scale_for([point.requests_per_s for point in points], LEFT, WIDTH - RIGHT, may_be_log=False)
    up = scale_for(values, end, begin, may_be_log=True)
    parts = [f'<text x="{LEFT}" y="{top + 22:.0f}">{TITLES[metric]}{", logarithmic" if up.is_log else ""}</text>']
    parts += _axes(across, up)
    for percentage, line in lines.items():
        parts += _line(line, percentage, across, up)
    parts += _labels(lines, across, up)
    return "\n".join(parts)


def series(points: Sequence[Point], metric: str, percentage: int) -> list[tuple[Point, float]]:
    """The points of one line that have a value."""
    return [(point, value) for point in points if (value := point.times_ms[metric, percentage]) is not None]


def _axes(across: Scale, up: Scale) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(f'<line class="grid" x1="{across.start}" x2="{across.end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{across.start - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:,.6g}</text>')
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{up.start}" y2="{up.start + 4}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{up.start + 19}" text-anchor="middle">{tick:,.6g}</text>')
    parts.append(f'<line class="axis" x1="{across.start}" x2="{across.end}" y1="{up.start}" y2="{up.start}"/>')
    parts.append(
        f'<text class="soft" x="{across.end}" y="{up.start + 36}" text-anchor="end">requests/s answered</text>'
    )
    return parts


def _line(line: Sequence[tuple[Point, float]], percentage: int, across: Scale, up: Scale) -> list[str]:
    if not line:
        return []
    name = f"p{percentage}"
    places = [(across.at(point.requests_per_s), up.at(value)) for point, value in line]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line {name}" points="{path}"/>']
    for (point, value), (x, y) in zip(line, places, strict=True):
        hint = f"{name} {value:,.2f} ms at {point.requests_per_s:,.2f} requests/s ({point.name} asked for)"
        parts.append(f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{hint}</title></circle>')
        if percentage == 99:
            parts.append(f'<text class="soft" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="middle">{point.name}</text>')
    return parts


def _labels(lines: Mapping[int, Sequence[tuple[Point, float]]], across: Scale, up: Scale) -> list[str]:
    """Each line's name at its right end; the lower one moves down if they overlap."""
    parts = []
    lowest = -math.inf
    for percentage, line in sorted(lines.items(), reverse=True):
        if line:
            x, y = max((across.at(point.requests_per_s), up.at(value)) for point, value in line)
            lowest = max(y, lowest + LABEL_HEIGHT)
            parts.append(f'<text class="p{percentage}" x="{x + 9:.1f}" y="{lowest + 4:.1f}">p{percentage}</text>')
    return parts


def _table(cells_of_rows: Sequence[Sequence[str]]) -> str:
    head, *rows = ([escape(cell) for cell in row] for row in cells_of_rows)
    lines = ["".join(f"<th>{cell}</th>" for cell in head), *("".join(f"<td>{c}</td>" for c in row) for row in rows)]
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
