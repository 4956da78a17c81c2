"""SpecialNeeds: sampling parameters of a sequence that do not fit into one number each, and what they say at a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.messages import NewRow
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


def special_needs(new: NewRow) -> SpecialNeeds | None:
    """None for a plain row: columns of numbers describe it in full."""
    params = new.sampling_params
    bias = params.logit_bias or {}
    min_tokens = params.min_tokens if new.stop_token_ids else 0
    edits = params.has_penalties or params.allowed_token_ids or bias or new.bad_word_ids or min_tokens
    processors = tuple(params.logits_processors or ())
    if not (edits or processors):
        return None
    return SpecialNeeds(
        has_penalties=params.has_penalties,
        allowed=np.array(params.allowed_token_ids or (), np.int32),
        bias_ids=np.array(list(bias.keys()), np.int32),
        bias_values=np.array(list(bias.values()), np.float32),
        always_banned=np.array([word[0] for word in new.bad_word_ids if len(word) == 1], np.int32),
        bad_words=tuple(word for word in new.bad_word_ids if len(word) > 1),
        stop_token_ids=np.array(sorted(new.stop_token_ids), np.int32),
        min_tokens=min_tokens,
        num_prompt_tokens=new.num_prompt_tokens,
        has_edits=bool(edits),
        processors=processors,
    )


def _ends_with(output: IntArray, tail: tuple[int, ...]) -> bool:
    return len(tail) <= len(output) and tuple(output[len(output) - len(tail) :].tolist()) == tail
