"""SamplingParams: how to choose tokens. Frozen and checked when made; vLLM's names, defaults and meanings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum

from octavo.errors import InvalidRequestError

MAX_N = 16384
MAX_ALLOWED_TOKEN_IDS = 1024


class RequestOutputKind(Enum):
    """What each RequestOutput of one request holds."""

    CUMULATIVE = 0  # everything so far
    DELTA = 1  # what is new since the last one
    FINAL_ONLY = 2  # one output, when the request is done


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are chosen.

    n: sequences sampled from the prompt (1..16384); they share the prompt's KV blocks.
    presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, [-2, 2].
    repetition_penalty: divides positive, multiplies negative logits of prompt and generated tokens, > 0.
    temperature: 0 takes the best token; (0, 0.01) is raised to 0.01.
    top_p, top_k, min_p: keep the smallest set with this mass / this many / at least min_p times the best;
        1.0, 0 (or -1) and 0.0 keep all.
    seed: a request with a seed draws the same tokens again, whatever it is batched with.
    stop: strings that end a sequence (cut from the text unless include_stop_str_in_output);
    stop_token_ids: tokens that do. ignore_eos: go on past the model's end token.
    max_tokens, min_tokens: generated tokens; None lets max_tokens run to the model's limit.
    logprobs, prompt_logprobs: how many best alternatives to report a token; -1 is the whole vocabulary.
    detokenize: False returns token ids only. output_kind: see RequestOutputKind.
    logit_bias: token id -> added to its logit. allowed_token_ids: no other token may be drawn.
    bad_words: strings that may not be generated.
    truncate_prompt_tokens: keep only the last so many prompt tokens; -1 as many as the model can take.
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
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
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
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    truncate_prompt_tokens: int | None = None
    skip_reading_prefix_cache: bool | None = None

    def __post_init__(self) -> None:
        _check_whole("n", self.n, 1, MAX_N)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, math.inf, open_low=True)
        _check_number("temperature", self.temperature, 0.0, math.inf)
        _check_number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_whole("top_k", self.top_k, -1, None)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _check_whole("seed", self.seed, -(2**63), 2**63 - 1)
        if self.max_tokens is not None:
            _check_whole("max_tokens", self.max_tokens, 1, None)
        _check_whole("min_tokens", self.min_tokens, 0, self.max_tokens)
        for name in ("logprobs", "prompt_logprobs", "truncate_prompt_tokens"):
            value = getattr(self, name)
            if value is not None:
                _check_whole(name, value, -1, None)
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequestError(
                "truncate_prompt_tokens is 0, allowed are -1 and 1 or more: a prompt needs a token"
            )
        self._normalise()

    def _normalise(self) -> None:
        """Bring every spelling to one: lists to tuples, -1 to 0, tiny temperatures to 0.01."""
        set_field = object.__setattr__  # the one place a frozen field is written: its own construction
        stop = (self.stop,) if isinstance(self.stop, str) else _strings("stop", self.stop)
        set_field(self, "stop", stop)
        set_field(self, "bad_words", _strings("bad_words", self.bad_words))
        set_field(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.allowed_token_ids is not None:
            allowed = _token_ids("allowed_token_ids", self.allowed_token_ids)
            if not 1 <= len(allowed) <= MAX_ALLOWED_TOKEN_IDS:
                raise InvalidRequestError(
                    f"allowed_token_ids holds {len(allowed)} ids, allowed are 1 to {MAX_ALLOWED_TOKEN_IDS}; "
                    "use None to allow every token"
                )
            set_field(self, "allowed_token_ids", allowed)
        if self.logit_bias is not None:
            set_field(self, "logit_bias", _bias(self.logit_bias))
        if self.top_k == -1:
            set_field(self, "top_k", 0)
        if 0.0 < self.temperature < 0.01:
            set_field(self, "temperature", 0.01)
        if stop and not self.detokenize:
            raise InvalidRequestError(
                "stop strings need detokenize=True, got detokenize=False: use stop_token_ids, or drop one of the two"
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0

    def replace(self, **changes: object) -> SamplingParams:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)  # type: ignore[arg-type]

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))


def _check_whole(name: str, value: object, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} is {value!r}, allowed is a whole number")
    if value < low or (high is not None and value > high):
        bounds = f"{low} or more" if high is None else f"{low} to {high}"
        raise InvalidRequestError(f"{name} is {value}, allowed is {bounds}")


def _check_number(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise InvalidRequestError(f"{name} is {value!r}, allowed is a number")
    if value < low or value > high or (open_low and value == low) or math.isinf(value):
        left = "above" if open_low else "from"
        right = " up" if math.isinf(high) else f" to {high:g}"
        raise InvalidRequestError(f"{name} is {value}, allowed is {left} {low:g}{right}")


def _strings(name: str, values: object) -> tuple[str, ...]:
    if values is None:
        return ()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidRequestError(f"{name} is {values!r}, allowed is a list of strings")
    if any(not isinstance(value, str) or not value for value in values):
        raise InvalidRequestError(f"{name} is {list(values)!r}, allowed are strings of at least one character")
    return tuple(values)


def _token_ids(name: str, values: object) -> tuple[int, ...]:
    if values is None:
        return ()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidRequestError(f"{name} is {values!r}, allowed is a list of token ids")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidRequestError(f"{name} holds {value!r}, allowed are token ids: whole numbers from 0 up")
    return tuple(values)


def _bias(values: object) -> dict[int, float]:
    if not isinstance(values, Mapping):
        raise InvalidRequestError(f"logit_bias is {values!r}, allowed is a mapping of token id to number")
    bias: dict[int, float] = {}
    for key, value in values.items():
        token_id = int(key) if isinstance(key, str) and key.isdigit() else key
        _check_whole("logit_bias key", token_id, 0, None)
        _check_number(f"logit_bias[{token_id}]", value, -100.0, 100.0)
        bias[token_id] = float(value)
    return bias
