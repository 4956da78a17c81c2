"""A picture as PNG, drawn by matplotlib, which is the extra `plot` and imported only here."""

from __future__ import annotations

import io
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError
from octavo.pictures.picture import COLOURS, Box, Dot, Picture, Stroke, Words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PIXELS_PER_POINT = 96 / 72
_DENSITY = 2  # pixels of the file for one of the picture
_MOST_PIXELS = 1 << 15  # on a side
_ALIGN = {"start": "left", "middle": "center", "end": "right"}


def check_png(flag: str, path: str, instead: str) -> None:
    """Raise ConfigError if matplotlib is missing. instead: what needs none."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            f"{flag} {path}: a .png needs matplotlib, which is not installed: pip install 'octavo[plot]', or {instead}"
        )


def png(picture: Picture) -> bytes:
    """In the colours for light paper."""
    from matplotlib.figure import Figure

    if max(picture.width, picture.height) * _DENSITY > _MOST_PIXELS:
        size = f"{picture.width:,.0f} x {picture.height:,.0f}"
        raise ConfigError(f"the picture is {size} pixels large, too large for a PNG: use --svg, or fewer --steps")
    figure = Figure(figsize=(picture.width / 96, picture.height / 96), dpi=96 * _DENSITY)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, picture.width)
    axes.set_ylim(picture.height, 0)
    axes.axis("off")
    for order, shape in enumerate(picture.all_shapes()):
        match shape:
            case Box():
                _box(axes, shape, order)
            case Dot():
                _dot(axes, shape, order)
            case Stroke():
                _stroke(axes, shape, order)
            case Words():
                _words(axes, shape, order)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _box(axes: Axes, box: Box, order: int) -> None:
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {
        "facecolor": COLOURS[box.fill][0] if box.fill else "none",
        "edgecolor": COLOURS[box.stroke][0] if box.stroke else "none",
        "linewidth": box.stroke_width / _PIXELS_PER_POINT if box.stroke else 0,
    }
    axes.add_patch(Rectangle((box.x, box.y), box.width, box.height, zorder=order, alpha=box.opacity, **look))


def _dot(axes: Axes, dot: Dot, order: int) -> None:
    from matplotlib.patches import Circle

    look: dict[str, Any] = {"facecolor": COLOURS["paper"][0], "edgecolor": COLOURS[dot.colour][0]}
    axes.add_patch(Circle((dot.x, dot.y), dot.radius, linewidth=2 / _PIXELS_PER_POINT, zorder=order, **look))


def _stroke(axes: Axes, stroke: Stroke, order: int) -> None:
    from matplotlib.lines import Line2D

    xs, ys = zip(*stroke.points, strict=True)
    look: dict[str, Any] = {"linestyle": (0, (3, 2)) if stroke.is_dotted else "-", "zorder": order}
    width = stroke.width / _PIXELS_PER_POINT
    axes.add_line(Line2D(xs, ys, color=COLOURS[stroke.colour][0], linewidth=width, **look))


def _words(axes: Axes, words: Words, order: int) -> None:
    look: dict[str, Any] = {
        "color": COLOURS[words.colour][0],
        "fontsize": words.size * 0.92 / _PIXELS_PER_POINT,
        "weight": "bold" if words.is_bold else "normal",
        "ha": _ALIGN[words.align],
        "va": "center_baseline",
    }
    plain = words.text.replace("$", r"\$")  # between dollars, matplotlib would read a formula
    axes.text(words.x, words.y, plain, zorder=order, **look)
