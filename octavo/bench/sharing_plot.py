"""The memory that sharing saves, against the number of samples or beams, as one SVG beside the paper's ranges."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from octavo.bench.plot import LEFT, RIGHT, STYLE, WIDTH, Scale, page, scale_for
from octavo.bench.sharing import Saving, table

HEIGHT, TOP, BOTTOM = 380, 64, 52
BAR_SHARE = 0.7  # of a group's width that its bars take
NOTE = (
    "Memory saved: 1 - blocks held / blocks that separate requests would hold, averaged over all steps. "
    "The paper is Kwon et al., SOSP 2023, section 6.3: its range over 2, 4 and 6 samples or beams, on OPT-13B."
)
_MORE_STYLE = """
.octavo rect.p50 { fill: var(--a); stroke: none; }  .octavo rect.p99 { fill: var(--b); stroke: none; }
.octavo .paper { stroke: var(--ink); stroke-width: 1.5; fill: none; }
"""


def render(savings: Sequence[Saving], title: str, is_page: bool) -> str:
    """The SVG, or an HTML page with the numbers below it."""
    picture = _svg(savings, title)
    return page(picture, table(savings), title, NOTE) if is_page else picture


def _svg(savings: Sequence[Saving], title: str) -> str:
    tops = [one.paper[1] for one in savings if one.paper is not None]
    up = scale_for([*(100 * one.memory_saved for one in savings), *tops, 10.0], HEIGHT - BOTTOM, TOP, may_be_log=False)
    parts = [*_axis(up), *_groups(savings, up), *_legend(savings)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="octavo" role="img" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}"><title>{escape(title)}</title>\n<style>{STYLE}{_MORE_STYLE}</style>\n'
        f'<text x="{LEFT}" y="28" class="title">{escape(title)}</text>\n' + "\n".join(parts) + "\n</svg>"
    )


def _axis(up: Scale) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g} %</text>')
    below = f'<text class="soft" x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">of each prompt</text>'
    return [*parts, below]


def _groups(savings: Sequence[Saving], up: Scale) -> list[str]:
    """A group of bars for each number of samples, then of beams; a bar for each data set."""
    counts, names = sorted({(one.is_search, one.n) for one in savings}), _names(savings)
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    bar = width * BAR_SHARE / len(names)
    parts = []
    for one in savings:
        place = counts.index((one.is_search, one.n)) + (1 - BAR_SHARE) / 2
        left = LEFT + width * place + bar * names.index(one.dataset)
        parts += _bar(one, left, bar - 2, up, ("p50", "p99")[names.index(one.dataset) % 2])
    labels = {(one.is_search, one.n): one.name for one in savings}
    for index, count in enumerate(counts):
        x = LEFT + width * (index + 0.5)
        parts.append(f'<text class="soft" x="{x:.1f}" y="{up.start + 19}" text-anchor="middle">{labels[count]}</text>')
    return parts


def _bar(one: Saving, left: float, width: float, up: Scale, kind: str) -> list[str]:
    value = 100 * one.memory_saved
    top = up.at(value)
    hint = f"{one.dataset}, {one.name}: {value:.1f} %"
    parts = [
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{up.start - top:.1f}">'
        f"<title>{hint}</title></rect>"
    ]
    if one.paper is not None:
        low, high = map(up.at, one.paper)
        frame = f"M{left - 3:.1f} {low:.1f}H{left + width + 3:.1f}V{high:.1f}H{left - 3:.1f}Z"
        hint = "the paper: {:.1f} to {:.1f} %".format(*one.paper)
        parts.append(f'<path class="paper" d="{frame}"><title>{hint}</title></path>')
    return parts


def _legend(savings: Sequence[Saving]) -> list[str]:
    parts, x = [], LEFT
    for name, kind in zip(_names(savings), ("p50", "p99"), strict=False):
        parts.append(f'<text class="{kind}" x="{x}" y="50">{escape(name)}</text>')
        x += 90
    parts.append(f'<path class="paper" d="M{x} 39H{x + 22}V51H{x}Z"/>')
    return [*parts, f'<text class="soft" x="{x + 28}" y="50">the PagedAttention paper</text>']


def _names(savings: Sequence[Saving]) -> list[str]:
    return list(dict.fromkeys(one.dataset for one in savings))
