"""SamplingParams: how to choose tokens. Checked when made and when changed; vLLM's names, defaults and meanings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from numbers import Integral, Real
from typing import Any

from octavo.assignable import assignable
from octavo.errors import InvalidRequestError
from octavo.shown import shown
from octavo.vllm_options import SAMPLING_FIELDS

MAX_N = 16384
MAX_ALLOWED_TOKEN_IDS = 1024
MAX_LOGPROB_TOKEN_IDS = 128
MAX_TOP_K = 2**31 - 1  # kernels count in int32
MIN_TEMPERATURE = 0.01
MAX_TEMPERATURE = 1e6  # beyond, every token is as likely as any other
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 1e-6, 1e6  # beyond, scores leave float32
MIN_MAGNITUDE = 1e-37
MAX_WHOLE = 2**63 - 1  # what processes tell each other in 64 bits


class RequestOutputKind(Enum):
    """What each RequestOutput of one request holds."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # what is new since the last one
    FINAL_ONLY = 2  # one output, when the request is done


@assignable(SAMPLING_FIELDS, alone={"max_tokens": None})
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are chosen. Fields may be assigned, and are checked then; a request keeps the
    parameters that it was made with.

    n: sequences sampled from the prompt (1..16384); they share the prompt's KV blocks.
    presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, once / as often as each
        was generated, [-2, 2].
    repetition_penalty: divides positive, multiplies negative logits of prompt and generated tokens, [1e-6, 1e6].
    temperature: 0 takes the best token, the lowest id of equals; up to 1e6. Values between 0 and 0.01 are raised to
        0.01, below which float32 probabilities lose their meaning.
    top_p, top_k, min_p: keep the smallest set with this mass / the k best tokens, and any equal to the k-th /
        those at least min_p times as likely as the best; 1.0, 0 (or -1) and 0.0 keep all. In the order min_p,
        top_k, top_p, each on what the one before left.
    seed: a request with a seed draws the same tokens again, whatever it is batched with; -1 is no seed.
    stop: strings that end a sequence (cut from the text unless include_stop_str_in_output);
    stop_token_ids: tokens that do. ignore_eos: go on past the model's end token.
    max_tokens, min_tokens: generated tokens; None lets max_tokens run to the model's limit. Before min_tokens
        the end and stop tokens cannot be drawn.
    logprobs, prompt_logprobs: how many best alternatives to report a token; -1 is the whole vocabulary. They
        are of the model's own logits: no parameter here changes them. logprob_token_ids: up to 128 ids to report with
        each generated token, whatever they are. flat_logprobs: report in a FlatLogprobs, which has few objects.
    detokenize: False returns token ids only. output_kind: see RequestOutputKind.
    logit_bias: token id -> added to its logit, [-100, 100]. allowed_token_ids: no other token may be drawn.
    bad_words: strings that may not be generated: the last token of one is banned while the tokens before it
        are the last generated.
    truncate_prompt_tokens: keep only the last so many prompt tokens; -1 as many as the model can take.
    skip_reading_prefix_cache: compute the whole prompt; None does so where prompt_logprobs need it.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Iterable[str] | None = None
    stop_token_ids: Iterable[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Iterable[int] | None = None
    bad_words: Iterable[str] | None = None
    truncate_prompt_tokens: int | None = None
    skip_reading_prefix_cache: bool | None = None
    logprob_token_ids: Iterable[int] | None = None
    flat_logprobs: bool = False

    def __post_init__(self) -> None:
        """Check every field and bring every spelling of a value to one."""
        self._set("n", _whole("n", self.n, 1, MAX_N))
        self._set("presence_penalty", _number("presence_penalty", self.presence_penalty, -2.0, 2.0))
        self._set("frequency_penalty", _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
        penalty = _number("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        self._set("repetition_penalty", penalty)
        self._set("temperature", _number("temperature", self.temperature, 0.0, MAX_TEMPERATURE))
        self._set("top_p", _number("top_p", self.top_p, 0.0, 1.0, open_low=True))
        self._set("top_k", max(_whole("top_k", self.top_k, -1, MAX_TOP_K), 0))
        self._set("min_p", _number("min_p", self.min_p, 0.0, 1.0))
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            self._set("temperature", MIN_TEMPERATURE)
        if self.seed is not None:
            seed = _whole("seed", self.seed, -(2**63), 2**63 - 1)
            self._set("seed", None if seed == -1 else seed)
        for name in ("logprobs", "prompt_logprobs", "truncate_prompt_tokens"):
            if getattr(self, name) is not None:
                self._set(name, _whole(name, getattr(self, name), -1))
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequestError(
                "truncate_prompt_tokens is 0, allowed are -1 and 1 or more: a prompt needs a token"
            )
        for name in ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output", "flat_logprobs"):
            _check_type(name, getattr(self, name), bool, "True and False")
        if self.skip_reading_prefix_cache is not None:
            _check_type("skip_reading_prefix_cache", self.skip_reading_prefix_cache, bool, "True, False and None")
        _check_type("output_kind", self.output_kind, RequestOutputKind, "the members of RequestOutputKind")
        self._normalise_lengths()
        self._normalise_collections()

    def _normalise_lengths(self) -> None:
        self._set("min_tokens", _whole("min_tokens", self.min_tokens, 0))
        if self.max_tokens is None:
            return
        self._set("max_tokens", _whole("max_tokens", self.max_tokens, 1))
        if self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}, allowed is 0 to max_tokens, which is {self.max_tokens}: "
                "lower the one or raise the other"
            )

    def _normalise_collections(self) -> None:
        self._set("stop", _strings("stop", [self.stop] if isinstance(self.stop, str) else self.stop))
        self._set("bad_words", _strings("bad_words", self.bad_words))
        self._set("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            self._set_ids("allowed_token_ids", MAX_ALLOWED_TOKEN_IDS, "use None to allow every token")
        if self.logprob_token_ids is not None:
            self._set_ids("logprob_token_ids", MAX_LOGPROB_TOKEN_IDS, "logprobs=-1 reports the whole vocabulary")
        if self.logit_bias is not None:
            self._set("logit_bias", _bias(self.logit_bias))
        if self.stop and not self.detokenize:
            raise InvalidRequestError(
                "stop strings need detokenize=True, got detokenize=False: use stop_token_ids, or drop one of the two"
            )

    def _set_ids(self, name: str, most: int, instead: str) -> None:
        ids = _token_ids(name, getattr(self, name))
        if not 1 <= len(ids) <= most:
            raise InvalidRequestError(f"{name} holds {len(ids)} ids, allowed are 1 to {most}; {instead}")
        self._set(name, ids)

    def _set(self, name: str, value: object) -> None:
        """The one place a frozen field is written: its own construction."""
        object.__setattr__(self, name, value)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def reports_logprobs(self) -> bool:
        """Of generated tokens."""
        return self.logprobs is not None or self.logprob_token_ids is not None

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)

    def clone(self) -> SamplingParams:
        """A copy of its own, checked again."""
        return replace(self)


def _whole(name: str, value: object, low: int, high: int = MAX_WHOLE) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed is a whole number")
    number = int(value)
    if number < low or number > high:
        bounds = f"{low} or more" if high == MAX_WHOLE and number < low else f"{low} to {high}"
        raise InvalidRequestError(f"{name} is {shown(number)}, allowed is {bounds}")
    return number


def _number(name: str, value: object, low: float, high: float, open_low: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed is a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond every float
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(number):
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed is a number")
    if number < low or number > high or (open_low and number == low):
        left = "above" if open_low else "from"
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed is {left} {low:g} to {high:g}")
    if 0.0 < abs(number) < MIN_MAGNITUDE:
        raise InvalidRequestError(
            f"{name} is {value}, allowed are 0 and magnitudes from {MIN_MAGNITUDE:g}: sampling is in float32"
        )
    return number


def _check_type(name: str, value: object, kind: type, allowed: str) -> None:
    if not isinstance(value, kind):
        raise InvalidRequestError(f"{name} is {shown(value)}, allowed are {allowed}")


def _strings(name: str, values: object) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise InvalidRequestError(f"{name} is {shown(values)}, allowed is a list of strings")
    strings = tuple(values)
    if any(not isinstance(value, str) or not value for value in strings):
        raise InvalidRequestError(f"{name} is {shown(list(strings))}, allowed are strings of at least one character")
    return strings


def _token_ids(name: str, values: object) -> tuple[int, ...]:
    if values is None:
        return ()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping)):
        raise InvalidRequestError(f"{name} is {shown(values)}, allowed is a list of token ids")
    return tuple(_whole(f"a token id of {name}", value, 0) for value in values)


def _bias(values: object) -> dict[int, float]:
    if not isinstance(values, Mapping):
        raise InvalidRequestError(f"logit_bias is {shown(values)}, allowed is a mapping of token id to number")
    bias: dict[int, float] = {}
    for key, value in values.items():
        is_number = isinstance(key, str) and key.isdecimal() and len(key) < 20  # JSON has no other keys than strings
        token_id = _whole("a token id of logit_bias", int(key) if is_number else key, 0)
        bias[token_id] = _number(f"logit_bias[{token_id}]", value, -100.0, 100.0)
    return bias
