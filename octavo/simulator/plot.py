"""The latencies of several scenarios side by side, as one hand-written SVG.

TTFT            block_size 16  ▇▇▇▇▇▇────────────|            a bar to p50, a line on to p99
                block_size 32  ▇▇▇▇▇────────|
TPOT            ...
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from octavo.bench.plot import STYLE, WIDTH, Scale, page, scale_for
from octavo.simulator.report import HEADINGS, Result

TITLES = {"ttft": "Time to first token (ms)", "tpot": "Time per output token (ms)", "e2el": "End to end (ms)"}
NOTE = "Simulated; latencies are milliseconds."
_LEFT, _RIGHT, _ROW, _HEAD, _TOP = 250, 40, 22, 58, 44
_LONGEST_LABEL = 36
_MORE_STYLE = """
.octavo rect.p50 { fill: var(--a); stroke: none; }  .octavo line.p99 { stroke-width: 2; }
"""


def render(labels: Sequence[str], results: Sequence[Result], title: str, is_page: bool) -> str:
    """The SVG, or an HTML page with the numbers below it."""
    picture = _svg(labels, results, title)
    rows = [["scenario", *HEADINGS], *([label, *one.cells()] for label, one in zip(labels, results, strict=True))]
    return page(picture, rows, title, NOTE) if is_page else picture


def _svg(labels: Sequence[str], results: Sequence[Result], title: str) -> str:
    panel = _HEAD + _ROW * len(results)
    height = _TOP + panel * len(TITLES)
    parts = [_panel(metric, labels, results, _TOP + index * panel) for index, metric in enumerate(TITLES)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="octavo" role="img" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}"><title>{escape(title)}</title>\n<style>{STYLE}{_MORE_STYLE}</style>\n'
        f'<text x="16" y="28" class="title">{escape(title)}</text>\n'
        f'<text x="{WIDTH - _RIGHT}" y="28" class="soft" text-anchor="end">bar: p50, line: p99</text>\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _panel(metric: str, labels: Sequence[str], results: Sequence[Result], top: int) -> str:
    ends = [(one.times_ms[metric, 50] or 0.0, one.times_ms[metric, 99] or 0.0) for one in results]
    across = scale_for([end for pair in ends for end in pair], _LEFT, WIDTH - _RIGHT, may_be_log=False)
    parts = [f'<text x="16" y="{top + 18}">{TITLES[metric]}</text>', *_axis(across, top + 28, _ROW * len(results))]
    for index, (label, (middle, high)) in enumerate(zip(labels, ends, strict=True)):
        y = top + 28 + _ROW * index + _ROW / 2
        shown = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
        parts += [
            f'<text class="soft" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(shown)}</text>',
            f'<line class="p99" x1="{across.at(middle):.1f}" x2="{across.at(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<rect class="p50" x="{_LEFT}" y="{y - 6:.1f}" width="{across.at(middle) - _LEFT:.1f}" height="12">'
            f"<title>{escape(label)}: p50 {middle:,.1f}, p99 {high:,.1f}</title></rect>",
        ]
    return "\n".join(parts)


def _axis(across: Scale, top: int, height: int) -> list[str]:
    parts = []
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{top + height + 15}" text-anchor="middle">{tick:,.6g}</text>')
    return parts
