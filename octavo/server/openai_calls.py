"""What completions and chat completions have in common: an id, checks that pair fields, the engine's work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from octavo.engine.llm_engine import ModelInfo
from octavo.observe.tracing import TRACE_HEADERS
from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams
from octavo.server.api_errors import ApiError
from octavo.server.generation import Generation
from octavo.server.logprobs import TextPlace
from octavo.server.protocol import GenerationRequest
from octavo.server.responses import Usage, usage
from octavo.server.room import check_logprobs, count_logprobs
from octavo.server.serving import Serving, request_id
from octavo.text.detokenizer import TextStream

_MAX_STREAM_INTERVAL = 2**16
_MAX_PRIORITY = 2**31
#: token ids and characters that go with each prompt, of all prompts together
_MAX_REPEATED = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of OpenAI's API, checked. num_top: alternatives a logprob comes with; None for no logprobs.
    token_text: how a token without a logprob reads. token_bytes, text_stream: None without a tokenizer;
    text_stream: a tokenizer's `stream`. has_token_ids: unless the request says otherwise, where there is no text to
    tell. has_usage_always: in every chunk of a stream. num_logprobs: how many its answer may hold."""

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
        return self.generation.params

    def answer_place(self, prompt_token_ids: Sequence[int], echo: str | None) -> TextPlace:
        """Where the answer's tokens begin in the text that is told, behind the prompt's."""
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
    *,
    kind: str,
    prompts: list[list[int]],
    params: SamplingParams,
    num_top: int | None,
    names_limit: bool,
) -> Call:
    """kind: what the id begins with. names_limit: max_tokens is the request's own."""
    num_logprobs = _check_size(asked, serving, prompts, params, names_limit)
    call_id = f"{kind}-{request_id(request, asked.request_id)}"
    options, is_forced = asked.stream_options, serving.settings.enable_force_include_usage
    tokenizer = serving.client.get_tokenizer()
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
            trace_headers=trace_headers(request),
        ),
        num_top=num_top,
        token_text="token_id:{}".format if tokenizer is None else tokenizer.token_texts.__getitem__,
        token_bytes=None if tokenizer is None else tokenizer.token_bytes,
        text_stream=None if tokenizer is None else tokenizer.stream,
        as_token_ids=_given(asked.return_tokens_as_token_ids, serving.settings.return_tokens_as_token_ids),
        has_token_ids=_given(asked.return_token_ids, tokenizer is None),
        has_usage=is_forced or bool(options and options.include_usage),
        has_usage_always=is_forced or bool(options and options.include_usage and options.continuous_usage_stats),
        has_metrics=serving.settings.enable_per_request_metrics and len(prompts) == params.n == 1,
        stream_interval=_bounded("stream_interval", asked.stream_interval, 1, 1, _MAX_STREAM_INTERVAL),
        num_logprobs=num_logprobs,
    )


def _given(asked: bool | None, otherwise: bool) -> bool:
    return otherwise if asked is None else asked


def _check_size(
    asked: GenerationRequest, serving: Serving, prompts: list[list[int]], params: SamplingParams, names_limit: bool
) -> int:
    """-> log-probabilities that the answer may hold. Refuses more than one request may take of a front end."""
    settings = serving.settings
    if (num := len(prompts) * params.n) > settings.max_choices_per_request:
        raise ApiError(
            400,
            f"the request asks for {num} choices ({len(prompts)} prompts x n = {params.n}), allowed are "
            f"{settings.max_choices_per_request}: send several requests, or start the server with a larger "
            "--max-choices-per-request",
            param="n",
        )
    _check_repeated(len(prompts), params)
    info = serving.client.model_info
    num_logprobs = count_logprobs(prompts, params, info, names_limit=names_limit, is_streamed=bool(asked.stream))
    check_logprobs(num_logprobs, settings.max_logprobs_per_request)
    return num_logprobs


def _check_repeated(num_prompts: int, params: SamplingParams) -> None:
    """Each prompt is an engine request of its own, with all of these."""
    num = sum(len(tuple(ids or ())) for ids in (params.stop_token_ids, params.allowed_token_ids, params.logit_bias))
    num += sum(map(len, params.bad_words or ()))
    if num_prompts > 1 and num_prompts * num > _MAX_REPEATED:
        raise ApiError(
            400,
            f"the request has {num_prompts} prompts, and {num} token ids and characters in stop_token_ids, "
            f"allowed_token_ids, logit_bias and bad_words, which go with each of them; allowed are {_MAX_REPEATED} in "
            "all: send several requests",
            param="prompt",
        )


def check_pairs(asked: GenerationRequest) -> None:
    """Fields that mean nothing without another, or not together."""
    if not asked.stream:
        for name in ("stream_options", "stream_interval"):
            if getattr(asked, name) is not None:
                raise ApiError(
                    400, f"{name} is set and stream is not, allowed is both or neither: set stream to true", param=name
                )
    elif asked.stream_options is not None and asked.stream_options.include_obfuscation:
        raise ApiError(
            400,
            "stream_options.include_obfuscation is true, which this engine does not support: leave it out",
            param="stream_options",
            code="unsupported_parameter",
        )
    elif asked.prompt_logprobs is not None:
        raise ApiError(
            400,
            f"prompt_logprobs is {asked.prompt_logprobs} and stream is true, allowed is one of them: they come with "
            "the whole answer",
            param="prompt_logprobs",
        )
    if asked.cache_salt == "":
        raise ApiError(400, "cache_salt is '', allowed are strings of at least one character", param="cache_salt")


def check_num_logprobs(info: ModelInfo, **counts: int | None) -> None:
    """Alternatives that may be asked for, by the name of the field that asks; -1 asks for all."""
    most = info.vocab_size if info.max_logprobs == -1 else min(info.max_logprobs, info.vocab_size)
    for name, count in counts.items():
        if count is not None and not (0 <= count <= most or (count == -1 and most == info.vocab_size)):
            also = ", and -1 for all" if most == info.vocab_size else ""
            raise ApiError(
                400,
                f"{name} is {count}, allowed is 0 to {most}{also}: change it, or start the server with another "
                "--max-logprobs, where -1 allows the whole vocabulary",
                param=name,
            )


def check_logprob_token_ids(asked: GenerationRequest, has_logprobs: bool) -> bool:
    """-> whether the request names the tokens that come with each logprob, in place of the likeliest."""
    if asked.logprob_token_ids and not has_logprobs:
        raise ApiError(
            400,
            "logprob_token_ids is set and logprobs is not, allowed is both or neither: set logprobs",
            param="logprob_token_ids",
        )
    return bool(asked.logprob_token_ids)


def trace_headers(request: Request) -> dict[str, str] | None:
    found = {name: value for name in TRACE_HEADERS if (value := request.headers.get(name)) is not None}
    return found or None


def total_usage(outputs: list[RequestOutput]) -> Usage:
    return usage(
        sum(len(output.prompt_token_ids) for output in outputs),
        sum(len(one.token_ids) for output in outputs for one in output.outputs),
        sum(output.num_cached_tokens for output in outputs),
    )


def answer_size(call: Call, outputs: list[RequestOutput], echo: str) -> int:
    """The size of an answer, in the units of serving.SMALL_ANSWER. echo: text that is repeated with each sample."""
    texts = len(echo) * call.params.n + sum(len(one.text) for output in outputs for one in output.outputs)
    ids = 0
    if call.has_token_ids:
        ids = sum(len(o.prompt_token_ids) + sum(len(one.token_ids) for one in o.outputs) for o in outputs)
    return call.num_logprobs + texts // 16 + ids


def _bounded(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise ApiError(400, f"{name} is {value}, allowed is {low} to {high}", param=name)
    return value
