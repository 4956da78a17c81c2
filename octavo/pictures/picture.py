"""A picture as a list of shapes, and as SVG. A view or a chart makes the shapes once; png.py draws the same as PNG.

Colours are names, so that an SVG follows its reader's light or dark mode. They are those of the page of `octavo viz`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

#: name -> on light and on dark paper. Those of sequences are Paul Tol's "muted", which colour-blind people tell apart.
COLOURS = {
    "paper": ("#ffffff", "#201f1c"),
    "ink": ("#24211d", "#e9e5dd"),
    "quiet": ("#6d675e", "#a19a8e"),
    "edge": ("#d8d1c4", "#45423b"),
    "cached": ("#cfc8bb", "#57534a"),
    "accent": ("#a2543a", "#d98a6c"),
    "prefill": ("#4477aa", "#7aa6d8"),
    "decode": ("#44aa99", "#5cc4b2"),
    "again": ("#cc8833", "#e5ad62"),
    "preempted": ("#aa3355", "#e67a94"),
    "white": ("#ffffff", "#ffffff"),
    "black": ("#111111", "#111111"),
}
SEQUENCES = (
    *(("#332288", "#8d80dd"), ("#44aa99", "#5cc4b2"), ("#cc6677", "#e08491"), ("#88ccee", "#88ccee")),
    *(("#999933", "#bcbc55"), ("#882255", "#c2598c"), ("#117733", "#52a86e"), ("#ddcc77", "#ddcc77")),
    ("#aa4499", "#cf73c0"),
)
COLOURS |= {f"s{number}": pair for number, pair in enumerate(SEQUENCES)}
#: colours on which white is read better than black, on light paper
_DARK = {"s0", "s5", "s6", "s8", "s2", "prefill", "preempted"}
MARGIN, HEAD = 24, 74

Align = Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle. fill, stroke: names of colours. hint: said of it under the pointer."""

    x: float
    y: float
    width: float
    height: float
    fill: str | None = None
    stroke: str | None = None
    stroke_width: float = 1.0
    opacity: float = 1.0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A ring around paper, which marks a point of a line. x, y: its middle. hint: as a Box has it."""

    x: float
    y: float
    colour: str
    hint: str = ""
    radius: float = 3.5


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: str
    width: float = 1.0
    is_dotted: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """One line of text. y: its middle."""

    x: float
    y: float
    text: str
    size: float = 11.0
    colour: str = "ink"
    align: Align = "start"
    is_bold: bool = False


Shape = Box | Dot | Stroke | Words


@dataclass(slots=True)
class Picture:
    """title, note: above the shapes, which begin at (MARGIN, HEAD). width, height: of all of it."""

    title: str
    note: str
    width: float
    height: float = HEAD
    shapes: list[Shape] = field(default_factory=list)

    def all_shapes(self) -> list[Shape]:
        head = [Words(MARGIN, 26, self.title, 16, is_bold=True), Words(MARGIN, 49, self.note, 12.5, "quiet")]
        return [Box(0, 0, self.width, self.height, "paper"), *head, *self.shapes]

    def legend(self, entries: Sequence[tuple[str, str]], y: float) -> None:
        """Coloured squares with words, in a row."""
        x: float = MARGIN
        for colour, text in entries:
            self.shapes += [Box(x, y - 5, 10, 10, colour), Words(x + 15, y, text, 11.5, "quiet")]
            x += 15 + 6.4 * len(text) + 16


def colour_of(sequence_id: int) -> str:
    return f"s{sequence_id % len(SEQUENCES)}"


def text_on(colour: str | None) -> str:
    """The colour of text on a colour."""
    return "ink" if colour is None else "white" if colour in _DARK else "black"


def svg(picture: Picture) -> str:
    light = "".join(f"--{name}:{pair[0]};" for name, pair in COLOURS.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in COLOURS.items())
    size = f'width="{picture.width:g}" height="{picture.height:g}" viewBox="0 0 {picture.width:g} {picture.height:g}"'
    shapes = "\n".join(map(_element, picture.all_shapes()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}><title>{escape(picture.title)}</title>\n'
        f"<style>svg{{{light}font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',sans-serif}}\n"
        f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}} text{{dominant-baseline:central}}</style>\n"
        f"{shapes}\n</svg>\n"
    )


def _element(shape: Shape) -> str:
    match shape:
        case Box(x, y, width, height, fill, stroke, stroke_width, opacity, hint):
            edge = f' stroke="var(--{stroke})" stroke-width="{stroke_width:g}"' if stroke else ""
            paint = f"var(--{fill})" if fill else "none"
            pale = f' opacity="{opacity:g}"' if opacity < 1 else ""
            place = f'x="{x:.4g}" y="{y:.4g}" width="{width:.4g}" height="{height:.4g}"'
            return _hinted("rect", f'{place} fill="{paint}"{edge}{pale}', hint)
        case Dot(x, y, colour, hint, radius):
            look = f'r="{radius:g}" fill="var(--paper)" stroke="var(--{colour})" stroke-width="2"'
            return _hinted("circle", f'cx="{x:.4g}" cy="{y:.4g}" {look}', hint)
        case Stroke(points, colour, width, is_dotted):
            path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
            dots = ' stroke-dasharray="3 2"' if is_dotted else ""
            return f'<polyline points="{path}" fill="none" stroke="var(--{colour})" stroke-width="{width:g}"{dots}/>'
        case Words(x, y, text, size, colour, align, is_bold):
            bold = ' font-weight="600"' if is_bold else ""
            look = f'font-size="{size:g}" fill="var(--{colour})" text-anchor="{align}"{bold}'
            return f'<text x="{x:.4g}" y="{y:.4g}" {look}>{escape(text)}</text>'


def _hinted(tag: str, attributes: str, hint: str) -> str:
    return f"<{tag} {attributes}><title>{escape(hint)}</title></{tag}>" if hint else f"<{tag} {attributes}/>"
