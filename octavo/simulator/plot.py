"""The latencies of several scenarios side by side, as a chart.

TTFT            block_size 16  ▇▇▇▇▇▇────────────|            a bar to p50, a line on to p99
                block_size 32  ▇▇▇▇▇────────|
TPOT            ...
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.pictures.chart import FIRST, SECOND, Scale, scale_for
from octavo.pictures.picture import HEAD, MARGIN, Box, Picture, Stroke, Words
from octavo.simulator.report import Result

TITLES = {"ttft": "Time to first token (ms)", "tpot": "Time per output token (ms)", "e2el": "End to end (ms)"}
NOTE = "Simulated; latencies are milliseconds."
_WIDTH, _LEFT, _RIGHT, _ROW, _FRAME = 760, 250, 40, 22, 58
_LONGEST_LABEL = 36


def draw(labels: Sequence[str], results: Sequence[Result], title: str) -> Picture:
    panel = _FRAME + _ROW * len(results)
    picture = Picture(title, "bar: p50, line: p99", _WIDTH, HEAD + panel * len(TITLES))
    for index, metric in enumerate(TITLES):
        _panel(picture, metric, labels, results, HEAD + index * panel)
    return picture


def _panel(picture: Picture, metric: str, labels: Sequence[str], results: Sequence[Result], top: float) -> None:
    ends = [(one.times_ms[metric, 50] or 0.0, one.times_ms[metric, 99] or 0.0) for one in results]
    across = scale_for([end for pair in ends for end in pair], _LEFT, _WIDTH - _RIGHT, may_be_log=False)
    picture.shapes.append(Words(MARGIN, top, TITLES[metric], 13))
    _axis(picture, across, top + 14, _ROW * len(results))
    for index, (label, (middle, high)) in enumerate(zip(labels, ends, strict=True)):
        y = top + 14 + _ROW * index + _ROW / 2
        shown = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
        hint = f"{label}: p50 {middle:,.1f}, p99 {high:,.1f}"
        picture.shapes += [
            Words(_LEFT - 8, y, shown, 12, "quiet", "end"),
            Stroke(((across.at(middle), y), (across.at(high), y)), SECOND, 2),
            Box(_LEFT, y - 6, across.at(middle) - _LEFT, 12, FIRST, hint=hint),
        ]


def _axis(picture: Picture, across: Scale, top: float, height: float) -> None:
    for tick in across.ticks():
        x = across.at(tick)
        number = Words(x, top + height + 11, f"{tick:,.6g}", 12, "quiet", "middle")
        picture.shapes += [Stroke(((x, top), (x, top + height)), "edge"), number]
