"""MeasuredCost: prices steps by a cost table, between its points and beyond them.

    decodes alone     of each measured batch a curve over contexts
    with chunks       a curve over the step's tokens, of a chunk alone
                      + of each measured number of sequences a curve of what they add to it
                      + attention: what the decodes' curves say of it, and p for each pair of tokens of a chunk's

Costs are linear between measured points, and go on like the last two beyond them. Steps of one shape differ, so each is
multiplied by a number drawn from the spread that was measured.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, cycle, groupby

from octavo.simulator.cost_table import CostTable, DecodePoint, MixedPoint
from octavo.simulator.step_cost import StepShape

_NUM_DRAWS = 10_007  # factors, drawn once and used in turn

Curve = tuple[list[float], list[float]]  # x ascending, and y


class MeasuredCost:
    """The same steps in the same order cost the same. has_spread: steps of one shape differ."""

    def __init__(self, table: CostTable, *, has_spread: bool = True) -> None:
        draws = random.Random(0).choices((has_spread and table.spread) or [1.0], k=_NUM_DRAWS)
        self._factors = cycle(draws)
        self._host = table.host
        self.latency_s = table.host.latency_s
        self._batches, self._measured = _decode_curves(table.decode)
        self._curves: dict[int, Curve] = {}  # of every batch that was asked for
        self._pair_s = _pair_seconds(table.mixed)
        self._alone, self._counts, self._added = self._mixed_curves(table.mixed)

    def device_seconds(self, shape: StepShape) -> float:
        decodes, prefill = shape.decodes, shape.prefill
        curve = self._curves.get(decodes) or self._curve(decodes)
        context = shape.context / decodes if decodes else 0.0
        if not prefill:
            return _read(curve, context) * next(self._factors)
        num_tokens = decodes + prefill
        added = _between(self._counts, self._added, decodes + shape.chunks, num_tokens)
        attention = _read(curve, context) - curve[1][0] + self._pair_s * shape.prefill_work
        return max(_read(self._alone, num_tokens) + added + attention, curve[1][0]) * next(self._factors)

    def host_seconds(self, shape: StepShape) -> float:
        host, num_seqs = self._host, shape.decodes + shape.chunks
        seconds = host.step_s + host.seq_s * num_seqs
        return seconds + host.launch_s + host.token_s * shape.prefill if shape.prefill else seconds

    def beside_seconds(self, shape: StepShape) -> float:
        return self._host.beside_s if shape.prefill else 0.0

    def _curve(self, batch: int) -> Curve:
        """Of a batch that may lie between measured ones: seconds over the context of each."""
        if not batch:
            return [0.0], [0.0]
        xs = sorted({x for xs, _ in self._measured for x in xs})
        found = self._curves[batch] = _rising(
            xs, [max(0.0, _between(self._batches, self._measured, batch, x)) for x in xs]
        )
        return found

    def _mixed_curves(self, points: Sequence[MixedPoint]) -> tuple[Curve, list[float], list[Curve]]:
        """Seconds of a chunk alone by its tokens, and for each measured number of sequences what they add by the step's
        tokens, all without attention."""
        found: dict[int, list[tuple[float, float]]] = {}
        for one in points:
            curve = self._curve(one.decodes)
            attention = _read(curve, one.context) - curve[1][0] + self._pair_s * _work(one)
            rest = float(one.decodes + one.prefill), max(0.0, one.seconds - attention)
            found.setdefault(one.decodes + 1, []).append(rest)
        counts = sorted(found)
        alone = _means(sorted(found[counts[0]]))
        added = [_means((x, y - _read(alone, x)) for x, y in sorted(found[count])) for count in counts]
        return alone, [float(count) for count in counts], added


def _work(point: MixedPoint) -> float:
    return point.prefill * (point.start + (point.prefill + 1) / 2)


def _decode_curves(points: Sequence[DecodePoint]) -> tuple[list[float], list[Curve]]:
    """Batches, and of each its seconds over contexts, from 0 on. A batch with one context rises as the one before."""
    batches, curves, slope = list[float](), list[Curve](), 0.0
    for batch, of_batch in groupby(sorted(points, key=lambda one: (one.batch, one.context)), lambda one: one.batch):
        xs, ys = _means((float(one.context), one.seconds) for one in of_batch)
        if len(xs) > 1:
            slope = max(0.0, (ys[1] - ys[0]) / (xs[1] - xs[0])) / batch
        batches.append(float(batch))
        curves.append(_rising([0.0, *xs], [max(0.0, ys[0] - slope * batch * xs[0]), *ys]))
    return batches, curves


def _pair_seconds(points: Sequence[MixedPoint]) -> float:
    """Seconds for each token pair of a chunk's attention: from chunks of one length that start at several places."""
    moves: list[tuple[float, float]] = []
    for _, alike in groupby(sorted(points, key=_place_of_chunk), lambda one: _place_of_chunk(one)[:3]):
        first, *others = alike
        moves += [(_work(one) - _work(first), one.seconds - first.seconds) for one in others]
    work = sum(more * more for more, _ in moves)
    return max(0.0, sum(more * seconds for more, seconds in moves) / work) if work else 0.0


def _place_of_chunk(point: MixedPoint) -> tuple[int, int, int, int]:
    return point.prefill, point.decodes, point.context, point.start


def _means(pairs: Iterable[tuple[float, float]]) -> Curve:
    """A curve through points by x; several with one x count as their mean."""
    by_x: dict[float, list[float]] = {}
    for x, y in pairs:
        by_x.setdefault(x, []).append(y)
    return list(by_x), [math.fsum(ys) / len(ys) for ys in by_x.values()]


def _rising(xs: list[float], ys: list[float]) -> Curve:
    """A curve that never falls, as longer contexts never cost less."""
    return xs, list(accumulate(ys, max))


def _between(ats: list[float], curves: list[Curve], at: float, x: float) -> float:
    """What a family of curves has at x, where one lies at `at`."""
    index, share = _place(ats, at)
    below = _read(curves[index], x)
    return below + share * (_read(curves[index + 1], x) - below) if share else below


def _place(xs: Sequence[float], x: float) -> tuple[int, float]:
    """The piece of a curve that x is in, and how far: beyond the last point more than 1, before the first one 0."""
    if len(xs) == 1 or x <= xs[0]:
        return 0, 0.0
    index = min(bisect_right(xs, x), len(xs) - 1) - 1
    return index, (x - xs[index]) / (xs[index + 1] - xs[index])


def _read(curve: Curve, x: float) -> float:
    xs, ys = curve
    index, share = _place(xs, x)
    return ys[index] + share * (ys[index + 1] - ys[index]) if share else ys[index]
