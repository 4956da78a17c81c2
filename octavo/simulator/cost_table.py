"""A measured cost: the table that `octavo bench cost` writes, and how steps between its points are priced.

    decodes alone     seconds = a(batch) + k(batch) * context           a line for each measured batch, over contexts
    with chunks       seconds = g(prefill, decodes) + k * context + p * prefill_work

a, k and g are linear between measured points, and go on like the last two beyond them. Steps of one shape differ, so
each is multiplied by a number drawn from the spread that was measured. The file is JSON and also holds the engine's
sizes, which a simulation starts from.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import cycle, groupby
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from octavo.errors import ConfigError
from octavo.simulator.step_cost import StepShape

_MOST_BYTES = 16 << 20
_NUM_QUANTILES = 200
_NUM_DRAWS = 10_007  # factors, drawn once and used in turn

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0, le=1e6)]
Ratio = Annotated[float, msgspec.Meta(ge=0.0, le=1e3)]
Curve = tuple[list[float], list[float]]  # x ascending, and y


class DecodePoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`batch` sequences of `context` tokens decode one token each."""

    batch: Positive
    context: Positive
    seconds: Seconds


class MixedPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chunk of `prefill` tokens from position `start` on, beside `decodes` sequences of `context` tokens."""

    prefill: Positive
    start: Count
    decodes: Count
    context: Count
    seconds: Seconds


class EngineSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine that was measured. num_blocks: with the null block. windows: of its cache groups."""

    num_blocks: Annotated[int, msgspec.Meta(ge=2, le=2**31 - 1)]
    block_size: Positive
    block_bytes: Annotated[int, msgspec.Meta(ge=1)]
    windows: Annotated[list[Positive | None], msgspec.Meta(min_length=1, max_length=64)]
    max_model_len: Positive
    max_num_seqs: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    max_num_batched_tokens: Positive
    is_asynchronous: bool


class CostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """host_step_s, host_seq_s: the host's seconds for a step, and more for each of its sequences. spread: quantiles of
    a step's seconds over the median of its point; none: steps of one shape are alike."""

    model: str
    date: str
    machine: dict[str, str]
    engine: EngineSizes
    host_step_s: Seconds
    host_seq_s: Seconds
    decode: Annotated[list[DecodePoint], msgspec.Meta(min_length=1, max_length=10_000)]
    mixed: Annotated[list[MixedPoint], msgspec.Meta(min_length=1, max_length=10_000)]
    format: Literal["octavo cost table 1"] = "octavo cost table 1"
    spread: Annotated[list[Ratio], msgspec.Meta(max_length=1000)] = []

    def write(self, path: str) -> None:
        try:
            Path(path).write_bytes(msgspec.json.format(msgspec.json.encode(self)) + b"\n")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written: {error}") from None


def read_cost_table(path: str) -> CostTable:
    """Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the cost table {path} cannot be read: {error}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"the cost table {path} has more than {_MOST_BYTES:,} bytes, the most that are read")
    try:
        return msgspec.json.decode(content, type=CostTable)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a cost table that `octavo bench cost` wrote: {error}") from None


def spread_of(ratios: Sequence[float]) -> list[float]:
    """Their quantiles, enough for a tail."""
    ordered = sorted(ratios)
    return (
        [min(ordered[place * len(ordered) // _NUM_QUANTILES], 1e3) for place in range(_NUM_QUANTILES)]
        if ordered
        else []
    )


class MeasuredCost:
    """Prices steps by a table. The same steps in the same order cost the same."""

    def __init__(self, table: CostTable) -> None:
        draws = random.Random(0).choices(table.spread or [1.0], k=_NUM_DRAWS)
        self._factors = cycle(draws)
        self._host = table.host_step_s, table.host_seq_s
        self._batches, self._fixed, self._slopes = _decode_lines(table.decode)
        self._lines: dict[int, tuple[float, float]] = {}  # batch -> a, k
        self._pair_s = _pair_seconds(table.mixed)
        self._prefills, self._beside = self._mixed_curves(table.mixed)

    def device_seconds(self, shape: StepShape) -> float:
        line = self._lines.get(shape.decodes) or self._line(shape.decodes)
        if not shape.prefill:
            return (line[0] + line[1] * shape.context) * next(self._factors)
        place, share = _place(self._prefills, shape.prefill)
        below = _read(self._beside[place], shape.decodes)
        if share:
            below += share * (_read(self._beside[place + 1], shape.decodes) - below)
        return max(below + line[1] * shape.context + self._pair_s * shape.prefill_work, line[0]) * next(self._factors)

    def host_seconds(self, num_seqs: int) -> float:
        return self._host[0] + self._host[1] * num_seqs

    def _line(self, batch: int) -> tuple[float, float]:
        curves = (self._batches, self._fixed), (self._batches, self._slopes)
        fixed, slope = (max(0.0, _read(curve, batch)) for curve in curves)
        self._lines[batch] = fixed, slope
        return fixed, slope

    def _mixed_curves(self, points: Sequence[MixedPoint]) -> tuple[list[float], list[Curve]]:
        """For each measured prefill: seconds by decodes, attention's part taken off."""
        prefills, curves = [], []
        for prefill, of_prefill in groupby(sorted(points, key=lambda one: (one.prefill, one.decodes)), _prefill):
            by_decodes: dict[float, list[float]] = {}
            for one in of_prefill:
                _, slope = self._line(one.decodes)
                attention = slope * one.decodes * one.context + self._pair_s * _work(one)
                by_decodes.setdefault(one.decodes, []).append(max(0.0, one.seconds - attention))
            prefills.append(float(prefill))
            curves.append((list(by_decodes), [sum(found) / len(found) for found in by_decodes.values()]))
        return prefills, curves


def _prefill(point: MixedPoint) -> int:
    return point.prefill


def _work(point: MixedPoint) -> float:
    return point.prefill * (point.start + (point.prefill + 1) / 2)


def _decode_lines(points: Sequence[DecodePoint]) -> tuple[list[float], list[float], list[float]]:
    """Batches, and for each a line over its context. A batch with one context has the slope of the batch before it."""
    batches, fixed, slopes = list[float](), list[float](), list[float]()
    for batch, of_batch in groupby(sorted(points, key=lambda one: (one.batch, one.context)), lambda one: one.batch):
        pairs = [(float(batch * one.context), one.seconds) for one in of_batch]
        slope = _slope(pairs)
        if slope is None:
            slope = slopes[-1] if slopes else 0.0
        middle_x, middle_y = _mean([x for x, _ in pairs]), _mean([y for _, y in pairs])
        batches.append(float(batch))
        slopes.append(max(0.0, slope))
        fixed.append(max(0.0, middle_y - slopes[-1] * middle_x))
    return batches, fixed, slopes


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


def _slope(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Of the line through some points that is nearest to them; None: they have one x."""
    x, y = _mean([one for one, _ in pairs]), _mean([one for _, one in pairs])
    spread = sum((one - x) ** 2 for one, _ in pairs)
    return sum((one - x) * (other - y) for one, other in pairs) / spread if spread else None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


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
