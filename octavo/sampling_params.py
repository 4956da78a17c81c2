"""SamplingParams: how to choose tokens. Checked when made and when changed; vLLM's names, defaults and meanings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import cache
from typing import Any, Literal

from octavo.checked_parameters import (
    Other,
    assignable,
    bad_value,
    checked,
    checked_bias,
    checked_some_ids,
    checked_strings,
    checked_token_ids,
    parameter,
)
from octavo.errors import InvalidRequestError
from octavo.repetition import RepetitionDetectionParams
from octavo.shown import shown
from octavo.structured_outputs import StructuredOutputsParams
from octavo.vllm_options import SAMPLING_FIELDS

#: (output ids, logits) -> logits, or (prompt ids, output ids, logits) -> logits
LogitsProcessor = Callable[..., Any]

MAX_N = 16384
MAX_ALLOWED_TOKEN_IDS, MAX_LOGPROB_TOKEN_IDS = 1024, 128
MAX_TOP_K = 2**31 - 1  # kernels count in int32
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1e6  # beyond, every token is as likely as any other
MAX_DIVERSITY_PENALTY = 1e6  # beyond, no token is chosen by two groups
MAX_LENGTH_PENALTY = 50.0  # beyond, a length to its power leaves float64
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 1e-6, 1e6  # beyond, scores leave float32


class RequestOutputKind(Enum):
    """What each RequestOutput of one request holds."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # what is new since the last one
    FINAL_ONLY = 2  # one output, when the request is done


#: transformers' values: False ends a search when the best running beam, at its length, is no better than the worst
#: finished one; "never" when it could not become better at any length
EarlyStopping = bool | Literal["never"]


@assignable(
    SAMPLING_FIELDS,
    alone={"max_tokens": None},
    needs={
        **{name: {"use_beam_search": True} for name in ("best_of", "length_penalty", "early_stopping")},
        "num_beam_groups": {"use_beam_search": True, "diversity_penalty": 1.0},
        "diversity_penalty": {"use_beam_search": True, "num_beam_groups": 2},
    },
)
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are chosen. Fields may be assigned, and are checked then; a request keeps the
    parameters that it was made with.

    A temperature of 0 takes the best token, the lowest id of equals; one below 0.01 is raised to 0.01, as float32
    probabilities lose their meaning below. min_p, top_k and top_p filter in this order, each the tokens that the one
    before left; ties with top_k's last token stay. repetition_penalty divides positive logits and multiplies negative
    ones. A request with a seed draws the same tokens again, whatever it is batched with; -1 is no seed. max_tokens None
    goes to the model's limit; before min_tokens no end or stop token can be drawn. The last token of a bad word is
    banned where the generated tokens end with those before it. logprobs and prompt_logprobs are of the model's own
    logits: no parameter here changes them. With use_beam_search nothing is drawn: temperature, filters and seed change
    nothing, and edits of logits change the beams' log-probabilities.
    """

    n: int = parameter(
        1, "How many answers to each prompt; they share its memory.", low=1, high=MAX_N,
        differs="samples of one request share its prompt's blocks",
    )  # fmt: skip
    presence_penalty: float = parameter(
        0.0, "Taken from the score of every token that was generated, -2 to 2.", low=-2.0, high=2.0, does="edits",
        known_as={"ollama": "presence_penalty"},
    )  # fmt: skip
    frequency_penalty: float = parameter(
        0.0, "Taken from a token's score as often as it was generated, -2 to 2.", low=-2.0, high=2.0, does="edits",
        known_as={"ollama": "frequency_penalty"},
    )  # fmt: skip
    repetition_penalty: float = parameter(
        1.0, "Above 1, tokens of the prompt and the answer become less likely.", low=MIN_REPETITION_PENALTY,
        high=MAX_REPETITION_PENALTY, does="edits",
        known_as={"transformers": "repetition_penalty", "gguf": "penalty_repeat", "ollama": "repeat_penalty"},
        differs=f"{MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}",
    )  # fmt: skip
    temperature: float = parameter(
        1.0, "0 takes the likeliest token; larger values flatten the choice.", low=0.0, high=MAX_TEMPERATURE,
        known_as={"transformers": "temperature", "gguf": "temp", "ollama": "temperature", "anthropic": "temperature"},
        defaults={"people": 0.7, "ollama": 0.8}, differs=f"to {MAX_TEMPERATURE:g} at most",
    )  # fmt: skip
    top_p: float = parameter(
        1.0, "Choose among the fewest tokens that have this much of the probability.", low=0.0, high=1.0,
        open_low=True, does="filters",
        known_as={"transformers": "top_p", "gguf": "top_p", "ollama": "top_p", "anthropic": "top_p"},
        defaults={"people": 0.95, "ollama": 0.9},
    )  # fmt: skip
    top_k: int = parameter(
        0, "Choose among so many of the likeliest tokens; 0 or -1: all.", low=-1, high=MAX_TOP_K, does="filters",
        known_as={"transformers": "top_k", "gguf": "top_k", "ollama": "top_k", "anthropic": "top_k"},
        defaults={"ollama": 40},
    )  # fmt: skip
    min_p: float = parameter(
        0.0, "Choose among tokens at least this many times as likely as the likeliest.", low=0.0, high=1.0,
        does="filters",
        known_as={"transformers": "min_p", "gguf": "min_p", "ollama": "min_p"}, defaults={"people": 0.05},
    )  # fmt: skip
    seed: int | None = parameter(
        None, "The same seed draws the same tokens, whatever the batch.", low=-(2**63), known_as={"ollama": "seed"}
    )
    stop: str | Iterable[str] | None = parameter(None, "Texts that end an answer.", known_as={"ollama": "stop"})
    stop_token_ids: Iterable[int] | None = parameter(None, "Tokens that end an answer.")
    ignore_eos: bool = parameter(False, "Go on past the model's own end token.")
    max_tokens: int | None = parameter(
        16, "Most tokens to generate, if the context has room.", low=1, known_as={"transformers": "max_new_tokens"}
    )
    min_tokens: int = parameter(0, "No end before so many tokens.", low=0)
    logprobs: int | None = parameter(None, "So many alternatives with each token's log-probability; -1: all.", low=-1)
    prompt_logprobs: int | None = parameter(None, "The same for the prompt's tokens.", low=-1)
    detokenize: bool = parameter(True, "False brings token ids without text.")
    skip_special_tokens: bool = parameter(True, "Leave special tokens out of the text.")
    include_stop_str_in_output: bool = parameter(False, "Show the text or the token that ended the answer.")
    output_kind: RequestOutputKind = parameter(RequestOutputKind.CUMULATIVE, "What each RequestOutput holds.")
    stream_interval: int | None = parameter(
        None, "Tokens per output of a stream; the first and the last come at once; left out: 1.", low=1
    )
    logit_bias: Mapping[int, float] | None = parameter(
        None, 'What is added to tokens\' scores, -100 to 100, by token id: {"42": -1.5}.'
    )
    allowed_token_ids: Iterable[int] | None = parameter(None, "No other token may be drawn.")
    bad_words: Iterable[str] | None = parameter(None, "Texts that may not be generated.")
    truncate_prompt_tokens: int | None = parameter(
        None, "Keep only the last so many prompt tokens; -1: as many as the model can take.", low=-1
    )
    skip_reading_prefix_cache: bool | None = parameter(
        None, "Compute the whole prompt, even if its blocks are cached; left out: only for prompt_logprobs."
    )
    logprob_token_ids: Iterable[int] | None = parameter(
        None, "Tokens to tell the log-probabilities of, whatever the likeliest are."
    )
    flat_logprobs: bool = parameter(False, "Report in a FlatLogprobs, which has few objects.")
    thinking_token_budget: int | None = parameter(
        None, "Most tokens of a model's thoughts, which then are ended.", low=1
    )
    structured_outputs: StructuredOutputsParams | None = parameter(None, "The form of the answer, as {form: value}.")
    logits_processors: Iterable[LogitsProcessor] | None = parameter(
        None, "Functions that edit the logits before each token is drawn; offline only.",
        differs="a list of functions, as vLLM once had; only where the engine's steps run in this process",
    )  # fmt: skip
    repetition_detection: RepetitionDetectionParams | None = parameter(
        None, "End an answer that repeats itself: {max_pattern_size, min_pattern_size, min_count}, in tokens.",
        differs="patterns of up to 1024 tokens",
    )  # fmt: skip
    use_beam_search: bool = parameter(
        False, "Search for the likeliest answers in place of drawing tokens.", differs="beams run inside the engine"
    )
    best_of: int | None = parameter(
        None, "Beams kept at once, of which the n best are returned; left out: n.", low=1, high=MAX_N
    )
    length_penalty: float = parameter(
        1.0, "A beam's log-probability is divided by its length to this power; above 0 favours long answers.",
        low=-MAX_LENGTH_PENALTY, high=MAX_LENGTH_PENALTY,
        differs=f"-{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}; of the answer's length, as in transformers",
    )  # fmt: skip
    early_stopping: EarlyStopping = parameter(
        False, 'true: the search ends with the first best_of finished beams; "never": only when none can improve.'
    )
    num_beam_groups: int = parameter(
        1, "Groups of beams that search one after another, each away from those before it.", low=1, high=MAX_N
    )
    diversity_penalty: float = parameter(
        0.0, "Taken from a token's log-probability as often as beams of earlier groups chose it in the same step.",
        low=0.0, high=MAX_DIVERSITY_PENALTY,
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Check every field and bring every spelling of a value to one."""
        for declared in fields(self):
            if (value := getattr(self, declared.name)) is not declared.default:
                self._set(declared.name, checked(declared, value))
        self._set("top_k", max(self.top_k, 0))
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            self._set("temperature", MIN_TEMPERATURE)
        self._set("seed", None if self.seed == -1 else self.seed)
        if self.truncate_prompt_tokens == 0:
            raise bad_value("truncate_prompt_tokens", 0, "are -1 and 1 or more: a prompt needs a token")
        if not isinstance(self.output_kind, RequestOutputKind):
            raise bad_value("output_kind", self.output_kind, "are the members of RequestOutputKind")
        if self.early_stopping is not False and self.early_stopping is not True and self.early_stopping != "never":
            raise bad_value("early_stopping", self.early_stopping, "are True, False and 'never'")
        self._normalise_collections()
        self._check_combinations()

    def _normalise_collections(self) -> None:
        self._set("stop", checked_strings("stop", [self.stop] if isinstance(self.stop, str) else self.stop))
        self._set("bad_words", checked_strings("bad_words", self.bad_words))
        self._set("stop_token_ids", checked_token_ids("stop_token_ids", self.stop_token_ids))
        for name, most, instead in (
            ("allowed_token_ids", MAX_ALLOWED_TOKEN_IDS, "use None to allow every token"),
            ("logprob_token_ids", MAX_LOGPROB_TOKEN_IDS, "logprobs=-1 reports the whole vocabulary"),
        ):
            if (ids := getattr(self, name)) is not None:
                self._set(name, checked_some_ids(name, ids, most, instead))
        if self.logit_bias is not None:
            self._set("logit_bias", checked_bias(self.logit_bias))
        if self.structured_outputs is not None:
            self._set("structured_outputs", StructuredOutputsParams.of(self.structured_outputs))
        if self.logits_processors is not None:
            self._set("logits_processors", _checked_functions(self.logits_processors))
        if self.repetition_detection is not None:
            self._set("repetition_detection", RepetitionDetectionParams.of(self.repetition_detection))

    def _check_combinations(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}, allowed is 0 to max_tokens, which is {self.max_tokens}: "
                "lower the one or raise the other"
            )
        if self.stop and not self.detokenize:
            raise InvalidRequestError(
                "stop strings need detokenize=True, got detokenize=False: use stop_token_ids, or drop one of the two"
            )
        if self.thinking_token_budget is not None and self.reports_logprobs:
            raise InvalidRequestError(
                f"thinking_token_budget is {self.thinking_token_budget} and log-probabilities are asked for, allowed "
                "is one of the two: a token that is forced has none"
            )
        if self.use_beam_search:
            self._check_beams()
        elif (name := self._set_for_beams()) is not None:
            raise InvalidRequestError(
                f"{name} is {shown(getattr(self, name))}, but use_beam_search is False: only a beam search reads it; "
                "set use_beam_search=True, or leave it out and sample with n"
            )

    def _set_for_beams(self) -> str | None:
        """The name of a field that only a beam search reads and that has a value for one."""
        if self.best_of not in (None, self.n):
            return "best_of"
        idle = {"length_penalty": 1.0, "early_stopping": False, "num_beam_groups": 1, "diversity_penalty": 0.0}
        return next((name for name, value in idle.items() if getattr(self, name) != value), None)

    def _check_beams(self) -> None:
        if (self.num_beam_groups > 1) != (self.diversity_penalty > 0.0):
            raise InvalidRequestError(
                f"num_beam_groups is {self.num_beam_groups} and diversity_penalty is {self.diversity_penalty:g}, "
                "allowed are several groups with a penalty above 0, or neither: without it all would find the same"
            )
        if self.best_of is not None and self.best_of < self.n:
            raise InvalidRequestError(
                f"best_of is {self.best_of}, allowed is n={self.n} or more: the n best of best_of beams are returned"
            )
        others = {"stop": "stop_token_ids", "logprob_token_ids": "logprobs", "structured_outputs": "n"}
        others |= {"thinking_token_budget": "max_tokens", "repetition_detection": "max_tokens"}
        others["logits_processors"] = "logit_bias, which beams take"
        if (name := next((one for one in others if getattr(self, one)), None)) is not None:
            raise InvalidRequestError(
                f"{name} is set and use_beam_search is True, allowed is one of the two: use {others[name]}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def num_sequences(self) -> int:
        """Sequences of the request that the engine holds at once: samples, or beams."""
        return self.best_of or self.n

    @property
    def reports_logprobs(self) -> bool:
        return self.logprobs is not None or self.logprob_token_ids is not None

    @property
    def has_penalties(self) -> bool:
        return any(getattr(self, name) != neutral for name, neutral in parameters_that("edits").items())

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)

    def clone(self, output_kind: RequestOutputKind | None = None) -> SamplingParams:
        """A copy of its own, of another kind of output if given. Fields were checked when they were assigned; only
        their combinations are checked here, and logit_bias, which may have changed in place."""
        clone = copy.copy(self)
        if output_kind is not None:
            clone._set("output_kind", output_kind)
        clone._check_combinations()
        if clone.logit_bias is not None:
            clone._set("logit_bias", checked_bias(clone.logit_bias))
        return clone


def _checked_functions(values: object) -> tuple[LogitsProcessor, ...] | None:
    found = tuple(values) if isinstance(values, Iterable) else (values,)
    if isinstance(values, str) or not isinstance(values, Iterable) or not all(map(callable, found)):
        raise bad_value("logits_processors", values, "is a list of functions (output token ids, logits) -> logits")
    return found or None


@cache
def parameters_that(does: str) -> dict[str, Any]:
    """The parameters that filter, or edit, each with the value at which it does nothing."""
    return {one.name: one.default for one in fields(SamplingParams) if one.metadata["does"] == does}


@cache
def known_to(other: Other) -> dict[str, str]:
    """Another's names, each with ours."""
    known = {one.metadata["known_as"].get(other): one.name for one in fields(SamplingParams)}
    return {theirs: ours for theirs, ours in known.items() if theirs is not None}


@cache
def defaults_for(whom: str) -> dict[str, Any]:
    """What is taken in place of vLLM's defaults where a model's makers recommend nothing."""
    return {
        one.name: one.metadata["defaults"][whom] for one in fields(SamplingParams) if whom in one.metadata["defaults"]
    }
