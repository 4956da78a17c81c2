"""BeamSearchParams and the outputs of `LLM.beam_search`, with vLLM's names. The search is in `scheduler/beams.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from octavo.checked_parameters import assignable, checked, parameter
from octavo.errors import InvalidRequestError
from octavo.logprobs import FlatLogprobs, TokenLogprobs
from octavo.lora_request import LoRARequest
from octavo.outputs import FinishReason, RequestOutput
from octavo.sampling_params import (
    MAX_DIVERSITY_PENALTY,
    MAX_LENGTH_PENALTY,
    MAX_N,
    MAX_TEMPERATURE,
    EarlyStopping,
    SamplingParams,
    parameters_that,
)
from octavo.shown import shown
from octavo.text.tokenizer import Tokenizer
from octavo.vllm_options import BEAM_FIELDS

MAX_BEAM_STOPS = 128  # so many more of each beam's best tokens are asked for
#: the log-probabilities that come without being asked for: of each token and its best alternatives
_NUM_LOGPROBS_A_BEAM = 2


@assignable(
    BEAM_FIELDS,
    alone={"beam_width": 1, "max_tokens": 1},
    needs={"num_beam_groups": {"diversity_penalty": 1.0}, "diversity_penalty": {"num_beam_groups": 2}},
)
@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """How one prompt's beams are searched. Fields may be assigned, and are checked then.

    temperature changes nothing, as the model's own distribution is searched. stop_token_ids, min_tokens, logprobs,
    early_stopping, num_beam_groups and diversity_penalty are ours. logprobs None: twice beam_width alternatives with
    each token, if the engine's max_logprobs allows so many.
    """

    beam_width: int = parameter(None, "Beams kept at once, and returned.", low=1, high=MAX_N)
    max_tokens: int = parameter(None, "Most tokens to generate, if the context has room.", low=1)
    ignore_eos: bool = parameter(False, "Go on past the model's own end token.")
    temperature: float = parameter(0.0, "Changes nothing.", low=0.0, high=MAX_TEMPERATURE)
    length_penalty: float = parameter(1.0, "As in SamplingParams.", low=-MAX_LENGTH_PENALTY, high=MAX_LENGTH_PENALTY)
    include_stop_str_in_output: bool = parameter(False, "Show the token that ended a beam.")
    skip_special_tokens: bool = parameter(True, "Leave special tokens out of the text.")
    allowed_token_ids: Iterable[int] | None = parameter(None, "No other token may be in a beam.")
    early_stopping: EarlyStopping = parameter(False, "As in SamplingParams.")
    num_beam_groups: int = parameter(1, "As in SamplingParams.", low=1, high=MAX_N)
    diversity_penalty: float = parameter(0.0, "As in SamplingParams.", low=0.0, high=MAX_DIVERSITY_PENALTY)
    stop_token_ids: Iterable[int] | None = parameter(None, "Tokens that end a beam.")
    min_tokens: int = parameter(0, "No end before so many tokens.", low=0)
    logprobs: int | None = parameter(None, "As in SamplingParams.", low=-1)

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            if getattr(self, name) is None:
                raise InvalidRequestError(f"{name} is missing, allowed is 1 or more: give it to BeamSearchParams")
        for declared in fields(self):
            object.__setattr__(self, declared.name, checked(declared, getattr(self, declared.name)))
        made = self.sampling_params(0)  # checks the rest
        for name in ("allowed_token_ids", "stop_token_ids"):
            object.__setattr__(self, name, getattr(made, name) or None)

    def sampling_params(self, max_logprobs: int) -> SamplingParams:
        """The same as SamplingParams. max_logprobs: the engine's; -1 is no limit."""
        wanted, num_logprobs = _NUM_LOGPROBS_A_BEAM * self.beam_width, self.logprobs
        if num_logprobs is None:
            num_logprobs = wanted if max_logprobs == -1 else min(wanted, max_logprobs)
        same = {name: getattr(self, name) for name in _SAME}
        return SamplingParams(use_beam_search=True, n=self.beam_width, logprobs=num_logprobs, **same)


_SAME = tuple(one.name for one in fields(BeamSearchParams) if one.name not in ("beam_width", "temperature", "logprobs"))


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam. tokens: the prompt's and the answer's. logprobs: a row for each token of the answer. text: of all
    tokens. cum_logprob: the answer's log-probability, without length_penalty."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | FlatLogprobs
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The beams of one prompt, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)


def checked_beam_params(params: Any) -> BeamSearchParams:
    if not isinstance(params, BeamSearchParams):
        raise InvalidRequestError(f"params is {shown(params)}, allowed is a BeamSearchParams")
    return params


def params_for_beams(params: SamplingParams, num_stops: int, vocab_size: int) -> SamplingParams:
    """Beams are not drawn, so what shapes a draw is left out: only edits change their log-probabilities."""
    if num_stops > MAX_BEAM_STOPS:
        raise InvalidRequestError(f"{num_stops} stop tokens are set, allowed with beams are {MAX_BEAM_STOPS}")
    if params.num_sequences % params.num_beam_groups:
        name = "n" if params.best_of is None else "best_of"
        raise InvalidRequestError(
            f"num_beam_groups is {params.num_beam_groups} and {name} is {params.num_sequences}, allowed is a "
            "multiple of it, as all groups have as many beams: change one of the two"
        )
    width, num_choices = params.num_sequences, len(set(params.allowed_token_ids or ())) or vocab_size
    if width + num_stops > num_choices:
        name = "best_of" if params.best_of is not None else "n"
        what = "allowed_token_ids holds" if params.allowed_token_ids else "the vocabulary has"
        raise InvalidRequestError(
            f"{name} is {width}, but {what} {num_choices} tokens and {num_stops} end and stop tokens are set: each "
            f"beam needs {width} ways to go on; lower {name}, or allow more tokens"
        )
    return params.replace(temperature=0.0, **parameters_that("filters"))


def beam_output(output: RequestOutput, params: BeamSearchParams, tokenizer: Tokenizer | None) -> BeamSearchOutput:
    """A finished request's answers as beams."""
    sequences = []
    for one in output.outputs:
        tokens = output.prompt_token_ids + one.token_ids
        ends_with_stop = one.finish_reason == "stop" and not params.include_stop_str_in_output
        read = tokens[:-1] if ends_with_stop else tokens
        sequences.append(
            BeamSearchSequence(
                tokens=tokens,
                logprobs=one.logprobs or [],
                cum_logprob=one.cumulative_logprob or 0.0,
                text=None if tokenizer is None else tokenizer.decode(read, params.skip_special_tokens),
                finish_reason=one.finish_reason,
                stop_reason=one.stop_reason,
                lora_request=one.lora_request,
            )
        )
    return BeamSearchOutput(sequences)
