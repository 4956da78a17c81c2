"""Histogram counts, and inter-token gaps counted once per step.

prometheus_client's Histogram takes a lock and a bucket search per observation: most of a millisecond for 256 sequences.
Here all sequences with the same gap, nearly always all of a step, cost one search.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class SizeCounts:
    """Observations by bucket: bucket i counts those up to bounds[i], the last one the rest."""

    __slots__ = ("_labels", "bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        self._labels = [(("le", name),) for name in (*(str(float(bound)) for bound in bounds), "+Inf")]

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[tuple[tuple[str, str]], int]]:
        """(label of an upper bound, observations up to it), as Prometheus expects."""
        return list(zip(self._labels, accumulate(list(self.counts)), strict=True))


class TokenGaps:
    """The time between two tokens of a sequence, for all sequences of a step at once.

    Sequences with a token in both this step and the last share one gap. Only those that come or go are handled one by
    one.
    """

    def __init__(self, histogram: SizeCounts) -> None:
        self._histogram = histogram
        self._last: tuple[int, ...] = ()  # sequences of the last step with tokens
        self._members: set[int] = set()  # the same, as a set
        self._time = 0.0  # of that step
        self._times: dict[int, float] = {}  # absent sequence -> its last token
        self._ended: set[int] = set()

    def step(self, sampled_ids: tuple[int, ...], time: float) -> None:
        """Count a step in which these sequences got tokens."""
        if not sampled_ids:
            return
        if sampled_ids == self._last:
            self._histogram.observe(time - self._time, len(sampled_ids))
        else:
            self._change(sampled_ids, time)
        self._time = time

    def ended(self, sequence_id: int) -> None:
        """The sequence gets no tokens after the step being counted."""
        self._ended.add(sequence_id)

    def _change(self, sampled_ids: tuple[int, ...], time: float) -> None:
        before, now = self._members, set(sampled_ids)
        leaving = before - now
        num_staying = len(before) - len(leaving)
        if num_staying:
            self._histogram.observe(time - self._time, num_staying)
        for sequence_id in now - before:
            since = self._times.pop(sequence_id, None)
            if since is not None:  # None: its first token, without a gap
                self._histogram.observe(time - since)
        for sequence_id in leaving - self._ended:
            self._times[sequence_id] = self._time
        for sequence_id in self._ended - now:  # ended for good
            self._times.pop(sequence_id, None)
        self._ended &= now
        self._last, self._members = sampled_ids, now
