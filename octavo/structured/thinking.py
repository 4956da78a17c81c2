"""Thinking: tells where, in the tokens of one sequence, its thoughts end and its answer begins.

    <think> Easy. </think> {"sum": 3}
                          └─ a grammar counts from here; a budget forces </think> before it is used up

It only looks at the tokens, so it has nothing to take back when guesses were wrong.
"""

from __future__ import annotations

import numpy as np

from octavo.sampling.columns import IntArray
from octavo.structured_outputs import Thoughts


class Thinking:
    """Has no state: every method is told all output tokens."""

    def __init__(self, thoughts: Thoughts) -> None:
        self._begin, self._end = np.array(thoughts.begin, np.int32), np.array(thoughts.end, np.int32)
        self._closing = thoughts.closing
        self._is_begun = thoughts.is_begun
        self._budget = thoughts.budget

    def answer_start(self, output: IntArray) -> int | None:
        """Where the answer begins. None: the sequence thinks. 0 also while it may still begin to: see may_begin."""
        first = self._first(output)
        if first is None or first < 0:
            return 0
        found = _find(output[first:], self._end)
        return None if found is None else first + found + len(self._end)

    def may_begin(self, output: IntArray) -> int | None:
        """The token with which thoughts begin or go on to begin, while there is nothing else."""
        num = len(output)
        is_open = not self._is_begun and num < len(self._begin) and np.array_equal(output, self._begin[:num])
        return int(self._begin[num]) if is_open else None

    def forced(self, output: IntArray, room: int) -> list[int]:
        """The tokens that must follow because the budget is used up."""
        first = self._first(output)
        if self._budget is None or first is None or first < 0 or self.answer_start(output) is not None:
            return []
        thoughts = output[first:].tolist()
        if len(thoughts) < self._budget:
            return []
        closing = list(self._closing)
        begun = next(num for num in range(len(closing) - 1, -1, -1) if thoughts[len(thoughts) - num :] == closing[:num])
        return closing[begun:][:room]

    def _first(self, output: IntArray) -> int | None:
        """Where the thoughts begin; None: there are none; -1: that is not known yet."""
        if self._is_begun:
            return 0
        num = min(len(output), len(self._begin))
        if not np.array_equal(output[:num], self._begin[:num]):
            return None
        return num if num == len(self._begin) else -1


def _find(tokens: IntArray, wanted: IntArray) -> int | None:
    """Where the wanted tokens first stand in a row."""
    num = len(tokens) - len(wanted) + 1
    if num < 1:
        return None
    fits = tokens[:num] == wanted[0]
    for offset in range(1, len(wanted)):
        fits &= tokens[offset : offset + num] == wanted[offset]
    at = int(fits.argmax())
    return at if fits[at] else None
