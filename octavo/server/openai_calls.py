"""What completions and chat completions share: checks of fields that depend on each other, and a Call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError, bad_field
from octavo.server.generation import Generation, from_headers
from octavo.server.logprob_room import count_logprobs
from octavo.server.logprobs import TextPlace
from octavo.server.protocol import GenerationRequest
from octavo.server.serving import Serving, request_id
from octavo.server.settings import MAX_STREAM_INTERVAL
from octavo.text.detokenizer import TextStream

_MAX_PRIORITY = 2**31
_MAX_REPEATED = 2**18  # token ids and characters that are sent with each prompt, in all prompts together


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A checked call of OpenAI's API. num_top: alternatives to each logprob, if any. token_text: of a token without
    one. token_bytes, text_stream: the tokenizer's, if any. has_usage_always: in all chunks. num_logprobs: at most."""

    id: str
    model: str
    created: int
    generation: Generation
    num_top: int | None
    token_text: Callable[[int], str]
    token_bytes: Callable[[int], bytes] | None = None
    text_stream: Callable[[bool, Sequence[int]], TextStream] | None = None
    as_token_ids: bool
    has_token_ids: bool
    has_usage: bool
    has_usage_always: bool
    has_metrics: bool = False
    stream_interval: int
    num_logprobs: int = 0

    @property
    def known_as(self) -> str:
        """The id without the kind of call in front."""
        return self.id.partition("-")[2]

    @property
    def params(self) -> SamplingParams:
        params = self.generation.params
        assert isinstance(params, SamplingParams), "a completion draws tokens"
        return params

    def answer_place(self, prompt_token_ids: Sequence[int], echo: str | None) -> TextPlace:
        """Where the answer's tokens begin in the reported text, behind the prompt's."""
        skips = self.params.skip_special_tokens
        stream = None if self.text_stream is None else self.text_stream(skips, prompt_token_ids)
        return TextPlace(stream, len(echo or ""))

    def echo_place(self, prompt_token_ids: Sequence[int], echo: str) -> TextPlace:
        """Where the prompt's tokens begin in its text, which shows special tokens if it was sent with them."""
        if self.text_stream is None:
            return TextPlace(None)
        skips = self.params.skip_special_tokens
        for chosen in (skips, not skips):
            push = self.text_stream(chosen, ()).push
            if "".join([push(token_id) for token_id in prompt_token_ids]) == echo:
                return TextPlace(self.text_stream(chosen, ()))
        return TextPlace(self.text_stream(skips, ()))


def make_call(
    request: Request,
    asked: GenerationRequest,
    serving: Serving,
    kind: str,
    prompts: list[list[int]],
    params: SamplingParams,
    num_top: int | None,
    *,
    names_limit: bool,
) -> Call:
    """kind: the first part of the id. names_limit: the request itself sets max_tokens."""
    num_logprobs = _check_size(asked, serving, prompts, params, names_limit)
    call_id = f"{kind}-{request_id(request, asked.request_id)}"
    options, settings, tokenizer = asked.stream_options, serving.settings, serving.client.get_tokenizer()
    is_forced, has_usage = settings.enable_force_include_usage, bool(options and options.include_usage)
    return Call(
        id=call_id,
        model=asked.model or "",
        created=int(time.time()),
        generation=Generation(
            request_id=call_id,
            prompts=prompts,
            params=params,
            priority=_bounded("priority", asked.priority, 0, -_MAX_PRIORITY, _MAX_PRIORITY),
            cache_salt=asked.cache_salt,
            lora_request=serving.adapter(asked.model),
            **from_headers(request),
        ),
        num_top=num_top,
        token_text="token_id:{}".format if tokenizer is None else tokenizer.token_texts.__getitem__,
        token_bytes=None if tokenizer is None else tokenizer.token_bytes,
        text_stream=None if tokenizer is None else tokenizer.stream,
        as_token_ids=_given(asked.return_tokens_as_token_ids, settings.return_tokens_as_token_ids),
        has_token_ids=_given(asked.return_token_ids, tokenizer is None),
        has_usage=is_forced or has_usage,
        has_usage_always=is_forced or bool(options and has_usage and options.continuous_usage_stats),
        has_metrics=settings.enable_per_request_metrics and len(prompts) == params.n == 1,
        stream_interval=_bounded(
            "stream_interval", asked.stream_interval, settings.stream_interval, 1, MAX_STREAM_INTERVAL
        ),
        num_logprobs=num_logprobs,
    )


def _given(asked: bool | None, otherwise: bool) -> bool:
    return otherwise if asked is None else asked


def _bounded(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise bad_field(name, f"is {value}, allowed is {low} to {high}")
    return value


def _check_size(
    asked: GenerationRequest, serving: Serving, prompts: list[list[int]], params: SamplingParams, names_limit: bool
) -> int:
    """-> log-probabilities that the answer may hold. Refuses a request that is too large for one front end."""
    settings = serving.settings
    if (num := len(prompts) * params.n) > settings.max_choices_per_request:
        raise ApiError(
            400,
            f"the request asks for {num} choices ({len(prompts)} prompts x n = {params.n}), allowed are "
            f"{settings.max_choices_per_request}: send several requests, or start the server with a larger "
            "--max-choices-per-request",
            param="n",
        )
    if len(prompts) > 1:
        _check_repeated(len(prompts), params)
    if params.logprobs is None and params.prompt_logprobs is None and not params.logprob_token_ids:
        return 0
    return count_logprobs(
        prompts,
        params,
        serving.client.model_info,
        names_limit=names_limit,
        is_streamed=bool(asked.stream),
        allowed=settings.max_logprobs_per_request,
    )


def _check_repeated(num_prompts: int, params: SamplingParams) -> None:
    """Each prompt is an engine request and carries all of these."""
    num = sum(len(tuple(ids or ())) for ids in (params.stop_token_ids, params.allowed_token_ids, params.logit_bias))
    num += sum(map(len, params.bad_words or ()))
    if num_prompts * num > _MAX_REPEATED:
        problem = (
            f"holds {num_prompts} prompts, and {num} token ids and characters are in stop_token_ids, "
            "allowed_token_ids, logit_bias and bad_words, which go with each of them; allowed are "
            f"{_MAX_REPEATED} in all: send several requests"
        )
        raise bad_field("prompt", problem)


def check_pairs(asked: GenerationRequest) -> None:
    """Fields that need another field, or exclude it."""
    if not asked.stream:
        for name, nothing in (("stream_options", None), ("stream_interval", 1)):
            if getattr(asked, name) not in (None, nothing):
                raise bad_field(name, "is set and stream is not, allowed is both or neither: set stream to true")
    elif asked.stream_options is not None and asked.stream_options.include_obfuscation:
        problem = "is true, which this engine does not support: leave it out"
        raise bad_field("stream_options.include_obfuscation", problem, "unsupported_parameter")
    elif asked.prompt_logprobs is not None:
        raise bad_field(
            "prompt_logprobs",
            f"is {asked.prompt_logprobs} and stream is true, allowed is one of them: they come with the whole answer",
        )
    if asked.cache_salt == "":
        raise bad_field("cache_salt", "is '', allowed are strings of at least one character")


def names_logprob_tokens(asked: GenerationRequest, has_logprobs: bool) -> bool:
    """Whether the request names the tokens to report with each logprob, in place of the most likely."""
    if asked.logprob_token_ids and not has_logprobs:
        raise bad_field("logprob_token_ids", "is set and logprobs is not, allowed is both or neither: set logprobs")
    return bool(asked.logprob_token_ids)
