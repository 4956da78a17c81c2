"""Crew: threads that make the masks of many matchers at once.

    thread 1   row 0, row 1 ...    lane 0: a grammar, compiled
    thread 2   row 4, row 5 ...    lane 1: the same one, compiled again

Matchers of one compiled grammar wait for each other, so those of a lane stand side by side, and mostly get one thread.
A mask takes a matcher from 1 to 500 us. Quick ones are made here, since threads take longer to wake.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.sampling.columns import IntArray

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

MOST_THREADS = 16
#: masks that tell how long the rest will take, and from which time on threads pay
FEW, THREADS_PAY_S = 4, 0.001


class Crew:
    """Owner of the threads, which begin with the first work for them."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = min(MOST_THREADS, num_threads)
        self._threads: LLExecutor | None = None

    def fill(self, made: IntArray, matchers: Sequence[LLMatcher], places: Sequence[int]) -> None:
        """Write each matcher's mask to its place: a few at a time here, until these have taken so long that threads pay
        for the rest."""
        first, width, num = made.__array_interface__["data"][0], made.shape[1] * made.itemsize, len(matchers)
        if num <= FEW:
            for matcher, place in zip(matchers, places, strict=True):
                matcher.unsafe_compute_mask_ptr(first + place * width, width)
            return
        begin = time.perf_counter()
        for start in range(0, num, FEW):
            end = start + FEW
            for matcher, place in zip(matchers[start:end], places[start:end], strict=True):
                matcher.unsafe_compute_mask_ptr(first + place * width, width)
            now = time.perf_counter()
            if (now - begin) / FEW * (num - end) > THREADS_PAY_S:
                pairs = list(zip(matchers[end:], places[end:], strict=True))
                self._executor().unsafe_compute_mask_ptr(pairs, first, width, len(made))
                return
            begin = now

    def _executor(self) -> LLExecutor:
        if self._threads is None:
            from llguidance import LLExecutor

            self._threads = LLExecutor(num_threads=self.num_threads)
        return self._threads
