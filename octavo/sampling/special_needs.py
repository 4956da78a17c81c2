"""SpecialNeeds: sampling parameters of a sequence that do not fit into one number each, and what they say at a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.sampling.columns import FloatArray, IntArray
from octavo.sampling_params import LogitsProcessor

#: a SamplingBatch's ragged column -> one entry's values
Runs = dict[str, NDArray[np.int32] | NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class SpecialNeeds:
    """The ragged part of one sequence's sampling parameters; its forks share it."""

    has_penalties: bool
    allowed: IntArray
    bias_ids: IntArray
    bias_values: FloatArray
    always_banned: IntArray  # bad words of one token
    bad_words: tuple[tuple[int, ...], ...]  # the longer ones
    stop_token_ids: IntArray
    min_tokens: int
    num_prompt_tokens: int
    has_edits: bool  # of those above
    processors: tuple[LogitsProcessor, ...]

    def runs(self, token_ids: IntArray) -> Runs:
        """This sequence's values for the ragged columns, before masks and functions. token_ids: all its tokens so
        far."""
        runs: Runs = {}
        if not self.has_edits:
            return runs
        if self.has_penalties:
            runs["history"] = token_ids
        if len(self.allowed):
            runs["allowed"] = self.allowed
        if len(self.bias_ids):
            runs["bias_ids"], runs["bias_values"] = self.bias_ids, self.bias_values
        banned = self._banned(token_ids[self.num_prompt_tokens :])
        if len(banned):
            runs["banned"] = banned
        return runs

    def _banned(self, output: IntArray) -> IntArray:
        banned = self.always_banned
        if len(output) < self.min_tokens:
            banned = np.concatenate((banned, self.stop_token_ids))
        completing = [word[-1] for word in self.bad_words if _ends_with(output, word[:-1])]
        return np.concatenate((banned, np.array(completing, np.int32))) if completing else banned


def _ends_with(output: IntArray, tail: tuple[int, ...]) -> bool:
    return len(tail) <= len(output) and tuple(output[len(output) - len(tail) :].tolist()) == tail
