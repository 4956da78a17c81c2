"""What charts have in common: round scales, rules across, and a page with the numbers below the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from octavo.pictures.picture import COLOURS, Picture, Stroke, Words, svg

#: the colours of a chart's two kinds of values
FIRST, SECOND = "prefill", "again"
LOG_FROM = 30.0  # times the smallest value


def _either(name: str) -> str:
    return "light-dark({}, {})".format(*COLOURS[name])


_STYLE = f"""
:root {{ color-scheme: light dark; }}
body {{ margin: 2rem auto; max-width: 760px; padding: 0 1rem; background: {_either("paper")}; color: {_either("ink")};
  font: 14px system-ui, sans-serif; }}
svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; width: 100%; margin-top: 1.5rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .35rem .6rem; border-bottom: 1px solid {_either("edge")}; }}
th {{ color: {_either("quiet")}; font-weight: 500; }}
"""


def page(picture: Picture, rows: Sequence[Sequence[str]], note: str) -> str:
    """An HTML page: the picture, a table whose first row is its headings, and a note."""
    head, *rest = ([escape(cell) for cell in row] for row in rows)
    lines = ["".join(f"<th>{cell}</th>" for cell in head), *("".join(f"<td>{c}</td>" for c in row) for row in rest)]
    table = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(picture.title)}</title>\n'
        f"<style>{_STYLE}</style></head><body>\n{svg(picture)}\n<table>{table}</table>\n<p>{escape(note)}</p>\n"
        "</body></html>\n"
    )


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


def rules(picture: Picture, up: Scale, left: float, right: float, unit: str = "") -> None:
    """A line across at each round value, with its number on the left."""
    for tick in up.ticks():
        y = up.at(tick)
        number = Words(left - 8, y, f"{tick:,.6g}{unit}", 12, "quiet", "end")
        picture.shapes += [Stroke(((left, y), (right, y)), "edge"), number]
