"""The plot of plot.py as a PNG, drawn by matplotlib, which is the extra `plot` and imported only here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from octavo.bench.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TITLES, WIDTH, Point, scale_for, series
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOTS_PER_INCH = 200
TOP = 80  # space for the title and the upper panel's title
#: the SVG's colours on a light background
_INK, _SOFT, _GRID = "#1d2330", "#667085", "#e3e7ee"
_COLOURS = {50: "#2563c9", 99: "#c2571a"}


def check_png(path: str) -> None:
    """Raise ConfigError if matplotlib is missing, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise ConfigError(
            f"--plot {path}: a .png needs matplotlib, which is not installed: pip install 'octavo[plot]', "
            "or name a file that ends in .html or .svg"
        )


def render_png(points: Sequence[Point], title: str) -> bytes:
    """Two stacked panels, of the SVG's size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 96, HEIGHT / 96), dpi=DOTS_PER_INCH)
    edges = {"left": LEFT / WIDTH, "right": 1 - RIGHT / WIDTH, "bottom": BOTTOM / HEIGHT, "top": 1 - TOP / HEIGHT}
    figure.subplots_adjust(**edges, hspace=0.25)
    plain = title.replace("$", r"\$")  # between dollars, matplotlib would read a formula
    figure.suptitle(plain, x=edges["left"], ha="left", color=_INK, fontweight="bold", fontsize=11)
    for axes, metric in zip(figure.subplots(len(TITLES)), TITLES, strict=True):
        _panel(axes, points, metric)
    style: dict[str, Any] = {"color": _SOFT, "fontsize": 9, "ha": "right"}
    figure.text(edges["right"], 0.955, "at each point: requests/s asked for", **style)
    figure.text(edges["right"], 0.015, "requests/s answered", **style)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _panel(axes: Axes, points: Sequence[Point], metric: str) -> None:
    values = [ms for percentage in _COLOURS for _, ms in series(points, metric, percentage)]
    up = scale_for(values, 0.0, 1.0, may_be_log=True)
    across = scale_for([point.requests_per_s for point in points], 0.0, 1.0, may_be_log=False)
    axes.set_title(TITLES[metric] + (", logarithmic" if up.is_log else ""), loc="left", color=_INK, fontsize=10)
    axes.set_yscale("log" if up.is_log else "linear")
    axes.set_ylim(up.low, up.high)
    axes.set_xlim(across.low, across.high)
    axes.set_yticks(up.ticks(), [f"{tick:,.6g}" for tick in up.ticks()])
    axes.set_yticks([], minor=True)
    axes.tick_params(colors=_SOFT, labelsize=9)
    axes.grid(axis="y", color=_GRID)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    for percentage, colour in _COLOURS.items():
        line = series(points, metric, percentage)
        places = [point.requests_per_s for point, _ in line], [ms for _, ms in line]
        axes.plot(*places, "o-", color=colour, markerfacecolor="white", label=f"p{percentage}", clip_on=False)
        if percentage == 99:
            for point, ms in line:
                place: dict[str, Any] = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
                axes.annotate(point.name, (point.requests_per_s, ms), **place, color=_SOFT, fontsize=8)
    axes.legend(loc="upper left", frameon=False, labelcolor=list(_COLOURS.values()), fontsize=9)
