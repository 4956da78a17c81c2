"""The plot: well-formed, to scale, and safe with any title."""

import math
import re
import struct
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from octavo.bench.plot import HEIGHT, NOTE, WIDTH, Point, cells, draw
from octavo.pictures.chart import page, scale_for
from octavo.pictures.picture import svg
from octavo.pictures.png import png


def point(offered: float, reached: float, ttft: float | None, tpot: float | None) -> Point:
    half = {"ttft": ttft, "tpot": tpot}
    times = {
        (metric, p): None if ms is None else ms * (1 if p == 50 else 2) for metric, ms in half.items() for p in (50, 99)
    }
    return Point(offered, reached, 100 * reached, times)


SWEEP = [point(1, 1.0, 20.0, 5.0), point(4, 3.9, 30.0, 7.0), point(math.inf, 6.0, 4000.0, 20.0)]


def places(picture: str, colour: str) -> list[list[tuple[float, float]]]:
    """The points of each line of that colour, one per panel."""
    root = ElementTree.fromstring(picture)
    lines = [one.attrib for one in root.iter() if one.tag.endswith("polyline") and colour in one.attrib["stroke"]]
    return [[(float(x), float(y)) for x, y in (xy.split(",") for xy in one["points"].split())] for one in lines]


def test_lines_are_to_scale() -> None:
    picture = svg(draw(SWEEP, "m"))
    ttft, tpot = places(picture, "prefill")
    assert [x for x, _ in ttft] == [x for x, _ in tpot]
    (x0, y0), (x1, y1), (x2, y2) = tpot  # linear from zero: 5, 7 and 20 ms at 1, 3.9 and 6 requests/s
    assert (x1 - x0) / (x2 - x0) == pytest.approx(2.9 / 5, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(2 / 15, abs=0.01)
    (_, y0), (_, y1), (_, y2) = ttft  # logarithmic: 20, 30 and 4000 ms
    assert (y0 - y1) / (y0 - y2) == pytest.approx(math.log(1.5) / math.log(200), abs=0.01)
    assert "logarithmic" in picture


def test_everything_lies_inside_the_picture() -> None:
    root = ElementTree.fromstring(svg(draw(SWEEP, "m")))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for one in root.iter():
        for name in ("x", "cx", "x1", "x2"):
            assert 0 <= float(one.attrib.get(name, 0)) <= width
        for name in ("y", "cy", "y1", "y2"):
            assert 0 <= float(one.attrib.get(name, 0)) <= height


def test_names_of_lines_that_end_together_stand_apart() -> None:
    times = {(metric, p): 100.0 + p / 100 for metric in ("ttft", "tpot") for p in (50, 99)}
    root = ElementTree.fromstring(svg(draw([Point(math.inf, 9.0, 900.0, times)], "m")))
    names = [one for one in root.iter() if one.tag.endswith("text") and one.text in ("p50", "p99")]
    heights = sorted(float(one.attrib["y"]) for one in names)
    assert len(heights) == 4
    assert min(lower - upper for upper, lower in pairwise(heights)) >= 13


def test_a_title_is_text_whatever_it_holds() -> None:
    picture = draw(SWEEP, "<script>a & b</script>")
    for drawn in (svg(picture), page(picture, cells(SWEEP), NOTE)):
        assert "<script>" not in drawn
        assert "&lt;script&gt;a &amp; b" in drawn
        assert not re.search(r"(src|href|url)\s*[=(]", drawn), "it needs nothing from anywhere else"


def test_the_page_has_the_numbers() -> None:
    drawn = page(draw(SWEEP, "m"), cells(SWEEP), NOTE)
    assert "<td>3.90</td><td>390.0</td><td>30.0</td><td>60.0</td><td>7.0</td><td>14.0</td>" in drawn
    assert "<td>∞</td>" in drawn


@pytest.mark.parametrize("points", [[point(1, 0.0, None, None)], [point(math.inf, 2.0, 5.0, None)], SWEEP[:1]])
def test_few_points_and_none(points: list[Point]) -> None:
    ElementTree.fromstring(svg(draw(points, "m")))


@pytest.mark.parametrize("title", ["m", "a_b^c $x$ \\frac <&>"])
@pytest.mark.parametrize("points", [SWEEP, SWEEP[:1], [point(1, 0.0, None, None)], [point(math.inf, 2.0, 5.0, None)]])
def test_a_png_is_drawn_of_many_points_few_and_none(points: list[Point], title: str) -> None:
    pytest.importorskip("matplotlib", reason="the extra plot is not installed")
    drawn = png(draw(points, title))
    assert drawn.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack("!II", drawn[16:24])
    assert width / height == pytest.approx(WIDTH / HEIGHT, rel=0.01)
    assert width > 1500


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([3.0, 48.0], [0, 10, 20, 30, 40, 50]),
        ([0.004], [0, 0.001, 0.002, 0.003, 0.004]),
        ([25.0, 4100.0], [20, 50, 100, 200, 500, 1000, 2000, 5000]),
        ([0.5, 2e6], [1, 10, 100, 1000, 1e4, 1e5, 1e6]),
    ],
)
def test_ticks_are_round(values: list[float], ticks: list[float]) -> None:
    scale = scale_for(values, 0.0, 100.0, may_be_log=True)
    assert scale.ticks() == pytest.approx(ticks)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    assert scale.at(scale.high) == pytest.approx(100.0)
