"""Latency against load as a chart.

ms |            * p99          x: answered requests per second, so an overloaded server shows as a line that
   |          .-               turns upwards; each point is marked with its requested rate
   |  *--*--*-   * p50         y: from zero up; logarithmic if the largest value is far above the smallest
   +---------------- requests/s
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.pictures.chart import FIRST, SECOND, Scale, rules, scale_for
from octavo.pictures.picture import HEAD, Dot, Picture, Stroke, Words

WIDTH, PANEL_HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 70, 60, 20, 48
HEIGHT = HEAD + 2 * PANEL_HEIGHT
LABEL_HEIGHT = 15
TITLES = {"ttft": "Time to first token (ms)", "tpot": "Time per output token (ms)"}
NOTE = "Latencies are milliseconds."
_COLOURS = {50: FIRST, 99: SECOND}


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


def draw(points: Sequence[Point], title: str) -> Picture:
    picture = Picture(title, "Latency against load; at each point: requests/s asked for", WIDTH, HEIGHT)
    for index, metric in enumerate(TITLES):
        _panel(picture, points, metric, HEAD + index * PANEL_HEIGHT)
    return picture


def _panel(picture: Picture, points: Sequence[Point], metric: str, top: float) -> None:
    lines = {percentage: _line_of(points, metric, percentage) for percentage in _COLOURS}
    values = [value for line in lines.values() for _, value in line]
    across = scale_for([point.requests_per_s for point in points], LEFT, WIDTH - RIGHT, may_be_log=False)
    up = scale_for(values, top + PANEL_HEIGHT - BOTTOM, top + TOP, may_be_log=True)
    picture.shapes.append(Words(LEFT, top, TITLES[metric] + (", logarithmic" if up.is_log else ""), 13))
    rules(picture, up, LEFT, WIDTH - RIGHT)
    _axis(picture, across, up.start)
    for percentage, line in lines.items():
        _line(picture, line, percentage, across, up)
    _labels(picture, lines, across, up)


def _line_of(points: Sequence[Point], metric: str, percentage: int) -> list[tuple[Point, float]]:
    """The points that have a value."""
    return [(point, value) for point in points if (value := point.times_ms[metric, percentage]) is not None]


def _axis(picture: Picture, across: Scale, y: float) -> None:
    for tick in across.ticks():
        x = across.at(tick)
        number = Words(x, y + 15, f"{tick:,.6g}", 12, "quiet", "middle")
        picture.shapes += [Stroke(((x, y), (x, y + 4)), "quiet"), number]
    name = Words(across.end, y + 32, "requests/s answered", 12, "quiet", "end")
    picture.shapes += [Stroke(((across.start, y), (across.end, y)), "quiet"), name]


def _line(picture: Picture, line: Sequence[tuple[Point, float]], percentage: int, across: Scale, up: Scale) -> None:
    if not line:
        return
    name, colour = f"p{percentage}", _COLOURS[percentage]
    places = [(across.at(point.requests_per_s), up.at(value)) for point, value in line]
    picture.shapes.append(Stroke(tuple(places), colour, 2))
    for (point, value), (x, y) in zip(line, places, strict=True):
        hint = f"{name} {value:,.2f} ms at {point.requests_per_s:,.2f} requests/s ({point.name} asked for)"
        picture.shapes.append(Dot(x, y, colour, hint))
        if percentage == 99:
            picture.shapes.append(Words(x, y - 13, point.name, 12, "quiet", "middle"))


def _labels(picture: Picture, lines: Mapping[int, Sequence[tuple[Point, float]]], across: Scale, up: Scale) -> None:
    """Each line's name at its right end; the lower one moves down if they overlap."""
    lowest = -math.inf
    for percentage, line in sorted(lines.items(), reverse=True):
        if line:
            x, y = max((across.at(point.requests_per_s), up.at(value)) for point, value in line)
            lowest = max(y, lowest + LABEL_HEIGHT)
            picture.shapes.append(Words(x + 9, lowest, f"p{percentage}", 13, _COLOURS[percentage], is_bold=True))
