"""The memory that sharing saves, against the number of samples or beams, as a chart beside the paper's ranges."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.bench.sharing import Saving
from octavo.pictures.chart import FIRST, SECOND, Scale, rules, scale_for
from octavo.pictures.picture import HEAD, Box, Picture, Words

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM = 760, 400, 70, 60, 52
BAR_SHARE = 0.7  # of a group's width that its bars take
NOTE = (
    "Memory saved: 1 - blocks held / blocks that separate requests would hold, averaged over all steps. "
    "The paper is Kwon et al., SOSP 2023, section 6.3: its range over 2, 4 and 6 samples or beams, on OPT-13B."
)


def draw(savings: Sequence[Saving], title: str) -> Picture:
    tops = [one.paper[1] for one in savings if one.paper is not None]
    values = [*(100 * one.memory_saved for one in savings), *tops, 10.0]
    up = scale_for(values, HEIGHT - BOTTOM, HEAD + 30, may_be_log=False)
    picture = Picture(title, "Frames: the ranges of the PagedAttention paper", WIDTH, HEIGHT)
    names = list(dict.fromkeys(one.dataset for one in savings))
    picture.legend(list(zip((FIRST, SECOND), names, strict=False)), HEAD)
    rules(picture, up, LEFT, WIDTH - RIGHT, " %")
    _groups(picture, savings, names, up)
    picture.shapes.append(Words(WIDTH - RIGHT, HEIGHT - 16, "of each prompt", 12, "quiet", "end"))
    return picture


def _groups(picture: Picture, savings: Sequence[Saving], names: list[str], up: Scale) -> None:
    """A group of bars for each number of samples, then of beams; a bar for each data set."""
    counts = sorted({(one.is_search, one.n) for one in savings})
    width = (WIDTH - LEFT - RIGHT) / len(counts)
    bar = width * BAR_SHARE / len(names)
    frames: list[Box] = []
    for one in savings:
        number, place = names.index(one.dataset), counts.index((one.is_search, one.n)) + (1 - BAR_SHARE) / 2
        left = LEFT + width * place + bar * number
        picture.shapes.append(_bar(one, left, bar - 2, up, (FIRST, SECOND)[number % 2]))
        frames += _frame(one, left, bar - 2, up)
    picture.shapes += frames
    labels = {(one.is_search, one.n): one.name for one in savings}
    for index, count in enumerate(counts):
        x = LEFT + width * (index + 0.5)
        picture.shapes.append(Words(x, up.start + 15, labels[count], 12, "quiet", "middle"))


def _bar(one: Saving, left: float, width: float, up: Scale, colour: str) -> Box:
    value = 100 * one.memory_saved
    hint = f"{one.dataset}, {one.name}: {value:.1f} %"
    return Box(left, up.at(value), width, up.start - up.at(value), colour, hint=hint)


def _frame(one: Saving, left: float, width: float, up: Scale) -> list[Box]:
    """The paper's range, where it gives one."""
    if one.paper is None:
        return []
    low, high = map(up.at, one.paper)
    hint = "the paper: {:.1f} to {:.1f} %".format(*one.paper)
    return [Box(left - 3, high, width + 6, low - high, None, "ink", 1.5, hint=hint)]
