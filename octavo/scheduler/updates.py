"""What a step brings a sequence, and whether it ends with that.

Endings, in this order: a token that could not be drawn (an error), a stop token once min_tokens are out, the length.
Stop strings need text and are found by the output side, which calls `Scheduler.finish_sequence`.
"""

from __future__ import annotations

from collections.abc import Sequence as Listlike
from typing import NamedTuple

from octavo.messages import LogprobRow
from octavo.outputs import FinishReason
from octavo.request import Sequence

NO_TOKEN = -1  # what a step returns where the logits were NaN or every token was banned

#: why a sequence ended, and which token or fault did it
Ending = tuple[FinishReason, int | str | None]

NO_TOKEN_ENDING: Ending = (
    "error",
    "no token could be drawn: the logits were NaN or every token was banned "
    "(check allowed_token_ids, bad_words and logit_bias, or the model's weights)",
)


class SequenceUpdate(NamedTuple):
    """What one step brought one sequence; whether it ended is written on the sequence.

    token_ids: those it has kept. logprobs: of these, where asked for. prompt_logprobs: of the next prompt tokens, each
    position once.
    """

    sequence: Sequence
    token_ids: list[int]
    logprobs: Listlike[LogprobRow] = ()
    prompt_logprobs: Listlike[LogprobRow] = ()


def keep_run(sequence: Sequence, run: list[int], max_model_len: int) -> Ending | None:
    """Append a run's tokens, up to one that ends the sequence: what follows that is dropped from the run."""
    token_ids = sequence.token_ids
    num_before = len(token_ids)
    for token_id in run:
        if token_id == NO_TOKEN:
            ending: Ending | None = NO_TOKEN_ENDING
        else:
            token_ids.append(token_id)
            ending = find_ending(sequence, max_model_len)
        if ending is not None:
            del run[len(token_ids) - num_before :]
            return ending
    if not run and sequence.num_computed_tokens == len(token_ids) and is_full(sequence, len(token_ids), max_model_len):
        return "length", None  # nothing but its prompt was to be computed
    return None


def num_right(guesses: list[int], run: list[int]) -> int:
    """How many of the guesses at a run's tokens were right, from the first on."""
    for place, (guess, token_id) in enumerate(zip(guesses, run, strict=False)):
        if guess != token_id:
            return place
    return min(len(guesses), len(run))


def find_ending(sequence: Sequence, max_model_len: int) -> Ending | None:
    """How the sequence ends with its last token, or None. A stop names its token, unless it is the model's own."""
    request = sequence.request
    num_tokens = len(sequence.token_ids)
    num_output = num_tokens - len(request.prompt_token_ids)
    token_id = sequence.token_ids[-1]
    if token_id in request.stop_token_ids and num_output >= request.sampling_params.min_tokens:
        is_end = token_id in request.eos_token_ids and not request.sampling_params.ignore_eos
        return "stop", None if is_end else token_id
    if is_full(sequence, num_tokens, max_model_len):
        return "length", None
    return None


def is_full(sequence: Sequence, num_tokens: int, max_model_len: int) -> bool:
    """Whether a sequence of so many tokens may have no more."""
    request = sequence.request
    return num_tokens - len(request.prompt_token_ids) >= request.max_output_tokens or num_tokens >= max_model_len


def num_left_to_draw(sequence: Sequence, max_model_len: int) -> int:
    """How many more tokens a sequence may have."""
    request, num_tokens = sequence.request, len(sequence.token_ids)
    return min(request.num_prompt_tokens + request.max_output_tokens, max_model_len) - num_tokens
